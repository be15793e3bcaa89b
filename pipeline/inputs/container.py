"""What the listings of all kinds of input share: tables of schema.LISTED, objects that hold images, counted names."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import ErrorCode, RunError
from pipeline.input_spec import InputSpec, Source
from pipeline.inputs.verified import read_part
from pipeline.layout import Output
from pipeline.schema import LISTED
from pipeline.store.filesystem import path_of


@dataclass
class LeftOut:
    """What a listing leaves out (or notes): how many names by cause, and one as an example. Threads may share it."""

    number: dict[str, int] = field(default_factory=dict)
    example: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, cause: str, name: str, number: int = 1) -> None:
        with self._lock:
            self.number[cause] = self.number.get(cause, 0) + number
            self.example.setdefault(cause, name)


@dataclass
class Fitting:
    """Whether the flags fit anything in a source. Threads may share it.

    A container that lacks what the flags name is one bad item among others; if all lack it, the flags are wrong.
    """

    _accepted: bool = False
    _refused: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def accept(self) -> None:
        with self._lock:
            self._accepted = True

    def refuse(self, reason: str) -> None:
        with self._lock:
            self._refused = self._refused or reason

    def check(self, source: Source) -> None:
        """RunError, with the first reason, if there was a refusal and nothing was accepted."""
        if self._refused is not None and not self._accepted:
            raise RunError(f"--input {source}: {self._refused}")


@dataclass(frozen=True)
class KeptIndexes:
    """Where a listing finds what earlier listings have found in containers, and, if it may write, leaves its own."""

    output: Output
    may_write: bool


class StoppedError(Exception):
    """The reader of a listing has gone."""


@dataclass(frozen=True)
class Container:
    """One object that holds images.

    noted: counts of what is worth a warning although nothing is left out.
    fitting: whether the flags fit any container of the source.
    kept: where the list of its images is kept from run to run; None: nowhere.
    is_enough: called with the key of each image until it returns True, after which the images are not wanted. None: all
        are wanted.
    stopped: set when nobody wants the images any more, as after Ctrl-C.
    """

    filesystem: fsspec.AbstractFileSystem
    uri: str
    etag: str
    size_bytes: int
    spec: InputSpec
    left_out: LeftOut
    noted: LeftOut = field(default_factory=LeftOut)
    fitting: Fitting = field(default_factory=Fitting)
    kept: KeptIndexes | None = None
    is_enough: Callable[[str], bool] | None = None
    stopped: threading.Event = field(default_factory=threading.Event)

    def read(self, first: int, length: int) -> bytes:
        """`length` bytes (at least one) from the byte `first` on. Raises what `read_part` raises, or StoppedError."""
        if self.stopped.is_set():
            raise StoppedError
        return read_part(self.filesystem, path_of(self.filesystem, self.uri), self.etag, first, length)


def with_all_columns(columns: dict[str, Any], num_rows: int) -> pa.Table:
    """A table of LISTED, with null in the columns that are not given."""
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(num_rows, f.type) for f in LISTED]
    return pa.Table.from_arrays(arrays, schema=LISTED)


def fault_of(container: Container, code: ErrorCode, message: str) -> pa.Table:
    """A row for a container that gives no images, or not all of them."""
    columns = {
        "image_key": [container.uri],
        "etag": [container.etag],
        "size_bytes": [container.size_bytes],
        "fault": [f"{code.value}: {message}"],
    }
    return with_all_columns(columns, 1)
