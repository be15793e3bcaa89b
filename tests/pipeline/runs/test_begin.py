"""Runs as they lie in the output: what is taken up, what is planned anew, what run.json says."""

import dataclasses
import json
import shutil

import pytest

from pipeline.commit.totals import Totals
from pipeline.config import Settings
from pipeline.errors import BrokenRunError, RunError
from pipeline.runs.accounting import Clock, close_books
from pipeline.runs.check import check
from pipeline.runs.find import find_report, find_run
from pipeline.runs.planning.plan_run import plan_run
from tests.pipeline.tables.test_publish import journal_of, publisher, write_shard
from tests.support.listed import PlannedImage, planned_table
from tests.support.planning import planned
from tests.support.run_records import receipt, report


@pytest.fixture
def settings(tmp_path, tiny_checkpoint):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(name.encode())
    return Settings(input=str(folder), output=str(tmp_path / "out"), model=str(tiny_checkpoint))


def finish(run):
    report(run.run_id, created=run.created.isoformat(timespec="microseconds")).write(run.folder)


def test_an_unfinished_run_is_taken_up_and_keeps_its_plan(settings, tmp_path):
    first = planned(settings)
    (tmp_path / "in" / "later.jpg").write_bytes(b"later")
    again = planned(dataclasses.replace(settings, batch_size=3))
    assert (again.run_id, again.plan, again.journal.attempt) == (first.run_id, first.plan, 2)


def test_a_finished_run_is_not_taken_up_without_its_name(settings):
    first = planned(settings)
    finish(first)
    assert planned(settings).run_id != first.run_id
    assert planned(dataclasses.replace(settings, run_id=first.run_id)).run_id == first.run_id


@pytest.mark.parametrize("change", [{"limit": 2}, {"exif": False}, {"mode": "overwrite"}, {"tombstone_removed": True}])
def test_other_settings_are_another_run(settings, change):
    first = planned(settings)
    other = dataclasses.replace(settings, **change)
    assert planned(other).run_id != first.run_id
    with pytest.raises(RunError, match="other settings"):
        planned(dataclasses.replace(other, run_id=first.run_id))


def test_a_plan_that_broke_off_is_no_run(settings, tmp_path):
    """run.json is written last: without it there is nothing to take up."""
    first = planned(settings)
    (tmp_path / "out" / "_runs" / first.run_id / "run.json").unlink()
    assert planned(settings).run_id != first.run_id


def test_run_json_says_what_the_run_is(settings, tmp_path):
    run = planned(settings)
    content = json.loads((tmp_path / "out" / "_runs" / run.run_id / "run.json").read_text())
    assert content["fingerprint"] == run.fingerprint == check(settings).fingerprint
    assert content["plan"]["num_images"] == 3
    assert content["model"]["weights_sha256"] == run.model.weights_sha256
    assert content["model"]["model_type"] == "mask2former"
    assert content["versions"]["ray"] and content["versions"]["torch"]
    assert content["results"]["label_ids_to_fuse"] == [5, 6, 7]  # the demo checkpoint's stuff


def test_a_named_run_with_another_setting_says_which(settings):
    first = planned(settings)
    with pytest.raises(RunError, match=r"exif \(True in the run, False here\)"):
        planned(dataclasses.replace(settings, exif=False, run_id=first.run_id))


def test_a_driver_that_has_lost_its_lease_while_it_plans_touches_nothing_more(settings, tmp_path):
    """Another one may be planning a run of the same name in the same folder."""
    asked = []

    def may_write():
        asked.append(1)
        if len(asked) > 2:
            raise BrokenRunError("lost")

    checked = check(dataclasses.replace(settings, run_id="nightly"))
    images = (planned_table([PlannedImage(f"file:///{number}", "e", 1)]) for number in range(200))
    plan_of_another = tmp_path / "out" / "_runs" / "nightly" / "plan" / "000000.parquet"
    plan_of_another.parent.mkdir(parents=True)
    plan_of_another.write_bytes(b"another's")
    with pytest.raises(BrokenRunError, match="lost"):
        plan_run(checked, images, {}, 1, {}, may_write)
    assert plan_of_another.read_bytes() == b"another's"
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [plan_of_another]


def test_a_listing_that_breaks_off_leaves_no_plan(settings, tmp_path):
    def breaks_off():
        yield from (planned_table([PlannedImage(f"file:///{number}", "e", 1)]) for number in range(200))
        raise RunError("the store went away")

    with pytest.raises(RunError, match="went away"):
        plan_run(check(settings), breaks_off(), {}, 1, {})
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_an_unfinished_run_is_left_when_one_of_other_settings_has_done_its_images(settings, caplog):
    """Rows of the later run are newer, and would hide whatever the old one still did."""
    old = planned(settings)
    other = planned(dataclasses.replace(settings, exif=False))
    finish(other)
    assert find_run(check(settings), say_what_is_left=True) is None
    assert f"run {old.run_id} is not finished and will not be continued, because run {other.run_id} has" in caplog.text
    assert planned(settings).run_id not in (old.run_id, other.run_id)
    assert planned(dataclasses.replace(settings, run_id=old.run_id)).run_id == old.run_id


@pytest.mark.parametrize("later", ["other input", "a few of them", "the same settings", "what is below", "what is new"])
def test_an_unfinished_run_is_not_left_for_a_later_one_that_did_not_do_its_images_anew(settings, tmp_path, later):
    """A night of work would be done again, and again the night after."""
    old = planned(settings)
    other_input = tmp_path / "in2"  # its name begins with that of the first
    for folder in (other_input, tmp_path / "in" / "below"):
        folder.mkdir()
        (folder / "d.jpg").write_bytes(b"d")
    change = {
        "other input": {"input": str(other_input), "exif": False},
        "a few of them": {"limit": 1, "exif": False},
        "the same settings": {"mode": "overwrite"},
        "what is below": {"input": str(tmp_path / "in" / "below"), "exif": False},
        "what is new": {"exif": False},  # an ordinary night, beside the change to another model, say
    }[later]
    counts = {"unchanged": 1} if later == "what is new" else {}
    finish(planned(dataclasses.replace(settings, **change), counts=counts))
    assert planned(settings).run_id == old.run_id


def test_a_run_over_a_folder_above_with_other_settings_has_done_its_images(settings, tmp_path):
    (tmp_path / "in" / "below").mkdir()
    (tmp_path / "in" / "below" / "d.jpg").write_bytes(b"d")
    below = dataclasses.replace(settings, input=f"{settings.input[0]}/below")
    old = planned(below)
    finish(planned(dataclasses.replace(settings, exif=False)))
    assert planned(below).run_id != old.run_id


def test_the_report_of_a_named_run_is_that_of_its_settings(settings):
    """Another model under an old name would be answered with the old books, and exit code 0."""
    run = planned(dataclasses.replace(settings, run_id="nightly"))
    finish(run)
    named = dataclasses.replace(settings, run_id="nightly")
    assert find_report(check(named)).run_id == "nightly"
    with pytest.raises(RunError, match=r"exif \(True in the run, False here\)"):
        find_report(check(dataclasses.replace(named, exif=False)))


@pytest.mark.parametrize("left", ["parts", "transaction"])
def test_the_name_of_a_run_whose_books_are_gone_is_not_used_again(settings, tmp_path, left):
    """Its shards would pass for those of the new run, which then were never published, and its parts for left-overs."""
    output = str(tmp_path / "out")
    named = dataclasses.replace(settings, run_id="r1")
    journal = journal_of(output, "r1")
    journal.append([write_shard(output, "r1", 0)])
    if left == "transaction":
        publisher(output, "r1", 1, journal).publish()
        for table in ("images", "segments"):
            shutil.rmtree(tmp_path / "out" / table / "run=r1")
    shutil.rmtree(tmp_path / "out" / "_runs")
    with pytest.raises(RunError, match=r"--run-id r1 was used before: .* give another --run-id"):
        find_run(check(named))
    assert find_run(check(dataclasses.replace(named, run_id="r2"))) is None


def receipts_of(run):
    """One for each shard of the plan, as if all were done."""
    return [receipt(run.run_id, shard) for shard in range(run.plan.num_shards)]


def test_books_are_not_closed_by_a_driver_that_was_fenced_off(settings):
    """It has all receipts in memory, but the journal counts none: it would publish a part of the run as the whole."""
    first = planned(settings, images_per_shard=1)
    second = planned(settings, images_per_shard=1)
    totals = Totals()
    for one in receipts_of(first):
        totals.add(one)
    first.journal.append(receipts_of(first))
    with pytest.raises(BrokenRunError, match=f"another driver took over run {first.run_id}"):
        close_books(first, totals, 0, Clock())
    second.journal.append(receipts_of(second))
    assert close_books(second, totals, 0, Clock()).num_ok == 3


def test_removed_images_are_no_part_of_the_failure_rate():
    of_run = report("r", num_images=1005, num_failed=5, num_removed=1000)
    assert of_run.exit_code(0.01) == 1 and of_run.exit_code(1.0) == 0


def test_of_two_unfinished_runs_the_newest_is_taken_up(settings):
    runs = [planned(dataclasses.replace(settings, run_id=name)) for name in ("b", "a")]
    assert planned(settings).run_id == runs[-1].run_id == "a"


@pytest.mark.parametrize(("rate", "most", "budget"), [(0.5, None, 1.5), (0.5, 0, 0), (1.0, 5, 3.0)])
def test_what_the_monitoring_is_told_of_the_budget(settings, rate, most, budget):
    run = planned(dataclasses.replace(settings, max_failure_rate=rate, max_failures=most))
    assert run.plan.num_images == 3 and run.failure_budget == budget
