"""List every object below the input, page by page, sorted by name."""

import errno
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.errors import RunError
from pipeline.store.filesystem import (
    is_local,
    is_s3,
    local_etag,
    open_filesystem,
    store_errors_as,
    uri_of,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListedImage:
    """One object of the listing."""

    image_key: str
    etag: str
    size_bytes: int


def list_images(uri: str) -> Iterator[ListedImage]:
    """Every object below the folder or prefix `uri`, sorted by name, page by page.

    S3 "directory markers" (empty objects whose key ends in `/`) are not images. In local folders, symbolic links to
    files are followed and links to folders are not. Names that are not UTF-8, which no table can hold, and links to
    themselves are left out; after the last image, a warning counts them.

    Raises RunError if the input does not exist or permission to list it is missing.
    """
    filesystem, path = open_filesystem(uri)
    with store_errors_as(
        RunError,
        f"--input {uri} cannot be listed",
        denied=f"no permission to list --input {uri}",
        missing=f"--input {uri} does not exist",
    ):
        left_out = _LeftOut()
        if is_local(filesystem):
            listed = _list_folder(path, left_out)
        else:
            listed = _list_bucket(filesystem, path) if is_s3(filesystem) else _list_any(filesystem, path)
        for image in listed:
            if _is_utf8(image.image_key):
                yield image
            else:
                left_out.add(image.image_key)
    if left_out.number:
        logger.warning(
            f"--input {uri}: {left_out.number:,} names are left out, because they are not UTF-8 or are links to "
            f"themselves, for example {left_out.example!a}"
        )


@dataclass
class _LeftOut:
    """What a listing leaves out."""

    number: int = 0
    example: str = ""

    def add(self, path: str) -> None:
        self.number += 1
        self.example = self.example or path


def refuse_empty(uri: str) -> None:
    """Raise RunError if `uri` has no objects: a wrong name is more likely than a bucket that lost everything."""
    if next(list_images(uri), None) is None:
        raise RunError(f"--input {uri} holds no objects")


def _list_folder(path: str, left_out: _LeftOut) -> Iterator[ListedImage]:
    if os.path.isfile(path):  # noqa: PTH113 - one scandir entry type throughout
        yield _local_image(path, os.stat(path))  # noqa: PTH116
        return
    with os.scandir(path) as entries:
        # Sorted as an object store sorts keys, where the name of a folder includes its slash.
        listed = sorted(entries, key=lambda e: e.name + "/" if e.is_dir(follow_symlinks=False) else e.name)
    for entry in listed:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _list_folder(entry.path, left_out)
            elif entry.is_file():
                yield _local_image(entry.path, entry.stat())
        except FileNotFoundError:  # deleted since the folder was listed
            continue
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            left_out.add(entry.path)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Python keeps other bytes as lone surrogates
        return False
    return True


def _local_image(path: str, stat: os.stat_result) -> ListedImage:
    return ListedImage(f"file://{path}", local_etag(stat), stat.st_size)


def _list_bucket(filesystem: Any, path: str) -> Iterator[ListedImage]:
    # find() and walk() would keep 3-4 KB for every key that they list.
    bucket, _, prefix = path.partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    page: dict[str, Any] = {"IsTruncated": True}
    listed_any = False
    while page["IsTruncated"]:
        token = {"ContinuationToken": page["NextContinuationToken"]} if "NextContinuationToken" in page else {}
        page = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **token)
        if page["IsTruncated"] and page.get("NextContinuationToken") in (None, token.get("ContinuationToken")):
            raise OSError("the store says that there are more objects, but not where its listing goes on")
        for entry in page.get("Contents", ()):
            listed_any = True
            if not (entry["Key"].endswith("/") and entry["Size"] == 0):
                yield ListedImage(
                    uri_of(filesystem, f"{bucket}/{entry['Key']}"), entry["ETag"].strip('"'), entry["Size"]
                )
    if not listed_any and prefix and filesystem.exists(path):
        info = filesystem.info(path)
        if info["type"] == "file":
            yield ListedImage(uri_of(filesystem, path), str(info["ETag"]).strip('"'), info["size"])


def _list_any(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[ListedImage]:
    if not filesystem.exists(path):
        raise FileNotFoundError(path)
    for name, info in sorted(filesystem.find(path, detail=True).items()):
        etag = info.get("etag") or info.get("ETag") or info.get("mtime") or info.get("created") or ""
        yield ListedImage(uri_of(filesystem, name), str(etag).strip('"'), info["size"])
