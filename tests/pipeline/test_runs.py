"""Runs as they lie in the output: what is taken up, what is planned anew, what run.json says."""

import dataclasses
import json

import pytest

from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.plan import PlannedImage
from pipeline.prepare import check
from pipeline.runs import plan_run
from tests.planning import planned


@pytest.fixture
def settings(tmp_path, tiny_checkpoint):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(name.encode())
    return Settings(input=str(folder), output=str(tmp_path / "out"), model=str(tiny_checkpoint))


def finish(run):
    run.put_object("report.json", {"run_id": run.run_id, "created": run.created.isoformat()})


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
    assert content["versions"]["ray"] and content["versions"]["torch"]
    assert content["results"]["label_ids_to_fuse"] == [5, 6, 7]  # the demo checkpoint's stuff


def test_a_named_run_with_another_setting_says_which(settings):
    first = planned(settings)
    with pytest.raises(RunError, match=r"exif \(True there, False here\)"):
        planned(dataclasses.replace(settings, exif=False, run_id=first.run_id))


def test_a_listing_that_breaks_off_leaves_no_plan(settings, tmp_path):
    def breaks_off():
        yield from (PlannedImage(f"file:///{number}", "e", 1, "new") for number in range(200))
        raise RunError("the store went away")

    with pytest.raises(RunError, match="went away"):
        plan_run(check(settings), breaks_off(), {}, 1)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_an_unfinished_run_is_left_when_a_later_one_is_finished(settings):
    """Its plan lists what was there before: what the later run has written is newer."""
    old = planned(settings)
    other = planned(dataclasses.replace(settings, exif=False))
    finish(other)
    assert planned(settings).run_id not in (old.run_id, other.run_id)
    assert planned(dataclasses.replace(settings, run_id=old.run_id)).run_id == old.run_id


def test_of_two_unfinished_runs_the_newest_is_taken_up(settings):
    runs = [planned(dataclasses.replace(settings, run_id=name)) for name in ("b", "a")]
    assert planned(settings).run_id == runs[-1].run_id == "a"
