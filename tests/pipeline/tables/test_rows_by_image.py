"""Images with their segments: the rows of the current view, grouped, in order, divided the same way each time."""

import gc
import itertools
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.schema import IMAGES, SEGMENTS
from pipeline.tables import rows_by_image
from pipeline.tables.current_view import current_images, current_segments
from pipeline.tables.in_order import spilled_masks
from pipeline.tables.in_order.spilled_masks import Ranked, in_order
from pipeline.tables.rows_by_image import RowsByImage, Wanted
from tests.support.published_tables import image_row, publish, publish_run, segment_row

KEYS = [
    f"s3://photos/{name}" for name in ("Z.jpg", "a/b.jpg", "a_b.jpg", "ä.jpg", "z#1.jpg", "\U0001f600.jpg", "\uffef")
]


def write_nights(output: str) -> None:
    """Two runs in parts of mixed order; the second has other segments, and one image is gone."""
    rng = np.random.default_rng(1)
    for night, run in enumerate(("first", "second")):
        chosen = [key for key in KEYS if night == 0 or rng.random() < 0.6]
        counts = {key: int(rng.integers(0, 6)) for key in chosen}
        rows = [
            segment_row(key, run, n + 1, score=float(rng.random()), category_id=int(rng.integers(3)))
            for key in chosen
            for n in range(counts[key])
        ]
        shuffled = [rows[i] for i in rng.permutation(len(rows))]
        status = {KEYS[0]: "removed" if night else "ok"}
        images = [image_row(k, run, night, num_segments=counts[k], status=status.get(k, "ok")) for k in chosen]
        publish(output, "segments", run, [shuffled[:5], shuffled[5:]])
        publish(output, "images", run, [images[:2], images[2:]])


@pytest.fixture(scope="module")
def nights(tmp_path_factory) -> str:
    output = str(tmp_path_factory.mktemp("nights"))
    write_nights(output)
    return output


def without_keys(segment: dict) -> dict:
    """The columns of a segment that its image does not have."""
    return {name: value for name, value in segment.items() if name not in ("image_key", "run_id")}


def expected(output: str, keep=lambda image, segment: True):
    images = sorted(current_images(output).read_all().to_pylist(), key=lambda row: row["image_key"].encode())
    segments = sorted(current_segments(output).read_all().to_pylist(), key=lambda row: row["segment_id"])
    return [
        (n, image, [without_keys(s) for s in segments if s["image_key"] == image["image_key"] and keep(image, s)])
        for n, image in enumerate(images)
    ]


def open_rows(output: str, **options) -> RowsByImage:
    of_segments = [name for name in SEGMENTS.names if name not in ("image_key", "run_id")]
    return RowsByImage(Output.open(output), IMAGES.names, of_segments, **options)


def read(rows: RowsByImage, **division):
    found, sizes = [], []
    for one in rows.batches(**division):
        images, segments = one.images.to_pylist(), one.segments.to_pylist()
        sizes.append(len(images))
        assert len(one.offsets) == len(images) + 1 and one.offsets[0] == 0 and one.offsets[-1] == len(segments)
        found += [
            (int(number), image, segments[one.offsets[n] : one.offsets[n + 1]])
            for n, (number, image) in enumerate(zip(one.numbers, images, strict=True))
        ]
    assert sum(sizes) == rows.num_images()
    return found, sizes


@pytest.fixture(scope="module")
def opened(nights):
    rows = open_rows(nights)
    yield rows
    rows.close()


@given(per_batch=st.integers(1, 9), most_bytes=st.sampled_from([0, 250, 1000, 1 << 20]))
@settings(max_examples=8, deadline=None)
def test_images_come_with_their_segments_in_order_however_they_are_divided(nights, opened, per_batch, most_bytes):
    found, sizes = read(opened, images_per_batch=per_batch, batch_bytes=most_bytes)
    assert found == expected(nights)
    assert max(sizes) <= per_batch
    bytes_of = [sum(100 + len(s["segmentation"]["counts"]) for s in segments) for _, _, segments in found]
    starts = np.cumsum([0, *sizes])
    of_batches = [sum(bytes_of[a:b]) for a, b in itertools.pairwise(starts)]
    assert all(size == 1 or total <= most_bytes for size, total in zip(sizes, of_batches, strict=True))


def test_conditions_choose_rows_and_leave_numbers_as_they_are(nights):
    everything = expected(nights)
    by_image, _ = read(open_rows(nights, wanted=Wanted(images="image_key > 's3://photos/a/c'")))
    assert by_image == [row for row in everything if row[1]["image_key"] > "s3://photos/a/c"] != everything
    by_segment, _ = read(
        open_rows(nights, wanted=Wanted(segments="score >= 0.5 AND height = 480", image_columns=("height",)))
    )
    assert by_segment == expected(nights, lambda _, segment: segment["score"] >= 0.5)
    assert len(by_segment) == len(everything) and by_segment != everything


def test_a_condition_on_rows_keeps_images_that_have_such_a_row(nights):
    condition = Wanted(rows="score >= 0.6 OR score IS NULL", segments="category_id <> 2", segment_columns=("score",))
    found, _ = read(open_rows(nights, wanted=condition))
    rows = expected(nights, lambda _, segment: segment["score"] >= 0.6)
    kept = [row for row in rows if row[2] or not row[1]["num_segments"]]
    assert 0 < len(kept) < len(rows)
    assert found == [(n, image, [s for s in segments if s["category_id"] != 2]) for n, image, segments in kept]


def test_a_condition_cannot_read_files(nights, tmp_path):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(duckdb.Error, match="disabled"):
        open_rows(nights, wanted=Wanted(rows=f"(SELECT count(*) FROM read_csv('{tmp_path}/secret.csv')) > 0"))


def test_a_version_of_the_past_has_its_rows(tmp_path):
    output = str(tmp_path)
    publish_run(output, "first", [image_row("s3://a", "first", 0)], [segment_row("s3://a", "first")])
    rows = RowsByImage(Output.open(output), ["image_key"], ["segment_id"])
    publish_run(output, "second", [image_row("s3://b", "second", 1)], [segment_row("s3://b", "second")])
    assert rows.version == 1
    again = RowsByImage(Output.open(output), ["image_key"], ["segment_id"], version=rows.version)
    newest = RowsByImage(Output.open(output), ["image_key"], ["segment_id"])
    keys = [[b.images["image_key"].to_pylist() for b in one.batches()] for one in (rows, again, newest)]
    assert keys == [[["s3://a"]], [["s3://a"]], [["s3://a", "s3://b"]]]


@pytest.mark.parametrize("change", [lambda rows: rows.slice(1), lambda rows: rows.slice(0, len(rows) - 1)])
@pytest.mark.parametrize("memory", [1 << 10, 1 << 30])
def test_masks_that_are_missing_are_an_error_before_a_mask_is_beside_another_row(nights, monkeypatch, change, memory):
    whole = rows_by_image.stream_table

    def fewer(output, table, snapshot, columns, **chosen):
        for batch in whole(output, table, snapshot, columns, **chosen):
            yield change(batch) if columns == ["segmentation"] else batch

    monkeypatch.setattr(rows_by_image, "stream_table", fewer)
    monkeypatch.setattr(spilled_masks.in_order, "__defaults__", (memory,))
    found = []
    with pytest.raises(RunError, match="has changed while it was read: there are other masks than rows"):
        for one in open_rows(nights).batches(images_per_batch=1):
            found += one.segments.to_pylist()
    assert all(segment in [s for _, _, rows in expected(nights) for s in rows] for segment in found)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no file that is always full")
def test_a_full_disk_is_one_line(nights, tmp_path, monkeypatch):
    (tmp_path / "full").symlink_to("/dev/full")
    monkeypatch.setattr(spilled_masks.in_order, "__defaults__", (1 << 10,))
    full = spilled_masks._File
    monkeypatch.setattr(spilled_masks, "_File", lambda path: full(tmp_path / "full"))
    with pytest.raises(RunError, match=r"too little space in .* \(TMPDIR\): .*No space left on device"):
        list(open_rows(nights).batches())


def test_rows_that_do_not_fit_into_memory_are_sorted_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    keys = [f"s3://photos/{n * 7919 % 400:04d}" for n in range(400)]
    counts = ["0" * 40_000 for _ in keys]
    parts = [
        [segment_row(k, "night", n, segmentation={"size": [480, 640], "counts": c}) for n in range(1, 11)]
        for k, c in zip(keys, counts, strict=True)
    ]
    output = str(tmp_path / "out")
    publish(output, "segments", "night", parts)
    publish(output, "images", "night", [[image_row(key, "night", 0, num_segments=10) for key in keys]])
    rows = RowsByImage(Output.open(output), ["image_key"], ["segment_id", "segmentation"], memory_mib=96)
    seen = [(batch.images["image_key"].to_pylist(), batch.segments.num_rows) for batch in rows.batches()]
    assert [key for some, _ in seen for key in some] == sorted(keys)
    assert sum(count for _, count in seen) == 4000 and all(count <= 10 * len(some) for some, count in seen)
    rows.close()
    assert not list((tmp_path / "scratch").rglob("*.duckdb"))


def test_damage_in_a_part_is_said_in_one_line(tmp_path):
    output = str(tmp_path)
    publish_run(output, "night", [image_row("s3://a", "night", 0)], [segment_row("s3://a", "night")])
    [part] = Path(output, "segments").rglob("*.parquet")
    part.write_bytes(pq.read_table(part).schema.serialize().to_pybytes().ljust(part.stat().st_size, b"x"))
    with pytest.raises(RunError, match=r"the table segments below .* cannot be read: "):
        RowsByImage(Output.open(output), ["image_key"], ["segment_id"])


def test_nothing_published_is_one_line(tmp_path):
    with pytest.raises(RunError, match="has no published table images; give the --output of a run"):
        RowsByImage(Output.open(str(tmp_path)), ["image_key"], ["segment_id"])
    gc.collect()  # the database of the object that could not be made is closed, without a warning


@given(
    order=st.permutations(range(60)),
    file_bytes=st.sampled_from([1, 200, 1000, 1 << 20]),
    guess=st.sampled_from([0, 500, 1 << 20]),
    per_batch=st.integers(1, 60),
)
@settings(max_examples=25, deadline=None)
def test_masks_come_in_the_order_of_their_ranks(tmp_path_factory, order, file_bytes, guess, per_batch):
    folder = tmp_path_factory.mktemp("masks")
    masks = [{"size": [4, 5], "counts": "0" * (7 * rank % 50)} for rank in range(60)]
    kind = SEGMENTS.field("segmentation").type
    stream = (
        Ranked(np.array(order[n : n + per_batch]), pa.array([masks[r] for r in order[n : n + per_batch]], kind))
        for n in range(0, 60, per_batch)
    )
    found = [mask for some in in_order(stream, 0, 60, guess, folder, file_bytes) for mask in some.to_pylist()]
    assert found == masks
    assert not list(folder.iterdir())
