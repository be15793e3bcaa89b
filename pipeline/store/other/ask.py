"""One request for bytes of a store that is neither S3 nor a disk, whichever it is."""

import hashlib
import re
from collections.abc import Coroutine
from typing import Any

import fsspec

from pipeline.store.filesystem import facts_in, facts_of
from pipeline.store.fsspec_private import cat_file, info_of
from pipeline.store.objects import TooManyBytesError, md5_of
from pipeline.store.other.answer import Answer, Part
from pipeline.store.other.other_store import OtherStore

_TIME_AND_SIZE = re.compile(r"([0-9]+)(?:\.[0-9]+)?-([0-9]+)")


def ask(
    filesystem: Any, path: str, etag: str, part: Part | None, most_bytes: int
) -> Answer | Coroutine[Any, Any, Answer]:
    """`OtherStore.ask`, of any file system. Raises STORE_ERRORS."""
    if isinstance(filesystem, OtherStore):
        return filesystem.ask(path, etag, part, most_bytes)
    return (
        _ask_any_async(filesystem, path, etag, part, most_bytes)
        if filesystem.async_impl
        else _ask_any(filesystem, path, etag, part, most_bytes)
    )


def _ask_any(filesystem: fsspec.AbstractFileSystem, path: str, etag: str, part: Part | None, most_bytes: int) -> Answer:
    """Of a store whose library does not say of which version the bytes are.

    The version is asked for before the bytes: if the object is replaced in between, the next listing has another ETag
    than the row.
    """
    now, size = facts_of(filesystem, path)
    if not _is_wanted(now, size, etag, part, most_bytes):
        return Answer(now, size, b"")
    first, end = _ends(part)
    return _checked(etag or now, size, filesystem.cat_file(path, start=first, end=end), part)


async def _ask_any_async(
    filesystem: fsspec.AbstractFileSystem, path: str, etag: str, part: Part | None, most_bytes: int
) -> Answer:
    """Like `_ask_any`."""
    now, size = facts_in(await info_of(filesystem, path), path)
    if not _is_wanted(now, size, etag, part, most_bytes):
        return Answer(now, size, b"")
    return _checked(etag or now, size, await cat_file(filesystem, path, *_ends(part)), part)


def _is_wanted(now: str, size: int, etag: str, part: Part | None, most_bytes: int) -> bool:
    """Whether the object is the one asked for. TooManyBytesError if the whole is wanted and is too large."""
    if now and etag and _versions_differ(now, etag):
        return False
    if part is None and size > most_bytes:
        raise TooManyBytesError(f"the object has {size} bytes; the limit is {most_bytes}")
    return True


def _versions_differ(one: str, other: str) -> bool:
    """Whether two versions of `etag_in` are of different objects, for all that can be told.

    A store may describe an object in other words when it lists it: a time without its fraction, or in place of an ETag.
    """
    times = _TIME_AND_SIZE.fullmatch(one), _TIME_AND_SIZE.fullmatch(other)
    if times[0] and times[1]:
        return times[0].groups() != times[1].groups()
    return times[0] is times[1] is None and one != other


def _ends(part: Part | None) -> tuple[int | None, int | None]:
    return (None, None) if part is None else (part[0], sum(part))


def _checked(etag: str, size: int, data: bytes, part: Part | None) -> Answer:
    digest = md5_of({"ETag": etag}) if part is None else None
    return Answer(etag, size, data, digest in (None, hashlib.md5(data, usedforsecurity=False).hexdigest()))
