"""The pages of a listing of S3, without botocore's parser: it takes 40 ms for a page of 1,000 objects, this 1 ms.

The parser makes a dictionary and a date of each object, which for tens of millions of objects is hours of one core.
"""

import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

ANSWER = "m2f_objects"  # in an answer of the client, beside what botocore puts there
# Other requests of the client, such as those of s3fs itself, get what they know.
_ASKED_HERE: ContextVar[bool] = ContextVar("asked_here", default=False)
_KEY, _ETAG, _SIZE = (re.compile(rb"<%s>([^<]*)</%s>" % (name, name)) for name in (b"Key", b"ETag", b"Size"))
_ENTITY = re.compile("&(#[0-9]+|#x[0-9a-fA-F]+|amp|lt|gt|quot|apos);")
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


@dataclass(frozen=True)
class PageObjects:
    """The objects of one page, in its order."""

    keys: list[str]
    etags: list[str]  # without quotes
    sizes: list[int]


def read_pages_fast(client: Any) -> None:
    """Prepare this client (botocore's or aiobotocore's) for `ask_for_page`. May be called again."""
    client.meta.events.register("before-parse.s3.ListObjectsV2", _take_objects, unique_id="m2f-pages")


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
    return PageObjects(
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
        start, end = body.index(b"<Contents>"), body.rindex(b"</Contents>")
        response_dict["body"] = body[:start] + body[end + len(b"</Contents>") :]


def parse_objects(body: bytes) -> PageObjects | None:
    """The objects of a page. None if the page has none, or is not written as S3 writes it: botocore parses it then."""
    start, end = body.find(b"<Contents>"), body.rfind(b"</Contents>")
    if start < 0 or end < 0 or b"<![CDATA[" in body or b"<!--" in body:
        return None
    part = body[start:end]
    number = part.count(b"<Contents>")
    columns = [pattern.findall(part) for pattern in (_KEY, _ETAG, _SIZE)]
    if b"<CommonPrefixes>" in part or any(len(column) != number for column in columns):
        return None
    try:
        keys, etags = (_texts(column) for column in columns[:2])
        if b"<EncodingType>url</EncodingType>" in body:
            keys = [unquote_plus(key) if "%" in key or "+" in key else key for key in keys]
        return PageObjects(keys, [etag.strip('"') for etag in etags], list(map(int, columns[2])))
    except ValueError:
        return None


def _texts(column: list[bytes]) -> list[str]:
    """The texts of XML elements. ValueError if one of them is not UTF-8 or holds the separator."""
    joined = b"\n".join(column).decode()
    texts = joined.split("\n")
    if len(texts) != len(column):
        raise ValueError("a text holds a line break")
    return [_ENTITY.sub(_character, text) for text in texts] if "&" in joined else texts


def _character(entity: re.Match[str]) -> str:
    name = entity[1]
    if name.startswith("#"):
        return chr(int(name[2:], 16) if name.startswith("#x") else int(name[1:]))
    return _ENTITIES[name]
