"""Credentials that may list the input and not read it, as after a change of policy: the run breaks, no image fails.

Where they may read a part of it, it is a matter of the images.
"""

from pathlib import Path

import pytest

from tests.support.drivers import Driver, Drivers
from tests.support.s3_server import (
    HALF_OPEN_BUCKET,
    LIST_ONLY_ACCESS_KEY,
    LIST_ONLY_SECRET_KEY,
    OPEN_ONLY_ACCESS_KEY,
    OPEN_ONLY_SECRET_KEY,
)
from tests.support.segmenting import encoded
from tests.support.tables import read_table


def segment(drivers: Drivers, bucket: str, output: Path, model: Path, access_key: str, secret_key: str) -> Driver:
    flags = ["--input", bucket, "--output", output, "--model", model, "--image-size", "64:128"]
    keys = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
    driver = drivers.start(*flags, "--images-per-shard", 10, **keys)
    driver.wait()
    return driver


@pytest.mark.thorough
def test_a_run_that_can_read_nothing_breaks_with_one_line_and_commits_nothing(drivers, s3, tiny_checkpoint, tmp_path):
    bucket = s3.bucket("lost-credentials")
    for number in range(20):
        s3.client.put_object(Bucket="lost-credentials", Key=f"{number:02d}.png", Body=encoded(seed=number))
    done = segment(drivers, bucket, tmp_path, tiny_checkpoint, LIST_ONLY_ACCESS_KEY, LIST_ONLY_SECRET_KEY)
    assert done.returncode == 1, done.said()
    [line] = [line for line in done.said().splitlines() if line.startswith("segment_bucket.py: error: run ")]
    assert "none of the 10 images of shard" in line and "access_denied" in line
    assert not list(tmp_path.glob("images/**/*.parquet")) and not list(tmp_path.glob("_runs/*/journal/*"))


@pytest.mark.thorough
def test_a_prefix_that_may_not_be_read_is_rows_and_the_rest_is_done(drivers, s3, tiny_checkpoint, tmp_path):
    """Whole shards of it, and the first ones: keys are sorted."""
    bucket = s3.bucket(HALF_OPEN_BUCKET)
    for number in range(30):
        key = f"{'archive' if number < 20 else 'open'}/{number:02d}.png"
        s3.client.put_object(Bucket=HALF_OPEN_BUCKET, Key=key, Body=encoded(seed=number))
    done = segment(drivers, bucket, tmp_path, tiny_checkpoint, OPEN_ONLY_ACCESS_KEY, OPEN_ONLY_SECRET_KEY)
    assert done.returncode == 1 and "error:" not in done.said(), done.said()  # more failed than the budget allows
    codes = {row["image_key"].split("/")[-2]: row["error_code"] for row in read_table(tmp_path, "images")}
    assert len(read_table(tmp_path, "images")) == 30
    assert codes == {"archive": "access_denied", "open": None}
