"""Write a listing to Parquet files in a folder on disk, in a thread, while others read the files that are there."""

import contextlib
import threading
import time
from collections.abc import Generator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.inputs.container import StoppedError
from pipeline.schema import LISTED
from pipeline.tables.spill_database import writing_beside

_ROWS_A_FILE = 100_000  # 2 to 10 MB
_SECONDS_A_FILE = 5.0  # of a listing that is slower
# A listing that waits for its store ends with its request, which nothing can shorten.
_SECONDS_TO_END = 5.0


class Spool:
    """A context manager. Its end, whatever causes the end, stops the listing.

    `stopped` is set then: the listing may look at it to end early. The listing may set it, too, when it breaks off.
    """

    def __init__(self, listing: Generator[pa.Table], folder: str, stopped: threading.Event):
        self.listing, self.folder, self.stopped = listing, folder, stopped
        self.changed = threading.Condition()
        self.num_files = self.num_rows = 0
        self.ended = self.is_stopped = False
        self.failure: BaseException | None = None
        self._taken_files = self._taken_rows = 0
        self._pending: list[pa.Table] = []
        self.thread = threading.Thread(target=self._work, daemon=True, name="spool")

    def __enter__(self) -> "Spool":
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
        self.thread.join(_SECONDS_TO_END)

    def stop(self) -> None:
        """Let the listing end, and a `take` that waits for it raise StoppedError."""
        with self.changed:
            self.is_stopped = True
            self.changed.notify_all()
        self.stopped.set()

    def take(self, num_rows: float) -> list[str]:
        """Wait for `num_rows` images that were not taken before, or for the end of the listing.

        Returns the files that hold all new images. At the end of the listing there may be fewer images, or none. Raises
        what the listing has raised, or StoppedError.
        """
        with self.changed:
            self.changed.wait_for(lambda: self._may_take(num_rows))
            if self.failure is not None:
                raise self.failure
            if self.is_stopped:
                raise StoppedError
            files = [self._path(number) for number in range(self._taken_files, self.num_files)]
            self._taken_files, self._taken_rows = self.num_files, self.num_rows
        return files

    def _may_take(self, num_rows: float) -> bool:
        return self.ended or self.is_stopped or self.num_rows - self._taken_rows >= num_rows

    def files(self) -> list[str]:
        """All files that were taken."""
        return [self._path(number) for number in range(self._taken_files)]

    @property
    def num_taken(self) -> int:
        """How many images the taken files hold."""
        return self._taken_rows

    @property
    def has_ended(self) -> bool:
        """Whether the listing is complete, and all of it was taken."""
        with self.changed:
            return self.ended and self._taken_files == self.num_files

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:06d}.parquet"

    def _work(self) -> None:
        try:
            num_pending, since = 0, 0.0
            with contextlib.closing(self.listing):
                for table in self.listing:
                    if self.stopped.is_set():
                        raise StoppedError  # never an end that looks like the end of the listing
                    since = since if num_pending else time.monotonic()
                    self._pending.append(table)
                    num_pending += table.num_rows
                    if num_pending >= _ROWS_A_FILE or time.monotonic() - since > _SECONDS_A_FILE:
                        self._write()
                        num_pending = 0
            self._write(is_last=True)
        except BaseException as error:  # the reader raises it
            self.failure = error
        finally:
            with self.changed:
                self.ended = True
                self.changed.notify_all()

    def _write(self, *, is_last: bool = False) -> None:
        """Write the pending images to a file: DuckDB would take ten times as long to insert the rows."""
        if is_last and self.num_files and not self._pending:
            return
        rows = pa.concat_tables(self._pending or [LISTED.empty_table()])
        with writing_beside():
            pq.write_table(rows, self._path(self.num_files), compression="snappy", use_dictionary=False)
        self._pending.clear()
        with self.changed:
            self.num_files += 1
            self.num_rows += rows.num_rows
            self.ended = is_last
            self.changed.notify_all()
