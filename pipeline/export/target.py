"""The folder or bucket prefix that an export writes, and the state by which a killed export goes on.

Below --to, the folder `.m2f-export` holds:

state.json             what is exported and from which version of the tables; the first object of an export and the last
                       one that goes
000012.done            batch 12 is converted and all of its files are written: what its images counted
000012.<stream>        the lines of batch 12 for a document

A batch is the same images each time (pipeline/tables/rows_by_image.py), so a batch that is done is not converted again.
Each object appears whole: a local file is renamed when it is written.
"""

import contextlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from pipeline.errors import RunError
from pipeline.export.format import Document, Stream
from pipeline.store.filesystem import is_local, list_folder, open_filesystem, store_errors_as

STATE = ".m2f-export"
_THREADS = 16  # of a process that writes to a store
_COPY_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Target:
    """--to, opened in one process."""

    uri: str
    filesystem: fsspec.AbstractFileSystem
    root: str

    @classmethod
    def open(cls, uri: str) -> "Target":
        """RunError if there is no such store."""
        filesystem, root = open_filesystem(uri)
        return cls(uri, filesystem, root.rstrip("/"))

    # --- objects ------------------------------------------------------------------------------------------------------

    def put_all(self, files: Mapping[str, bytes]) -> None:
        """Write objects, each whole, by their names below --to."""
        with self._errors():
            if is_local(self.filesystem):
                for folder in {name.rpartition("/")[0] for name in files}:
                    Path(self.root, folder).mkdir(parents=True, exist_ok=True)
                for name, data in files.items():
                    with self.writing(name) as file:
                        file.write(data)
                return
            with ThreadPoolExecutor(_THREADS) as threads:
                written = [threads.submit(self.filesystem.pipe_file, f"{self.root}/{n}", d) for n, d in files.items()]
                for one in written:
                    one.result()

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file to write piece by piece, in a folder that is there; it appears when the body has ended."""
        path = f"{self.root}/{name}"
        if not is_local(self.filesystem):
            with self.filesystem.open(path, "wb", block_size=16 * 2**20) as file:
                yield file
            return
        folder, _, last = path.rpartition("/")
        temporary = f"{folder}/.{last}.{uuid.uuid4().hex[:16]}"
        try:
            with open(temporary, "wb") as file:  # noqa: PTH123
                yield file
            os.replace(temporary, path)  # noqa: PTH105
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def names(self) -> list[str]:
        """The names directly below --to."""
        with self._errors():
            return [path.rstrip("/").rpartition("/")[2] for path in list_folder(self.filesystem, self.root)]

    # --- state --------------------------------------------------------------------------------------------------------

    def begun(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state of this export if it has begun; None if --to is empty. RunError if --to holds anything else."""
        there = self.names()
        if not there:
            return None
        path = f"{self.root}/{STATE}/state.json"
        with self._errors():
            data = self.filesystem.cat_file(path) if STATE in there and self.filesystem.exists(path) else None
        if data is None:
            if there == [STATE]:  # killed before its first object, or after its last
                return None
            raise RunError(f"--to {self.uri} is not empty; give an empty folder")
        try:
            state = json.loads(data)
            known = state["request"]
        except (ValueError, KeyError, TypeError):
            raise RunError(f"--to {self.uri}: {STATE}/state.json is damaged; remove the folder") from None
        if known != request:
            other = ", ".join(sorted(n for n in {*known, *request} if known.get(n) != request.get(n)))
            raise RunError(
                f"--to {self.uri} holds an unfinished export with another {other}; repeat its command to finish it, or "
                "give an empty folder"
            )
        return dict(state)

    def write_state(self, state: Mapping[str, Any]) -> None:
        self.put_all({f"{STATE}/state.json": json.dumps(state).encode()})

    def batches_done(self) -> dict[int, Counter[str]]:
        """What the images of each finished batch counted."""
        done = {}
        with self._errors():
            for path in list_folder(self.filesystem, f"{self.root}/{STATE}"):
                stem, _, ending = path.rpartition("/")[2].rpartition(".")
                if ending == "done" and stem.isdecimal():
                    done[int(stem)] = Counter(json.loads(self.filesystem.cat_file(path)))
        return done

    def write_batch(
        self, number: int, files: Mapping[str, bytes], lines: Mapping[str, bytes], counts: Counter[str]
    ) -> None:
        """Write the files of a batch, its lines by stream, and last that it is done."""
        self.put_all(files)
        self.put_all({f"{STATE}/{number:06d}.{name}": some for name, some in lines.items()})
        self.put_all({f"{STATE}/{number:06d}.done": json.dumps(counts).encode()})

    def write_document(self, document: Document, num_batches: int, separators: Mapping[str, bytes]) -> None:
        """Write a document, whose streams are read batch by batch; `separators` stand between two lines of a stream."""
        with self._errors():
            if is_local(self.filesystem):
                Path(self.root, document.name).parent.mkdir(parents=True, exist_ok=True)
            with self.writing(document.name) as file:
                for part in document.parts:
                    if isinstance(part, Stream):
                        self._copy(part.name, num_batches, separators[part.name], file)
                    else:
                        file.write(part)

    def _copy(self, stream: str, num_batches: int, separator: bytes, file: IO[bytes]) -> None:
        between = b""
        for number in range(num_batches):
            path = f"{self.root}/{STATE}/{number:06d}.{stream}"
            try:
                source = self.filesystem.open(path, "rb", block_size=_COPY_BYTES)
            except FileNotFoundError:
                continue
            with source:
                file.write(between)
                while data := source.read(_COPY_BYTES):
                    file.write(data)
            between = separator

    def remove_state(self) -> None:
        """Remove the folder of the state, state.json last."""
        with self._errors():
            folder = f"{self.root}/{STATE}"
            last = f"{folder}/state.json"
            paths = [path for path in list_folder(self.filesystem, folder) if not path.endswith("/state.json")]
            for start in range(0, len(paths), 1000):
                self.filesystem.rm(paths[start : start + 1000])
            self.filesystem.rm(last)
            if is_local(self.filesystem):
                Path(folder).rmdir()

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return store_errors_as(RunError, f"--to {self.uri} cannot be written")
