"""The pages of a listing of S3, without botocore's parsers: they take 10 ms for a page of 1,000 objects, this 1 ms.

botocore parses each page twice: first to see whether the page is an error in disguise, then to make a dictionary and a
date of each object. For tens of millions of objects both take hours of one core.
"""

import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

ANSWER = "m2f_objects"  # in an answer of the client, beside what botocore puts there
# Other requests of the client, such as those of s3fs itself, get what they know.
_ASKED_HERE: ContextVar[bool] = ContextVar("asked_here", default=False)
_BEGIN, _END = b"<Contents>", b"</Contents>"
_ENTITY = re.compile("&(#[0-9]+|#x[0-9a-fA-F]+|amp|lt|gt|quot|apos);")
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


@dataclass(frozen=True)
class PageObjects:
    """The objects of one page, in its order."""

    keys: pa.StringArray
    etags: pa.StringArray  # without quotes
    sizes: pa.Int64Array

    @classmethod
    def of(cls, keys: list[str], etags: list[str], sizes: list[int]) -> "PageObjects":
        return cls(pa.array(keys, pa.string()), pa.array(etags, pa.string()), pa.array(sizes, pa.int64()))

    def first(self, number: int) -> "PageObjects":
        return PageObjects(self.keys[:number], self.etags[:number], self.sizes[:number])


def read_pages_fast(client: Any) -> None:
    """Prepare this client (botocore's or aiobotocore's) for `ask_for_page`. May be called again."""
    # Of the handlers for S3, those with a name come behind those with `*`, among them the one of botocore that parses
    # the whole body. Those with `*` in place of the service come first.
    client.meta.events.register("before-parse.*.ListObjectsV2", _take_objects, unique_id="m2f-pages")


def ask_for_page(filesystem: Any, **arguments: Any) -> dict[str, Any]:
    """The answer to `list_objects_v2`, for `objects_of`: other fields are as botocore has them. Raises STORE_ERRORS."""
    mark = _ASKED_HERE.set(True)  # s3fs runs the request in a copy of this thread's context
    try:
        page: dict[str, Any] = filesystem.call_s3("list_objects_v2", **arguments)
        return page
    finally:
        _ASKED_HERE.reset(mark)


def following_pages(ask: Callable[..., dict[str, Any]], **first: Any) -> Iterator[dict[str, Any]]:
    """The pages that `ask` returns: for the arguments `first`, then for the place where each page says to go on.

    OSError if a store does not say so, or names the same place again: the first page would be listed for ever.
    """
    page, before = ask(**first), None
    while True:
        token = page.get("NextContinuationToken")
        if page["IsTruncated"] and token in (None, before):
            raise OSError("the store says that there are more objects, but not where its listing goes on")
        yield page
        if not page["IsTruncated"]:
            return
        page, before = ask(ContinuationToken=token), token


def objects_of(page: dict[str, Any]) -> PageObjects:
    """The objects of an answer to `list_objects_v2`."""
    taken: PageObjects | None = page.get(ANSWER)
    if taken is not None:
        return taken
    contents = page.get("Contents", ())
    return PageObjects.of(
        [entry["Key"] for entry in contents],
        [entry["ETag"].strip('"') for entry in contents],
        [entry["Size"] for entry in contents],
    )


def _take_objects(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Take the objects out of the body before botocore parses the body."""
    body = response_dict["body"]
    if not _ASKED_HERE.get() or response_dict["status_code"] != 200 or not isinstance(body, bytes):
        return
    objects = parse_objects(body)
    if objects is not None:
        customized_response_dict[ANSWER] = objects
        response_dict["body"] = body[: body.index(_BEGIN)] + body[body.rindex(_END) + len(_END) :]


def parse_objects(body: bytes) -> PageObjects | None:
    """The objects of a page. None if the page has none, or is not written as S3 writes it: botocore parses it then."""
    start, end = body.find(_BEGIN), body.rfind(_END)
    if not 0 <= start < end or (b"!" in body and (b"<![CDATA[" in body or b"<!--" in body)):
        return None
    elements = _Elements(body[start : end + len(_END)])
    if len(elements.named(b"CommonPrefixes")):
        return None
    try:
        keys, etags, sizes = (elements.texts(name) for name in (b"Key", b"ETag", b"Size"))
        if b"<EncodingType>url</EncodingType>" in body[:start] + body[end:]:
            keys = _decoded(keys)
        return PageObjects(keys, pc.ascii_trim(etags, '"'), sizes.cast(pa.int64()))
    except (ValueError, pa.ArrowInvalid):
        return None


class _Elements:
    """The XML elements of some objects. NumPy looks at all bytes at once: a pattern takes three times as long."""

    def __init__(self, written: bytes):
        self.written = np.frombuffer(written, np.uint8)
        self.tags = np.flatnonzero(self.written == ord("<"))
        self.begins_with = self.written[self.tags + 1]  # the first letter of each name; `/` where an element ends
        self.number = len(self.named(b"Contents"))

    def named(self, name: bytes) -> npt.NDArray[np.int64]:
        """Which of the tags begin an element with this name."""
        found = np.flatnonzero(self.begins_with == name[0])
        for place, letter in enumerate(name[1:] + b">", start=2):
            found = found[self.written[self.tags[found] + place] == letter]
        return found

    def texts(self, name: bytes) -> pa.StringArray:
        """The text of the element `name` of each object. ValueError if an object has not one, or it is no plain text.

        Parsers of XML replace some line breaks, so that a text with one is not plain.
        """
        found = self.named(name)
        if len(found) != self.number or not np.all(self.begins_with[found + 1] == ord("/")):
            raise ValueError(f"not each object has one {name!r}")
        starts, ends = self.tags[found] + len(name) + 2, self.tags[found + 1]
        offsets = np.zeros(len(found) + 1, np.int32)
        np.cumsum(ends - starts, out=offsets[1:])
        joined = self.written[np.repeat(starts - offsets[:-1], ends - starts) + np.arange(offsets[-1])].tobytes()
        if b"\n" in joined or b"\r" in joined:
            raise ValueError(f"a {name!r} holds a line break")
        texts = pa.StringArray.from_buffers(len(found), pa.py_buffer(offsets), pa.py_buffer(joined))
        if not joined.isascii():
            texts.validate(full=True)
        return _without_entities(texts) if b"&" in joined else texts


def _without_entities(texts: pa.StringArray) -> pa.StringArray:
    for quote in ("&quot;", "&#34;"):  # of every ETag. What replaces them begins no other entity.
        texts = pc.replace_substring(texts, quote, '"')
    if not pc.any(pc.match_substring(texts, "&")).as_py():
        return texts
    return pa.array([_ENTITY.sub(_character, text) for text in texts.to_pylist()], pa.string())


def _decoded(keys: pa.StringArray) -> pa.StringArray:
    """Keys that are encoded as in URLs."""
    if not pc.any(pc.match_substring_regex(keys, "[%+]")).as_py():
        return keys
    texts = (unquote_plus(key) if "%" in key or "+" in key else key for key in keys.to_pylist())
    return pa.array(list(texts), pa.string())


def _character(entity: re.Match[str]) -> str:
    name = entity[1]
    if name.startswith("#"):
        return chr(int(name[2:], 16) if name.startswith("#x") else int(name[1:]))
    return _ENTITIES[name]
