"""The same images loose, by a manifest, by an S3 Inventory, in a tar and in a Parquet file: the same segments."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.tables.current_view import current_images, current_segments
from tests.support.inventories import inventory, row
from tests.support.segmenting import encoded
from tests.support.tars import member, tar_of

OF_THE_RUN = ("run_id", "run_created", "shard", "attempt", "reason")
OF_THE_PLACE = ("etag", "size_bytes", "attributes")
SAME_KEYS, OTHER_KEYS = ("loose", "manifest", "inventory"), ("tar", "parquet")


@pytest.mark.parametrize(
    "number", [pytest.param(12, marks=pytest.mark.thorough), pytest.param(2000, marks=pytest.mark.slow)]
)
def test_the_same_images_in_five_forms_give_the_same_segments(drivers, s3, fresh_s3, tiny_checkpoint, tmp_path, number):
    photographs = s3.bucket(f"m2f-lists-{number}")
    bucket = photographs.removeprefix("s3://")
    found, images = [], []
    for seed in range(number):
        data, name = encoded(seed=seed), f"a b+{seed:04d}.png"
        key = f"photographs/{name}"
        etag = s3.client.put_object(Bucket=bucket, Key=key, Body=data)["ETag"].strip('"')
        found.append((key, len(data), etag))
        images.append((name, data))
    rows = [row(bucket, *one) for one in found]
    report = inventory(bucket, [rows[:5], [*rows[5:], row(bucket, "old.png", IsLatest=False)]], "CSV")
    for name, content in report.items():
        s3.client.put_object(Bucket=bucket, Key=f"inventories/{name}", Body=content)
    s3.client.put_object(Bucket=bucket, Key="tars/images.tar", Body=tar_of(member(*image) for image in images))
    table = pa.table({"name": [name for name, _ in images], "image": [{"bytes": data} for _, data in images]})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=500)
    # Without ETags: the rows get those that the store answers.
    text = "uri,size\n" + "".join(f'"{photographs}/{key}",{size}\n' for key, size, _ in found)
    (tmp_path / "m.csv").write_text(text)

    ways = {
        "loose": ("--input", f"{photographs}/photographs"),
        "manifest": ("--input", tmp_path / "m.csv", "--input-format", "manifest"),
        "inventory": ("--input", f"{photographs}/inventories", "--input-format", "inventory"),
        "tar": ("--input", f"{photographs}/tars"),
        "parquet": ("--input", tmp_path / "images.parquet", "--key-column", "name"),
    }
    for way, flags in ways.items():
        run(drivers, tiny_checkpoint, tmp_path / way, *flags)
    expected = tables(tmp_path / "loose")
    assert len(expected[0]) == number and {image["status"] for image in expected[0]} == {"ok"} and expected[1]
    for way in SAME_KEYS:
        assert tables(tmp_path / way) == expected
    for way in OTHER_KEYS:
        assert by_name(tables(tmp_path / way)) == by_name(expected)
    for way in SAME_KEYS:  # the night after, and the same images by another way
        assert "nothing to do" in run(drivers, tiny_checkpoint, tmp_path / way, *ways[way])
        assert "nothing to do" in run(drivers, tiny_checkpoint, tmp_path / "loose", *ways[way])
    for way in OTHER_KEYS:
        assert "nothing to do" in run(drivers, tiny_checkpoint, tmp_path / way, *ways[way])


def run(drivers, model: Path, output: Path, *flags: object) -> str:
    driver = drivers.start(*flags, "--output", output, "--model", model, "--image-size", "64:128")
    driver.wait()
    assert driver.returncode == 0, driver.said()
    return driver.said()


def tables(output: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images and segments, without what belongs to the run."""
    read = (current_images(str(output)).read_all().to_pylist(), current_segments(str(output)).read_all().to_pylist())
    plain = [[{k: v for k, v in one.items() if k not in OF_THE_RUN} for one in rows] for rows in read]
    images, segments = (sorted(rows, key=lambda one: (one["image_key"], one.get("segment_id", 0))) for rows in plain)
    return images, segments


def by_name(found: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The same rows with the file's name as key, without what only tells where the bytes lie."""
    named = [
        [
            {**{k: v for k, v in one.items() if k not in OF_THE_PLACE}, "image_key": name_in(one["image_key"])}
            for one in rows
        ]
        for rows in found
    ]
    return [sorted(rows, key=lambda one: (one["image_key"], one.get("segment_id", 0))) for rows in named]


def name_in(image_key: str) -> str:
    return image_key.rpartition("#")[2].rpartition("/")[2]
