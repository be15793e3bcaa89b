"""Checkpoints of the original codes (`model_final_*.pkl`), as the authors of a family published them.

Such a file is a pickle of {"model": {name: array}, ...}, without configuration and class names. The names of the arrays
show the family, and the family infers the configuration from names and shapes.

This module does not import torch until a value is read.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2f_core.checkpoints.pickled_arrays import PickledArray, PlainPickleError
from m2f_core.checkpoints.plain_pickle import read_plain_pickle
from m2f_core.checkpoints.stored_weights import CheckpointError, StoredTensor
from m2f_core.config.fields import ConfigError
from m2f_core.families.family import Family, OriginalFormat
from m2f_core.families.registry import FAMILIES, family_of_arrays

if TYPE_CHECKING:
    from torch import Tensor

    from m2f_core.config.model_config import ModelConfig

# Arrays may be views of the same bytes. In memory each tensor has its own: together they must not be many times the
# file.
MAX_SHARING = 2


@dataclass(frozen=True)
class PickledCheckpoint:
    """An open file: `arrays` are views of the mapped file, by their names in the present code of the family."""

    path: Path
    family: Family
    original: OriginalFormat  # of the family
    arrays: Mapping[str, np.ndarray]

    def config(self) -> ModelConfig:
        """The configuration from names and shapes. Raises CheckpointError if they do not belong to the family."""
        try:
            return self.original.config({name: array.shape for name, array in self.arrays.items()})
        except ConfigError as error:
            raise CheckpointError(f"{self.path}: {error}") from None

    def config_dict(self) -> dict[str, Any]:
        """The config.json that a Hugging Face checkpoint of this model would have."""
        return self.config().to_dict()

    def stored_tensors(self) -> dict[str, StoredTensor]:
        """The arrays as tensors, plus the counts that transformers' batch norms have and detectron2's lack."""
        stored = {name: _stored(array) for name, array in self.arrays.items()}
        for name in self.arrays:
            if name.endswith(".running_var"):
                count = name.removesuffix("running_var") + "num_batches_tracked"
                stored.setdefault(count, _stored(np.zeros((), np.int64)))
        return stored


def open_pickle(path: Path) -> PickledCheckpoint:
    """Map a `.pkl` file. No code in it is run, and the values of its arrays are not read.

    Raises a CheckpointError that names anything but arrays in plain containers.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise CheckpointError(f"{path}: is an archive of torch.save, not a pickle of numpy arrays")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        model = _model_entry(read_plain_pickle(memoryview(content)))
        num_bytes = sum(array.nbytes for array in model.values())
        if num_bytes > MAX_SHARING * len(content):
            raise PlainPickleError(f"has {len(content):,} bytes, but arrays of {num_bytes:,} bytes, which share them")
        family = family_of_arrays(list(model))
        if family is None or family.original is None:
            known = ", ".join(family.name for family in FAMILIES if family.original)
            raise PlainPickleError(f"holds no head of a known model ({known})")
        return PickledCheckpoint(path, family, family.original, _todays_names(model, family.original))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, ValueError) as error:  # mmap raises ValueError for an empty file; PlainPickleError is one too
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {error}; it must be a model_final_*.pkl of the model's authors") from None


def _model_entry(content: object) -> dict[str, np.ndarray]:
    """The arrays of the entry "model"; other entries (author, optimizer) are ignored."""
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not model:
        raise PlainPickleError('has no entry "model" with arrays by name')
    for name, array in model.items():
        if not isinstance(name, str) or not name.isprintable():
            raise PlainPickleError("has an array in its model whose name is not printable text")
        if not isinstance(array, PickledArray):
            raise PlainPickleError(f"has a {type(array).__name__} as {name}, not an array")
    return {name: array.values for name, array in model.items()}


def _todays_names(model: Mapping[str, np.ndarray], original: OriginalFormat) -> dict[str, np.ndarray]:
    """Rename tensors of older code."""
    renamed: dict[str, np.ndarray] = {}
    for old_name, array in model.items():
        name = original.renamed(old_name)
        if name in renamed or (name != old_name and name in model):
            raise PlainPickleError(f"has {name} twice, in an old and a new spelling")
        renamed[name] = array
    return renamed


def _stored(array: np.ndarray) -> StoredTensor:
    return StoredTensor(
        shape=array.shape,
        dtype=array.dtype.name,
        is_float=array.dtype.kind == "f",
        is_integer=array.dtype.kind in "iu",
        read=partial(_to_tensor, array),
    )


def _to_tensor(array: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
