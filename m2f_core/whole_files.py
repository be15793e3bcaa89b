"""Write local files and folders so that they appear whole or not at all, even if the process is killed meanwhile.

They are written under a hidden name in the same folder and then renamed. A killed process leaves the hidden name.
"""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_ENDING = ".tmp"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A new name beside `path`, where the body writes a file or folder; if the body succeeds, it is renamed to `path`.

    The folder of `path` is made. The content is synced to disk before the rename, so a power cut cannot leave half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path) as temporary:
        yield temporary
        for file in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
            sync_file(file)
        temporary.replace(path)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A new hidden name in the folder of `path`; whatever has that name at the end is removed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_ENDING}")
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the file is on the disk; any process may have written it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: str) -> bool:
    """Whether `temporary_beside` made this name; a killed process leaves such a file."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(_ENDING)
