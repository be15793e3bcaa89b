"""A night is rolled back: its rows leave both tables, and all other rows stay."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from jobs.roll_back import main
from pipeline.commit.lease import Lease
from pipeline.errors import BrokenRunError, RunError
from pipeline.layout import Output
from pipeline.runs.prove import holding_lease
from pipeline.runs.roll_back import roll_back
from pipeline.runs.settings import RollBackSettings
from pipeline.store.filesystem import put_object
from pipeline.tables import current_view, finished_run, remove_run
from pipeline.tables.current_view import current_images, current_segments, delta_options, table_uri
from tests.support.published_tables import image_row, publish_run, segment_row
from tests.support.run_records import report, run_json

NIGHTS = ("first", "second", "third")
KEYS = {"first": "ab", "second": "bc", "third": "cd"}


@pytest.fixture
def output(tmp_path) -> str:
    return with_three_nights(str(tmp_path / "out"))


def with_three_nights(uri: str) -> str:
    """Each image of a night has one segment, and each night processes an image of the night before again."""
    for number, run_id in enumerate(NIGHTS):
        keys = KEYS[run_id]
        publish_run(uri, run_id, [image_row(k, run_id, number) for k in keys], [segment_row(k, run_id) for k in keys])
        put(uri, run_id, "run.json", run_json(run_id))
        finished_at = f"2026-01-0{number + 1}T00:00:00+00:00"
        report(run_id, finished_at=finished_at, num_images=2, num_ok=2, num_segments=2).write(
            Output.open(uri).run(run_id)
        )
    return uri


def put(uri: str, run_id: str, name: str, text: str) -> None:
    output = Output.open(uri)
    put_object(output.filesystem, f"{output.run(run_id).path}/{name}", text.encode())


def current(uri: str) -> dict[str, str]:
    """The run of each image of the current view, which is also the run of each segment."""
    columns = ["image_key", "run_id"]
    images, segments = (
        {row["image_key"]: row["run_id"] for row in view(uri, columns).read_all().to_pylist()}
        for view in (current_images, current_segments)
    )
    assert images == segments
    return images


ALL = {"a": "first", "b": "second", "c": "third", "d": "third"}


@pytest.mark.parametrize("store", ["local", "s3"])
def test_rows_of_the_night_alone_leave_both_tables(store, request, tmp_path):
    place = tmp_path if store == "local" else request.getfixturevalue("s3").bucket("roll-back")
    output = with_three_nights(f"{place}/out")
    assert current(output) == ALL
    done = roll_back(RollBackSettings(output, "second", yes=True))
    assert (done.done, done.rows) == (True, {"images": 2, "segments": 2})
    assert current(output) == {**ALL, "b": "first"}
    assert roll_back(RollBackSettings(output, "third", yes=True)).rows == {"images": 2, "segments": 2}
    assert current(output) == {"a": "first", "b": "first"}, "c and d have no row of an earlier night"


def test_rows_in_files_that_compaction_has_merged_leave_too(output):
    for name in ("images", "segments"):
        opened = Output.open(output)
        DeltaTable(table_uri(opened, name), storage_options=delta_options(opened)).optimize.compact()
    roll_back(RollBackSettings(output, "second", yes=True))
    assert current(output) == {**ALL, "b": "first"}


def test_a_version_of_before_shows_the_night_with_its_segments(output):
    """The newest version of `segments` has them no more."""
    before = DeltaTable(f"{output}/images").version()
    night = {view: rows_at(view, output, before) for view in (current_images, current_segments)}
    assert len(night[current_segments]) == 4
    roll_back(RollBackSettings(output, "second", yes=True))
    publish_run(output, "fourth", [image_row("e", "fourth", 3)], [segment_row("e", "fourth")])
    roll_back(RollBackSettings(output, "third", yes=True))
    assert {view: rows_at(view, output, before) for view in night} == night
    assert {row["image_key"] for row in rows_at(current_segments, output, before + 2)} == {"a", "b", "c", "d", "e"}
    assert current(output) == {"a": "first", "b": "first", "e": "fourth"}


def test_a_reader_between_whose_two_snapshots_a_night_is_rolled_back_sees_its_segments(output, monkeypatch):
    """The reader has opened `images`, and opens `segments` when the rows are out of it."""
    real, opened = current_view.load_current, []

    def then_rolls_back(*args, **options):
        version = real(*args, **options)
        if not opened:
            opened.append(version)
            roll_back(RollBackSettings(output, "third", yes=True))
        return version

    monkeypatch.setattr(current_view, "load_current", then_rolls_back)
    segments = current_segments(output, ["image_key", "run_id"]).read_all().to_pylist()
    assert {row["image_key"]: row["run_id"] for row in segments} == ALL


def test_a_note_of_a_removal_that_is_none_is_a_line(output, no_pauses):
    before = DeltaTable(f"{output}/images").version()
    roll_back(RollBackSettings(output, "second", yes=True))
    log = max(Path(f"{output}/images/_delta_log").glob("*.json"))
    log.write_text(re.sub(r'"m2f_segments_before":"[0-9]+"', '"m2f_segments_before":"-1"', log.read_text()))
    with pytest.raises(RunError, match="somebody has changed it"):
        current_segments(output, version=before)


def rows_at(view, output: str, version: int) -> list:
    return sorted(view(output, version=version).read_all().to_pylist(), key=str)


def test_without_yes_nothing_is_written(output, capsys):
    before = Output.open(output).filesystem.find(output)
    assert main(["--output", output, "--run-id", "third"]) == 0
    assert capsys.readouterr().out == (
        "run third, finished 2026-01-03T00:00:00+00:00: has 2 rows of images and 2 rows of segments; to remove these "
        "rows, add --yes\n"
    )
    assert Output.open(output).filesystem.find(output) == before
    assert main(["--output", output, "--run-id", "third", "--yes"]) == 0
    assert "removed 2 rows of images and 2 rows of segments" in capsys.readouterr().out


def test_a_roll_back_that_broke_half_way_is_completed_by_the_same_command(output, monkeypatch):
    """Readers see the run whole or not at all in between: `images` goes first."""
    real = remove_run._remove

    def breaks_at_segments(opened, name, *rest):
        if name == "segments":
            raise OSError("the store went away")
        return real(opened, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(remove_run, "_remove", breaks_at_segments)
        with pytest.raises(BrokenRunError, match=r"the table segments cannot be changed: .*went away"):
            roll_back(RollBackSettings(output, "third", yes=True))
    assert current(output) == {"a": "first", "b": "second", "c": "second"}
    assert roll_back(RollBackSettings(output, "third", yes=True)).rows == {"images": 0, "segments": 2}
    assert current(output) == {"a": "first", "b": "second", "c": "second"}


def test_a_night_that_is_rolled_back_is_no_longer_the_last_finished_run(output):
    opened = Output.open(output)
    assert finished_run._last_finished(opened).run_id == "third"
    roll_back(RollBackSettings(output, "third", yes=True))
    assert finished_run._last_finished(opened).run_id == "second"


@pytest.mark.parametrize("run_id", ["fourth", "unfinished"])
def test_only_a_finished_run_can_be_rolled_back(output, run_id):
    """A later attempt at an unfinished run would not publish again what it has published already."""
    put(output, "unfinished", "run.json", run_json("unfinished"))
    with pytest.raises(RunError, match=f"holds no finished run {run_id}; only a finished run can be rolled back"):
        roll_back(RollBackSettings(output, run_id, yes=True))
    assert current(output) == ALL


def test_nothing_changes_while_a_driver_works_on_the_output(output):
    opened = Output.open(output)
    with (
        Lease(opened.filesystem, opened.lease_json, 60.0),
        pytest.raises(RunError, match="--output is in use by process"),
    ):
        roll_back(RollBackSettings(output, "third", yes=True))
    assert current(output) == ALL
    assert not opened.run("third").is_rolled_back()


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def test_a_lease_that_is_lost_meanwhile_is_the_reason_and_not_an_interrupt(output, monkeypatch, ctrl_c):
    """The thread that keeps the lease can only interrupt the main thread; a script's `command &` ignores Ctrl-C."""

    def loses(opened, name, run_id, may_change):
        may_change.__self__._lose("another driver took the lease")
        time.sleep(60)

    monkeypatch.setattr(remove_run, "_remove", loses)
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        with pytest.raises(BrokenRunError, match=r"lost the lease on --output \(another driver took the lease\)"):
            roll_back(RollBackSettings(output, "third", yes=True))
        assert signal.getsignal(signal.SIGINT) is ctrl_c
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_stays_ignored_where_it_was(output):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with holding_lease(Output.open(output), 60.0):
            os.kill(os.getpid(), signal.SIGINT)
            held_on = time.monotonic()  # a handler of Python runs between two instructions
        assert held_on
    finally:
        signal.signal(signal.SIGINT, before)
