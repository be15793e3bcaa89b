"""What this program asks of PyTorch's CUDA functions for one device, in one place.

The host gives the device work in the order of one stream and does not wait for it; two further streams copy images to
the device and results from it meanwhile. Nothing of this has run on a GPU yet.
"""

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import RunError


class Cuda:
    """A CUDA device of this process."""

    def __init__(self, device: torch.device, memory_share: float):
        """`memory_share`: of the device's memory, for this process. RunError if PyTorch sees no GPU."""
        if not torch.cuda.is_available():
            raise RunError(
                f"Ray gave this actor a GPU, but PyTorch on {socket.gethostname()} sees no GPU; "
                "install a CUDA build of PyTorch on that machine, or use --device cpu"
            )
        if memory_share < 1:
            # Beyond its part, this process is out of memory and takes smaller batches, before its neighbours are.
            torch.cuda.set_per_process_memory_fraction(memory_share)
        self.device = device
        self.uploads, self.downloads = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def pin(self, tensor: Tensor) -> Tensor:
        """The tensor in memory from which the device copies while it computes."""
        return tensor.pin_memory()

    def upload(self, pinned: Sequence[Tensor]) -> list[Tensor]:
        """The tensors on the device. They are copied beside what the device computes now; later work waits for them."""
        with torch.cuda.stream(self.uploads):
            there = [tensor.to(self.device, non_blocking=True) for tensor in pinned]
        work = torch.cuda.current_stream(self.device)
        work.wait_stream(self.uploads)
        for tensor in there:
            tensor.record_stream(work)  # its memory was taken by the other stream
        return there

    def fetch(self, there: Tensor) -> Callable[[], NDArray[np.uint8]]:
        """Start to copy bytes to the host, once they are computed; the function that is returned waits for them."""
        here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
        self.downloads.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.downloads):
            here.copy_(there, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
        there.record_stream(self.downloads)

        def wait() -> NDArray[np.uint8]:
            done.synchronize()
            return here.numpy()

        return wait

    @contextlib.contextmanager
    def tf32(self, allowed: bool) -> Iterator[None]:
        """While this is open, whether products of float32 matrices may use TF32, with 10 bits of mantissa."""
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = allowed
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def mark(self) -> Any:
        """A moment in the work of the device."""
        moment = torch.cuda.Event(enable_timing=True)
        moment.record()
        return moment

    def seconds(self, since: Any, until: Any) -> float:
        """Between two moments; waits for the second."""
        until.synchronize()
        return float(since.elapsed_time(until)) / 1e3

    def free_cache(self) -> None:
        torch.cuda.empty_cache()

    def is_lost(self) -> bool:
        """Whether an illegal access or a bus error has broken CUDA in this process."""
        try:
            torch.zeros(1, device=self.device).add_(1).cpu()
        except torch.OutOfMemoryError:
            return False
        except RuntimeError:
            return True
        return False
