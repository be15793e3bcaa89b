"""A sequence that stores its items as pickles: the content of a COCO file, for processes that read parts of it."""

import pickle
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np
import torch

T = TypeVar("T")


class PackedSequence(Generic[T]):
    """Items of any type, unpickled at each access.

    As Python objects, annotations take four times the bytes of their JSON, and every loading process would have its own
    copy. Here all pickles lie in two tensors, which torch shares between processes, as in detectron2's
    `_TorchSerializedList`.
    """

    def __init__(self, items: Iterable[T]) -> None:
        pickles = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = torch.from_numpy(np.cumsum([0, *map(len, pickles)], dtype=np.int64))
        self._bytes = torch.from_numpy(np.frombuffer(bytearray().join(pickles), np.uint8))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> T:
        if not 0 <= index < len(self):
            raise IndexError(index)
        item: T = pickle.loads(self._bytes[self._ends[index] : self._ends[index + 1]].numpy().tobytes())
        return item

    def __iter__(self) -> Iterator[T]:
        return (self[index] for index in range(len(self)))
