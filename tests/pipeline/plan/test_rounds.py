"""Rounds of shards: of a complete plan, and of one that grows while the rounds are taken."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commit.run_record import PlanFile, PlanSummary
from pipeline.plan import rounds as rounds_room
from pipeline.plan.growing import GrowingPlan
from pipeline.plan.rounds import Round, rounds

SIZES = st.lists(st.integers(1, 5), max_size=8)


def summary_of(sizes: list[int]) -> PlanSummary:
    firsts = [sum(sizes[:number]) for number in range(len(sizes))]
    files = tuple(PlanFile(f"{first}.parquet", first, size) for first, size in zip(firsts, sizes, strict=True))
    return PlanSummary(files, sum(sizes), sum(sizes), 0)


def shards_of(one: Round, plan: GrowingPlan) -> list[int]:
    """The shards that the tasks of a round yield, once the plan is complete."""
    numbers = [number for awaited in one.awaited for number in awaited]
    come = [plan.files[number] for number in numbers if number < len(plan.files)]
    planned = [shard for _, pending in one.shards for shard in pending]
    return planned + [shard for file in come for shard in range(file.first_shard, file.first_shard + file.num_shards)]


@given(SIZES, st.sets(st.integers(0, 40)), st.integers(1, 12), st.integers(0, 12))
def test_rounds_hold_every_shard_that_is_not_done_once(sizes, done, most, first):
    plan = GrowingPlan(summary_of(sizes), {}, is_complete=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds_room, "SHARDS_PER_ROUND", most)
        found = list(rounds(plan, done, first))
    shards = [shard for each in found for _, pending in each.shards for shard in pending]
    assert shards == [shard for shard in range(plan.num_shards) if shard not in done]
    assert not first or not found or found[0].most_shards(plan) == min(first, len(shards))
    assert all(each.most_shards(plan) <= max(most, 5) for each in found[bool(first) :])
    assert not any(each.awaited for each in found)


@given(SIZES, st.lists(st.integers(0, 8), max_size=3), st.integers(1, 40))
def test_rounds_of_a_plan_that_grows_hold_every_shard_once(sizes, steps, most):
    """Whenever the plan grows: another thread adds files while the rounds are taken."""
    lengths = [*sorted(steps), len(sizes)]
    plan = GrowingPlan(summary_of(sizes[: lengths[0]]), {}, is_complete=False)

    def grow():
        for length in lengths[1:]:
            plan.grow(summary_of(sizes[:length]))
        plan.complete({})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds_room, "SHARDS_PER_ROUND", most)
        patch.setattr(rounds_room, "SHARDS_PER_PLAN_FILE", 5)
        patch.setattr(rounds_room, "_TASKS_OF_A_SIZE", 2)
        several = rounds(plan, set())
        thread = threading.Thread(target=grow)
        found = [next(several)] if plan.files else []
        thread.start()
        found += several
        thread.join()
        assert all(one.most_shards(plan) <= max(most, 5) for one in found)
    assert [shard for one in found for shard in shards_of(one, plan)] == list(range(sum(sizes)))


def test_tasks_that_wait_are_few_and_cover_the_files_to_come():
    plan = GrowingPlan(summary_of([64]), {}, is_complete=False)
    one = next(rounds(plan, set()))
    assert [number for awaited in one.awaited for number in awaited] == list(range(1, 1 + (50_000 - 64) // 64))
    assert [len(awaited) for awaited in one.awaited[:9]] == [1] * 8 + [2]
    assert one.num_tasks < 80 and one.most_shards(plan) <= 50_000
