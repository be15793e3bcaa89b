"""Whatever changes in a finished run is found: each column, each part, each record."""

import json
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction, RemoveAction

from pipeline.commit.journal import Journal
from pipeline.layout import Output
from pipeline.schema import TABLES
from pipeline.tables.publish import compact
from pipeline.verify.books import read_library
from pipeline.verify.facts import Proof, TableFile
from pipeline.verify.file.check import Checker
from pipeline.verify.findings import Findings, Kind
from pipeline.verify.settings import VerifySettings
from pipeline.verify.verify import Verdict, verify
from tests.pipeline.verify.conftest import write_night
from tests.support.run_books import (
    QUALITY,
    change_in_place,
    change_receipts,
    forge,
    part_of,
    publish_anew,
    with_value,
    write_report,
)

BROKEN = 2  # the row of `images` that failed

# Column -> (row of the first part, the value that it gets, the kind of finding and its field).
IMAGES: dict[str, tuple[int, Any, Kind, str]] = {
    "image_key": (0, "s3://b/other.jpg", Kind.NOT_PLANNED, "image_key"),
    "status": (0, "okay", Kind.VALUE, "status"),
    "error_code": (BROKEN, "no_such_code", Kind.VALUE, "error_code"),
    "error_message": (BROKEN, None, Kind.STATUS, "error_message"),
    "height": (0, 7, Kind.SIZE, "height, width"),
    "width": (0, 0, Kind.VALUE, "width"),
    "etag": (0, "another", Kind.NOT_AS_PLANNED, "etag"),
    "size_bytes": (0, 1, Kind.NOT_AS_PLANNED, "size_bytes"),
    "num_segments": (0, 4, Kind.NUM_SEGMENTS, "num_segments"),
    "run_id": (0, "other", Kind.UNKNOWN_RUN, "run_id"),
    "run_created": (0, lambda then: then + timedelta(microseconds=1), Kind.OF_RUN, "run_created"),
    "shard": (0, 1, Kind.OF_RUN, "shard"),
    "fingerprint": (0, "another", Kind.OF_RUN, "fingerprint"),
    "attempt": (0, 2, Kind.OF_RUN, "attempt"),
    "reason": (0, "changed", Kind.NOT_AS_PLANNED, "reason"),
    "attributes": (0, '{"camera": 2}', Kind.NOT_AS_PLANNED, "attributes"),
    "quality": (0, {**QUALITY, "brightness_p99": 0.1}, Kind.VALUE, "quality"),
}
SEGMENTS: dict[str, tuple[int, Any, Kind, str]] = {
    "image_key": (0, "s3://b/b.jpg", Kind.NUM_SEGMENTS, "num_segments"),
    "segment_id": (2, 9, Kind.SEGMENT_IDS, "segment_id"),
    "category_id": (0, 3, Kind.CATEGORY, "category_name"),
    "category_name": (0, "dog", Kind.CATEGORY, "category_name"),
    "isthing": (0, False, Kind.CATEGORY, "isthing"),
    "score": (0, math.nan, Kind.VALUE, "score"),
    "area": (0, 13, Kind.NOT_MEASURED, "area"),
    "bbox": (0, [0.0, 0.0, 4.0, 4.0], Kind.NOT_MEASURED, "bbox"),
    "segmentation": (0, lambda rle: {**rle, "size": [8, 7]}, Kind.NO_RLE, "segmentation"),
    "run_id": (0, "other", Kind.UNKNOWN_RUN, "run_id"),
    "shard": (0, 1, Kind.OF_RUN, "shard"),
    "embedding": (0, None, Kind.OF_RUN, "embedding"),
}
MUTATIONS = {"images": IMAGES, "segments": SEGMENTS}
COLUMNS = [(table, field) for table, schema in TABLES.items() for field in schema.names]
# More that a column may be, one way to be wrong after the other.
OTHERS = [
    ("images", "status", 0, "failed", Kind.STATUS, "error_code"),
    ("images", "status", 0, "failed", Kind.OF_NO_RESULT, "status"),
    ("images", "error_code", 0, "too_large", Kind.STATUS, "error_code"),
    ("images", "error_code", BROKEN, "too_large", Kind.COUNTS, "failed_by_code"),
    ("images", "height", 0, None, Kind.STATUS, "height"),
    ("images", "height", 0, -1, Kind.VALUE, "height"),
    ("images", "width", BROKEN, 8, Kind.STATUS, "width"),
    ("images", "size_bytes", 0, 0, Kind.STATUS, "size_bytes"),
    ("images", "size_bytes", 0, -1, Kind.VALUE, "size_bytes"),
    ("images", "num_segments", 0, -1, Kind.VALUE, "num_segments"),
    ("images", "num_segments", BROKEN, 1, Kind.STATUS, "num_segments"),
    ("images", "reason", 0, "removed", Kind.STATUS, "reason"),
    ("images", "reason", 0, "boredom", Kind.VALUE, "reason"),
    ("images", "attributes", 0, "[1]", Kind.VALUE, "attributes"),
    ("images", "attributes", 0, None, Kind.NOT_AS_PLANNED, "attributes"),
    ("images", "quality", BROKEN, QUALITY, Kind.STATUS, "quality"),
    ("images", "quality", 0, {**QUALITY, "entropy": math.nan}, Kind.VALUE, "quality"),
    ("images", "quality", 0, {**QUALITY, "sharpness": -1.0}, Kind.VALUE, "quality"),
    ("images", "image_key", 0, "s3://b/b.jpg", Kind.SEVERAL_ROWS, "image_key"),
    ("images", "image_key", 0, "s3://b/other.jpg", Kind.NO_ROW, "image_key"),
    ("images", "image_key", 0, "", Kind.VALUE, "image_key"),
    ("segments", "image_key", 0, "s3://b/other.jpg", Kind.NO_IMAGE, "image_key"),
    ("segments", "image_key", 0, "s3://b/broken.jpg", Kind.OF_NO_RESULT, "status"),
    ("segments", "segment_id", 0, 2, Kind.SEGMENT_IDS, "segment_id"),
    ("segments", "segment_id", 0, 0, Kind.SEGMENT_IDS, "segment_id"),
    ("segments", "category_id", 0, 4, Kind.CATEGORY, "category_id"),
    ("segments", "score", 0, 1.5, Kind.VALUE, "score"),
    ("segments", "score", 0, -0.1, Kind.VALUE, "score"),
    ("segments", "score", 0, math.inf, Kind.VALUE, "score"),
    ("segments", "bbox", 0, [0.0, 0.0, 4.0], Kind.VALUE, "bbox"),
    ("segments", "embedding", 0, [0.5, 0.0], Kind.VALUE, "embedding"),
    ("segments", "embedding", 0, [0.1, 0.0, 0.0], Kind.VALUE, "embedding"),  # no half float
    ("segments", "embedding", 0, [math.inf, 0.0, 0.0], Kind.VALUE, "embedding"),
    ("segments", "bbox", 0, [0.0, 0.0, 4.0, None], Kind.VALUE, "bbox"),
    ("segments", "segmentation", 0, {"size": [6], "counts": "04"}, Kind.VALUE, "segmentation"),
    ("segments", "segmentation", 0, {"size": [6, 8], "counts": None}, Kind.VALUE, "segmentation"),
    ("segments", "segmentation", 0, {"size": [6, 8], "counts": ""}, Kind.NO_RLE, "segmentation"),
    ("segments", "segmentation", 0, {"size": [6, 8], "counts": "`1"}, Kind.NO_RLE, "segmentation"),  # no pixel
    ("segments", "segmentation", 0, {"size": [6, 8], "counts": "0`1"}, Kind.SHARED_PIXELS, "segmentation"),
    ("segments", "segmentation", 0, {"size": [6, 8], "counts": "0`1"}, Kind.NOT_MEASURED, "area"),
]


# Found in a row, or in the rows of an image that lie in one file.
IN_FILE = {Kind.VALUE, Kind.STATUS, Kind.CATEGORY, Kind.NO_RLE, Kind.NOT_MEASURED, Kind.SHARED_PIXELS}


def check(output: object, **options: Any) -> Verdict:
    return verify(VerifySettings(str(output), workers=1, **options))


def kinds(verdict: Verdict) -> set[tuple[Kind, str]]:
    return {(finding.kind, finding.field) for finding in verdict.findings}


def test_a_sound_run_has_no_findings(sound_output):
    verdict = check(sound_output)
    assert verdict.is_good and verdict.notes == []
    assert verdict.num_rows == {"images": 6, "segments": 8} and verdict.num_checked == 2


def file_of(output, table: str) -> TableFile:
    """The first part of the table, as its receipt names it."""
    output = Output.open(str(output))
    attempt, receipt = next(Journal(output.run("night")).read_with_attempts())
    part = receipt.parts[table]
    proof = Proof("night", receipt.shard, attempt, part.sha256)
    return TableFile(0, table, part.path, part.size_bytes, part.num_rows, proof)


def found_in_file(output, table: str) -> set[tuple[Kind, str]]:
    """What is wrong with the first part of the table by itself."""
    library = read_library(Output.open(str(output)), None, Findings())
    checked = Checker(library.context(str(output))).check(file_of(output, table))
    return {(one.kind, one.field) for one in checked.findings}


@pytest.mark.parametrize(("table", "field"), COLUMNS)
def test_a_change_of_any_column_is_found_by_the_hash_of_its_part(output, table, field):
    row, value, *_ = MUTATIONS[table][field]
    assert found_in_file(output, table) == set()
    change_in_place(part_of(output, table), with_value(field, row, value))
    assert (Kind.BYTES, "sha256") in found_in_file(output, table)


@pytest.mark.parametrize(("table", "field"), COLUMNS)
def test_a_change_of_any_column_is_found_though_receipt_and_log_agree(output, table, field):
    row, value, kind, name = MUTATIONS[table][field]
    forge(output, table, with_value(field, row, value))
    verdict = check(output)
    assert (kind, name) in kinds(verdict) and Kind.BYTES not in {one.kind for one in verdict.findings}
    of_kind = next(one for one in verdict.findings if (one.kind, one.field) == (kind, name))
    assert of_kind.run_id == "night" or kind is Kind.UNKNOWN_RUN
    assert len(str(of_kind).splitlines()) == 1 and of_kind.count >= 1


def test_a_change_in_a_merged_file_is_found(output):
    """All mutations of a column that hide no other, at once."""
    for field in ("area", "bbox", "score", "category_name"):
        row, value, *_ = SEGMENTS[field]
        forge(output, "segments", with_value(field, row, value))
    forge(output, "images", with_value("etag", 0, "another"))
    compact(Output.open(str(output)))
    found = kinds(check(output))
    assert {(kind, name) for *_, kind, name in (SEGMENTS[field] for field in ("area", "bbox", "score"))} <= found
    assert (Kind.CATEGORY, "category_name") in found and (Kind.NOT_AS_PLANNED, "etag") in found


@pytest.mark.thorough
@pytest.mark.parametrize(("table", "field", "row", "value", "kind", "name"), OTHERS)
def test_other_impossible_values(output, table, field, row, value, kind, name):
    forge(output, table, with_value(field, row, value))
    assert (kind, name) in (found_in_file(output, table) if kind in IN_FILE else kinds(check(output)))


# --- rows and parts ---------------------------------------------------------------------------------------------------


def doubled(rows: pa.Table) -> pa.Table:
    return pa.concat_tables([rows, rows.slice(0, 1)])


def dropped(rows: pa.Table) -> pa.Table:
    return rows.slice(1)


@pytest.mark.parametrize(
    ("table", "change", "kind"),
    [
        ("images", doubled, Kind.SEVERAL_ROWS),
        ("segments", doubled, Kind.SEGMENT_IDS),
        ("images", dropped, Kind.NO_ROW),
        ("segments", dropped, Kind.NUM_SEGMENTS),
    ],
)
def test_a_row_twice_or_never_is_found_though_all_books_agree(output, table, change, kind):
    forge(output, table, change)
    write_report(str(output), "night")
    assert kind in {one.kind for one in check(output).findings}


def remove(output) -> None:
    part_of(output, "segments").unlink()


def flip_a_byte(output) -> None:
    data = bytearray(part_of(output, "segments").read_bytes())
    data[len(data) // 2] ^= 1
    part_of(output, "segments").write_bytes(data)


def cut(output) -> None:
    part_of(output, "images").write_bytes(part_of(output, "images").read_bytes()[:-100])


def lengthen(output) -> None:
    part_of(output, "images").write_bytes(part_of(output, "images").read_bytes() + b"x")


def other_columns(output) -> None:
    path = part_of(output, "images")
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["etag"]), path)


def out_of_the_journal(output) -> None:
    change_receipts(output, lambda receipt: receipt if receipt["shard"] else None)


def broken_journal(output) -> None:
    change_receipts(output, lambda receipt: {**receipt, "shard": "none"})


def other_hash(output) -> None:
    def change(receipt: dict[str, Any]) -> dict[str, Any]:
        part = receipt["parts"]["images"]
        digest = part["sha256"][:16] + "0" * 48
        return {**receipt, "parts": {**receipt["parts"], "images": {**part, "sha256": digest}}}

    change_receipts(output, change)


def other_rows(output) -> None:
    def change(receipt: dict[str, Any]) -> dict[str, Any]:
        part = receipt["parts"]["segments"]
        return {**receipt, "parts": {**receipt["parts"], "segments": {**part, "num_rows": 7}}}

    change_receipts(output, change)


def other_size(output) -> None:
    def change(receipt: dict[str, Any]) -> dict[str, Any]:
        part = receipt["parts"]["segments"]
        return {**receipt, "parts": {**receipt["parts"], "segments": {**part, "size_bytes": part["size_bytes"] + 1}}}

    change_receipts(output, change)


def other_failures(output) -> None:
    change_receipts(output, lambda receipt: {**receipt, "failed_by_code": {}})


def plan_file(output):
    return output / "_runs/night/plan/000000.parquet"


def change_plan(output, change: Callable[[int, pa.Table], pa.Table]) -> None:
    path = plan_file(output)
    file = pq.ParquetFile(path)
    shards = [change(n, file.read_row_group(n)) for n in range(file.num_row_groups)]
    with pq.ParquetWriter(path, shards[0].schema) as writer:
        for shard in shards:
            writer.write_table(shard)


def more_planned(output) -> None:
    def change(shard: int, rows: pa.Table) -> pa.Table:
        more = rows.slice(0, 1).set_column(1, rows.schema.field(1), pa.array(["s3://b/more.jpg"]))
        return pa.concat_tables([rows, more]) if shard else rows

    change_plan(output, change)


def less_planned(output) -> None:
    change_plan(output, lambda shard, rows: rows.slice(shard))


def planned_elsewhere(output) -> None:
    change_plan(output, lambda shard, rows: rows.slice(0, 1) if shard else rows)


def plan_of_other_shards(output) -> None:
    change_plan(output, lambda shard, rows: rows.set_column(0, rows.schema.field(0), pa.array([9] * 3, pa.int32())))


def plan_of_other_columns(output) -> None:
    change_plan(output, lambda shard, rows: rows.drop_columns(["etag"]))


def no_plan(output) -> None:
    plan_file(output).unlink()


def record(output, name: str, **changes: Any) -> None:
    path = output / "_runs/night" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def out_of_the_table(output) -> None:
    """Both parts of a shard leave the tables: the journal loses its receipt, the tables are made, and it comes back."""
    journal = next((output / "_runs/night/journal").iterdir())
    before = journal.read_text()
    out_of_the_journal(output)
    publish_anew(output)
    journal.write_text(before)


def a_part_too_many(output) -> None:
    """The log names a part that the journal does not name."""
    journal = next((output / "_runs/night/journal").iterdir())
    before = json.loads(journal.read_text().splitlines()[0])["parts"]["segments"]["path"]
    (output / before).rename(output / before.replace("shard-000000-", "shard-000000-f"))
    for log in (output / "segments/_delta_log").glob("*.json"):
        log.write_text(log.read_text().replace("shard-000000-", "shard-000000-f"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove, Kind.LOST),
        (flip_a_byte, Kind.BYTES),
        (cut, Kind.BYTES),
        (cut, Kind.UNREADABLE),
        (lengthen, Kind.BYTES),
        (other_columns, Kind.COLUMNS),
        (out_of_the_journal, Kind.NO_RECEIPT),
        (broken_journal, Kind.RECORD),
        (other_hash, Kind.BYTES),
        (other_rows, Kind.NUM_ROWS),
        (other_size, Kind.BYTES),
        (other_failures, Kind.RECORD),
        (more_planned, Kind.NO_ROW),
        (less_planned, Kind.NOT_PLANNED),
        (planned_elsewhere, Kind.NOT_PLANNED),
        (plan_of_other_shards, Kind.RECORD),
        (plan_of_other_columns, Kind.RECORD),
        (no_plan, Kind.RECORD),
        (lambda output: record(output, "report.json", num_segments=9), Kind.RECORD),
        (lambda output: record(output, "report.json", num_ok=3, num_failed=2), Kind.RECORD),
        (lambda output: record(output, "report.json", num_images="many"), Kind.RECORD),
        (lambda output: record(output, "run.json", fingerprint="another"), Kind.OF_RUN),
        (lambda output: record(output, "run.json", counts={"new": 7}), Kind.RECORD),
        (lambda output: (output / "_runs/night/run.json").unlink(), Kind.RECORD),
        (out_of_the_table, Kind.NO_ROW),
        (out_of_the_table, Kind.NOT_PUBLISHED),
        (a_part_too_many, Kind.NO_PART),
    ],
)
def test_what_changes_in_parts_and_records_is_found(output, change, expected):
    change(output)
    verdict = check(output)
    assert expected in {one.kind for one in verdict.findings}
    lines = [str(one) for one in verdict.findings]
    assert all(len(line.splitlines()) == 1 and len(line) < 1000 for line in lines)


# --- rows that lie elsewhere, and no values ---------------------------------------------------------------------------


def as_merged(output, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """All rows of the table in one file that another writer has merged, changed."""
    delta = DeltaTable(str(output / table))
    rows = change(delta.to_pyarrow_table().sort_by([("shard", "ascending"), ("image_key", "ascending")]))
    pq.write_table(rows, output / table / "merged.parquet")
    size = (output / table / "merged.parquet").stat().st_size
    removed = [RemoveAction(one, True, 0, 0) for one in delta.get_add_actions(flatten=True)["path"].to_pylist()]
    added = [AddAction("merged.parquet", size, {}, 0, True, "{}")]
    delta.create_write_transaction([*removed, *added], mode="append", schema=delta.schema())


REQUIRED = [(table, field.name) for table, schema in TABLES.items() for field in schema if not field.nullable]


@pytest.mark.parametrize(("table", "field"), REQUIRED)
def test_null_in_any_column_that_has_a_value_is_found(output, table, field):
    def without_one(rows: pa.Table) -> pa.Table:
        values = [{**row, field: None} if n == 1 else row for n, row in enumerate(rows.to_pylist())]
        return pa.Table.from_pylist(values, schema=pa.schema([one.with_nullable(True) for one in rows.schema]))

    as_merged(output, table, without_one)
    verdict = check(output)
    [found] = [one for one in verdict.findings if one.kind is Kind.NO_VALUE]
    assert (found.field, found.count, found.file) == (field, 1, f"{table}/merged.parquet")
    assert verdict.num_checked == verdict.num_items


def swap_rows(output, table: str) -> None:
    """The first row of each of the two parts comes into the other; receipts and log agree."""
    first, second = (pq.read_table(part_of(output, table, n), partitioning=None) for n in (0, 1))
    forge(output, table, lambda rows: pa.concat_tables([second.slice(0, 1), rows.slice(1)]), shard=0)
    forge(output, table, lambda rows: pa.concat_tables([first.slice(0, 1), rows.slice(1)]), shard=1)


def swap_rows_and_say_so(output, table: str) -> None:
    """Likewise, and each row says that it is of the part where it lies now."""
    swap_rows(output, table)
    for shard in (0, 1):
        forge(output, table, with_value("shard", 0, shard), shard=shard)


def name_a_part_twice(output, table: str) -> None:
    path = part_of(output, table)
    copy = path.with_name("copy.parquet")
    copy.write_bytes(path.read_bytes())
    name = f"{path.parent.name}/{copy.name}"
    delta = DeltaTable(str(output / table))
    delta.create_write_transaction(
        [AddAction(name, copy.stat().st_size, {}, 0, True, "{}")], mode="append", schema=delta.schema()
    )


def merge_a_copy(output, table: str) -> None:
    """The rows of a part come a second time in a file of another name, as after a broken merge."""
    copy = output / table / "copy.parquet"
    copy.write_bytes(part_of(output, table).read_bytes())
    delta = DeltaTable(str(output / table))
    delta.create_write_transaction(
        [AddAction(copy.name, copy.stat().st_size, {}, 0, True, "{}")], mode="append", schema=delta.schema()
    )


def part_of_another_run(output, table: str) -> None:
    """A part has the rows of the same shard of another run."""
    write_night(str(output), "other")
    rows = pq.read_table(part_of(output, table, run_id="other"), partitioning=None)
    change_in_place(part_of(output, table), lambda _: rows)


def part_of_another_run_that_all_books_name(output, table: str) -> None:
    write_night(str(output), "other")
    rows = pq.read_table(part_of(output, table, run_id="other"), partitioning=None)
    forge(output, table, lambda _: rows)


def too_many_rows(output, table: str) -> None:
    def change(receipt: dict[str, Any]) -> dict[str, Any]:
        part = receipt["parts"][table]
        more = {**receipt["parts"], table: {**part, "num_rows": part["num_rows"] + 1}}
        return {**receipt, "num_images": more["images"]["num_rows"], "parts": more}

    change_receipts(output, change)


@pytest.mark.parametrize("table", list(TABLES))
@pytest.mark.parametrize(
    ("change", "of_images", "of_segments"),
    [
        (swap_rows, Kind.OF_RUN, Kind.OF_RUN),
        (swap_rows_and_say_so, Kind.NOT_AS_PLANNED, Kind.OF_RUN),
        (name_a_part_twice, Kind.NO_PART, Kind.NO_PART),
        (merge_a_copy, Kind.SEVERAL_ROWS, Kind.NUM_SEGMENTS),
        (part_of_another_run, Kind.BYTES, Kind.BYTES),
        (part_of_another_run_that_all_books_name, Kind.UNKNOWN_RUN, Kind.UNKNOWN_RUN),
        (too_many_rows, Kind.NUM_ROWS, Kind.NUM_ROWS),
    ],
)
def test_rows_and_parts_in_a_wrong_place_are_found(output, table, change, of_images, of_segments):
    change(output, table)
    found = list(check(output).findings)
    assert (of_images if table == "images" else of_segments) in {one.kind for one in found}
    assert all(one.run_id in ("night", "") or one.run_id == "other" for one in found)


def test_a_gap_in_segment_ids_names_the_part_with_the_segments(output):
    forge(output, "segments", with_value("segment_id", 2, 9))
    [found] = [one for one in check(output).findings if one.kind is Kind.SEGMENT_IDS]
    assert found.file.startswith("segments/run=night/shard-000000-") and found.image_key == "s3://b/a.jpg"


def test_a_finding_of_a_row_names_table_part_image_and_segment(output):
    forge(output, "segments", with_value("score", 1, 1.5))
    [found] = [str(one) for one in check(output).findings]
    name = part_of(output, "segments").name
    assert found.endswith(f"run night, file segments/run=night/{name}, image s3://b/a.jpg: segment 2: 1.5")
