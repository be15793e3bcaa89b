"""Which runs may lose their plans: none that the command which began it would continue."""

import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.runs.begin import Run
from pipeline.runs.check import check
from pipeline.runs.find import find_report, find_run
from pipeline.runs.settings import TidySettings
from pipeline.tidy.old_runs import find_old_runs
from pipeline.tidy.tidy import tidy
from tests.pipeline.tables.test_publish import publisher, rows, write_shard
from tests.support.planning import planned
from tests.support.run_records import report

LATER = datetime.now(UTC) + timedelta(days=40)


@pytest.fixture
def settings(tmp_path, tiny_checkpoint) -> Settings:
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.jpg").write_bytes(name.encode())
    return Settings(input=str(tmp_path / "in"), output=str(tmp_path / "out"), model=str(tiny_checkpoint), run_id="one")


def half_published(settings: Settings) -> Run:
    """A run of two shards, of which one is in the tables."""
    run = planned(settings, images_per_shard=1)
    run.journal.append([write_shard(settings.output, run.run_id, 0)])
    publisher(settings.output, run.run_id, 2, run.journal).publish()
    return run


def finish(run: Run) -> None:
    created = run.created.isoformat(timespec="microseconds")
    ended = (run.created + timedelta(minutes=1)).isoformat(timespec="seconds")
    report(run.run_id, created=created, finished_at=ended).write(run.folder)


def old(settings: Settings) -> tuple[list[str], list[str], list[str]]:
    """Old finished runs, unfinished runs that go, and unfinished runs that could be continued."""
    found = find_old_runs(Output.open(settings.output), LATER, also_continuable=False)
    return [run.run_id for run in found.finished], [run.run_id for run in found.unfinished], [*found.continuable]


def test_a_tidied_run_is_not_continued_and_its_name_is_refused(settings):
    """Its run.json stays, because rows of the run stay; a plan without a journal would do all of it once more."""
    half_published(settings)
    unnamed = dataclasses.replace(settings, run_id=None)
    assert find_run(check(unnamed)).run_id == "one"
    seen = rows(settings.output, "images")
    tidy(TidySettings(settings.output, yes=True), LATER)
    assert find_run(check(unnamed)).run_id == "one", "the command would continue the run"
    tidy(TidySettings(settings.output, yes=True, unfinished=True), LATER)
    assert find_run(check(unnamed)) is None
    for find in (find_report, find_run):
        with pytest.raises(RunError, match=r"--run-id one was used before: jobs/tidy.py has removed the plan"):
            find(check(settings))
    assert rows(settings.output, "images") == seen and len(seen) == 2
    again = planned(unnamed)
    assert again.run_id != "one" and again.plan.num_images == 2


def test_a_run_that_a_run_with_other_settings_has_overtaken_goes(settings):
    planned(settings)
    assert old(settings) == ([], [], ["one"])
    overtaking = planned(dataclasses.replace(settings, run_id="two", exif=False))
    assert old(settings) == ([], [], ["one", "two"])
    finish(overtaking)
    assert old(settings) == ([], ["one"], []), "two is the last finished run and stays whole"
    overtaking.folder.filesystem.touch(overtaking.folder.rolled_back_json)
    assert old(settings) == (["two"], [], ["one"])


def test_of_unfinished_runs_of_one_command_the_newest_stays(settings):
    for run_id in ("one", "two", "three"):
        planned(dataclasses.replace(settings, run_id=run_id, limit=1 if run_id == "two" else None))
    assert old(settings) == ([], ["one"], ["three", "two"])


def test_a_finished_run_that_overtook_one_that_stays_keeps_its_records(settings):
    """Else the unfinished run would be continued, and its older rows would be the newest."""
    planned(settings)
    for run_id in ("three", "two"):
        finish(planned(dataclasses.replace(settings, run_id=run_id, exif=False)))
    output = Output.open(settings.output)
    found = find_old_runs(output, LATER, also_continuable=False)
    young = dataclasses.replace(found, oldest_protected=found.unfinished[0].created)
    assert [run.run_id for run in found.all] == ["one", "three"]
    assert [run.run_id for run in found.without_use({})] == ["one", "three"]
    assert [run.run_id for run in young.without_use({})] == ["one"]
    assert [run.run_id for run in found.without_use({"one": 5})] == ["three"]


@pytest.mark.parametrize("name", ["run.json", "report.json"])
def test_a_damaged_record_is_a_line_and_nothing_goes(settings, name, tmp_path):
    run = half_published(settings)
    if name == "report.json":
        finish(run)
    path = tmp_path / "out/_runs/one" / name
    path.write_bytes(path.read_bytes()[:20])
    there = sorted(map(str, (tmp_path / "out").rglob("*.parquet")))
    with pytest.raises(RunError, match=f"{name} is damaged"):
        tidy(TidySettings(settings.output, yes=True), LATER)
    assert sorted(map(str, (tmp_path / "out").rglob("*.parquet"))) == there


def test_a_link_out_of_the_output_is_not_followed(settings, tmp_path):
    planned(settings)
    (tmp_path / "out/_runs/one/plan").rename(tmp_path / "elsewhere")
    (tmp_path / "out/_runs/one/plan").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link"):
        tidy(TidySettings(settings.output, yes=True, unfinished=True), LATER)
    assert list((tmp_path / "elsewhere").iterdir())
