"""The state by which a killed export goes on, and the documents that are put together from it.

Below --to, the folder `.m2f-export` holds:

state.json             what is exported, from which version of the tables, and what came out once all documents are
                       written; the first object of an export and the last one that goes
000012.done            batch 12 is converted and all of its files are written: what its images counted, and the sizes of
                       its lines
000012.<stream>        the lines of batch 12 for a document
<hex>.writing          a file that is being written, or that a killed process has left

A batch is the same images each time (pipeline/tables/rows_by_image.py), so a batch that is done is not converted again.
"""

import json
from collections import Counter
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar

from annotated_types import Interval
from pydantic import TypeAdapter, with_config

from pipeline.errors import RunError
from pipeline.export.format import Document, Stream
from pipeline.export.target import STATE, THREADS, Target
from pipeline.look_ahead import look_ahead
from pipeline.store.filesystem import list_folder
from pipeline.store.json_records import STRICT, Count, parse_record
from pipeline.store.objects import TooManyBytesError, read_object, read_or_none
from pipeline.store.removal import remove_objects

T = TypeVar("T")
_STATE_JSON = f"{STATE}/state.json"
_MOST_BYTES = 16 * 2**20  # of a record of the state
_LINES_AHEAD_BYTES = 64 * 2**20  # of lines in memory while a document is written


@with_config(STRICT)
@dataclass(frozen=True)
class Converted:
    """What came out of an export of which all documents are written."""

    batches: Count
    counts: dict[str, Count]


@with_config(STRICT)
@dataclass(frozen=True)
class Begun:
    """The fields of state.json."""

    request: dict[str, Any]  # the settings that decide what the export holds
    version: Count  # of the table `images`
    images_per_batch: Annotated[int, Interval(ge=1, le=2**31)]
    converted: Converted | None


@with_config(STRICT)
@dataclass(frozen=True)
class BatchDone:
    """A batch whose files and lines are written: the fields of its object."""

    number: Count
    counts: dict[str, Count]  # of its images
    sizes: dict[str, Count]  # bytes of its lines by stream; a stream without a line is no object


_BEGUN, _BATCH_DONE = TypeAdapter(Begun), TypeAdapter(BatchDone)


@dataclass(frozen=True)
class State:
    """The state of an export to `target`. All methods raise RunError if --to cannot be read or written."""

    target: Target

    def begun(self, request: Mapping[str, Any]) -> Begun | None:
        """What is known of this export if it has begun; None if --to is empty. RunError if --to holds anything else."""
        # Before --to is listed: an unfinished export may have put a million objects there.
        data = read_or_none(self.target.filesystem, self.target.at(_STATE_JSON), f"{self.target.name}:", _MOST_BYTES)
        if data is None:
            if set(self.target.names()) <= {STATE}:  # killed before its first object, or after its last
                return None
            raise RunError(f"{self.target.name} is not empty; give an empty folder")
        begun = self._parsed(_BEGUN, data, "state.json")
        known = begun.request
        if known != request:
            other = ", ".join(sorted(n for n in {*known, *request} if known.get(n) != request.get(n)))
            raise RunError(
                f"{self.target.name} holds an unfinished export with another {other}; repeat its command to finish it, "
                "or give an empty folder"
            )
        return begun

    def write(self, begun: Begun) -> None:
        self.target.put_all({_STATE_JSON: json.dumps(asdict(begun)).encode()})

    def batches_done(self) -> dict[int, BatchDone]:
        """The batches that are done, by number."""
        with self.target.errors():
            paths = list_folder(self.target.filesystem, self.target.at(STATE))

        def read(path: str) -> BatchDone | None:
            data = read_or_none(self.target.filesystem, path, f"{self.target.name}:", _MOST_BYTES)
            return None if data is None else self._parsed(_BATCH_DONE, data, path.rpartition("/")[2])

        with ThreadPoolExecutor(THREADS) as threads:
            found = list(threads.map(read, [path for path in paths if path.endswith(".done")]))
        return {done.number: done for done in found if done is not None}

    def write_batch(
        self, number: int, files: Mapping[str, bytes], lines: Mapping[str, bytes], counts: Counter[str]
    ) -> BatchDone:
        """Write the files of a batch, its lines by stream, and last that it is done."""
        done = BatchDone(number, dict(counts), {stream: len(some) for stream, some in lines.items()})
        self.target.put_all(files)
        self.target.put_all({_lines(number, stream): some for stream, some in lines.items()})
        self.target.put_all({f"{STATE}/{number:06d}.done": json.dumps(asdict(done)).encode()})
        return done

    def write_document(
        self, document: Document, done: Mapping[int, BatchDone], separators: Mapping[str, bytes]
    ) -> None:
        """Write a document, whose streams are read batch by batch; `separators` stand between two lines of a stream.

        RunError if the lines of a batch are not those that were written.
        """
        with self.target.errors(), self.target.writing(document.name) as file:
            for part in document.parts:
                if not isinstance(part, Stream):
                    file.write(part)
                    continue
                between = b""
                with closing(self._stream(part.name, done)) as batches:
                    for some in batches:
                        file.write(between)
                        file.write(some)
                        between = separators[part.name]

    def _stream(self, stream: str, done: Mapping[int, BatchDone]) -> Generator[bytes, None, None]:
        """The lines of each batch that has some, in order."""
        there = [(number, done[number].sizes[stream]) for number in sorted(done) if stream in done[number].sizes]
        with ThreadPoolExecutor(THREADS) as threads:
            yield from look_ahead(
                lambda one: threads.submit(self._read_lines, stream, *one),
                there,
                THREADS,
                size=lambda one: one[1],
                most_size=_LINES_AHEAD_BYTES,
            )

    def _read_lines(self, stream: str, number: int, size: int) -> bytes:
        name = _lines(number, stream)
        data = None
        with self.target.errors(), suppress(FileNotFoundError, TooManyBytesError):
            data = read_object(self.target.filesystem, self.target.at(name), size)
        if data is None or len(data) != size:
            found = "is gone" if data is None else f"has {len(data):,} bytes"
            raise self._damaged(f"{name} of {size:,} bytes {found}")
        return data

    def remove(self) -> None:
        """Remove the folder of the state, state.json last."""
        with self.target.errors():
            folder, last = self.target.at(STATE), self.target.at(_STATE_JSON)
            paths = list_folder(self.target.filesystem, folder)
            remove_objects(self.target.filesystem, folder, [path for path in paths if path != last])
            remove_objects(self.target.filesystem, folder, [last])

    def _parsed(self, adapter: TypeAdapter[T], data: bytes, name: str) -> T:
        try:
            return parse_record(adapter, data)
        except ValueError as error:
            raise self._damaged(f"{STATE}/{name}: {error}") from None

    def _damaged(self, why: str) -> RunError:
        return RunError(
            f"{self.target.name}: the state of the unfinished export is damaged, or another version of this program "
            f"wrote it; remove the folder and export again: {why}"
        )


def _lines(number: int, stream: str) -> str:
    return f"{STATE}/{number:06d}.{stream}"
