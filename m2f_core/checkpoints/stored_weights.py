"""Make a model's tensors from a checkpoint's tensors in any format: match them by name and shape, then read them.

This module does not import torch until a value is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from re import Pattern
from typing import TYPE_CHECKING

from m2f_core.families.rules import Source

if TYPE_CHECKING:
    from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: its properties, and `read`, whose result may share memory with the file."""

    shape: tuple[int, ...]
    dtype: str  # in the format's spelling
    is_float: bool
    is_integer: bool
    read: Callable[[], Tensor]


def match_weights(
    model: nn.Module,
    stored: Mapping[str, StoredTensor],
    source_of: Callable[[str], Source],
    ignored: Pattern[str],
    path: Path,
    described_by: str,
) -> dict[str, Source]:
    """The source of each of the model's tensors. Raises one CheckpointError that lists all mismatches.

    `source_of` takes our name of a tensor. `ignored` matches names that no model needs. `path` (the checkpoint) and
    `described_by` (the origin of the model's shapes) are for the message.
    """
    sources = {our_name: source_of(our_name) for our_name in model.state_dict()}
    missing, misshapen, not_float, not_whole, used = set(), set(), set(), set(), set()
    for our_name, tensor in model.state_dict().items():
        source = sources[our_name]
        expected = _stored_shape(tuple(tensor.shape), source)
        for name in source.names:
            used.add(name)
            found = stored.get(name)
            if found is None:
                missing.add(name)
                continue
            if found.shape != expected:
                misshapen.add(f"{name} (is {list(found.shape)}, {described_by} says {list(expected)})")
            if tensor.is_floating_point() and not found.is_float:
                not_float.add(f"{name} ({found.dtype})")
            elif not tensor.is_floating_point() and not found.is_integer:
                not_whole.add(f"{name} ({found.dtype})")
    unexpected = {name for name in stored if name not in used and not ignored.fullmatch(name)}
    problems = [*_name_some("missing", missing), *_name_some("unexpected", unexpected)]
    problems += [*_name_some("of another shape", misshapen), *_name_some("not floating-point", not_float)]
    problems += _name_some("not whole numbers", not_whole)
    if problems:
        raise CheckpointError(f"{path}: the weights do not fit {described_by}: {'; '.join(problems)}")
    return sources


def read_weight(stored: Mapping[str, StoredTensor], source: Source) -> Tensor:
    """One of our tensors, float32 (a count: int64), in its own memory, so that the file may be removed afterwards."""
    import torch

    parts = [stored[name].read() for name in source.names]
    if source.third is not None:
        parts = [parts[0].chunk(3)[source.third]]
    tensor = torch.cat(parts) if len(parts) > 1 else parts[0].clone()
    return tensor.float() if tensor.is_floating_point() else tensor.long()


def _stored_shape(shape: tuple[int, ...], source: Source) -> tuple[int, ...]:
    if source.third is not None:
        return (shape[0] * 3, *shape[1:])
    return (shape[0] // len(source.names), *shape[1:]) if len(source.names) > 1 else shape


def _name_some(what: str, names: set[str], limit: int = 3) -> Iterator[str]:
    if names:
        more = f" and {len(names) - limit} more" if len(names) > limit else ""
        yield f"{len(names)} {what}: {', '.join(sorted(names)[:limit])}{more}"
