"""The speed of actors whose time is known: receipts of a drawn pipeline, and what the meter makes of them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commit.receipt import Receipt
from pipeline.forecast.ratio import Ratio
from pipeline.forecast.speed import SpeedMeter
from tests.support.run_records import receipt

AT_A_TIME = 2  # shards of an actor


def work(shards: list[list[float]], actor: str = "a", waits: float = 1.0, warm_up: float = 0.0) -> list[Receipt]:
    """An actor that works on two shards at a time, image by image in turns; seconds on the device for each image.

    After each image, the device waits (waits - 1) times its seconds. The first image takes `warm_up` longer.
    """
    now, number = 100.0, 0
    begun: list[dict] = []
    done: list[Receipt] = []
    left = [list(shard) for shard in shards]
    while begun or number < len(left):
        while len(begun) < AT_A_TIME and number < len(left):
            size = len(left[number])
            begun.append({"shard": number, "images": left[number], "started": now, "device": 0.0, "size": size})
            number += 1
        for one in list(begun):
            seconds = one["images"].pop() + warm_up
            warm_up = 0.0
            now += seconds * waits
            one["device"] += seconds
            if not one["images"]:
                begun.remove(one)
                done.append(
                    receipt(
                        "r",
                        one["shard"],
                        one["size"],
                        started=one["started"],
                        model_ended=now,
                        finished=now + 0.5,
                        model_actor=actor,
                        seconds={"model": 0.75 * one["device"], "reduce": 0.25 * one["device"], "read": 9.0},
                    )
                )
    return done


def speed_of(*receipts: Receipt):
    meter = SpeedMeter()
    for one in receipts:
        meter.add(one)
    return meter.speed()


@pytest.mark.parametrize("waits", [1.0, 1.25, 3.0])
@pytest.mark.parametrize("num_actors", [1, 3])
def test_an_image_takes_the_time_of_the_device_and_the_time_for_which_it_waits(waits, num_actors):
    shards = [[0.1] * 16 for _ in range(12)]
    receipts = [one for actor in range(num_actors) for one in work(shards, f"a{actor}", waits)]
    speed = speed_of(*receipts)
    assert speed.image_seconds == pytest.approx(0.1 * waits)
    assert speed.standard_error == pytest.approx(0, abs=1e-6) and speed.warm_up_seconds == pytest.approx(0, abs=1e-9)


def test_the_warm_up_is_no_part_of_an_image():
    speed = speed_of(*work([[0.1] * 16 for _ in range(12)], warm_up=5.0))
    assert speed.image_seconds == pytest.approx(0.1)
    assert speed.warm_up_seconds == pytest.approx(5.0)


@given(st.integers(0, 10_000))
def test_the_standard_error_says_how_far_samples_lie_apart(seed):
    """Of images that differ by a factor of ten: the truth lies within five standard errors of each sample."""
    chance = random.Random(seed)
    shards = [[chance.uniform(0.1, 1.0) for _ in range(8)] for _ in range(20)]
    speed = speed_of(*work(shards))
    assert abs(speed.image_seconds - 0.55) < 5 * speed.standard_error
    assert 0.5 * 0.0217 < speed.standard_error < 2 * 0.0217  # 0.9 / sqrt(12) / sqrt(144)


def test_a_few_shards_are_better_than_none():
    assert speed_of() is None
    one = speed_of(*work([[0.2] * 4]))
    assert (one.image_seconds, one.standard_error) == (pytest.approx(0.2), None)
    assert speed_of(*work([[0.2] * 4] * 2)).image_seconds == pytest.approx(0.2)


def test_images_that_reach_no_device_take_time_all_the_same():
    failed = [
        receipt("r", n, 4, started=10.0 + n, model_ended=11.0 + n, model_actor="a", failed_by_code={"too_large": 4})
        for n in range(5)
    ]
    assert speed_of(*failed).image_seconds == pytest.approx(5 / 20)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 100)), min_size=2, max_size=30))
def test_the_ratio_of_sums_is_that_of_the_lists(pairs):
    ratio = Ratio()
    for images, total in pairs:
        ratio.add(images, total)
    images, totals = zip(*pairs, strict=True)
    mean = sum(totals) / sum(images)
    assert ratio.per_image == pytest.approx(mean)
    squares = sum((total - mean * number) ** 2 for number, total in pairs)
    expected = (squares * len(pairs) / (len(pairs) - 1)) ** 0.5 / sum(images)
    assert ratio.standard_error == pytest.approx(expected, rel=1e-3, abs=1e-4)
