"""Remove objects: always an explicit list of names below one folder, never what a pattern or a link leads to.

fsspec's own `rm` takes `*`, `?` and `[` in a path for a pattern: where it is told to remove `nights[1]/x` of a bucket,
it removes `nights1/x`.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import sync

from pipeline.store.filesystem import STORE_ERRORS, is_local, is_s3
from pipeline.store.fsspec_private import call_s3

_MOST_AT_ONCE = 1000  # S3's limit of one request


def remove_objects(filesystem: fsspec.AbstractFileSystem, folder: str, paths: Iterable[str]) -> None:
    """Remove the objects at `paths`, all of which lie below `folder`, and on a disk the folder if it is empty then.

    Objects that are gone already are no error. Raises errors of STORE_ERRORS, ValueError if a path lies elsewhere.
    """
    below = iter([_below(folder, path) for path in paths])
    if is_s3(filesystem):
        while page := list(islice(below, _MOST_AT_ONCE)):
            try:
                _remove_from_s3(filesystem, page)
            except STORE_ERRORS:  # not every store knows the request that removes many
                for path in page:
                    filesystem.rm_file(path)
        return
    for path in below:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path) if is_local(filesystem) else filesystem.rm_file(path)  # noqa: PTH108
    if is_local(filesystem):
        with contextlib.suppress(OSError):  # not empty, or not there
            Path(folder).rmdir()


def remove_folder_of(filesystem: fsspec.AbstractFileSystem, root: str, folder: str) -> None:
    """Remove the whole of `folder`, which lies below `root`; links in it are removed, not followed.

    Raises errors of STORE_ERRORS: OSError if the folder itself is a link.
    """
    _below(root, folder)
    if is_local(filesystem):
        shutil.rmtree(folder)
        return
    remove_objects(filesystem, folder, filesystem.find(folder))


def _below(folder: str, path: str) -> str:
    names = path.removeprefix(f"{folder.rstrip('/')}/").split("/")
    if not path.startswith(f"{folder.rstrip('/')}/") or not all(names) or {".", ".."} & set(names):
        raise ValueError(f"{path!r} does not lie below {folder!r} and is not removed")
    return path


def _remove_from_s3(filesystem: Any, paths: list[str]) -> None:
    bucket = paths[0].partition("/")[0]
    keys = [{"Key": path.partition("/")[2]} for path in paths]

    async def remove() -> Any:
        return await call_s3(filesystem, "delete_objects", Bucket=bucket, Delete={"Objects": keys, "Quiet": True})

    filesystem.connect()
    for failure in sync(filesystem.loop, remove).get("Errors", []):
        raise OSError(f"{bucket}/{failure.get('Key')} cannot be removed: {failure.get('Message')}")
