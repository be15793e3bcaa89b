"""A label map as runs: small enough to copy from a device, and the source of COCO RLE.

Legend: H W image; R runs; `_WH` a map as its transpose, whose memory has the column-major order of COCO RLE.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from m2f_core.masks.rle import LabelRuns, label_runs, runs_to_label_map


@dataclass(frozen=True, eq=False)
class RunMap:
    """A label map [H, W] of numbers from 0 to `highest`."""

    runs: LabelRuns
    size_hw: tuple[int, int]
    highest: int

    @classmethod
    def from_transposed(cls, labels_WH: torch.Tensor | NDArray[np.unsignedinteger], highest: int) -> "RunMap":
        """Find the runs on the map's device; they are copied from there in one small copy."""
        width, height = labels_WH.shape
        if isinstance(labels_WH, torch.Tensor) and labels_WH.device.type != "cpu":
            return cls(label_runs_by_torch(labels_WH), (height, width), highest)
        return cls(label_runs(np.asarray(labels_WH).T), (height, width), highest)

    @cached_property
    def array(self) -> NDArray[np.unsignedinteger]:
        """The map itself, column-major in memory: uint8, or uint16 if labels need it."""
        dtype: type[np.unsignedinteger] = np.uint8 if self.highest < 256 else np.uint16
        runs = LabelRuns(self.runs.values.astype(dtype), self.runs.lengths)
        label_map: NDArray[np.unsignedinteger] = runs_to_label_map(runs, *self.size_hw)
        return label_map

    def relabelled(self, new_labels: NDArray[np.integer]) -> "RunMap":
        """Label i becomes `new_labels[i]`; runs that become equal to their neighbours are joined."""
        values = new_labels[self.runs.values].astype(np.int32)
        first_of_joined = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        lengths = np.add.reduceat(self.runs.lengths, first_of_joined, dtype=np.uint32)
        return RunMap(LabelRuns(values[first_of_joined], lengths), self.size_hw, self.highest)


def label_runs_by_torch(labels_WH: torch.Tensor) -> LabelRuns:
    """Like `rle.label_runs` of the transpose, with torch's operations on the device of the map."""
    labels = labels_WH.reshape(-1)
    is_last = torch.ones_like(labels, dtype=torch.bool)
    torch.ne(labels[1:], labels[:-1], out=is_last[:-1])
    last = is_last.nonzero()[:, 0]
    last_and_value = torch.stack((last, labels[last].long())).cpu().numpy()
    lengths = np.diff(last_and_value[0], prepend=-1)
    return LabelRuns(last_and_value[1].astype(np.int32), lengths.astype(np.uint32))
