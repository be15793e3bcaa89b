"""What a run has spent, when it may begin no more shards, and how many actors it takes: with reports of the test."""

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.budget.prices import Prices
from pipeline.errors import RunError
from pipeline.forecast import limits as limits_module
from pipeline.forecast.forecast import Work
from pipeline.forecast.limits import Limits
from pipeline.forecast.staff import Staff
from pipeline.telemetry.in_flight import InFlight
from tests.pipeline.forecast.test_forecast import MEASURED
from tests.pipeline.forecast.test_speed import work
from tests.support.run_records import receipt

PRICES = Prices({"L4": 3600.0, "cpu": 1.0}, "test")  # a dollar a second
NOW = datetime(2026, 12, 1, 1, tzinfo=UTC)


def held(**seconds: float) -> InFlight:
    return InFlight(None, frozenset(), held=seconds)


@pytest.fixture
def counted(monkeypatch) -> list[float]:
    amounts: list[float] = []
    monkeypatch.setattr(limits_module.COST, "add", amounts.append)
    return amounts


def test_a_shard_that_would_not_be_done_in_time_is_not_begun():
    limits = Limits(NOW + timedelta(seconds=100), None, PRICES)
    assert limits.may_begin(NOW.timestamp() + 99)
    limits.add(receipt("r", 0, started=1.0, finished=31.0))
    limits.add(receipt("r", 1, started=1.0, finished=11.0))
    assert limits.may_begin(NOW.timestamp() + 69)
    assert not limits.may_begin(NOW.timestamp() + 70)
    assert limits.reached == "--deadline 2026-12-01T01:01:40Z"
    assert not limits.may_begin(NOW.timestamp()), "a run that has stopped stays stopped"


def test_the_cost_is_that_of_all_devices_by_their_prices(counted):
    limits = Limits(None, 100.0, PRICES)
    limits.set_devices("cuda", (), 0.5)  # two actors on a GPU
    limits.look(held(**{"NVIDIA L4": 10.0}), 1000.0)
    limits.look(held(**{"NVIDIA L4": 20.0, "L4": 5.0}), 1010.0)
    assert limits.cost == pytest.approx(12.5) and sum(counted) == pytest.approx(12.5)
    limits.look(held(**{"NVIDIA L4": 20.0}), 1011.0)
    assert sum(counted) == pytest.approx(12.5), "a report that came late takes nothing back"
    on_cpus = Limits(None, 100.0, PRICES)
    on_cpus.set_devices("cpu", ("cpu",), 4.0)
    on_cpus.look(held(cpu=3600.0), 1000.0)
    assert on_cpus.cost == pytest.approx(4)


def test_a_shard_that_would_cost_too_much_is_not_begun(counted):
    limits = Limits(None, 100.0, PRICES)
    limits.add(receipt("r", 0, started=1.0, finished=11.0))
    for second in range(0, 45, 5):  # two devices
        limits.look(held(L4=2.0 * second), 1000.0 + second)
        assert limits.may_begin(1000.0 + second) == (2 * second + 20 < 100)
    assert limits.reached == "--max-cost 100" and limits.cost == 80


def test_while_no_report_comes_the_run_is_thought_to_spend_as_before(counted):
    limits = Limits(None, 100.0, PRICES)
    limits.look(held(L4=0.0), 1000.0)
    limits.look(held(L4=30.0), 1010.0)
    limits.look(None, 1020.0)
    assert limits.cost == pytest.approx(60)
    limits.look(held(L4=61.0), 1021.0)
    assert limits.cost == pytest.approx(61)


def test_the_cost_of_a_device_needs_a_price_only_with_max_cost(caplog, counted):
    caplog.set_level("INFO")
    Limits(None, None, PRICES).set_devices("cuda", ("B200",), 4.0)
    free = Limits(None, None, PRICES)
    for _ in range(2):
        free.look(held(B200=10.0, L4=1.0), 1000.0)
    assert free.cost == 1 and caplog.text.count("has no price of B200: its cost is not counted") == 1
    bounded = Limits(None, 5.0, PRICES)
    with pytest.raises(RunError, match="--prices test has no price of B200"):
        bounded.set_devices("cuda", ("L4", "B200"), 4.0)
    bounded.look(held(B200=10.0), 1000.0)
    assert not bounded.may_begin(1000.0) and bounded.fault == "--max-cost: --prices test has no price of B200; " + (
        "add it below usd_per_hour, or `gpu` for any GPU"
    )


def test_a_forecast_of_another_device_is_refused():
    with pytest.raises(RunError, match="--forecast was measured on NVIDIA L4, but this run is on cpu"):
        Limits(None, None, PRICES, MEASURED).set_devices("cpu", ("cpu",), 4.0)


def staff(limits: Limits, num_shards: int = 100) -> Staff:
    return Staff(limits, Work(16 * num_shards, num_shards), MEASURED.fingerprint)


def test_the_first_shards_measure_only_if_a_number_is_to_be_chosen():
    deadline = Limits(NOW, None, PRICES)
    assert staff(deadline).num_shards_to_measure((1, 8), 2) == 8
    assert staff(deadline, num_shards=63).num_shards_to_measure((1, 8), 2) == 0, "hardly more than the measurement"
    assert staff(deadline).num_shards_to_measure((2, 2), 2) == 0
    assert staff(Limits(None, None, PRICES)).num_shards_to_measure((1, 8), 2) == 0
    assert staff(Limits(NOW, None, PRICES, MEASURED)).num_shards_to_measure((1, 8), 2) == 0


def test_the_number_of_actors_follows_from_the_first_shards_and_from_the_file():
    """100 shards of 16 images at 2.5 s are 4,000 s for one actor."""
    hour = datetime.now(UTC) + timedelta(hours=1)
    by_shards = staff(Limits(hour, None, PRICES))
    assert by_shards.choose((1, 8)) == 8, "nothing is known"
    for one in work([[2.5] * 16] * 6):
        by_shards.add(one)
    assert by_shards.left == Work(16 * 94, 94)
    assert by_shards.choose((1, 8)) == 2
    by_file = staff(Limits(hour, None, PRICES, MEASURED))
    assert by_file.choose((1, 8)) == 1, "0.1 s an image"
    assert by_file.describe(Work(1600, 100)).startswith("1,600 images are left: about 0:03:47 with 1 model actor, 0.0")
