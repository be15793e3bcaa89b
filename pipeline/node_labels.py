"""Which nodes a kind of actor may run on: by one label of Ray's nodes, with values in order of preference."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RunError

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"  # as Kubernetes has it, and Ray
_CHOICE = re.compile(rf"((?:{_NAME}/)?{_NAME})=(!?{_NAME}|{_NAME}(?:,{_NAME})+)")


@dataclass(frozen=True)
class NodeChoice:
    """Nodes whose label `key` has one of `values`; the first value that can be had. Without a key, any node."""

    key: str = ""
    values: tuple[str, ...] = ()  # or one value that begins with `!`: nodes that have another value, or none

    @classmethod
    def parse(cls, text: str | None) -> "NodeChoice":
        """From KEY=VALUE, KEY=VALUE,FALLBACK or KEY=!VALUE; any node from None. ValueError for anything else."""
        if text is None:
            return ANY_NODE
        match = _CHOICE.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not KEY=VALUE, KEY=VALUE,FALLBACK or KEY=!VALUE, as market=spot,on-demand")
        return cls(match[1], tuple(match[2].split(",")))

    def __str__(self) -> str:
        return f"{self.key}={','.join(self.values)}"

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether actors may run on a node with these labels."""
        if not self.key:
            return True
        value = labels.get(self.key)
        if self.values[0].startswith("!"):
            return value != self.values[0][1:]
        return value in self.values

    def options(self) -> dict[str, Any]:
        """Options of Ray for an actor or a task."""
        if not self.key:
            return {}
        first, *others = ({self.key: value} for value in self.values)
        return {
            "label_selector": first,
            **({"fallback_strategy": [{"label_selector": other} for other in others]} if others else {}),
        }

    def any_of(self) -> dict[str, str]:
        """A label selector of Ray for the nodes of all values."""
        if not self.key:
            return {}
        return {self.key: self.values[0] if len(self.values) == 1 else f"in({','.join(self.values)})"}


ANY_NODE = NodeChoice()


def parse_flag(flag: str, text: str | None) -> NodeChoice:
    """RunError instead of ValueError."""
    try:
        return NodeChoice.parse(text)
    except ValueError as error:
        raise RunError(f"{flag}: {error}") from None
