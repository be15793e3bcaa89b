"""The CPU in place of a CUDA device: the same path with the same operations, and values; copies are counted."""

import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.device.cuda import Cuda


class HostAsDevice(Cuda):
    """Put it into `Network.cuda`. `arrives` is called when the host waits for a copy, with the copy's number."""

    def __init__(self, arrives: Callable[[int], None] = lambda number: None) -> None:
        self.device = torch.device("cpu")
        self.arrives = arrives
        self.pinned: list[Tensor] = []
        self.uploaded: list[int] = []  # bytes
        self.fetched: list[int] = []
        self.lock = threading.Lock()
        self.moments = itertools.count()

    def pin(self, tensor: Tensor) -> Tensor:
        self.pinned.append(tensor)
        return tensor

    def upload(self, pinned: Sequence[Tensor]) -> list[Tensor]:
        self.uploaded += [tensor.numel() for tensor in pinned]
        return list(pinned)

    def fetch(self, there: Tensor) -> Callable[[], NDArray[np.uint8]]:
        with self.lock:
            number = len(self.fetched)
            self.fetched.append(there.numel())

        def wait() -> NDArray[np.uint8]:
            self.arrives(number)
            return there.numpy()

        return wait

    def mark(self) -> int:
        return next(self.moments)

    def seconds(self, since: int, until: int) -> float:
        return float(until - since)

    def free_cache(self) -> None:
        pass
