"""Folders that go away again: in TMPDIR, and in a store beside the output of a job.

Their process removes them. If it was killed, the next process on its machine removes those in TMPDIR; those in a store
stay.
"""

import contextlib
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.errors import RunError
from pipeline.store.filesystem import STORE_ERRORS, canonical, is_local, one_line, open_filesystem, uri_of
from pipeline.store.removal import remove_folder_of
from pipeline.text.patterns import without_wildcards

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
        # Another process may remove the folder between these lines; the library then finds it there and yet not there.
        with contextlib.suppress(Timeout, FileNotFoundError, FileExistsError):
            lock.acquire()
            if Path(lock.lock_file).exists():
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


def new_scratch_place(job: str, scratch: str | None, output: str, inputs: Sequence[str]) -> str:
    """A name that no folder has, below `scratch` or else beside `output`; nothing is made.

    `job` is part of the name. RunError if there is no folder beside the output, or if the inputs contain the place.
    """
    filesystem, root = open_filesystem(scratch or output)
    root = root.rstrip("/") if scratch else root.rstrip("/").rpartition("/")[0]
    if not root:
        raise RunError(f"--output {output} has no folder beside it for the {job}; name one with --scratch")
    name = f"m2f-{job}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    place = f"{root}/{name}" if is_local(filesystem) else uri_of(filesystem, f"{root}/{name}")
    sources = (canonical(without_wildcards(given)[0]) for given in inputs)
    if any(f"{canonical(place)}/".startswith(f"{source}/") for source in sources):
        raise RunError(
            f"{place} is inside --input, so the next run would read its files; name another folder with --scratch"
        )
    return place


def remove_scratch_place(place: str) -> str:
    """Remove `place`; returns the error if that fails, otherwise an empty string."""
    filesystem, root = open_filesystem(place)
    try:
        if filesystem.exists(root):
            remove_folder_of(filesystem, root.rpartition("/")[0], root)
    except STORE_ERRORS as error:
        return one_line(error)
    return ""
