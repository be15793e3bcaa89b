"""Forecasts of runs whose parts are known, how many actors they need, and the file between two jobs."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.budget.prices import Prices
from pipeline.errors import RunError
from pipeline.forecast.forecast import Work, choose_actors, forecast
from pipeline.forecast.measured import Measured, Size, read_measured

PRICES = Prices({"L4": 3.6, "cpu": 0.36}, "test")
MEASURED = Measured(
    version=1,
    written="2026-11-30T02:00:00+00:00",
    fingerprint="0123456789abcdef",
    device_name="NVIDIA L4",
    units_per_actor=1.0,
    num_images=200,
    num_failed=1,
    num_actors=1,
    begin_seconds=30.0,
    load_seconds=60.0,
    image_seconds=0.1,
    standard_error=0.001,
    write_seconds=2.0,
    end_seconds=5.0,
    step_ms={"model": 90.0},
    sizes={"images": Size(100.0, 1.0, 5000), "segments": Size(2000.0, None, 4000)},
)
WORK = Work(num_images=51_200, num_shards=100)
works = st.builds(lambda shards, each: Work(shards * each, shards), st.integers(1, 500), st.integers(1, 512))


def test_the_parts_of_a_run_add_up():
    one = forecast(MEASURED, WORK, 1, PRICES)
    held = 60 + 5120 + 2
    assert one.seconds.value == pytest.approx(30 + held + 5)
    assert one.device_hours.value == pytest.approx(held / 3600)
    assert one.cost.value == pytest.approx(3.6 * held / 3600)
    half = 1.96 * 0.001 * (1 - 200 / 51_200) ** 0.5 * 51_200
    assert (one.seconds.low, one.seconds.high) == pytest.approx((one.seconds.value - half, one.seconds.value + half))
    assert one.bytes_of["images"].value == 51_200 * 100 + 100 * 5000
    assert one.bytes_of["segments"].high is None


def test_shards_are_whole():
    """Of 100 shards of 51.2 s each, 64 actors do one and 36 do another one."""
    assert forecast(MEASURED, WORK, 64, PRICES).seconds.value == pytest.approx(97 + 2 * 51.2)
    assert forecast(MEASURED, WORK, 500, PRICES).num_actors == 100


def test_hours_of_cpus_are_those_of_all_cpus_of_an_actor():
    on_cpus = dataclasses.replace(MEASURED, device_name="cpu", units_per_actor=4.0)
    held = 60 + 2560 + 2
    two = forecast(on_cpus, WORK, 2, PRICES)
    assert two.device_hours.value == pytest.approx(2 * 4 * held / 3600)
    assert two.cost.value == pytest.approx(0.36 * two.device_hours.value)


def test_an_actor_on_half_a_gpu_costs_half():
    shared = forecast(dataclasses.replace(MEASURED, units_per_actor=0.5), WORK, 2, PRICES)
    whole = forecast(MEASURED, WORK, 2, PRICES)
    assert shared.seconds == whole.seconds and shared.cost.value == pytest.approx(whole.cost.value / 2)


def test_a_device_without_a_price_has_no_cost_and_all_the_rest():
    unknown = forecast(dataclasses.replace(MEASURED, device_name="B200"), WORK, 2, PRICES)
    assert unknown.cost is None and unknown.device_hours.value > 0


def test_a_sample_of_all_images_is_no_sample():
    whole = forecast(MEASURED, Work(200, 13), 1, PRICES)
    assert whole.seconds.low == whole.seconds.value == whole.seconds.high


@given(works, st.integers(1, 64))
def test_more_actors_are_never_slower(work, number):
    few, more = (forecast(MEASURED, work, actors, PRICES) for actors in (number, number + 1))
    assert more.seconds.value <= few.seconds.value


@given(works, st.integers(1, 8), st.integers(0, 56), st.floats(1, 1e5))
def test_the_fewest_actors_that_are_done_in_time_are_chosen(work, least, more, seconds_left):
    most = least + more
    number = choose_actors(MEASURED, work, (least, most), PRICES, seconds_left, None)
    assert least <= number <= most

    def in_time(actors: int) -> bool:
        return forecast(MEASURED, work, actors, PRICES).seconds.surely_below <= seconds_left

    assert in_time(number) or number == most
    assert number == least or not in_time(number - 1)


@given(works, st.floats(0.01, 1000), st.none() | st.floats(1, 1e5))
def test_loading_takes_a_tenth_of_the_budget_at_most(work, max_cost, seconds_left):
    number = choose_actors(MEASURED, work, (1, 64), PRICES, seconds_left, max_cost)
    assert number == 1 or number * 3.6 * 60 / 3600 <= 0.1 * max_cost + 1e-9


def test_without_a_limit_all_may_work():
    assert choose_actors(MEASURED, WORK, (1, 64), PRICES, None, None) == 64


def test_what_was_measured_is_read_back(tmp_path):
    file = tmp_path / "new" / "forecast.json"
    MEASURED.write(file)
    assert read_measured(file, MEASURED.fingerprint) == MEASURED


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version is 2"),
        ({"image_seconds": 0.0}, "image_seconds is 0.0; input should be greater than 0"),
        ({"standard_error": float("nan")}, "standard_error is nan; input should be a finite"),
        ({"device_name": ""}, "device_name is ''"),
        ({"sizes": {"images": 5}}, "sizes.images is 5"),
        ({"written": "yesterday"}, "written is 'yesterday'; it must be a time in UTC"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, change, said):
    (tmp_path / "f.json").write_text(json.dumps({**dataclasses.asdict(MEASURED), **change}))
    with pytest.raises(RunError, match=said) as refused:
        read_measured(tmp_path / "f.json", MEASURED.fingerprint)
    assert "plan_bucket.py --calibrate writes this file" in str(refused.value)


def test_a_file_of_another_model_is_refused(tmp_path):
    MEASURED.write(tmp_path / "f.json")
    with pytest.raises(RunError, match="measured with another model or other settings"):
        read_measured(tmp_path / "f.json", "another")


def test_a_file_that_cannot_be_read_or_written_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"--forecast .*No such file"):
        read_measured(tmp_path / "none.json", "f")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"--forecast .* cannot be written"):
        MEASURED.write(tmp_path / "file" / "f.json")
