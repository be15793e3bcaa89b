"""What PyTorch's operations ask of a device: launches, FLOPs, bytes moved, copies, waits, peak memory.

Each operation that computes counts as so many kernels as PyTorch starts for it on CUDA, which reads its inputs from the
memory of the device and writes its outputs there. Caches of the device are left out, so bytes are an upper bound for
small tensors. Operations that only give another view of a tensor count nothing.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._C import _dispatch_has_kernel_for_dispatch_key as has_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

# For these the host reads a value of the device, and so waits for all work before it.
WAITING = {
    "_local_scalar_dense", "nonzero", "nonzero_numpy", "argwhere", "masked_select", "bincount", "equal", "is_nonzero",
    "_unique", "_unique2", "unique_dim", "unique_consecutive", "histc",
}  # fmt: skip
_NO_KERNEL = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "lift_fresh",
              "resize_", "set_", "is_same_size", "is_pinned", "device", "sym_size"}  # fmt: skip
_KERNELS = {"native_group_norm": 3, "sort": 4, "topk": 3, "nonzero_static": 4, "cumsum": 2, "any": 1}
_WHOLE = {"scaled_dot_product_attention"}  # a fused kernel on CUDA, whatever its parts are elsewhere


@dataclass
class Operation:
    """One operation on the device."""

    name: str
    launches: int
    flops: int
    dtype: torch.dtype  # of the inputs, which decides the peak
    num_bytes: int  # read and written


@dataclass
class Copy:
    """One copy between host and device; `waits`: the host cannot go on before it is done."""

    num_bytes: int
    waits: bool


@dataclass
class Counted:
    operations: list[Operation] = field(default_factory=list)
    to_device: list[Copy] = field(default_factory=list)
    to_host: list[Copy] = field(default_factory=list)
    waits: Counter[str] = field(default_factory=Counter)  # by the operation that waits, copies included
    peak_bytes: int = 0

    @property
    def launches(self) -> int:
        return sum(operation.launches for operation in self.operations)

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.operations)

    @property
    def num_bytes(self) -> int:
        return sum(operation.num_bytes for operation in self.operations)


class DeviceCounts(TorchDispatchMode):
    """While open, counts operations on `device_type` into `counted`.

    With device_type "cpu" the same code can be counted on a CPU with real values: then there are no copies to see.
    """

    _open: ClassVar[list["DeviceCounts"]] = []

    def __init__(self, device_type: str = "cuda") -> None:
        super().__init__()
        self.device_type = device_type
        self.counted = Counted()
        self._live = 0
        self._known: set[int] = set()

    def __enter__(self) -> "DeviceCounts":
        self._open.append(self)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self._open.remove(self)
        super().__exit__(*error)

    @classmethod
    def launched(cls, name: str, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        """A kernel that is not PyTorch's was started."""
        for counts in cls._open:
            counts._add(name, 1, 0, read, written)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function.__name__.split(".")[0]
        if function.namespace == "prim":  # asks a tensor for its device and the like
            return function(*args, **kwargs)
        # An operation that consists of others, by PyTorch's C++ code. Its Python code is for devices without kernels.
        if name not in _WHOLE and has_kernel(function.name(), "CompositeImplicitAutograd"):
            with self:
                return function._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        read = _tensors((args, kwargs))
        if any(x.device.type == self.device_type for x in read):
            self._wait_for(name, args)
        out = function(*args, **kwargs)
        written = _tensors(out)
        if self._is_copy(name, read, written):
            self._copied(name, read, written, kwargs, args)
        elif any(x.device.type == self.device_type for x in (*read, *written)) and not self._is_free(function, name):
            self._add(name, _KERNELS.get(name, 1), _flops(function, name, args, kwargs, out), read, written)
        self._see_storages(written)
        return out

    def _is_copy(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor]) -> bool:
        return name in ("_to_copy", "copy_") and len({x.device.type for x in (*read, *written)}) > 1

    def _copied(self, name: str, read: Sequence[Tensor], written: Sequence[Tensor], kwargs: Any, args: Any) -> None:
        to_host = written[0].device.type == "cpu"
        non_blocking = bool(kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        num_bytes = _bytes(written[:1])
        (self.counted.to_host if to_host else self.counted.to_device).append(Copy(num_bytes, not non_blocking))
        if not non_blocking:
            self.counted.waits[f"{name} to the {'host' if to_host else 'device'}"] += 1

    def _is_free(self, function: Any, name: str) -> bool:
        return function.is_view or name in _NO_KERNEL

    def _wait_for(self, name: str, args: Any) -> None:
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if name in WAITING or masked:
            self.counted.waits[name] += 1

    def _add(self, name: str, launches: int, flops: int, read: Sequence[Tensor], written: Sequence[Tensor]) -> None:
        dtype = next((x.dtype for x in read if x.dtype.is_floating_point), torch.float32)
        num_bytes = _bytes({id(x): x for x in (*read, *written)}.values())
        self.counted.operations.append(Operation(name, launches, flops, dtype, num_bytes))

    def _see_storages(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.device.type != self.device_type:
                continue
            storage = tensor.untyped_storage()
            key, num_bytes = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self._live += num_bytes
                self.counted.peak_bytes = max(self.counted.peak_bytes, self._live)
                weakref.finalize(storage, self._released, key, num_bytes)

    def _released(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self._live -= num_bytes


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and not x.is_mkldnn]  # weights laid out for a CPU


def _bytes(tensors: Iterable[Tensor]) -> int:
    """What the elements take; an expanded tensor is read once."""
    return sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in tensors)


def _flops(function: Any, name: str, args: Any, kwargs: Any, out: Any) -> int:
    if name in _WHOLE:
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    count = flop_registry.get(function.overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))
