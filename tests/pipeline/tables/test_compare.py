"""What two outputs are told apart by, and what not."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from pipeline.schema import TABLES
from pipeline.tables.compare import check_books, compare, read_rows

KEYS = [f"file:///photos/{name}.png" for name in "abc"]


def image(key: str, num_segments: int = 2, **changes: Any) -> dict[str, Any]:
    row = {
        "image_key": key,
        "status": "ok",
        "height": 4,
        "width": 5,
        "etag": "e",
        "size_bytes": 9,
        "num_segments": num_segments,
        "run_id": "one",
        "run_created": datetime(2026, 1, 1, tzinfo=UTC),
        "shard": 0,
        "fingerprint": "f",
        "attempt": 1,
        "reason": "new",
    }
    return {**row, **changes}


def segment(key: str, segment_id: int, **changes: Any) -> dict[str, Any]:
    row = {
        "image_key": key,
        "segment_id": segment_id,
        "category_id": 1,
        "category_name": "thing",
        "isthing": True,
        "score": 0.5,
        "area": 3,
        "bbox": [0.0, 0.0, 1.0, 3.0],
        "segmentation": {"size": [4, 5], "counts": "abc"},
        "run_id": "one",
        "shard": 0,
    }
    return {**row, **changes}


def all_images() -> list[dict[str, Any]]:
    return [image(key) for key in KEYS]


def all_segments() -> list[dict[str, Any]]:
    return [segment(key, number) for key in KEYS for number in (1, 2)]


@pytest.fixture
def written(tmp_path):
    def write(name, images, segments):
        for table, rows in (("images", images), ("segments", segments)):
            if rows:
                write_deltalake(tmp_path / name / table, pa.Table.from_pylist(rows, schema=TABLES[table]))
        return read_rows(str(tmp_path / name))

    return write


@pytest.fixture
def reference(written):
    return written("reference", all_images(), all_segments())


def test_order_run_shard_and_attempt_are_no_difference(written, reference):
    of_run = {"run_id": "two", "shard": 7}
    created = datetime(2027, 1, 1, tzinfo=UTC)
    images = [row | of_run | {"attempt": 3, "run_created": created} for row in reversed(all_images())]
    segments = [row | of_run for row in reversed(all_segments())]
    other = written("other", images, segments)
    differences = compare(reference, other)
    assert not differences and str(differences) == ""
    assert check_books(other, KEYS) == []


@pytest.mark.parametrize(
    ("name", "images", "segments"),
    [
        ("lost", all_images()[1:], all_segments()[2:]),
        ("duplicated", [*all_images(), image(KEYS[0])], all_segments()),
        ("duplicated", all_images(), [*all_segments(), segment(KEYS[0], 2)]),
        ("differing", [image(KEYS[0], status="failed", error_code="too_large"), *all_images()[1:]], all_segments()),
        ("differing", [image(KEYS[0], etag="other"), *all_images()[1:]], all_segments()),
        ("differing", all_images(), all_segments()[1:]),
        ("differing", all_images(), [segment(KEYS[0], 1, score=0.5000001), *all_segments()[1:]]),
        (
            "differing",
            all_images(),
            [segment(KEYS[0], 1, segmentation={"size": [4, 5], "counts": "abd"}), *all_segments()[1:]],
        ),
        ("unexpected", [*all_images(), image("file:///photos/d.png", 0)], all_segments()),
        ("unexpected", all_images(), [*all_segments(), segment("file:///photos/d.png", 1)]),
    ],
)
def test_each_difference_has_its_name(written, reference, name, images, segments):
    differences = compare(reference, written("other", images, segments))
    assert [what for what, keys in vars(differences).items() if keys] == [name]
    assert len(getattr(differences, name)) == 1 and f"1 {name} (file:///photos/" in str(differences)


def test_an_output_without_tables_has_lost_everything(written, reference):
    nothing = written("nothing", [], [])
    assert compare(reference, nothing).lost == KEYS
    assert check_books(nothing, KEYS) == [f"3 images have no row, for example {KEYS[0]}"]


def test_only_the_chosen_images_are_compared(written, reference):
    other = written("other", [*all_images()[:2], image("file:///poison")], all_segments()[:4])
    assert not compare(reference, other, among=lambda key: key in KEYS[:2])


def test_books_that_do_not_close_say_why(written):
    images = [image(KEYS[0], num_segments=1), image(KEYS[1]), image(KEYS[1])]
    lines = check_books(written("other", images, all_segments()), [KEYS[0], KEYS[2]])
    assert [line.split(", for example")[0] for line in lines] == [
        "1 images have no row",
        "1 images have a row but were not planned",
        "1 images have several rows",
        "1 images have segments but no row",
        "1 images have a num_segments that is not their number of segments",
    ]
