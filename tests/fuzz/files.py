"""The folder into which the targets of this process write what they are given."""

import os
import tempfile
from functools import cache
from pathlib import Path

from pipeline.layout import Output


@cache
def folder() -> Path:
    """A folder of this process; in memory where the machine has such a place."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    kept.append(tempfile.TemporaryDirectory(prefix="m2f-fuzz-", dir=place))
    return Path(kept[-1].name)


kept: list[tempfile.TemporaryDirectory] = []  # removed at the end of the process


def put(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@cache
def output() -> Output:
    return Output.open(str(folder() / "out"))
