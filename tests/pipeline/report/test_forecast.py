"""What people see of a forecast: each number of actors, intervals, and what becomes of the limits."""

import dataclasses
import re
from datetime import UTC, datetime, timedelta

from pipeline.budget.prices import Prices
from pipeline.forecast.forecast import Work
from pipeline.report.forecast import print_forecast
from tests.pipeline.forecast.test_forecast import MEASURED, PRICES

WORK = Work(51_200, 100)


def said(capsys, bounds=(1, 8), prices=PRICES, left=None, max_cost=None, measured=MEASURED) -> str:
    deadline = None if left is None else datetime.now(UTC) + timedelta(seconds=left)
    print_forecast(measured, WORK, bounds, prices, deadline, max_cost)
    return capsys.readouterr().out


def rows(text: str) -> list[int]:
    """The numbers of actors in the table."""
    return [int(number) for number in re.findall(r"^│ (\d+) +│ \d:", text, re.M)]


def test_each_number_of_actors_has_its_time_and_cost(capsys):
    text = said(capsys)
    assert rows(text) == [1, 2, 4, 8]
    assert "forecast of 51,200 images" in text and "sample of 200 images on NVIDIA L4" in text
    assert re.search(r"^images: 5\.4 MiB \(", text, re.M) and re.search(r"^segments: 98\.0 MiB$", text, re.M)
    assert "--deadline" not in text and "the run" not in text


def test_the_number_that_a_deadline_needs_is_in_the_table(capsys):
    """1,900 s are enough for three actors: 34 shards of 51.2 s and what comes around them."""
    text = said(capsys, left=1900)
    assert rows(text) == [1, 2, 3, 4, 8] and "with 3 model actors the run is done at 20" in text
    assert "with 8 model actors the run is not surely done at 20" in said(capsys, left=300)


def test_the_cost_is_held_against_the_budget_and_missing_prices_are_named(capsys):
    assert "the run stays below --max-cost 50" in said(capsys, max_cost=50)
    assert "the run may reach --max-cost 5" in said(capsys, max_cost=5)
    assert "--prices mine.yaml has no price of NVIDIA L4" in said(capsys, prices=Prices({"cpu": 1.0}, "mine.yaml"))


def test_an_unknown_error_is_no_interval(capsys):
    text = said(capsys, bounds=(1, 1), measured=dataclasses.replace(MEASURED, standard_error=None))
    assert rows(text) == [1] and ".." not in text.split("forecast of")[1].split("images:")[0]
