"""What stands out in the input: each kind against a count by hand, and visibly left out where there are no values."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance
from skimage import data

from m2f_core.images.quality import Quality, measure_quality
from pipeline.page.figures.quality import _count, _odd_sizes, _quartiles, quality
from pipeline.schema import QUALITY
from pipeline.tables.spill_database import ScratchDatabase

PLAIN = Quality(0.1, 0.9, 8.0, 70.0, 10.0, False, 0)._asdict()


@pytest.fixture
def scratch():
    database = ScratchDatabase(128)
    yield database
    database.close()


def load(scratch, rows) -> dict[str, dict]:
    """The kinds by name, of images of 480 x 640 with these differences."""
    schema = [("image_key", pa.string()), ("status", pa.string()), ("height", pa.int32()), ("width", pa.int32())]
    schema += [("etag", pa.string()), ("size_bytes", pa.int64()), ("quality", QUALITY)]
    common = {"status": "ok", "height": 480, "width": 640, "size_bytes": 1000}
    content = [
        {**common, "image_key": f"s3://b/{n:03d}.jpg", "etag": f"e{n}", "quality": {**PLAIN, "phash": n}, **row}
        for n, row in enumerate(rows)
    ]
    table = pa.Table.from_pylist(content, schema=pa.schema(schema))
    scratch.connection.register("given", table)
    scratch.connection.execute("CREATE TABLE now_images AS SELECT * FROM given")
    found = quality(scratch)
    return {**{one["kind"]: one for one in found["kinds"]}, "missing": found["missing"]}


def test_odd_sizes_and_aspects(scratch):
    usual = [{"height": 400 + n, "width": 600 + n} for n in range(40)]
    found = load(scratch, [*usual, {"height": 100, "width": 900}, {"height": 5000, "width": 6000}, {"height": None}])
    assert (found["odd_aspect"]["images"], found["odd_aspect"]["examples"]) == (1, ["s3://b/040.jpg"])
    assert found["odd_size"]["images"] == 2 and found["odd_size"]["examples"][0] == "s3://b/041.jpg"


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=30))
def test_the_quartiles_are_those_of_numpy(sides):
    database = ScratchDatabase(128)
    try:
        database.connection.execute("CREATE TABLE now_images AS SELECT unnest(?) AS height, height AS width", [sides])
        assert _quartiles(database) == pytest.approx(tuple(np.quantile(sides, [0.25, 0.75])))
    finally:
        database.close()


def test_a_million_images_need_no_memory_for_their_sizes():
    database = ScratchDatabase(20)
    try:
        database.connection.execute(
            """
            CREATE TABLE now_images AS
            SELECT i::VARCHAR AS image_key, 480 + hash(i) % 1000 AS height, if(i = 7, 99999, 640) AS width
            FROM range(1000000) AS numbers(i)
            """
        )
        assert _count(database, _odd_sizes(database))["examples"] == ["7"]
    finally:
        database.close()


def test_exact_duplicates_are_objects_with_one_etag_and_size(scratch):
    """Not members of one tar, whose ETag is the tar's, and not local files, whose ETag is a time."""
    found = load(
        scratch,
        [
            {"etag": "same"},
            {"etag": "same"},
            {"etag": "same", "size_bytes": 7},
            {"etag": ""},
            {"etag": ""},
            {"etag": "tar", "image_key": "s3://b/t.tar#a.jpg"},
            {"etag": "tar", "image_key": "s3://b/t.tar#b.jpg"},
            {"etag": "time", "image_key": "file:///a.jpg"},
            {"etag": "time", "image_key": "file:///b.jpg"},
            {"etag": "gone", "status": "removed", "height": None},
            {"etag": "gone", "status": "removed", "height": None},
        ],
    )["exact_duplicates"]
    assert found["images"] == 2 and found["examples"] == ["s3://b/000.jpg", "s3://b/001.jpg"]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("dark", {"brightness_p99": 0.3}),
        ("light", {"brightness_p05": 0.97}),
        ("blurry", {"sharpness": 20.0}),
        ("low_information", {"entropy": 1.0}),
        ("grey", {"is_grey": True}),
    ],
)
def test_kinds_of_pixels(scratch, kind, values):
    rows = [{}, {"quality": {**PLAIN, "phash": -1, **values}}, {"quality": None}]
    found = load(scratch, rows)
    assert {name: one["images"] for name, one in found.items() if name != "missing" and one["images"]} == {kind: 1}
    assert found[kind]["examples"] == ["s3://b/001.jpg"] and found["missing"] == []


def test_near_duplicates_have_one_hash(scratch):
    rows = [{"quality": {**PLAIN, "phash": 5}}, {"quality": {**PLAIN, "phash": 5}}, {"quality": {**PLAIN, "phash": 6}}]
    assert load(scratch, rows)["near_duplicates"]["images"] == 2


def test_what_was_not_looked_for_is_said(scratch):
    found = load(scratch, [{"quality": None, "image_key": "file:///a.jpg"}])
    said = " ".join(one["kinds"] for one in found["missing"])
    assert all(kind in said for kind in ("exact duplicates", "dark", "blurry", "near duplicates"))
    assert not {"dark", "near_duplicates"} & set(found)


def test_pictures_with_a_fault_are_named(scratch):
    sound = {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in ("astronaut", "coffee", "chelsea")}
    spoilt = {
        "dark": ImageEnhance.Brightness(sound["coffee"]).enhance(0.2),
        "light": Image.eval(sound["astronaut"], lambda level: 250 + level // 64),
        "grey": sound["chelsea"].convert("L").convert("RGB"),
        "plain": Image.new("RGB", (300, 200), (90, 120, 60)),
    }
    pictures = {**sound, **spoilt, "again": sound["coffee"].copy()}
    rows = [{"image_key": name, "quality": measure_quality(image)._asdict()} for name, image in pictures.items()]
    kinds = {name: one["examples"] for name, one in load(scratch, rows).items() if name != "missing" and one["images"]}
    assert kinds["dark"] == ["dark"] and kinds["light"] == ["light"] and kinds["grey"] == ["grey"]
    assert "plain" in kinds["low_information"] and "again" in kinds["near_duplicates"]
