"""Bounds stand beside the fields: one check holds them, and their words are those of the message."""

import re
from dataclasses import MISSING, dataclass, fields
from typing import Annotated

import pytest
from annotated_types import Interval

from pipeline.config import Settings
from pipeline.drill.settings import DrillSettings
from pipeline.errors import RunError
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.export_model.settings import ExportModelSettings
from pipeline.scenes.settings import ScenesSettings
from pipeline.setting_fields import bounds_in_words, check_fields, flag, help_texts, marker, plain_type
from pipeline.train.settings import FinetuneSettings

SETTINGS = (Settings, DrillSettings, FinetuneSettings, EvaluationSettings, ScenesSettings, ExportModelSettings)
# Beside the fields without a default.
NEEDED = {FinetuneSettings: {"panoptic_gt": "g", "model": "m"}, EvaluationSettings: {"panoptic_gt": "g"}}


@dataclass
class Example:
    """An example."""

    name: str = "a"
    """The name
    of it."""
    closed: Annotated[int | None, Interval(ge=1, le=4096)] = None
    """Closed."""
    opened: Annotated[float, Interval(gt=0.0, lt=1.0)] = 0.5
    """Open."""
    at_least: Annotated[int, Interval(ge=0)] = 0
    """From zero on."""
    wide: Annotated[int, Interval(ge=1, le=2**62)] = 1
    """Wide."""
    narrow: Annotated[int, Interval(ge=1, le=2**31 - 1)] = 1
    """Narrow."""
    huge: Annotated[float, Interval(ge=1e-12, le=1e12)] = 1.0
    """Huge."""

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    "value", [{"closed": 1}, {"closed": 4096}, {"closed": None}, {"opened": 1e-300}, {"wide": 2**62}]
)
def test_bounds_belong_to_the_allowed_numbers(value):
    assert vars(Example(**value)) == {**vars(Example()), **value}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"closed": 0}, "--closed is 0; it must lie in 1 .. 4,096"),
        ({"closed": 4097}, "--closed is 4097; it must lie in 1 .. 4,096"),
        ({"opened": 0.0}, "--opened is 0.0; it must be above 0.0 and below 1.0"),
        ({"opened": 1.0}, "--opened is 1.0; it must be above 0.0 and below 1.0"),
        ({"opened": float("nan")}, "--opened is nan; it must be above 0.0 and below 1.0"),
        ({"at_least": -1}, "--at-least is -1; it must be at least 0"),
        ({"huge": float("inf")}, "--huge is inf; it must lie in 1e-12 .. 1e+12"),
        ({"name": " \t"}, "--name is empty"),
    ],
)
def test_what_lies_outside_is_named_with_its_bounds(value, message):
    with pytest.raises(RunError) as refusal:
        Example(**value)
    assert str(refusal.value) == message


def test_bounds_in_words():
    words = {field.name: bounds_in_words(field) for field in fields(Example)}
    assert words == {
        "name": None,
        "closed": "1 .. 4,096",
        "opened": "above 0.0 and below 1.0",
        "at_least": "at least 0",
        "wide": "1 .. 2^62",
        "narrow": "1 .. 2^31 - 1",
        "huge": "1e-12 .. 1e+12",
    }


def test_help_of_a_field_is_one_line_and_is_inherited():
    assert help_texts(Example)["name"] == "The name of it."
    assert help_texts(DrillSettings) == {
        **help_texts(Settings),
        **{name: text for name, text in help_texts(DrillSettings).items() if name not in Settings.__dataclass_fields__},
    }


@pytest.mark.parametrize("settings_class", SETTINGS)
def test_every_default_lies_within_its_bounds_and_every_bound_refuses(settings_class):
    """A default outside would refuse the plain command."""
    given = {field.name: "x" for field in fields(settings_class) if field.default is MISSING}
    given |= NEEDED.get(settings_class, {})
    settings_class(**given)
    bounded = [field for field in fields(settings_class) if marker(field, Interval)]
    assert bounded
    for field in bounded:
        bounds = marker(field, Interval)
        wrong_ones = (
            bounds.ge - 1 if bounds.ge is not None else bounds.gt,
            bounds.le + 1 if bounds.le is not None else bounds.lt,
        )
        for wrong in wrong_ones:
            with pytest.raises(RunError, match=re.escape(f"{flag(field.name)} is {wrong}; it must ")):
                settings_class(**{**given, field.name: wrong})


@pytest.mark.parametrize("settings_class", SETTINGS)
def test_every_number_has_bounds_but_seeds(settings_class):
    """A seed of the drill is any number."""
    free = {
        field.name
        for field in fields(settings_class)
        if plain_type(field) in (int, float, int | None, float | None) and marker(field, Interval) is None
    }
    assert free <= {"seed"}
