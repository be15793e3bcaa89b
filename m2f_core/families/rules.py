"""Rules by which files name the tensors of a model: one table a family and format.

Does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """The source of one of our tensors: the concatenated tensors `names` of the file, or the third `third` of one."""

    names: tuple[str, ...]
    third: int | None = None


@dataclass(frozen=True)
class Rule:
    """Our name of a tensor (or the first part of the name) and `theirs`; `#` stands for the same number in all.

    If `theirs` has several names, our tensor is the concatenation of those tensors in this order. `third` is the
    opposite: our tensor is this third of theirs (PyTorch's MultiheadAttention stores q, k and v as one tensor).
    """

    ours: str
    theirs: tuple[str, ...]
    in_memory: tuple[str, ...] = ()  # Hugging Face's other spelling, if it differs
    third: int | None = None


def hugging_face_sources(rules: Sequence[Rule], our_name: str) -> tuple[Source, Source]:
    """The source of one of our tensors in Hugging Face's names: those on the hub, and those in memory."""
    rule, numbers, rest = _find_rule(rules, our_name)
    hub = _spell(rule.theirs, numbers, rest)
    return Source(hub, rule.third), Source(_spell(rule.in_memory, numbers, rest) or hub, rule.third)


def source(rules: Sequence[Rule], our_name: str) -> Source:
    """The source of one of our tensors in a format that has one spelling."""
    rule, numbers, rest = _find_rule(rules, our_name)
    return Source(_spell(rule.theirs, numbers, rest), rule.third)


def _find_rule(rules: Sequence[Rule], our_name: str) -> tuple[Rule, tuple[str, ...], str]:
    """The rule, the numbers of its `#`, and what follows the part that the rule names."""
    for rule in rules:
        front = re.escape(rule.ours).replace(r"\#", r"(\d+)")
        if match := re.fullmatch(rf"{front}(?P<rest>(\..*)?)", our_name):
            return rule, match.groups()[: rule.ours.count("#")], match["rest"]
    raise AssertionError(f"no rule for {our_name}")


def _spell(templates: tuple[str, ...], numbers: tuple[str, ...], rest: str) -> tuple[str, ...]:
    for number in numbers:
        templates = tuple(template.replace("#", number, 1) for template in templates)
    return tuple(template + rest for template in templates)
