"""`cuda` tensors on a machine without a GPU: shapes, types and devices are PyTorch's own, values do not exist.

FakeTensorMode computes what each operation gives, and raises where devices are mixed or where the program would have to
read a value. A PyTorch that was built for CPUs lacks what its Python functions ask for: a guard for the current device,
the permission for autocast, streams, events, graphs and pinned memory. They are put in place here, and only here.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from m2f_core.images.pixels import _table_on
from m2f_core.images.resize import _taps_on
from m2f_core.inference import resize_taps
from m2f_core.inference.instance import _nearest
from m2f_core.inference.semantic import _matrix_on
from m2f_core.layers import deformable_attention, deformable_attention_triton
from tests.support.device_counts import DeviceCounts

# With a number: asked for the current device, the guard below answers for another type.
CUDA = torch.device("cuda", 0)
_CACHES = (deformable_attention_triton._level_table, _nearest, _matrix_on, _taps_on, _table_on)
# c10/core/DeviceType.h
_TYPES, _CUDA, _META = 25, 1, 14


@contextlib.contextmanager
def fake_cuda() -> Iterator[None]:
    """While this is open, tensors on CUDA are fakes, and Triton's kernel of deformable attention is one launch.

    Do not keep tensors of this time: nothing is computed. What functions have cached in it is forgotten.
    """
    with (
        _device_guard(),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch.object(torch.cuda, "is_available", return_value=True),
        mock.patch.object(FakeTensorMode, "avoid_device_init", True),  # there is none, whatever the line above says
        mock.patch.object(torch.cuda, "Stream"),
        mock.patch.object(torch.cuda, "Event"),
        mock.patch.object(torch.cuda, "current_stream"),
        mock.patch.object(torch.cuda, "CUDAGraph"),
        mock.patch.object(torch.cuda, "graph_pool_handle"),
        mock.patch.object(torch.cuda, "graph", lambda graph, **settings: contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        mock.patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None),
        mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor),
        mock.patch.object(deformable_attention, "_triton_way", _triton_way),
        mock.patch.object(deformable_attention_triton, "_attend", _Kernel()),
        mock.patch.object(resize_taps, "_bilinear_weights", _with_values(resize_taps._bilinear_weights)),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        forget_fakes()
        try:
            yield
        finally:
            forget_fakes()


def forget_fakes() -> None:
    """Empty the caches of tensors on a device."""
    for cached in _CACHES:
        cached.cache_clear()


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    """PyTorch's guard of the meta device, which does nothing, for CUDA too.

    FakeTensorMode itself does this in builds for CUDA that find no device, but not in builds for CPUs.
    """
    if torch.backends.cuda.is_built():
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libc10.so"))
    guards = (ctypes.c_void_p * _TYPES).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[_CUDA] = guards[_CUDA], guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before


def _with_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the host that computes with tensors and reads them."""

    def call(*args: Any) -> Any:
        with _disable_current_modes():
            return function(*args)

    return call


def _triton_way(device: torch.device):
    return deformable_attention_triton.attend_by_triton


class _Kernel:
    """In place of the compiled kernel: looks at its arguments, and counts as one launch."""

    def __getitem__(self, grid: tuple[int, int, int]):
        assert all(programs > 0 for programs in grid) and max(grid[1:]) <= 65535, f"CUDA starts no grid of {grid}"
        return self._launch

    def _launch(self, *args: object, **constants: int) -> None:
        tensors = [x for x in args if isinstance(x, torch.Tensor)]
        assert all(x.device == CUDA and x.is_contiguous() for x in tensors)
        DeviceCounts.launched("triton.attend", tensors[:-1], tensors[-1:])
