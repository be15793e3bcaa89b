"""A stream of rows that is read image by image: rows are taken from its front up to an image, or up to some bytes."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.tables.in_order.spilled_masks import mask_bytes

NUMBER = "image_number"  # the column by which the rows ascend
MASK = "segmentation"
_BYTES_PER_ROW = 100  # of a segment, without its mask


class AscendingRows:
    """A stream of rows in the order of image_number, which are taken from its front."""

    def __init__(self, tables: Iterator[pa.Table]):
        self._tables = tables
        self._rows: list[pa.Table] = []
        self._numbers = np.empty(0, np.int64)
        self._sizes = np.empty(0, np.int64)
        self._more = True

    def ahead(self, count: int) -> NDArray[np.int64]:
        """The numbers of the next `count` rows, or of all that are left."""
        while self._more and self._numbers.size < count:
            self._read()
        return self._numbers[:count]

    def fitting(self, last: int, most_bytes: int) -> int:
        """The last image, at most `last`, up to which the rows have at most `most_bytes` together."""
        while self._more and not self._reaches(last) and self._sizes.sum() <= most_bytes:
            self._read()
        up_to_last = int(np.searchsorted(self._numbers, last, "right"))
        over = int(np.searchsorted(np.cumsum(self._sizes[:up_to_last]), most_bytes, "right"))
        return last if over == up_to_last else int(self._numbers[over]) - 1

    def take(self, last: int) -> tuple[pa.Table | None, NDArray[np.int64]]:
        """The rows of all images up to `last`, without image_number, and the image_number of each. None: no rows."""
        while self._more and not self._reaches(last):
            self._read()
        count = int(np.searchsorted(self._numbers, last, "right"))
        numbers = self._numbers[:count]
        self._numbers, self._sizes = self._numbers[count:], self._sizes[count:]
        taken = []
        while count:
            rows = self._rows.pop(0)
            taken.append(rows.slice(0, count))
            if count < len(rows):
                self._rows.insert(0, rows.slice(count))
            count -= len(taken[-1])
        return pa.concat_tables(taken) if taken else None, numbers

    def _reaches(self, last: int) -> bool:
        return bool(self._numbers.size and self._numbers[-1] > last)

    def _read(self) -> None:
        rows = next(self._tables, None)
        if rows is None:
            self._more = False
        elif len(rows):
            self._numbers = np.append(self._numbers, rows[NUMBER].to_numpy())
            masks = mask_bytes(rows[MASK]) if MASK in rows.column_names else 0
            self._sizes = np.append(self._sizes, np.full(len(rows), _BYTES_PER_ROW) + masks)
            self._rows.append(rows.drop_columns([NUMBER]))
