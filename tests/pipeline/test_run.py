"""What a broken run says, as plain functions; the run itself is tested in tests/jobs."""

from types import SimpleNamespace

import pytest

from pipeline import run, segment_bucket
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


def test_a_driver_that_has_lost_its_lease_fences_nobody_off(monkeypatch):
    def check():
        raise BrokenRunError("lost")

    monkeypatch.setattr(segment_bucket, "take_up", lambda *_: pytest.fail("an attempt was begun"))
    with pytest.raises(BrokenRunError, match="lost"):
        segment_bucket._take_up(SimpleNamespace(), {}, SimpleNamespace(check=check))
