"""A plan that grows while the input is listed: what dies or breaks in between loses and doubles no image."""

import contextlib
import dataclasses
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commit.run_record import PlanRecord, read_run_record
from pipeline.config import Settings
from pipeline.errors import BrokenRunError, RunError
from pipeline.guard.interruption import interruptible
from pipeline.inputs.listing import list_inputs
from pipeline.plan import shards as shards_room
from pipeline.plan import spool
from pipeline.plan.growing import GrowingPlan
from pipeline.plan.plan_files import follow_plan
from pipeline.runs import preview
from pipeline.runs.check import check
from pipeline.runs.find import find_run
from pipeline.runs.planning.planner import Planner
from pipeline.runs.preview import comparison_of
from tests.support.gated_listing import gated
from tests.support.published_tables import image_row, publish
from tests.support.waiting import PATIENCE_SECONDS, wait_until

NAMES = "abcdefgh"
PER_SHARD = 2


@pytest.fixture
def settings(tmp_path, tiny_checkpoint):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.jpg").write_bytes(name.encode())
    return Settings(input=str(folder), output=str(tmp_path / "out"), model=str(tiny_checkpoint))


class Gate:
    """Lets images through one by one; `break_off` lets the listing raise."""

    def __init__(self, monkeypatch, number: int):
        self.open = threading.Event()
        self.breaks = False
        monkeypatch.setattr(spool, "_ROWS_A_FILE", 1)
        monkeypatch.setattr(preview, "list_inputs", gated(number, self._wait))

    def _wait(self) -> bool:
        if self.breaks:
            raise RunError("the store went away")
        return self.open.is_set()

    def break_off(self) -> None:
        self.breaks = True


@contextlib.contextmanager
def planning(settings: Settings, may_write=lambda: None) -> Iterator[tuple[Planner, GrowingPlan]]:
    """What a driver does, without what goes through Ray."""
    checked = check(settings)
    with comparison_of(checked, keeps_indexes=True) as comparison:
        planner = Planner(checked, comparison, may_write)
        record = find_run(checked)
        if record is None:
            assert planner.find_work()
            record = planner.begin(PER_SHARD, 1, {})
            plan = GrowingPlan.of(record)
        else:
            plan = planner.resume(record)
        with interruptible(), planner.going_on(checked.output.run(record.run_id), plan, PER_SHARD, 1):
            yield planner, plan


def completed(plan: GrowingPlan) -> GrowingPlan:
    wait_until(lambda: plan.is_complete)
    return plan


def planned_keys(plan: GrowingPlan) -> list[str]:
    tables = [pq.read_table(file.path) for file in plan.files]
    return pa.concat_tables(tables)["image_key"].to_pylist()


def names(plan: GrowingPlan) -> list[str]:
    return sorted(key.rpartition("/")[2].removesuffix(".jpg") for key in planned_keys(plan))


def test_a_plan_grows_until_all_is_listed(settings, monkeypatch):
    gate = Gate(monkeypatch, 3)
    with planning(settings) as (_, plan):
        assert not plan.is_complete and set(names(plan)) <= set("abc") and plan.num_images
        record = read_run_record(check(settings).output, find_folder(settings))
        assert record is not None and not record.plan_is_complete
        gate.open.set()
        assert names(completed(plan)) == list(NAMES)
    record = read_run_record(check(settings).output, find_folder(settings))
    assert record.plan_is_complete and record.plan == plan.summary and record.counts == {"new": len(NAMES)}
    assert sum(file.num_shards for file in plan.files) == plan.num_shards


def test_a_listing_that_ends_between_two_batches_loses_nothing(settings, tmp_path, monkeypatch):
    """The first batch has all that is listed, and the listing ends without another image while Ray starts. Images that
    may be twins, and images that are gone, wait for the last batch all the same.
    """
    (tmp_path / "in" / "twin#.jpg").write_bytes(b"x")
    gone = image_row(f"file://{tmp_path}/in/gone.jpg", "run0", 0)
    publish(settings.output, "images", "run0", [[gone]])
    settings = dataclasses.replace(settings, tombstone_removed=True)
    may_end = threading.Event()

    def listing(*arguments):
        yield from list_inputs(*arguments)
        assert may_end.wait(PATIENCE_SECONDS)

    monkeypatch.setattr(spool, "_ROWS_A_FILE", 1)
    monkeypatch.setattr(preview, "list_inputs", listing)
    checked = check(settings)
    with comparison_of(checked, keeps_indexes=True) as comparison:
        planner = Planner(checked, comparison, lambda: None)
        assert planner.find_work()
        may_end.set()
        wait_until(lambda: comparison._spool.has_ended)
        record = planner.begin(PER_SHARD, 1, {})
        plan = GrowingPlan.of(record)
        with planner.going_on(checked.output.run(record.run_id), plan, PER_SHARD, 1):
            completed(plan)
    assert names(plan) == sorted([*NAMES, "twin#", "gone"])


def find_folder(settings: Settings):
    output = check(settings).output
    [folder] = output.list_runs()
    return folder


def test_a_driver_that_dies_leaves_a_plan_that_the_next_completes(settings, tmp_path, monkeypatch):
    Gate(monkeypatch, 3)
    with planning(settings) as (_, plan):
        there = names(plan)
    monkeypatch.undo()
    (tmp_path / "in" / "a.jpg").unlink()  # planned, gone since: it stays in the plan, once
    (tmp_path / "in" / "later.jpg").write_bytes(b"later")
    with planning(dataclasses.replace(settings, tombstone_removed=False)) as (planner, plan):
        assert names(completed(plan)) == sorted({*there, *NAMES[1:], "later"})
        assert planner.counts == {"new": plan.num_images}


def test_a_plan_without_its_last_word_is_completed_and_gains_nothing(settings):
    with planning(settings) as (_, plan):
        pass
    folder = find_folder(settings)
    record = read_run_record(folder.output, folder)
    dataclasses.replace(record, plan_is_complete=False).write(folder)
    with planning(settings) as (_, again):
        assert completed(again).summary == plan.summary
        assert again.counts == record.counts


def test_a_plan_file_of_another_driver_breaks_the_run(settings, monkeypatch):
    gate = Gate(monkeypatch, 3)
    with (
        pytest.raises(BrokenRunError, match=r"another driver has written .*/plan/.*\.parquet"),
        planning(settings) as (
            _,
            plan,
        ),
    ):
        number = len(plan.files)
        for more in range(number, number + 5):
            shutil.copy(plan.files[0].path, f"{find_folder(settings).plan}/{more:06d}.parquet")
        gate.open.set()
        time.sleep(PATIENCE_SECONDS)
    damaged = pytest.raises(RunError, match="is damaged, or another program wrote it: it begins with shard 0")
    with damaged, planning(settings):
        pass


@pytest.mark.parametrize("ignored", [False, True], ids=["as usual", "Ctrl-C is ignored"])
def test_a_listing_that_breaks_off_interrupts_the_run(settings, monkeypatch, ignored):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        gate = Gate(monkeypatch, 3)
        broken = pytest.raises(BrokenRunError, match="broke while its input was being listed: the store went away")
        with broken, planning(settings):
            gate.break_off()
            time.sleep(PATIENCE_SECONDS)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    with planning(settings) as (_, plan):
        assert names(completed(plan)) == list(NAMES)


def test_a_driver_that_has_lost_its_lease_plans_nothing_more(settings, monkeypatch):
    gate, lost = Gate(monkeypatch, 3), threading.Event()

    def may_write():
        if lost.is_set():
            raise BrokenRunError("lost")

    with pytest.raises(BrokenRunError, match="lost"), planning(settings, may_write) as (_, plan):
        there = list(plan.files)
        lost.set()
        gate.open.set()
        time.sleep(PATIENCE_SECONDS)
    assert list(plan.files) == there and not plan.is_complete


def test_a_plan_file_of_a_driver_that_died_before_it_had_a_run_is_removed(settings, monkeypatch):
    named = dataclasses.replace(settings, run_id="nightly")
    folder = check(named).output.run("nightly")
    Gate(monkeypatch, 3)
    with planning(named) as (_, plan):
        number = len(plan.files)
    shutil.copy(plan.files[0].path, f"{folder.plan}/{number:06d}.parquet")
    os.unlink(folder.run_json)
    with planning(named) as (_, plan):
        pass
    with planning(named) as (_, plan):
        pass
    monkeypatch.undo()
    with planning(named) as (_, plan):
        assert names(completed(plan)) == list(NAMES)


def test_a_missing_plan_file_is_one_line(settings, monkeypatch):
    monkeypatch.setattr(shards_room, "SHARDS_PER_PLAN_FILE", 1)
    Gate(monkeypatch, 5)
    with planning(settings):
        pass
    folder = find_folder(settings)
    found = folder.output.list_numbered(folder.plan, "#.parquet")
    os.rename(found[-1][1], f"{folder.plan}/000099.parquet")
    with pytest.raises(RunError, match=r"/plan is damaged, .*: 00000\d\.parquet is missing"), planning(settings):
        pass


def test_who_follows_a_plan_gets_each_shard_once_and_ends_with_the_plan(settings, monkeypatch):
    monkeypatch.setattr("pipeline.plan.plan_files._LOOK_AGAIN_SECONDS", 0.01)
    gate = Gate(monkeypatch, 3)
    with planning(settings) as (planner, plan):
        folder, found = find_folder(settings), []
        following = threading.Thread(
            target=lambda: found.extend(follow_plan(folder.output, planner.checked.inputs, folder, range(99)))
        )
        following.start()
        wait_until(lambda: found)
        gate.open.set()
        completed(plan)
        following.join(PATIENCE_SECONDS)
    assert [shard for shard, _ in found] == list(range(plan.num_shards))
    assert sorted(key for _, images in found for key in images["image_key"].to_pylist()) == sorted(planned_keys(plan))


def test_a_plan_file_that_is_gone_is_one_line_to_who_waits_for_it(settings):
    with planning(settings) as (planner, plan):
        pass
    folder = find_folder(settings)
    PlanRecord(plan.summary, {}).create(folder)
    os.unlink(plan.files[0].path)
    with pytest.raises(RunError, match=r"000000\.parquet"):
        list(follow_plan(folder.output, planner.checked.inputs, folder, range(1)))


def test_a_plan_that_another_driver_has_completed_breaks_the_run(settings, monkeypatch):
    gate = Gate(monkeypatch, 3)
    broken = pytest.raises(BrokenRunError, match="another driver has completed the plan of run")
    with broken, planning(settings) as (_, plan):
        assert PlanRecord(plan.summary, {}).create(find_folder(settings))
        gate.open.set()
        time.sleep(PATIENCE_SECONDS)
