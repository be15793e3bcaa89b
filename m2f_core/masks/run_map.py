"""A label map as runs: small enough to keep, and the source of COCO RLE.

Legend: H W image; R runs; `_WH` a map as its transpose, whose memory has the column-major order of COCO RLE.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from m2f_core.masks.rle import LabelRuns, label_runs, runs_to_label_map


@dataclass(frozen=True, eq=False)
class RunMap:
    """A label map [H, W] of numbers from 0 to `highest`."""

    runs: LabelRuns
    size_hw: tuple[int, int]
    highest: int

    @classmethod
    def from_transposed(cls, labels_WH: NDArray[np.integer], highest: int) -> "RunMap":
        """Find the runs of a map in host memory; `on_device.start_runs` finds them on a device."""
        width, height = labels_WH.shape
        return cls(label_runs(labels_WH.T), (height, width), highest)

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
