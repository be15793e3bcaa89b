"""What a broken run says, and rounds of shards, as plain functions; the run itself is tested in tests/jobs."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import run
from pipeline.commit.run_record import PlanFile
from pipeline.errors import BrokenRunError


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        (
            "ray.exceptions.RayTaskError: x\n  File y\npipeline.errors.RunError: why\nTo change retries",
            "why",
        ),
        ("the last\nline\n\n", "line"),
        ("", "ValueError"),
    ],
)
def test_a_stack_of_stacks_is_one_line(stack, said):
    assert run._innermost(ValueError(stack)) == said


@given(st.lists(st.integers(1, 5), max_size=8), st.sets(st.integers(0, 40)), st.integers(1, 12))
def test_rounds_hold_every_shard_that_is_not_done_once(sizes, done, most):
    files, first = [], 0
    for size in sizes:
        files.append(PlanFile(f"{first}.parquet", first, size))
        first += size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "SHARDS_PER_ROUND", most)
        rounds = list(run._rounds(tuple(files), done))
    shards = [shard for each in rounds for _, pending in each for shard in pending]
    assert shards == [shard for shard in range(first) if shard not in done]
    assert all(sum(len(pending) for _, pending in each) <= max(most, 5) for each in rounds)


def test_a_driver_that_has_lost_its_lease_fences_nobody_off(monkeypatch):
    def check():
        raise BrokenRunError("lost")

    monkeypatch.setattr(run, "take_up", lambda *_: pytest.fail("an attempt was begun"))
    with pytest.raises(BrokenRunError, match="lost"):
        run._take_up(SimpleNamespace(), {}, SimpleNamespace(check=check))
