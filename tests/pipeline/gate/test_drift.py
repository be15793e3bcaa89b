"""Bounds by resampling: nights like the nights before pass, other ones do not; the file of the bounds."""

import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import RunError
from pipeline.gate.bounds_file import GateBounds, read_gate
from pipeline.gate.drift import violations
from pipeline.gate.figures import Figures
from tests.support.places import ROOT

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


# --- nights of every size, drawn from images with rare classes --------------------------------------------------------

COMMON = {"92 sky": (0.8, 0.5), "40 road": (0.7, 0.35), "7 cat": (0.3, 0.33), "3 dog": (0.1, 0.3)}
RARE = {f"{n} rare {n}": (0.005, 0.3) for n in range(100, 120)}  # in 0.5 % of the images, and large there
SIZES = (5, 12, 50, 500)


def drawn(rng: np.random.Generator, num_images: int, differ: float = 0.0, failed: float = 0.01, **changes):
    """A night of images; nights may `differ`: by this much of each rate, one standard deviation."""
    classes = {**COMMON, **RARE, **changes}
    rates = {name: rate * np.exp(rng.normal(0, differ)) if differ else rate for name, (rate, _) in classes.items()}
    is_ok = rng.random(num_images) >= failed
    shares = {}
    for name, (_, share) in classes.items():
        there = np.flatnonzero((rng.random(num_images) < rates[name]) & is_ok)
        found = np.clip(rng.gamma(4, share / 4, there.size), 0.001, 1)
        shares[name] = {str(n): round(float(one), 5) for n, one in zip(there, found, strict=True)}
    numbers = 1 + rng.negative_binomial(2, 0.25, num_images)
    scores = np.clip(rng.normal(0.9, 0.05, num_images), 0, 1)
    return Figures(
        [int(number) if ok else None for number, ok in zip(numbers, is_ok, strict=True)],
        [float(score) if ok else None for score, ok in zip(scores, is_ok, strict=True)],
        {name: of_class for name, of_class in shares.items() if of_class},
    )


@pytest.mark.parametrize(
    ("num_nights", "num_runs", "differ"),
    [
        (40, 3, 0.0),
        *(pytest.param(200, *one, marks=pytest.mark.thorough) for one in ((3, 0.0), (3, 0.1), (10, 0.0), (10, 0.1))),
    ],
)
def test_of_many_nights_of_every_size_hardly_one_is_held(num_nights, num_runs, differ):
    """Also where the earlier nights were small, and a rare class is seen for the first time."""
    rng, held = np.random.default_rng(num_runs), []
    for number in range(num_nights):
        size = SIZES[number % len(SIZES)]
        earlier = [drawn(rng, int(rng.choice(SIZES)), differ) for _ in range(num_runs)]
        if found := violations(drawn(rng, size, differ), earlier, BOUNDS):
            held.append((size, *map(str, found)))
    assert len(held) <= num_nights // 100, held


@pytest.mark.parametrize("num_runs", [3, 10])
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"7 cat": (0.0, 0.3)}, "class 7 cat"),  # a tenth of all pixels
        ({"92 sky": (0.0, 0.5)}, "class 92 sky"),
        ({"failed": 0.6}, "failed images"),
        ({"99 fog": (0.2, 0.3)}, "class 99 fog"),
    ],
)
def test_what_vanishes_appears_or_fails_in_500_images_is_seen(num_runs, changes, named):
    rng = np.random.default_rng(5)
    for _ in range(3):
        earlier = [drawn(rng, int(rng.choice((50, 500))), 0.1) for _ in range(num_runs)]
        found = violations(drawn(rng, 500, 0.1, **changes), earlier, BOUNDS)
        assert named in [one.name.partition(":")[0] for one in found]


@pytest.mark.parametrize("num_images", [3, 5, 12, 50])
def test_a_night_in_which_all_images_fail_is_seen_whatever_its_size(num_images):
    rng = np.random.default_rng(6)
    earlier = [drawn(rng, size) for size in (12, 50, 50)]
    found = violations(Figures([None] * num_images, [None] * num_images, {}), earlier, BOUNDS)
    assert [one.name for one in found] == ["failed images: share"]
    assert str(found[0]).startswith("failed images: share is 100.00%; the last 3 runs let expect 0.00% to ")


def test_fewer_failed_images_are_no_fault_and_runs_without_an_ok_image_say_nothing():
    rng = np.random.default_rng(7)
    earlier = [drawn(rng, 200, failed=0.3) for _ in range(3)]
    assert violations(drawn(rng, 200, failed=0.0), earlier, BOUNDS) == []
    blind = Figures([None] * 20, [None] * 20, {})
    new = drawn(rng, 200, failed=0.9)
    assert violations(new, [*earlier, blind, blind], BOUNDS) == violations(new, earlier, BOUNDS) != []


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
    assert gone == {"mean number of segments", "class 92 sky", "class 7 cat"}  # without segments there is no score


def test_a_small_change_passes_whatever_the_spread():
    """Runs that are all alike have no spread at all."""
    alike = [Figures([5] * 50, [0.9] * 50, {"7 cat": {str(n): 0.2 for n in range(50)}}) for _ in range(3)]
    new = Figures([5] * 50, [0.905] * 50, {"7 cat": {str(n): 0.205 for n in range(50)}})
    assert violations(new, alike, BOUNDS) == []
    new = Figures([5] * 50, [0.8] * 50, {"7 cat": {str(n): 0.4 for n in range(50)}})
    assert violations(new, alike, replace(BOUNDS, score=0.2, class_share=0.3)) == []
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


def test_the_page_on_the_gate_has_all_values_with_their_defaults(tmp_path):
    page = (ROOT / "docs/operations.md").read_text()
    section = page.partition("### A run is held back by its gate")[2].partition("\n### ")[0]
    example = section.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "gate.yaml").write_text(example)
    assert re.findall(r"^(\w+): ", example, re.MULTILINE) == [field.name for field in fields(GateBounds)]
    assert replace(read_gate(str(tmp_path / "gate.yaml")), golden=None) == GateBounds()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("golden: [1]", "golden is ['1']; write a text"),
        ("golden: true", "golden is True; write a text"),
        ("failed: true", "failed is True; write a number"),
        ("golden: s3://key:secret@bucket/golden", "holds credentials"),
        ("least_runs: 11", "least_runs 11 is more than last_runs 10, so no run would be compared"),
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
