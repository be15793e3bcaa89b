"""Credentials that may list the input and not read it, as after a change of policy: the run breaks, no image fails."""

import os
import subprocess
import sys

from jobs import segment_bucket
from tests.s3_server import LIST_ONLY_ACCESS_KEY, LIST_ONLY_SECRET_KEY
from tests.segmenting import encoded


def test_a_run_that_can_read_nothing_breaks_with_one_line_and_commits_nothing(s3, tiny_checkpoint, tmp_path):
    bucket = s3.bucket("lost-credentials")
    for number in range(20):
        s3.client.put_object(Bucket="lost-credentials", Key=f"{number:02d}.png", Body=encoded(seed=number))
    flags = ["--input", bucket, "--output", tmp_path, "--model", tiny_checkpoint, "--image-size", "64:128"]
    done = subprocess.run(
        [sys.executable, segment_bucket.__file__, *map(str, [*flags, "--images-per-shard", 10])],
        env={
            **os.environ,
            "AWS_ACCESS_KEY_ID": LIST_ONLY_ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": LIST_ONLY_SECRET_KEY,
        },
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("segment_bucket.py: error: run ")]
    assert "none of the 10 images of shard" in line and "access_denied" in line
    assert not list(tmp_path.glob("images/**/*.parquet")) and not list(tmp_path.glob("_runs/*/journal/*"))
