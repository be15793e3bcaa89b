"""What the host needs of a batch that lies on a device, in one copy; and the runs of label maps, found on the device.

The host waits for a device each time it reads a value of it, or a size that depends on values. So nothing here does:
tensors gather in a `Parcel`, which is one copy, and runs are found in a table with room for so many. If there are more,
which is the case for noise, they are copied once more.

Legend: R runs; N tables or planes; `_WH` a map as its transpose, whose memory has the column-major order of COCO RLE.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2f_core.masks.rle import LabelRuns
from m2f_core.to_device import to_device

Arrays = Sequence[NDArray[Any]]
# Starts to copy bytes to the host; the function that it returns waits for them.
Fetch = Callable[[Tensor], Callable[[], NDArray[np.uint8]]]


def fetch_at_once(bytes_on_device: Tensor) -> Callable[[], NDArray[np.uint8]]:
    """A `Fetch` that waits."""
    found = bytes_on_device.cpu().numpy()
    return lambda: found


class Parcel:
    """Tensors that go from a device to the host together."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def add(self, tensor: Tensor) -> int:
        """Its place in the arrays that arrive, with its shape and type."""
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def send(self, fetch: Fetch) -> Callable[[], list[NDArray[Any]]]:
        """Start the copy; the function that is returned waits for the arrays, in the order in which they were added."""
        described = [(tuple(x.shape), _numpy_type(x)) for x in self._tensors]
        pieces = [x.reshape(-1).view(torch.uint8) for x in self._tensors]
        wait = fetch(torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8))

        def arrive() -> list[NDArray[Any]]:
            content, at, arrays = wait().tobytes(), 0, []  # a copy, because pinned memory is used again
            for shape, dtype in described:
                count = int(np.prod(shape, dtype=np.int64))
                arrays.append(np.frombuffer(content, dtype, count, at).reshape(shape))
                at += count * dtype.itemsize
            return arrays

        return arrive


def _numpy_type(tensor: Tensor) -> np.dtype[Any]:
    return np.dtype(str(tensor.dtype).removeprefix("torch."))


class FoundRuns:
    """The runs of one map, and, if they were asked for, the sums of its weights over each run."""

    def __init__(self, runs: LabelRuns, sums: NDArray[np.int64] | None) -> None:
        self.runs = runs
        self.sums = sums


def start_runs(
    planes_WH: Sequence[Tensor],
    parcel: Parcel,
    fetch: Fetch,
    runs_per_column: int,
    weights_WH: Sequence[Tensor] | None = None,
) -> Callable[[Arrays], list[FoundRuns]]:
    """Find the runs of label maps on their device, like `rle.label_runs` of each transpose; the host does not wait.

    All maps have one type. The parcel has room for so many runs in a column, on average. `weights_WH`: whole numbers
    (int64) to be added up over each run. The function that is returned takes the arrays of the parcel.
    """
    if not planes_WH:
        return lambda arrays: []
    labels = torch.cat([plane.reshape(-1) for plane in planes_WH])
    stops = np.cumsum([plane.numel() for plane in planes_WH])
    is_last = torch.ones_like(labels, dtype=torch.bool)
    torch.ne(labels[1:], labels[:-1], out=is_last[:-1])
    if len(planes_WH) > 1:
        is_last.index_fill_(0, to_device(stops[:-1] - 1, labels.device), True)
    sums = None if weights_WH is None else torch.cat([weight.reshape(-1) for weight in weights_WH]).cumsum(0)
    room = min(labels.numel(), runs_per_column * sum(len(plane) for plane in planes_WH) + len(planes_WH))
    places = is_last.nonzero_static(size=room, fill_value=labels.numel() - 1)[:, 0]

    def add_to(parcel: Parcel, places: Tensor) -> list[int]:
        columns = [_small(places, labels.numel()), labels.index_select(0, places)]
        if sums is not None:
            columns.append(sums.index_select(0, places))
        return [parcel.add(column) for column in columns]

    at_count, columns = parcel.add(is_last.sum()), add_to(parcel, places)

    def finish(arrays: Arrays) -> list[FoundRuns]:
        count = int(arrays[at_count])
        found = [arrays[column][:count] for column in columns]
        if count > room:
            all_of_them = Parcel()
            add_to(all_of_them, is_last.nonzero()[:, 0])
            found = all_of_them.send(fetch)()
        return _split(found, stops)

    return finish


def _small(places: Tensor, length: int) -> Tensor:
    return places.int() if length <= np.iinfo(np.int32).max else places


def _split(found: Arrays, stops: NDArray[np.int64]) -> list[FoundRuns]:
    lasts_R, values_R = found[0].astype(np.int64), found[1].astype(np.int32)
    lengths_R = np.diff(lasts_R, prepend=-1).astype(np.uint32)
    sums_R = np.diff(found[2], prepend=0) if len(found) > 2 else None
    borders = [0, *np.searchsorted(lasts_R, stops - 1, side="right")]
    return [
        FoundRuns(LabelRuns(values_R[a:b], lengths_R[a:b]), None if sums_R is None else sums_R[a:b])
        for a, b in pairwise(borders)
    ]
