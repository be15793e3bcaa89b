"""Room is made in an output: what goes is old and needed by nobody, and the current view stays bit for bit."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from jobs.tidy import main
from pipeline.commit.lease import Lease
from pipeline.errors import BrokenRunError, RunError
from pipeline.layout import Output
from pipeline.runs.roll_back import roll_back
from pipeline.runs.settings import RollBackSettings, TidySettings
from pipeline.tables.current_view import published_files
from pipeline.tables.finished_run import find_finished_run
from pipeline.tables.publish import compact, is_published
from pipeline.tidy import tidy as module
from pipeline.tidy.files import NOT_NEEDED, UNPUBLISHED
from pipeline.tidy.tidy import tidy
from tests.support.old_outputs import age, night, put, view
from tests.support.published_tables import publish, segment_row


def rows(uri: str, table: str) -> list[tuple[str, str]]:
    """(image_key, run_id) of all rows that a table has, current or not."""
    found = DeltaTable(f"{uri}/{table}").to_pyarrow_dataset().to_table(columns=["image_key", "run_id"]).to_pylist()
    return sorted((row["image_key"], row["run_id"]) for row in found)


def files(place: Path) -> set[str]:
    return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}


def tidied(output: Path, **options) -> object:
    return tidy(TidySettings(str(output), yes=True, **options))


@pytest.fixture
def output(tmp_path) -> Path:
    """`first` did a, b, c; `second` did a again, and c was gone; `third` did b again, lately."""
    place = tmp_path / "out"
    night(str(place), "first", 100, "abc")
    age(place, 100)
    night(str(place), "second", 60, "a", removed="c")
    age(place, 60)
    night(str(place), "third", 5, "bd")
    age(place, 5)
    return place


def test_old_rows_leave_and_the_current_view_stays(output):
    before = view(str(output))
    found = tidied(output)
    assert rows(str(output), "images") == [("a", "second"), ("b", "first"), ("b", "third"), ("d", "third")]
    assert rows(str(output), "segments") == rows(str(output), "images")
    assert view(str(output)) == before
    assert {name: old.by_reason for name, old in found.rows.items()} == {
        "images": {"replaced by a newer row": 1, "of images that are gone from the input": 2},
        "segments": {"replaced by a newer row": 1, "of images that are gone from the input": 1},
        "logits": {},
    }
    again = tidied(output)
    assert not any(old.by_reason for old in again.rows.values())
    assert view(str(output)) == before


def test_rows_in_files_that_were_merged_leave_too(output):
    compact(Output.open(str(output)))
    before = view(str(output))
    tidied(output)
    assert rows(str(output), "images") == [("a", "second"), ("b", "first"), ("b", "third"), ("d", "third")]
    assert rows(str(output), "segments") == rows(str(output), "images")
    assert view(str(output)) == before


def test_the_row_before_a_late_run_stays_so_that_the_run_can_be_rolled_back(output):
    tidied(output)
    roll_back(RollBackSettings(str(output), "third", yes=True))
    assert {row["image_key"]: row["run_id"] for row in view(str(output))["images"]} == {"a": "second", "b": "first"}


def test_on_s3(s3):
    """The times of objects are the store's; `now` is later than these."""
    uri = f"{s3.bucket('tidy')}/out"
    night(uri, "first", 100, "abc")
    night(uri, "second", 60, "a", removed="c")
    night(uri, "unfinished", 50, "e", finished=False)
    before, output = view(uri), Output.open(uri)
    later = datetime.now(UTC) + timedelta(days=31)
    settings = TidySettings(uri, keep_versions=1, compact=False, yes=True)
    tidy(settings, later)
    assert view(uri) == before and len(before["segments"]) == 2
    tidy(settings, later + timedelta(days=31))
    assert view(uri) == before
    there = [path.removeprefix(f"{output.root}/") for path in output.filesystem.find(output.root)]
    parts = [path for path in there if path.endswith(".parquet") and "_runs" not in path and "_delta_log" not in path]
    published = published_files(output, "images") | published_files(output, "segments")
    assert set(parts) == {*published, *(p for p in parts if "run=unfinished" in p)} and len(parts) == len(published) + 2
    assert not [path for path in there if "first/journal" in path] and "_runs/first/run.json" in there
    assert "_runs/second/journal/000001-000000.jsonl" in there, "the run that finished last stays whole"
    assert "_runs/unfinished/plan/000000.parquet" in there


# --- versions and files ----------------------------------------------------------------------------------------------


def test_files_go_when_no_kept_version_has_them(output):
    """The last N versions, and those that were the newest within the time, are read as before."""
    before = {version: view(str(output), version) for version in (1, 2, 3)}
    replaced = {path for path in files(output) if "run=first" in path}
    tidied(output, keep_versions=1, compact=False)
    assert replaced <= files(output), "version 1 was the newest until 60 days ago; versions 2 and 3 have its files"
    assert {version: view(str(output), version) for version in (2, 3)} == {v: before[v] for v in (2, 3)}
    age(output, 40)
    kept = view(str(output))
    tidied(output, keep_versions=3, compact=False)
    assert replaced <= files(output) and view(str(output), 3) == before[3]
    tidied(output, keep_versions=1, compact=False)
    assert not {path for path in files(output) if "run=first" in path}
    assert view(str(output)) == kept


def test_parts_that_nobody_publishes_go_and_files_of_others_stay(output):
    """Young ones may be on their way into the table; names with `_` or `.` are none of the table's."""
    for name in ("run=lost/shard-000000-0123456789abcdef.parquet", "part-00000.parquet", "_changes/x.parquet", ".x"):
        put(str(output), f"images/{name}", b"x")
    age(output, 40)
    put(str(output), "images/run=lost/shard-000001-0123456789abcdef.parquet", b"x")
    stays = files(output) - {"images/run=lost/shard-000000-0123456789abcdef.parquet", "images/part-00000.parquet"}
    found = tidied(output, keep_versions=100, compact=False)
    assert [found.files.count(why)[0] for why in (UNPUBLISHED, NOT_NEEDED)] == [1, 1]
    assert {path for path in stays if path.startswith(("images/", "segments/"))} <= files(output)
    assert not (output / "images/part-00000.parquet").exists()


@pytest.mark.parametrize("link", ["images/run=third", "_runs/third", "images/link.parquet"])
def test_where_there_are_links_nothing_goes(output, link):
    """Files may be needed by another name than the one that a listing gives them."""
    if (output / link).exists():
        (output / link).rename(f"{output / link} elsewhere")
    (output / link).symlink_to(f"{output / link} elsewhere")
    there = files(output)
    with pytest.raises(RunError, match=r"third|link\.parquet") as refused:
        tidied(output)
    assert "is a link; put a mount in its place" in str(refused.value)
    assert {path for path in files(output) if "lease" not in path} == there


def test_the_log_keeps_the_versions_that_stay(output, monkeypatch):
    monkeypatch.setattr(module, "_COMMITS_PER_CHECKPOINT", 4)
    night(str(output), "fourth", 4, "x")
    age(output, 40)
    before = {version: view(str(output), version) for version in (3, 4)}
    tidied(output, keep_versions=2, compact=False)  # takes out rows of older runs, and writes a checkpoint of version 5
    assert DeltaTable(f"{output}/images", version=1).version() == 1, "no checkpoint is old enough yet"
    assert {version: view(str(output), version) for version in before} == before
    for run_id, days_ago in (("fifth", 3), ("sixth", 2)):
        night(str(output), run_id, days_ago, "x")
    before = {version: view(str(output), version) for version in (6, 7)}
    age(output, 40)
    tidied(output, keep_versions=2, compact=False)
    assert {version: view(str(output), version) for version in before} == before
    logs = [path.name for path in (output / "images/_delta_log").iterdir()]
    assert min(logs) == f"{5:020}.checkpoint.parquet", logs
    assert is_published(Output.open(str(output)), "first"), "a run id is used once"


def test_a_log_with_a_gap_is_a_line_and_nothing_goes(output):
    (output / "images/_delta_log" / f"{2:020}.json").unlink()
    there = files(output)
    with pytest.raises(RunError, match="table images"):
        tidied(output)
    assert {path for path in there if "_runs" not in path} == {path for path in files(output) if "_runs" not in path}


# --- runs and nights -------------------------------------------------------------------------------------------------


def test_old_runs_keep_what_their_rows_need(output):
    """run.json has the weights, which the next plan compares; a run without rows needs nothing, and loses its page."""
    page = {"page/report.html", "page/report.json", "page/images/0000.webp"}
    for name in page:
        put(str(output), f"_runs/first/{name}", b"x")
    tidied(output)
    runs = {path.removeprefix("_runs/") for path in files(output) if path.startswith("_runs/") and path.count("/") > 1}
    assert {path for path in runs if path.startswith(("first/", "second/"))} == {
        *(f"{run}/{name}" for run in ("first", "second") for name in ("run.json", "report.json", "tidied.json")),
        *(f"first/{name}" for name in page),
    }
    assert {path for path in runs if path.startswith("third/")} == {
        f"third/{name}"
        for name in (
            "run.json",
            "report.json",
            "plan/000000.parquet",
            "attempts/000001.json",
            "journal/000001-000000.jsonl",
        )
    }
    with pytest.raises(RunError, match=r"run first is old, and jobs/tidy.py has removed its journal"):
        find_finished_run(str(output), "first")
    night(str(output), "fourth", 4, "b")
    age(output, 40)
    tidied(output, older_than="3d", keep_versions=1)
    tidied(output, older_than="3d", keep_versions=1)
    assert not (output / "_runs/first").exists(), "b has a row of fourth"
    assert is_published(Output.open(str(output)), "first"), "its name stays used"


def test_runs_that_would_be_continued_stay_with_their_parts(output, capsys):
    night(str(output), "unfinished", 50, "e", finished=False)
    age(output, 50, "**/*unfinished/**/*")
    there = {path for path in files(output) if "unfinished" in path}
    assert main(["--output", str(output), "--yes"]) == 0
    assert "unfinished runs that their command would continue stay: unfinished;" in capsys.readouterr().out
    assert {path for path in files(output) if "unfinished" in path} == there
    tidied(output, unfinished=True)
    assert not {path for path in files(output) if "unfinished" in path}


def test_unfinished_runs_that_nobody_continues_go(output):
    """A newer run of the same command is continued instead; a plan that was never complete is no run."""
    night(str(output), "older", 52, "e", finished=False)
    night(str(output), "newer", 51, "e", finished=False)
    put(str(output), "_runs/half/plan/000000.parquet", b"x")
    age(output, 50, "**/*")
    put(str(output), "_runs/young/plan/000000.parquet", b"x")
    tidied(output)
    assert not {path for path in files(output) if "older" in path or "half" in path}
    assert len([path for path in files(output) if "newer" in path]) == 6
    assert (output / "_runs/young/plan/000000.parquet").exists()


def test_rows_of_an_unfinished_run_stay_and_so_do_those_of_its_images(output):
    """A later attempt looks for its shards in the tables; a tombstone that went alone would bring an old row back."""
    night(str(output), "partly", 110, "ac")
    (output / "_runs/partly/report.json").unlink()
    publish(str(output), "segments", "partly", [[segment_row("zz", "partly")]])
    before = rows(str(output), "images"), rows(str(output), "segments"), view(str(output))
    tidied(output)
    assert (rows(str(output), "images"), rows(str(output), "segments"), view(str(output))) == before


def test_records_of_old_nights_go_but_none_since_the_last_good_night(output):
    from pipeline.nights.record import NightRecord, new_name, write_record
    from pipeline.nights.seen import seen_nights

    opened = Output.open(str(output))
    ends = [(90, "finished"), (80, "nothing to do"), (70, "broke"), (60, "refused")]
    for days, end in ends:
        start = datetime.now(UTC) - timedelta(days=days)
        record = NightRecord(started_at=start, host="h", pid=1, process="", version="0", command=(), end=end)
        write_record(opened, new_name(start), record)
    tidied(output)
    assert [seen.outcome for seen in seen_nights(opened)] == ["nothing to do", "broke", "refused"]


# --- dry runs, refusals ----------------------------------------------------------------------------------------------


def test_without_yes_nothing_is_written(output, capsys):
    there = {path: (output / path).read_bytes() for path in files(output)}
    assert main(["--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "nothing was changed; to remove this, add --yes" in said and "rows of images" in said
    assert {path: (output / path).read_bytes() for path in files(output)} == there
    assert main(["--output", str(output), "--yes"]) == 0
    assert "add --yes" not in capsys.readouterr().out
    assert main(["--output", str(output), "--yes", "--no-compact"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--older-than", "soon"], "--older-than is 'soon'; write minutes, hours or days"),
        (["--older-than", "59m"], "at least 1:00:00"),
        (["--keep-versions", "0"], "--keep-versions is 0"),
        (["--output", "nowhere"], "holds no runs; give the --output of a run"),
    ],
)
def test_what_is_wrong_is_one_line(output, flags, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    there = files(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["--output", str(output), "--yes", *flags])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and said in line and line.count("\n") == 1
    assert files(tmp_path) == there


def test_nothing_changes_while_a_driver_works_on_the_output(output):
    opened = Output.open(str(output))
    with Lease(opened.filesystem, opened.lease_json, 60.0):
        there = files(output)
        with pytest.raises(RunError, match="--output is in use by process"):
            tidied(output)
        assert files(output) == there


def test_a_job_whose_lease_is_lost_removes_nothing_more(output, monkeypatch):
    def loses(opened, paths, may_remove):
        may_remove.__self__._lose("another driver took the lease")
        time.sleep(60)

    monkeypatch.setattr(module, "remove_by_folder", loses)
    before = rows(str(output), "images")
    with pytest.raises(BrokenRunError, match=r"lost the lease on --output \(another driver took the lease\)"):
        tidied(output)
    assert rows(str(output), "images") == before


@pytest.mark.parametrize("path", ["../../victim.parquet", "%2e%2e/%2e%2e/victim.parquet", "/etc/passwd"])
def test_a_log_that_names_files_elsewhere_is_a_line_and_nothing_goes(path, output):
    (output.parent / "victim.parquet").write_bytes(b"x")
    log = max((output / "images/_delta_log").glob("*.json"))
    [part] = [name for name in files(output / "images") if name.startswith("run=third")]
    log.write_text(log.read_text().replace(part, path))
    there = files(output.parent)
    with pytest.raises(RunError, match="somebody has changed the log"):
        tidied(output)
    assert {name for name in there if "_runs" not in name} == {n for n in files(output.parent) if "_runs" not in n}


def test_indexes_of_tars_that_are_gone_or_have_changed_leave(output):
    """Whoever reads a tar each night reads an old index; a name in a tar may hold `#`, and so may the name of a tar."""
    place = Output.open(str(output))
    there, gone = "file:///in/a#1.tar", "file:///in/gone.tar"
    night(str(output), "fourth", 60, [f"{there}#x.jpg", f"{there}#y#z.jpg"])
    needed = place.tar_index(there, "e1", 1)
    others = [place.tar_index(uri, etag, 1) for uri, etag in ((there, "e0"), (gone, "e1"))]
    foreign = f"{place.indexes}/notes.txt"
    for path in (needed, *others, foreign):
        put(str(output), path.removeprefix(f"{place.root}/"), b"x" * 1000)
    age(output, 60)
    young = place.tar_index(gone, "young", 1)
    put(str(output), young.removeprefix(f"{place.root}/"), b"x")
    assert sorted(index.path for index in tidied(output).indexes) == sorted(others)
    assert {path.as_posix() for path in (output / "_runs/_indexes").iterdir()} == {needed, foreign, young}


def test_the_index_of_a_tar_whose_images_are_tombstones_leaves(output):
    place, uri = Output.open(str(output)), "file:///in/a.tar"
    night(str(output), "fourth", 60, [], removed=[f"{uri}#x.jpg"])
    put(str(output), place.tar_index(uri, "e1", 1).removeprefix(f"{place.root}/"))
    age(output, 60)
    assert len(tidied(output).indexes) == 1
