"""The log of a Delta table is untrusted: no file elsewhere is read, merged or removed, no foreign table is used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from pipeline.errors import BrokenRunError, RunError
from pipeline.layout import Output
from pipeline.schema import IMAGES, TABLES
from pipeline.tables.compare import read_rows
from pipeline.tables.current_view import current_images, published_files
from pipeline.tables.remove_run import remove_run
from tests.pipeline.tables.test_publish import journal_of, publisher, write_shard
from tests.support.published_tables import image_row, publish, segment_row

Action = dict[str, Any]
VICTIM = "victim.parquet"


@pytest.fixture
def output(tmp_path, no_pauses) -> Path:
    """Both tables of one run, and a part beside the output that is none of its."""
    place = tmp_path / "out"
    publish(str(place), "segments", "r1", [[segment_row("s3://b/1", "r1")]])
    publish(str(place), "images", "r1", [[image_row("s3://b/1", "r1", 0)]])
    [part] = (place / "images").rglob("*.parquet")
    (tmp_path / VICTIM).write_bytes(part.read_bytes())
    return place


def rewrite(output: Path, change: Callable[[list[Action]], object]) -> None:
    log = max((output / "images" / "_delta_log").glob("*.json"))
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    change(actions)
    log.write_text("\n".join(map(json.dumps, actions)))


def added(**values: Any) -> Callable[[list[Action]], object]:
    return lambda actions: next(action["add"] for action in actions if "add" in action).update(values)


def also(**action: Any) -> Callable[[list[Action]], object]:
    return lambda actions: actions.append(action)


def feature(name: str) -> Callable[[list[Action]], object]:
    return also(
        protocol={"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [name], "writerFeatures": [name]}
    )


ELSEWHERE = {
    "above": f"../../{VICTIM}",
    "above, escaped": f"%2e%2e/%2E%2E/{VICTIM}",
    "below and above": f"run=r1/../../../{VICTIM}",
    "a second spelling": "run=r1//x.parquet",
    "a third spelling": "./run=r1/x.parquet",
    "absolute": "/etc/passwd",
    "a file URI": f"file:///tmp/{VICTIM}",
    "another bucket": "s3a://other/x.parquet",
    "another store": "https://example.com/x.parquet",
    "a backslash": f"..\\..\\{VICTIM}",
    "NUL": "run=r1/\0x.parquet",
    "an escape": "run=r1/\x1b[31mx.parquet",
    "a line": "run=r1/a\nb.parquet",
    "nothing": "",
}


def refusals(output: Path) -> list[str]:
    """What each reader and writer of the tables says. Nothing in the output or beside it changes meanwhile."""
    before = {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()}
    place = str(output)
    journal = journal_of(place, "r2")
    journal.append([write_shard(place, "r2", 0)])
    before |= {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()}
    said = []
    for act in (
        lambda: current_images(place).read_all(),
        lambda: read_rows(place),
        lambda: published_files(Output.open(place), "images"),
        lambda: remove_run(Output.open(place), "r1", lambda: None),
        publisher(place, "r2", 1, journal).compact,
    ):
        with pytest.raises((RunError, BrokenRunError)) as refused:
            act()
        said.append(str(refused.value))
    assert before == {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()}
    return said


FIRST = ("above", "above, escaped", "a second spelling", "another bucket")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=name, marks=[] if name in FIRST else pytest.mark.thorough)
        for name, path in ELSEWHERE.items()
    ],
)
def test_a_file_that_does_not_lie_in_the_folder_of_its_table_is_not_touched(path, output):
    rewrite(output, added(path=path))
    for line in refusals(output):
        assert "the table images" in line and "\n" not in line and "\x1b" not in line and "\0" not in line


def test_a_tombstone_elsewhere_removes_nothing(output):
    rewrite(output, also(remove={"path": f"../../{VICTIM}", "deletionTimestamp": 1, "dataChange": True}))
    assert current_images(str(output)).read_all().num_rows == 1
    publisher(str(output), "r2", 0).compact()
    assert (output.parent / VICTIM).exists()


@pytest.mark.parametrize(
    "change",
    [
        added(size=-5),
        added(size=3),
        added(size=2**62),
        added(path=None),
        feature("deletionVectors"),
        feature("columnMapping"),
        also(protocol={"minReaderVersion": 2, "minWriterVersion": 5}),
        also(protocol={"minReaderVersion": 99, "minWriterVersion": 99}),
        lambda actions: actions.__setitem__(0, 5),
    ],
)
def test_a_log_that_is_wrong_is_a_line(change, output):
    rewrite(output, change)
    with pytest.raises(RunError, match="table images") as refused:
        current_images(str(output)).read_all()
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b'{"add":' * 100_000, b"[" * 100_000, b"\xff\x00", b"[]"])
def test_a_log_that_is_no_json_is_a_line(data, output):
    max((output / "images" / "_delta_log").glob("*.json")).write_bytes(data)
    with pytest.raises(RunError, match="table images") as refused:
        current_images(str(output)).read_all()
    assert "\n" not in str(refused.value)


def test_shards_that_the_log_cannot_have_are_a_line(output):
    """Else a run would count as published that is not."""
    journal = journal_of(str(output), "r2")
    journal.append([write_shard(str(output), "r2", 0)])
    for version in (-1, 7, 2**62):
        rewrite(output, also(txn={"appId": "m2f-pipeline/r2", "version": version}))
        with pytest.raises(RunError, match="run r2, which has 1: somebody has changed the log"):
            publisher(str(output), "r2", 1, journal).publish()


FOREIGN = {
    "partitions": (TABLES["segments"], ["run_id"], "is divided by"),
    "another table": (IMAGES, [], "its column segment_id is missing"),
    "another type": (TABLES["segments"].set(0, pa.field("image_key", pa.int64())), [], "its column image_key has the"),
}


@pytest.mark.parametrize("how", FOREIGN)
def test_a_run_is_not_added_to_a_table_of_another_program(how, tmp_path):
    schema, partitions, said = FOREIGN[how]
    table = tmp_path / "segments"
    rows = schema.empty_table()
    write_deltalake(str(table), rows, partition_by=partitions or None)
    journal = journal_of(str(tmp_path), "r1")
    journal.append([write_shard(str(tmp_path), "r1", 0)])
    with pytest.raises(RunError, match=said):
        publisher(str(tmp_path), "r1", 1, journal).publish()
    assert DeltaTable(str(table)).version() == 0 and not (tmp_path / "images" / "_delta_log").exists()


@pytest.mark.parametrize("name", ["_delta_log", "_delta_log/00000000000000000000.json"])
def test_a_link_out_of_the_output_is_not_followed(name, output):
    elsewhere = output.parent / "elsewhere"
    (output / "images" / name).rename(elsewhere)
    (output / "images" / name).symlink_to(elsewhere)
    for line in refusals(output):
        assert "leads out of the output" in line


def test_a_linked_part_is_not_read(output):
    [part] = (output / "images").rglob("*.parquet")
    part.unlink()
    part.symlink_to(output.parent / VICTIM)
    with pytest.raises(RunError, match="leads out of the output"):
        current_images(str(output)).read_all()
