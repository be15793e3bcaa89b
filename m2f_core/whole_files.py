"""Files and folders of a local disk that stand at their name whole or not at all, whatever dies while they are written.

They are written under a hidden name in the same folder and renamed. A process that is killed leaves the hidden name.
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
    """A new name beside `path` for the body to write a file or a folder at; where the body ends well it becomes `path`.

    The folder of `path` is made. What is there is on the disk before it gets its name: no power cut leaves half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_beside(path) as temporary:
        yield temporary
        for file in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
            sync_file(file)
        temporary.replace(path)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """A new hidden name in the folder of `path`; what is at that name in the end is removed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_ENDING}")
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the disk has the file, whoever wrote it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_temporary(path: str) -> bool:
    """Whether `temporary_beside` made this name; a process that was killed leaves such a file."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(_ENDING)
