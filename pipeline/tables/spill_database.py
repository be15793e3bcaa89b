"""A temporary DuckDB database on disk, for one query over more rows than fit into memory."""

import contextlib
import errno
import os
import tempfile
import weakref
from collections.abc import Iterator

import duckdb
import pyarrow as pa
from filelock import FileLock

from pipeline.errors import RunError
from pipeline.store.filesystem import one_line
from pipeline.store.temporary_folders import lock_new_folder, remove_folder

_FULL = (errno.ENOSPC, errno.EDQUOT)  # as Arrow raises them, too
MEMORY_MIB = 448  # enough for tens of millions of images; the rest goes to the temporary folder
# Each thread needs its own buffers within the same limit: with 32 MiB per thread, some joins ran out of memory; with 64
# MiB, none did.
_MAX_THREADS = 4
_MIB_PER_THREAD = 64
# Our SQL decides which side of a join is hashed and which is streamed. DuckDB cannot decide better: it does not know
# how many rows an Arrow stream has, takes the stream for small and would collect it in memory.
_AS_WRITTEN = "join_order,build_side_probe_side"


class ScratchDatabase:
    """A `connection` to a database in a new folder below TMPDIR. `close`, or the end of this object, removes both.

    `memory_mib` limits the memory of DuckDB; the rest is spilled to disk. Arrow streams that DuckDB reads do not count.
    """

    def __init__(self, memory_mib: int = MEMORY_MIB):
        folder, lock = lock_new_folder()
        self.connection = duckdb.connect(
            f"{folder}/scratch.duckdb",
            config={
                "memory_limit": f"{memory_mib}MiB",
                "threads": str(max(1, min(_MAX_THREADS, os.cpu_count() or 1, memory_mib // _MIB_PER_THREAD))),
                "temp_directory": f"{folder}/spilled",
                "preserve_insertion_order": "false",  # else DuckDB holds results that finish before their turn
                "autoinstall_known_extensions": "false",  # no calls to the internet
                "autoload_known_extensions": "false",
            },
        )
        self.folder = folder  # for files beside the database, which are removed with it
        self.connection.execute(f"SET disabled_optimizers = '{_AS_WRITTEN}'")
        self.connection.execute("SET TimeZone = 'UTC'")
        # TemporaryDirectory would warn if a reader was dropped half-way, which is no mistake. This finalizer also runs
        # at exit, while Python can still run the streams that DuckDB reads.
        self.close = weakref.finalize(self, _close, self.connection, folder, lock)


def register(
    database: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> list[Exception]:
    """Let DuckDB read the stream, once, as the table `name`.

    Errors raised in the stream are added to the list that is returned; DuckDB would turn an error into a page of text.
    """
    errors: list[Exception] = []

    def remembering() -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except Exception as error:
            errors.append(error)
            raise

    database.register(name, pa.RecordBatchReader.from_batches(schema, remembering()))
    return errors


@contextlib.contextmanager
def registered(
    database: duckdb.DuckDBPyConnection, name: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> Iterator[None]:
    """`register` for the body, which reads the whole stream. An error raised in the stream is raised as it was."""
    errors = register(database, name, schema, batches)
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError):
        if errors:
            raise errors[0] from None
        raise
    finally:
        database.unregister(name)


@contextlib.contextmanager
def out_of_room() -> Iterator[None]:
    """Raise RunError if DuckDB runs out of memory or disk space."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise _no_room(error) from None


@contextlib.contextmanager
def writing_beside() -> Iterator[None]:
    """Raise RunError if the disk is full where the body, and nothing else in it, writes files beside a database."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_room(error) from None


def _no_room(error: Exception) -> RunError:
    folder = tempfile.gettempdir()
    return RunError(f"too little memory or too little space in {folder} (TMPDIR): {one_line(error)}")


def _close(connection: duckdb.DuckDBPyConnection, folder: str, lock: FileLock) -> None:
    connection.close()
    remove_folder(folder, lock)
