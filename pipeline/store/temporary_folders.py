"""Folders of TMPDIR that go with their process, or, where that was killed, with the next process on its machine."""

import contextlib
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# By machine, where several share a temporary folder: not every network file system knows locks.
_PREFIX = f"m2f-scratch-{re.sub(r'[^a-zA-Z0-9.]', '_', socket.gethostname())}-"
_LOCK = "lock"


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new and empty folder, for as long as this is open."""
    folder, lock = lock_new_folder()
    try:
        inside = Path(folder, "content")
        inside.mkdir()
        yield inside
    finally:
        remove_folder(folder, lock)


def lock_new_folder() -> tuple[str, FileLock]:
    """A new folder, locked for as long as this process lives; those of dead processes are removed first."""
    _remove_abandoned()
    while True:
        folder = tempfile.mkdtemp(prefix=_PREFIX)
        lock = FileLock(f"{folder}/{_LOCK}", timeout=0)
        with contextlib.suppress(Timeout, FileNotFoundError):
            lock.acquire()
            if Path(lock.lock_file).exists():  # else a sweeper was faster, between these lines
                return folder, lock


def remove_folder(folder: str, lock: FileLock) -> None:
    """Remove what `lock_new_folder` gave."""
    shutil.rmtree(folder, ignore_errors=True)
    lock.release()


def _remove_abandoned() -> None:
    """Remove what processes of this machine have left that were killed: nobody holds its lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(Timeout, OSError), FileLock(folder / _LOCK, timeout=0):
            shutil.rmtree(folder)
