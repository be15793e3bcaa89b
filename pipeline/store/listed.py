"""Every object below a folder of a store, page by page: its path, its size and when it was written last."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import fsspec

from pipeline.store.filesystem import is_local, is_s3
from pipeline.store.s3_pages import following_pages


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as a listing describes it. `written_at`: seconds since the epoch, by the store's clock."""

    path: str
    size_bytes: int
    written_at: float


def objects_below(filesystem: fsspec.AbstractFileSystem, folder: str) -> Iterator[StoredObject]:
    """The objects below `folder`, in no particular order; none if there is no such folder. Raises STORE_ERRORS.

    On a disk, a link is an OSError: who removes by names would not know what else goes by another name.
    """
    if is_local(filesystem):
        return _on_disk(folder)
    return _in_bucket(filesystem, folder) if is_s3(filesystem) else _in_any(filesystem, folder)


def _on_disk(folder: str) -> Iterator[StoredObject]:
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except FileNotFoundError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _on_disk(entry.path)
            elif entry.is_symlink():
                raise OSError(f"{entry.path} is a link; put a mount in its place, or remove it")
            else:
                found = entry.stat(follow_symlinks=False)
                yield StoredObject(entry.path, found.st_size, found.st_mtime)
        except FileNotFoundError:  # removed since the folder was listed
            continue


def _in_bucket(filesystem: Any, folder: str) -> Iterator[StoredObject]:
    bucket, _, prefix = folder.partition("/")
    # find() and walk() of s3fs would keep 3-4 KB for every key that they list.
    ask = partial(filesystem.call_s3, "list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/")
    for page in following_pages(ask):
        for entry in page.get("Contents", ()):
            if entry["Size"] or not entry["Key"].endswith("/"):  # an empty object may stand for a folder
                yield StoredObject(f"{bucket}/{entry['Key']}", entry["Size"], entry["LastModified"].timestamp())


def _in_any(filesystem: fsspec.AbstractFileSystem, folder: str) -> Iterator[StoredObject]:
    for path, info in filesystem.find(folder, detail=True).items():
        yield StoredObject(path, info["size"], _seconds(_written(filesystem, path, info)))


def _written(filesystem: fsspec.AbstractFileSystem, path: str, info: dict[str, Any]) -> Any:
    """Each file system has a name of its own for this; asking for it costs a request for each object."""
    found = next((info[name] for name in ("LastModified", "last_modified", "mtime", "updated") if info.get(name)), None)
    return filesystem.modified(path) if found is None else found


def _seconds(time: Any) -> float:
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return float(time.timestamp() if isinstance(time, datetime) else time)
