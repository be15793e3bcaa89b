"""Checks of a configuration's fields: one check with one message for each kind of field. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

# Names of transformers' activation functions, without prelu and xielu, which have weights of their own.
_GELUS = ("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh")
_RELUS = ("leaky_relu", "relu", "relu2", "relu6")
_OTHERS = ("hardswish", "laplace", "linear", "mish", "quick_gelu", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh")
ACTIVATIONS = (*_GELUS, "gelu_pytorch_tanh", *_RELUS, *_OTHERS)


# The largest numbers that a configuration may have. They are far above every published model's (in brackets), and so
# low that a model without values, its labels and its tables of positions cost megabytes: config.json is read before the
# weights show whether it tells the truth.
MAX_CLASSES = 100_000  # (150)
MAX_QUERIES = 10_000  # (200)
MAX_WIDTH = 65_536  # channels of any layer (6,144)
MAX_LAYERS = 99  # of one kind, or blocks of a stage (36)
MAX_HEADS = 1_024  # (48)
MAX_WINDOW_SIZE = 24  # (12); a table of positions has window^4 numbers
MAX_PATCH_SIZE = 64  # (4)
MAX_POINTS = 1_000_000  # that the loss samples (12,544)
MAX_NUMBER = 1e6  # weights of losses, scales, ratios, ignored values


class ConfigError(ValueError):
    """A model configuration that cannot be built; the message names the field."""


def excerpt(value: object) -> str:
    """A wrong value for a message of one line, however long it is."""
    try:
        text = ascii(value)
    except RecursionError:
        text = f"a {type(value).__name__} with many levels"
    return text if len(text) <= 100 else f"{text[:100]}..."


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_counts(config: object, names: tuple[str, ...], most: int) -> None:
    for name in names:
        value = getattr(config, name)
        if not is_count(value) or value > most:
            raise ConfigError(f"{name} must be a whole number from 1 to {most}, not {excerpt(value)}")


def check_booleans(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{name} must be true or false, not {excerpt(getattr(config, name))}")


def check_numbers(config: object, names: tuple[str, ...], least: float = 0, most: float = MAX_NUMBER) -> None:
    """Each field must be a finite number from `least` to `most`, whole or not."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
            raise ConfigError(f"{name} must be a number from {least:.9g} to {most:.9g}, not {excerpt(value)}")


def check_count_tuple(config: object, name: str, length: int, most: int) -> None:
    values = getattr(config, name)
    if not isinstance(values, tuple) or len(values) != length or not all(is_count(v) and v <= most for v in values):
        raise ConfigError(f"{name} must be {length} whole numbers from 1 to {most}, not {excerpt(values)}")


def check_activation(config: object, name: str) -> None:
    if getattr(config, name) not in ACTIVATIONS:
        raise ConfigError(f"{name} must be one of {', '.join(ACTIVATIONS)}, not {excerpt(getattr(config, name))}")


def check_divisible(what: str, value: int, by_what: str, by: int) -> None:
    if value % by:
        raise ConfigError(f"{what} must be divisible by {by_what}: {value} is not divisible by {by}")


def known_fields(cls: type, json_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `json_dict` that are fields of dataclass `cls`; JSON lists become tuples, null means default."""
    names = {f.name for f in fields(cls)}
    known = {name: value for name, value in json_dict.items() if name in names and value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
