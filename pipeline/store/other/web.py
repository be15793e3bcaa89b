"""Objects of web servers: what HTTP says of an object, and its bytes. Nothing is listed, written or signed.

A path is the URL without `scheme://`, escaped as in a browser; a fragment is not sent. fsspec's own HTTP file system
would follow redirects to any host, read bodies without end, and take the links of a page for a folder.
"""

from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

from aiohttp import ClientResponse
from fsspec.asyn import AsyncFileSystem
from yarl import URL

from pipeline.store.other.answer import Answer, NoPartsError, Part, error_of
from pipeline.store.other.http_client import HttpClient, body_of, part_of, range_of, status_line, whole_of, whole_size
from pipeline.store.other.other_store import OtherObject, OtherStore

_DESCRIBE_SECONDS = 60.0  # for an answer without its body
# A server that knows no ranges sends all that precedes a part, too.
_MOST_SKIPPED_BYTES = 64 * 2**20
_NO_HEAD = (400, 403, 405, 501)  # answers of servers that know GET only


class WebFileSystem(OtherStore, AsyncFileSystem):
    """Single objects behind the URLs of one scheme."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.client = HttpClient(self.loop)

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(path).removeprefix(f"{cls.protocol}://")

    def check_folder(self, path: str) -> None:
        raise FileNotFoundError(f"{self._uri(path)} does not exist, and the web has no folders")

    async def describe(self, path: str) -> Answer:
        uri = self._uri(path)
        for method in ("HEAD", "GET"):
            async with self.client.answer(method, URL(uri), {}, uri, _DESCRIBE_SECONDS) as answer:
                if method == "GET" or answer.status not in _NO_HEAD:
                    _check(answer, uri)
                    size = whole_size(answer)
                    return Answer(_etag_of(answer, size), size, b"")
        raise AssertionError("unreachable: GET is answered or raises")

    def objects(self, path: str) -> Iterator[OtherObject]:
        yield self.object_at(path)

    async def ask(self, path: str, etag: str, part: Part | None, most_bytes: int) -> Answer:
        uri = self._uri(path)
        async with self.client.answer("GET", URL(uri), range_of(part), uri) as answer:
            size = whole_size(answer)
            now = _etag_of(answer, size)
            if part is not None and answer.status == 416:  # the object ends before the part begins
                return Answer(now, size, b"")
            _check(answer, uri)
            if etag and now and now != etag:
                return Answer(now, size, b"")
            if part is None:
                data = await whole_of(answer, uri, most_bytes)
                return Answer(_etag_of(answer, len(data)), len(data), data)
            return Answer(now, size, await _part_of(answer, uri, part))

    def _uri(self, path: str) -> str:
        return f"{self.protocol}://{self._strip_protocol(path)}"


class HttpFileSystem(WebFileSystem):
    """Objects behind http:// URLs."""

    protocol = "http"


class HttpsFileSystem(WebFileSystem):
    """Objects behind https:// URLs."""

    protocol = "https"


async def _part_of(answer: ClientResponse, uri: str, part: Part) -> bytes:
    if answer.status == 206:
        return await part_of(answer, uri, part)
    if sum(part) > _MOST_SKIPPED_BYTES:
        raise NoPartsError(f"the server of {uri} sends no parts of objects (ranges); copy the object to a store")
    return (await body_of(answer, sum(part), cut=True))[part[0] :]


def _check(answer: ClientResponse, uri: str) -> None:
    """Raise the OSError of an answer that is no object."""
    if answer.status not in (200, 206):
        raise error_of(answer.status, status_line(answer, uri))
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding != "identity":  # it would take memory without bound to decode, and ETag and size are of the code
        raise PermissionError(f"{uri} is sent with the encoding {encoding}, which was not asked for")


def _etag_of(answer: ClientResponse, size: int | None) -> str:
    """The ETag, weak or strong; else the time of the last change and the size, in hex; else ""."""
    etag = answer.headers.get("ETag", "").strip().removeprefix("W/").strip('"')
    if etag:
        return etag
    try:
        changed = parsedate_to_datetime(answer.headers["Last-Modified"])
    except (KeyError, ValueError):
        return ""
    return "" if size is None else f"{int(changed.timestamp()):x}-{size:x}"
