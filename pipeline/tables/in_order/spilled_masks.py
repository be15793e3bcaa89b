"""Put masks into another order on disk: more masks than fit into memory, and single masks of any size.

DuckDB sorts whole vectors of 2,048 rows, and 2,048 masks of large scenes are gigabytes. So masks never pass through
DuckDB. It ranks the rows by their other columns; here the masks, streamed once more, go to files by their rank. A file
is small enough to be ordered in memory, or is divided again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.tables.spill_database import writing_beside

FILE_BYTES = 32 * 2**20  # of masks that are ordered in memory at once, which takes this twice
_MOST_FILES = 200  # open at a time
_CHUNK_BYTES = 4 * 2**20  # of the arrays that come out


class Ranked(NamedTuple):
    """Masks and the place of each in the order that is wanted."""

    ranks: NDArray[np.int64]
    masks: pa.Array  # structs of `size` and `counts`, as in schema.SEGMENTS


class MissingMasksError(Exception):
    """There are other masks than there are rows."""


def in_order(
    masks: Iterator[Ranked], first: int, count: int, about_bytes: int, folder: Path, file_bytes: int = FILE_BYTES
) -> Iterator[pa.Array]:
    """The masks of the ranks `first` to `first` + `count`, each once, in ascending order of rank.

    `about_bytes` is a guess of how many bytes all masks have. Files are written to `folder` and removed when read.
    Raises MissingMasksError, instead of a mask with a wrong rank, unless each rank comes once.
    """
    if about_bytes <= file_bytes or count <= 1:
        yield from _sorted_in_memory(masks, first, count)
        return
    num_files = min(_MOST_FILES, count, math.ceil(about_bytes / file_bytes))
    per_file = math.ceil(count / num_files)
    files = [_File(folder / f"masks-{first + start}-{count}") for start in range(0, count, per_file)]
    for ranks, some in masks:
        places = (ranks - first) // per_file
        for place in np.unique(places):
            chosen = np.flatnonzero(places == place)
            files[place].write(ranks[chosen], some.take(pa.array(chosen)))
    for place, file in enumerate(files):
        start = place * per_file
        yield from in_order(
            file.read(), first + start, min(per_file, count - start), file.num_bytes, folder, file_bytes
        )
        file.remove()


def mask_bytes(masks: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Bytes of the counts of each mask."""
    return pc.binary_length(pc.struct_field(masks, "counts")).to_numpy(zero_copy_only=False).astype(np.int64)


def _sorted_in_memory(masks: Iterator[Ranked], first: int, count: int) -> Iterator[pa.Array]:
    some = list(masks)
    ranks = np.concatenate([np.empty(0, np.int64), *(one.ranks for one in some)])
    order = np.argsort(ranks)
    if not np.array_equal(ranks[order], np.arange(first, first + count)):
        raise MissingMasksError
    if not count:
        return
    together = pa.concat_arrays([one.masks for one in some])
    del some
    chunks = np.cumsum(mask_bytes(together)[order]) // _CHUNK_BYTES
    for part in np.split(order, np.flatnonzero(np.diff(chunks)) + 1):
        yield together.take(pa.array(part))


@dataclass
class _File:
    """A file of masks with their ranks, which is written, then read once."""

    path: Path
    num_bytes: int = 0
    _writer: pa.ipc.RecordBatchStreamWriter | None = None

    def write(self, ranks: NDArray[np.int64], masks: pa.Array) -> None:
        batch = pa.record_batch({"rank": pa.array(ranks), "mask": masks})
        with writing_beside():
            if self._writer is None:
                self._writer = pa.ipc.new_stream(str(self.path), batch.schema)
            self._writer.write_batch(batch)
        self.num_bytes += batch.nbytes

    def read(self) -> Iterator[Ranked]:
        if self._writer is None:
            return
        with writing_beside():
            self._writer.close()
        with pa.ipc.open_stream(pa.OSFile(str(self.path))) as reader:
            for batch in reader:
                yield Ranked(batch["rank"].to_numpy(), batch["mask"])

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
