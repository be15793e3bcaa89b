"""List every object below a folder or prefix, page by page."""

import errno
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.inputs.bucket import list_bucket
from pipeline.inputs.container import LeftOut, with_all_columns
from pipeline.store.filesystem import is_local, is_s3, local_etag, uri_of
from pipeline.store.other.listing import objects_of

_PAGE = 1000  # images, as many as S3 puts into one page


UNUSABLE = "are not UTF-8 or are links to themselves"


def listed(keys: list[str], etags: list[str], sizes: list[int | None]) -> pa.Table:
    """A table of LISTED, of images that are objects of their own."""
    columns: dict[str, Any] = {"image_key": keys, "etag": etags, "size_bytes": sizes}
    return with_all_columns(columns, len(keys))


def list_objects(
    filesystem: fsspec.AbstractFileSystem, path: str, left_out: LeftOut, *, in_order: bool = False
) -> Iterator[pa.Table]:
    """Every object below `path`, or the object `path` itself, as tables of LISTED; with `in_order`, sorted by name.

    In local folders, symbolic links to files are followed and links to folders are not. Names that are not UTF-8, which
    no table can hold, and links to themselves are left out. Raises errors of STORE_ERRORS: FileNotFoundError if nothing
    is there.
    """
    if is_s3(filesystem):
        yield from list_bucket(filesystem, path, in_order=in_order)
    elif is_local(filesystem):
        yield from _pages(_list_folder(path, left_out), left_out)
    else:
        rows = ((uri_of(filesystem, one.path), one.etag, one.size_bytes) for one in objects_of(filesystem, path))
        yield from _pages(rows, left_out)


_Row = tuple[str, str, int | None]  # key, ETag, size


def _pages(rows: Iterable[_Row], left_out: LeftOut) -> Iterator[pa.Table]:
    rows = iter(rows)
    while page := list(islice(rows, _PAGE)):
        usable = []
        for row in page:
            if _is_utf8(row[0]):
                usable.append(row)
            else:
                left_out.add(UNUSABLE, row[0])
        if usable:
            keys, etags, sizes = map(list, zip(*usable, strict=True))
            yield listed(keys, etags, sizes)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps other bytes as lone surrogates
        return False
    return True


def _list_folder(path: str, left_out: LeftOut) -> Iterator[_Row]:
    if os.path.isfile(path):  # noqa: PTH113 - one scandir entry type throughout
        yield _local_row(path, os.stat(path))  # noqa: PTH116
        return
    with os.scandir(path) as entries:
        # Sorted as an object store sorts keys, where the name of a folder includes its slash.
        inside = sorted(entries, key=lambda e: e.name + "/" if e.is_dir(follow_symlinks=False) else e.name)
    for entry in inside:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _list_folder(entry.path, left_out)
            elif entry.is_file():
                yield _local_row(entry.path, entry.stat())
        except FileNotFoundError:  # deleted since the folder was listed
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            left_out.add(UNUSABLE, entry.path)


def _local_row(path: str, stat: os.stat_result) -> _Row:
    return f"file://{path}", local_etag(stat), stat.st_size
