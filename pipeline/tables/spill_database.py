"""A DuckDB on disk for the time of one question about more rows than fit into memory."""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterator

import duckdb
from filelock import FileLock

from pipeline.errors import RunError
from pipeline.store.filesystem import one_line
from pipeline.store.temporary_folders import lock_new_folder, remove_folder

MEMORY_MIB = 1024  # enough for tens of millions of images; what does not fit goes to the temporary folder
# Each thread needs buffers of its own out of the same memory: with 32 MiB for each, some joins ran out of it, with 64
# none did.
_MAX_THREADS = 4
_MIB_PER_THREAD = 64
# Whose tables are hashed and whose are streamed is written in our SQL. DuckDB cannot know better: it does not know how
# many rows an Arrow stream has, takes it for small and would collect it.
_AS_WRITTEN = "join_order,build_side_probe_side"


class ScratchDatabase:
    """`connection` to a database in a new temporary folder (of TMPDIR); both go with `close` or with this object.

    `memory_mib` bounds what DuckDB holds; what does not fit is spilled. Arrow streams that it reads are not counted.
    """

    def __init__(self, memory_mib: int = MEMORY_MIB):
        folder, lock = lock_new_folder()
        self.connection = duckdb.connect(
            f"{folder}/scratch.duckdb",
            config={
                "memory_limit": f"{memory_mib}MiB",
                "threads": str(max(1, min(_MAX_THREADS, os.cpu_count() or 1, memory_mib // _MIB_PER_THREAD))),
                "temp_directory": f"{folder}/spilled",
                "preserve_insertion_order": "false",  # else it holds what finished before its turn
                "autoinstall_known_extensions": "false",  # no calls to the internet
                "autoload_known_extensions": "false",
            },
        )
        self.connection.execute(f"SET disabled_optimizers = '{_AS_WRITTEN}'")
        self.connection.execute("SET TimeZone = 'UTC'")
        # Not TemporaryDirectory: it warns where a reader was dropped half-way, which is no mistake. Runs at exit too,
        # while there still is a Python that the streams that DuckDB reads can run in.
        self.close = weakref.finalize(self, _close, self.connection, folder, lock)


@contextlib.contextmanager
def out_of_room() -> Iterator[None]:
    """RunError where DuckDB has no more memory or disk."""
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        folder = tempfile.gettempdir()
        raise RunError(f"too little memory or too little space in {folder} (TMPDIR): {one_line(error)}") from None


def _close(connection: duckdb.DuckDBPyConnection, folder: str, lock: FileLock) -> None:
    connection.close()
    remove_folder(folder, lock)
