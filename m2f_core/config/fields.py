"""Checks of a configuration's fields: one check with one message for each kind of field. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

# Names of transformers' activation functions, without prelu and xielu, which have weights of their own.
_GELUS = ("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh")
_RELUS = ("leaky_relu", "relu", "relu2", "relu6")
_OTHERS = ("hardswish", "laplace", "linear", "mish", "quick_gelu", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh")
ACTIVATIONS = (*_GELUS, "gelu_pytorch_tanh", *_RELUS, *_OTHERS)


class ConfigError(ValueError):
    """A model configuration that cannot be built; the message names the field."""


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_counts(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not is_count(getattr(config, name)):
            raise ConfigError(f"{name} must be a whole number of at least 1, not {getattr(config, name)!r}")


def check_booleans(config: object, names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{name} must be true or false, not {getattr(config, name)!r}")


def check_numbers(config: object, names: tuple[str, ...], least: float = 0, most: float = math.inf) -> None:
    """Each field must be a finite number from `least` to `most`, whole or not."""
    for name in names:
        value = getattr(config, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value != math.inf
        if not is_number or not least <= value <= most:
            bounds = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
            raise ConfigError(f"{name} must be a number {bounds}, not {value!r}")


def check_count_tuple(config: object, name: str, length: int) -> None:
    values = getattr(config, name)
    if not isinstance(values, tuple) or len(values) != length or not all(map(is_count, values)):
        raise ConfigError(f"{name} must be {length} whole numbers of at least 1, not {values!r}")


def check_activation(config: object, name: str) -> None:
    if getattr(config, name) not in ACTIVATIONS:
        raise ConfigError(f"{name} must be one of {', '.join(ACTIVATIONS)}, not {getattr(config, name)!r}")


def check_divisible(what: str, value: int, by_what: str, by: int) -> None:
    if value % by:
        raise ConfigError(f"{what} must be divisible by {by_what}: {value} is not divisible by {by}")


def known_fields(cls: type, json_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `json_dict` that are fields of dataclass `cls`; JSON lists become tuples, null means default."""
    names = {f.name for f in fields(cls)}
    known = {name: value for name, value in json_dict.items() if name in names and value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
