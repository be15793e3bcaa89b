"""Publishing: whole or not at all, once however often it is done, in an order that lets no reader see half a run."""

import threading
import uuid
from dataclasses import replace

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.table import TableOptimizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.commit.encode import encode_shard
from pipeline.commit.journal import Journal
from pipeline.commit.write import ShardWriter
from pipeline.errors import BrokenRunError
from pipeline.layout import Output
from pipeline.segment.actor import segmented_table
from pipeline.tables import publish
from pipeline.tables.current_view import delta_options, table_uri
from pipeline.tables.publish import Publisher
from tests.pipeline.commit.test_encode import SPEC, fetched, segmented

EMPTY_SHARDS = (1, 4)  # in which no segment was found


def write_shard(output: str, run_id: str, shard: int, attempt: int = 1):
    """Parts of a shard of two images; its receipt."""
    import numpy as np

    label_map = np.zeros((2, 3), np.uint8) if shard in EMPTY_SHARDS else np.arange(6, dtype=np.uint8).reshape(2, 3) % 4
    images = fetched(2).set_column(0, "image_key", pa.array([f"s3://b/{shard}-{i}.jpg" for i in range(2)]))
    rows = segmented_table(images, [segmented(label_map)] * 2)
    return ShardWriter(Output.open(output), run_id).write(
        shard, encode_shard(shard, rows, replace(SPEC, run_id=run_id, attempt=attempt)), started=1.0
    )


def journal_of(output: str, run_id: str) -> Journal:
    return Journal.start_attempt(Output.open(output).run(run_id))


def publisher(output: str, run_id: str, num_shards: int, journal: Journal | None = None, **options) -> Publisher:
    return Publisher(Output.open(output), run_id, lambda: num_shards, journal or journal_of(output, run_id), **options)


def rows(output: str, table: str, columns: list[str] | None = None) -> list[dict]:
    uri = table_uri(Output.open(output), table)
    return (
        DeltaTable(uri, storage_options=delta_options(Output.open(output)))
        .to_pyarrow_dataset()
        .to_table(columns=columns)
        .to_pylist()
    )


def shards(output: str, table: str = "images") -> list[int]:
    """Shards of the rows of a table; one that is there twice is named twice."""
    per_shard = 2 if table == "images" else 6  # two images of three segments
    found = [row["shard"] for row in rows(output, table, ["shard"])]
    return sorted(found)[::per_shard] if len(found) % per_shard == 0 else sorted(found)


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    server = request.getfixturevalue("s3")
    if "publish" not in [bucket["Name"] for bucket in server.client.list_buckets()["Buckets"]]:
        server.bucket("publish")
    return f"s3://publish/{uuid.uuid4().hex}"


def test_a_run_becomes_visible_at_once_and_only_once(output):
    journal = journal_of(output, "r1")
    receipts = [write_shard(output, "r1", shard) for shard in range(6)]
    journal.append(receipts)
    versions = publisher(output, "r1", 6, journal).publish()
    assert shards(output) == list(range(6))
    assert shards(output, "segments") == [0, 2, 3, 5]
    assert publisher(output, "r1", 6, journal).publish() == versions, "publishing again made another version"
    assert publisher(output, "r1", 6).publish() == versions, "the next attempt made another version"


def test_a_second_run_is_added_to_the_first(output):
    for run_id in ("r1", "r2"):
        journal = journal_of(output, run_id)
        journal.append([write_shard(output, run_id, shard) for shard in (0, 1)])
        publisher(output, run_id, 2, journal).publish()
    assert shards(output) == [0, 0, 1, 1]
    assert {row["run_id"] for row in rows(output, "segments")} == {"r1", "r2"}


def test_files_that_cannot_be_merged_break_no_run(tmp_path, monkeypatch, caplog):
    """All rows are there by then, and the report is still to be written."""

    def fails(*args, **options):
        raise CommitFailedError("somebody else has committed")

    output = str(tmp_path / "out")
    journal = journal_of(output, "r1")
    journal.append([write_shard(output, "r1", shard) for shard in (0, 1)])
    current = publisher(output, "r1", 2, journal)
    current.publish()
    monkeypatch.setattr(TableOptimizer, "compact", fails)
    current.compact()
    assert caplog.text.count("its files could not be merged: somebody else has committed") == 2
    assert shards(output) == [0, 1]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("commit"), st.integers(0, 5)),
            st.tuples(st.just("publish"), st.sampled_from(["whole", "dies before", "dies between", "dies after"])),
            st.tuples(st.just("restart"), st.none()),
            st.tuples(st.just("compact"), st.none()),
        ),
        max_size=12,
    )
)
def test_whatever_dies_each_shard_is_visible_once(tmp_path, steps):
    """Steps of a run that is published on the way, by drivers that die at any of its places."""
    output = str(tmp_path / uuid.uuid4().hex)
    journal = journal_of(output, "r1")
    current = publisher(output, "r1", 6, journal)
    committed: set[int] = set()
    points = {"dies before": 0, "dies between": 1, "dies after": 2}
    for step, what in [*steps, ("publish", "whole")]:
        if step == "commit" and what not in committed:
            journal.append([write_shard(output, "r1", what)])
            committed.add(what)
        elif step == "publish":
            with pytest.MonkeyPatch.context() as patch:
                if what != "whole":
                    patch.setattr(publish, "reached", _dies_at(points[what]))
                try:
                    current.publish()
                except KeyboardInterrupt:
                    step = "restart"
        elif step == "compact" and DeltaTable.is_deltatable(f"{output}/images"):
            current.compact()
        if step == "restart":
            journal = journal_of(output, "r1")
            current = publisher(output, "r1", 6, journal)
    assert shards(output) == sorted(committed)
    assert shards(output, "segments") == sorted(committed - set(EMPTY_SHARDS))


def _dies_at(place: int):
    passed = []

    def reached(point: str) -> None:
        passed.append(point)
        if len(passed) == place + 1:
            raise KeyboardInterrupt

    return reached


def test_an_answer_that_was_lost_is_no_second_version(output, monkeypatch):
    journal = journal_of(output, "r1")
    journal.append([write_shard(output, "r1", 0)])
    commit = DeltaTable.create_write_transaction
    lost = iter([True])

    def loses_the_first_answer(*args, **kwargs):
        commit(*args, **kwargs)
        if next(lost, False):
            raise OSError("connection reset by peer")

    monkeypatch.setattr(DeltaTable, "create_write_transaction", loses_the_first_answer)
    publisher(output, "r1", 1, journal).publish()
    assert shards(output) == [0]


@pytest.mark.parametrize("method", ["create", "version", "schema"])
def test_a_fault_that_the_library_does_not_repeat_is_repeated(tmp_path, monkeypatch, no_pauses, method):
    """delta-rs gives up at a listing whose body was cut, wherever that happens."""
    output = str(tmp_path)
    run = publisher(output, "run", num_shards=1)
    run.journal.append([write_shard(output, "run", 0)])
    sound, left = getattr(DeltaTable, method), [3]

    def unsound(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise DeltaError("Generic S3 error: end of file before message length reached")
        return sound(*args, **kwargs)

    monkeypatch.setattr(DeltaTable, method, unsound)
    assert run.publish() == {"segments": 1, "images": 1}
    assert left == [0]
    assert shards(output) == [0]


def test_two_publishers_of_one_run_add_it_once(output, monkeypatch):
    """A driver that was thought dead commits at the moment when its successor does."""
    journal = journal_of(output, "r1")
    journal.append([write_shard(output, "r1", shard) for shard in range(3)])
    publisher(output, "r0", 0).publish()  # the tables exist
    barrier = threading.Barrier(2)
    both = [publisher(output, "r1", 3, journal, may_publish=lambda: barrier.wait(60)) for _ in range(2)]
    threads = [threading.Thread(target=_ignoring_the_barrier, args=(each,)) for each in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    publisher(output, "r1", 3).publish()
    assert shards(output) == [0, 1, 2]


def _ignoring_the_barrier(each: Publisher) -> None:
    import contextlib

    with contextlib.suppress(threading.BrokenBarrierError):
        each.publish()


def test_a_driver_without_its_lease_publishes_nothing(output):
    journal = journal_of(output, "r1")
    journal.append([write_shard(output, "r1", 0)])

    def lost() -> None:
        raise BrokenRunError("lost the lease")

    with pytest.raises(BrokenRunError, match="lost the lease"):
        publisher(output, "r1", 1, journal, may_publish=lost).publish()
    assert rows(output, "segments") == []


def test_a_table_that_cannot_be_written_ends_the_run_with_its_name(tmp_path, no_pauses):
    (tmp_path / "segments").write_text("in the way")
    journal = Journal(Output.open(str(tmp_path)).run("r1"), 1)
    with pytest.raises(BrokenRunError, match="the table segments cannot be published"):
        publisher(str(tmp_path), "r1", 1, journal).publish()


def test_a_reader_in_a_loop_sees_whole_runs_only(output, monkeypatch):
    """The reader opens `images` first. Publishers die between the tables every other time."""
    ended, seen = threading.Event(), []
    publisher(output, "r0", 0).publish()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not ended.is_set():
                images = rows(output, "images", ["run_id", "image_key", "num_segments"])
                segments = rows(output, "segments", ["run_id", "image_key"])
                by_image: dict = {}
                for row in segments:
                    by_image[row["run_id"], row["image_key"]] = by_image.get((row["run_id"], row["image_key"]), 0) + 1
                for row in images:
                    assert by_image.get((row["run_id"], row["image_key"]), 0) == row["num_segments"]
                per_run = [row["run_id"] for row in images]
                assert all(per_run.count(run_id) == 6 for run_id in set(per_run)), per_run
                seen.append(len(set(per_run)))
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for night in range(5):
        run_id = f"r{night + 1}"
        journal = journal_of(output, run_id)
        journal.append([write_shard(output, run_id, shard) for shard in range(3)])
        with monkeypatch.context() as patch:
            patch.setattr(publish, "reached", _dies_at(1))
            with pytest.raises(KeyboardInterrupt):
                publisher(output, run_id, 3, journal).publish()
        enough = len(seen) + 2
        while len(seen) < enough and not failures:
            ended.wait(0.01)
        publisher(output, run_id, 3).publish()
    ended.set()
    reader.join()
    assert not failures, failures[0]
    assert sorted(seen) == seen and len(set(seen)) > 2, "the reader should have seen the nights come"
