"""Folders in TMPDIR. Their process removes them; if it was killed, the next process on its machine does."""

import contextlib
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# The host's name is part of the prefix, because machines may share a temporary folder, and not every network file
# system supports locks.
_PREFIX = f"m2f-scratch-{re.sub(r'[^a-zA-Z0-9.]', '_', socket.gethostname())}-"
_LOCK = "lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new, empty folder that exists until this context ends."""
    folder, lock = lock_new_folder()
    try:
        inside = Path(folder, "content")
        inside.mkdir()
        yield inside
    finally:
        remove_folder(folder, lock)


def lock_new_folder() -> tuple[str, FileLock]:
    """A new folder, locked for as long as this process lives. Folders of dead processes are removed first."""
    _remove_abandoned()
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        lock = FileLock(f"{folder}/{_LOCK}", timeout=0)
        with contextlib.suppress(Timeout, FileNotFoundError):
            lock.acquire()
            if Path(lock.lock_file).exists():  # else another process removed the folder between these lines
                return folder, lock


def remove_folder(folder: str, lock: FileLock) -> None:
    """Remove a folder that `lock_new_folder` returned."""
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()


def _remove_abandoned() -> None:
    """Remove folders of killed processes of this machine: nobody holds the locks of these folders."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(Timeout, OSError), FileLock(folder / _LOCK, timeout=0):
            shutil.rmtree(folder)
