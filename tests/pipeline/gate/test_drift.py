"""Bounds by resampling: nights like the nights before pass, other ones do not; the file of the bounds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RunError
from pipeline.gate.bounds_file import GateBounds, read_gate
from pipeline.gate.drift import violations
from pipeline.gate.figures import Figures

BOUNDS = GateBounds()


def night(rng: np.random.Generator, num_images: int = 200, sky: float = 0.4, cats: float = 0.1, score: float = 0.9):
    """Images with sky in most of them, and cats in some; nights differ a little in how many cats there are."""
    of_night = cats * rng.uniform(0.8, 1.2)
    sky_of = np.clip(rng.normal(sky, 0.15, num_images), 0, 1)
    has_cat = rng.random(num_images) < 0.3
    shares = {
        "92 sky": {str(n): round(float(share), 5) for n, share in enumerate(sky_of) if share},
        "7 cat": {str(n): round(float(of_night / 0.3), 5) for n in np.flatnonzero(has_cat)},
    }
    scores = [round(float(one), 5) for one in np.clip(rng.normal(score, 0.04, num_images), 0, 1)]
    return Figures(rng.poisson(6, num_images).tolist(), scores, shares)


@pytest.mark.parametrize("num_runs", [3, 10])
def test_no_false_alarm_in_twenty_nights(num_runs):
    rng = np.random.default_rng(1)
    earlier = [night(rng) for _ in range(num_runs)]
    alarms = [violations(night(rng, int(rng.integers(100, 400))), earlier, BOUNDS) for _ in range(20)]
    assert alarms == [[]] * 20


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"sky": 0.1}, "class 92 sky"),
        ({"cats": 0.25}, "class 7 cat"),
        ({"score": 0.7}, "mean score"),
    ],
)
def test_another_night_is_out_of_bounds(changed, named):
    rng = np.random.default_rng(2)
    earlier = [night(rng) for _ in range(5)]
    found = violations(night(rng, **changed), earlier, BOUNDS)
    assert [one.name.partition(":")[0] for one in found] == [named]
    assert "the last 5 runs let expect" in str(found[0]) and len(str(found[0]).splitlines()) == 1


def test_a_class_that_was_never_there_and_segments_that_are_gone():
    rng = np.random.default_rng(3)
    earlier = [night(rng) for _ in range(5)]
    new = night(rng)
    dogs = {**new.shares, "3 dog": {str(n): 0.1 for n in range(100)}}
    assert [one.name for one in violations(replace(new, shares=dogs), earlier, BOUNDS)] == [
        "class 3 dog: share of the pixels"
    ]
    nothing = Figures([0] * 200, [None] * 200, {})
    gone = {one.name.partition(":")[0] for one in violations(nothing, earlier, BOUNDS)}
    assert gone >= {"mean number of segments", "mean score", "class 92 sky"}


def test_a_small_change_passes_whatever_the_spread():
    """Runs that are all alike have no spread at all."""
    alike = [Figures([5] * 50, [0.9] * 50, {"7 cat": {str(n): 0.2 for n in range(50)}}) for _ in range(3)]
    new = Figures([5] * 50, [0.905] * 50, {"7 cat": {str(n): 0.205 for n in range(50)}})
    assert violations(new, alike, BOUNDS) == []
    strict = replace(BOUNDS, score=0.001, class_share=0.001)
    assert [one.name for one in violations(new, alike, strict)] == ["mean score", "class 7 cat: share of the pixels"]


def test_without_images_there_is_nothing_to_compare():
    empty = Figures([], [], {})
    rng = np.random.default_rng(4)
    assert violations(empty, [night(rng)], BOUNDS) == [] == violations(night(rng), [empty], BOUNDS)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_gate_file_has_defaults_and_values(tmp_path):
    (tmp_path / "gate.yaml").write_text("last_runs: 5\nclass_share: 0.02\n")
    assert read_gate(str(tmp_path / "gate.yaml")) == GateBounds(last_runs=5, class_share=0.02)
    (tmp_path / "empty.yaml").write_text("")
    assert read_gate(str(tmp_path / "empty.yaml")) == GateBounds()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("last: 5", "unknown names last; known names are last_runs, least_runs"),
        ("last_runs: many", "last_runs is 'many'; write a number"),
        ("last_runs: 0", "last-runs"),
        ("class_share: [1]", "class_share is"),
        ("class_share: .nan", "write a number"),
        ("class_share: nan", "class-share"),
        ("- 1", "must hold names and values"),
        (None, "No such file"),
    ],
)
def test_a_gate_file_that_cannot_be_is_refused_in_one_line(tmp_path, text, named):
    path = Path(tmp_path / "gate.yaml")
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError) as refused:
        read_gate(str(path))
    assert str(refused.value).startswith(f"--gate {path}: ") and named in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
