"""The price table: what an hour of a device costs. The one source of prices, for forecasts, --max-cost and metrics."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RunError
from pipeline.text.plain_yaml import read_plain_yaml

DEFAULT_PRICES = Path(__file__).with_name("prices.yaml")
CPU, ANY_GPU = "cpu", "gpu"  # names of the table that are no words of a device's name
_MOST_USD = 1e6  # an hour of one device


@dataclass(frozen=True)
class Prices:
    """US dollars an hour by name of a device, and where the table stands, for messages."""

    usd_per_hour: Mapping[str, float]
    source: str

    def of(self, device_name: str, units: float = 1.0) -> float | None:
        """US dollars for an hour of this device; None if the table has no price of it.

        `device_name`: `cpu`, or the name of a GPU as its driver gives it. `units`: how many CPUs are held, or which
        part of the GPU.
        """
        if device_name == CPU:
            price = self.usd_per_hour.get(CPU)
        else:
            named = [name for name in self.usd_per_hour if name not in (CPU, ANY_GPU) and _occurs(name, device_name)]
            price = self.usd_per_hour.get(max(named, key=len, default=ANY_GPU))
        return None if price is None else units * price

    def need(self, device_name: str, units: float = 1.0) -> float:
        """As `of`; RunError if the table has no price of this device."""
        price = self.of(device_name, units)
        if price is None:
            raise RunError(self.missing(device_name))
        return price

    def missing(self, device_name: str) -> str:
        """The message that the table has no price of this device."""
        other = "" if device_name == CPU else f", or `{ANY_GPU}` for any GPU"
        return f"--prices {self.source} has no price of {device_name}; add it below usd_per_hour{other}"


def read_prices(file: str | None) -> Prices:
    """The table in `file`, by default the one that comes with the program. RunError if it is no table of prices."""
    path = DEFAULT_PRICES if file is None else Path(file)
    source = "of the program" if file is None else file
    try:
        content = read_plain_yaml(path)
        if unknown := sorted(map(str, set(content) - {"written", "usd_per_hour"})):
            raise ValueError(f"unknown names {', '.join(unknown)}; known names are usd_per_hour, written")
        return Prices(_table(content.get("usd_per_hour")), source)
    except ValueError as error:
        raise RunError(f"--prices {source}: {error}") from None


def _table(values: Any) -> dict[str, float]:
    if not isinstance(values, dict) or not values:
        raise ValueError("usd_per_hour must hold a price for each device, such as `A10G: 1.20`")
    return {_name(name): _price(str(name), value) for name, value in values.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{name!r} is no name of a device")
    return name


def _price(name: str, value: Any) -> float:
    try:
        price = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the price of {name} is {value!r:.60}; write a number") from None
    if not (math.isfinite(price) and 0 <= price <= _MOST_USD):
        raise ValueError(f"the price of {name} is {value}; it must lie in 0 .. {_MOST_USD:,.0f}")
    return price


def _occurs(name: str, device_name: str) -> bool:
    """Whether `name` stands in `device_name` as whole words."""
    return re.search(rf"(?<![a-z0-9]){re.escape(name.lower())}(?![a-z0-9])", device_name.lower()) is not None
