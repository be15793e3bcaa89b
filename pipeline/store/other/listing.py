"""The objects of a store that is neither S3 nor a disk, one after the other: no list of all is ever in memory."""

from collections.abc import Iterator

import fsspec

from pipeline.store.filesystem import etag_in
from pipeline.store.other.other_store import OtherObject, OtherStore


def objects_of(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[OtherObject]:
    """Every object below `path`, or the object `path` itself.

    Raises errors of STORE_ERRORS: FileNotFoundError if nothing is there.
    """
    return filesystem.objects(path) if isinstance(filesystem, OtherStore) else _any_objects(filesystem, path)


def _any_objects(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[OtherObject]:
    """Folder by folder; only the names of the folders above are in memory besides."""
    filesystem.invalidate_cache()  # what a listing of before has left says nothing of now
    entries = sorted(filesystem.ls(path, detail=True), key=_sort_key)
    filesystem.invalidate_cache()  # else each listing stays
    for entry in entries:
        if entry["type"] != "directory":
            yield OtherObject(entry["name"], etag_in(entry), entry["size"])
        elif entry["name"].strip("/") != path.strip("/"):  # some stores list the mark of a folder in the folder
            yield from _any_objects(filesystem, entry["name"])


def _sort_key(entry: dict[str, str]) -> str:
    return entry["name"].rstrip("/") + ("/" if entry["type"] == "directory" else "")
