"""The same images as loose objects, by a manifest and by an S3 Inventory: the same tables, and no image twice."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.tables.current_view import current_images, current_segments
from tests.support.inventories import inventory, row
from tests.support.segmenting import encoded

NUMBER = 12
OF_THE_RUN = ("run_id", "run_created", "shard", "attempt", "reason")


@pytest.mark.thorough
def test_loose_objects_a_manifest_and_an_inventory_give_the_same_tables(
    drivers, s3, fresh_s3, tiny_checkpoint, tmp_path
):
    photographs = s3.bucket("m2f-lists")
    found = []
    for number in range(NUMBER):
        data, key = encoded(seed=number), f"photographs/a b+{number:02d}.png"
        etag = s3.client.put_object(Bucket="m2f-lists", Key=key, Body=data)["ETag"].strip('"')
        found.append((key, len(data), etag))
    rows = [row("m2f-lists", *one) for one in found]
    report = inventory("m2f-lists", [rows[:5], [*rows[5:], row("m2f-lists", "old.png", IsLatest=False)]], "CSV")
    for name, content in report.items():
        s3.client.put_object(Bucket="m2f-lists", Key=f"inventories/{name}", Body=content)
    # Without ETags: the rows get those that the store answers.
    text = "uri,size\n" + "".join(f'"{photographs}/{key}",{size}\n' for key, size, _ in found)
    (tmp_path / "m.csv").write_text(text)

    ways = {
        "loose": ("--input", f"{photographs}/photographs"),
        "manifest": ("--input", tmp_path / "m.csv", "--input-format", "manifest"),
        "inventory": ("--input", f"{photographs}/inventories", "--input-format", "inventory"),
    }
    for way, flags in ways.items():
        run(drivers, tiny_checkpoint, tmp_path / way, *flags)
    expected = tables(tmp_path / "loose")
    assert len(expected[0]) == NUMBER and {image["status"] for image in expected[0]} == {"ok"} and expected[1]
    assert tables(tmp_path / "manifest") == expected
    assert tables(tmp_path / "inventory") == expected
    for way, flags in ways.items():  # the night after, and the same images by another way
        assert "nothing to do" in run(drivers, tiny_checkpoint, tmp_path / way, *flags)
        assert "nothing to do" in run(drivers, tiny_checkpoint, tmp_path / "loose", *flags)


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
