"""Objects of web servers: what HTTP says of an object, and its bytes. Nothing is listed, written or signed.

A path is the URL without `scheme://`, escaped as in a browser; a fragment is not sent. fsspec's own HTTP file system
would follow redirects to any host, read bodies without end, and take the links of a page for a folder.
"""

import base64
import contextlib
import re
import urllib.request
import weakref
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any

from aiohttp import (
    ClientError,
    ClientPayloadError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from fsspec.asyn import AsyncFileSystem, sync
from tenacity import retry_if_not_exception_type
from yarl import URL

from m2f_core import __version__
from pipeline.store.objects import DamagedError, TooManyBytesError
from pipeline.store.other.addresses import RefusedAddressError, check_host, checked_socket
from pipeline.store.other.answer import Answer, NoPartsError, Part, error_of
from pipeline.store.retries import OBJECT

_MOST_REDIRECTS = 5  # on one server
_REDIRECTS = (301, 302, 303, 307, 308)
_CONNECT_SECONDS, _SILENT_SECONDS = 10.0, 30.0
_DESCRIBE_SECONDS = 60.0  # for an answer without its body
_BLOCK_BYTES = 2**18
# A server that knows no ranges sends all that precedes a part, too.
_MOST_SKIPPED_BYTES = 64 * 2**20
_NO_HEAD = (400, 403, 405, 501)  # answers of servers that know GET only
_LASTING = (FileNotFoundError, PermissionError)


class WebFileSystem(AsyncFileSystem):
    """Single objects behind the URLs of one scheme."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.session: ClientSession | None = None

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        return str(path).removeprefix(f"{cls.protocol}://")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size (None: the server does not say) and ETag of an object. Errors that may pass are tried again."""
        for attempt in OBJECT.retrying(retry_if_not_exception_type(_LASTING)):
            with attempt:
                described: Answer = sync(self.loop, self._describe, path)
        found = {"name": self._strip_protocol(path), "type": "file"}
        return {**found, "size": described.size_bytes, "etag": described.etag}

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        return self.exists(path)

    async def _describe(self, path: str) -> Answer:
        for method in ("HEAD", "GET"):
            async with self._answer(method, path, {}, _DESCRIBE_SECONDS) as answer:
                if method == "GET" or answer.status not in _NO_HEAD:
                    self._check(answer, path)
                    size = _whole_size(answer)
                    return Answer(_etag_of(answer, size), size, b"")
        raise AssertionError("unreachable: GET is answered or raises")

    async def ask(self, path: str, etag: str, part: Part | None, most_bytes: int) -> Answer:
        """The object, or a part of it, by one request. Await this on the loop of the file system.

        Raises FileNotFoundError, PermissionError, TooManyBytesError before more than `most_bytes` bytes are read,
        NoPartsError, DamagedError, and other OSErrors, which may pass.
        """
        headers = {} if part is None else {"Range": f"bytes={part[0]}-{sum(part) - 1}"}
        async with self._answer("GET", path, headers) as answer:
            if part is not None and answer.status == 416:  # the object ends before the part begins
                return Answer(_etag_of(answer, _whole_size(answer)), _whole_size(answer), b"")
            self._check(answer, path)
            size = _whole_size(answer)
            now = _etag_of(answer, size)
            if etag and now and now != etag:
                return Answer(now, size, b"")
            if part is None:
                data = await _body(answer, most_bytes)
                return Answer(_etag_of(answer, len(data)), len(data), data)
            return Answer(now, size, await self._part(answer, path, part))

    async def _part(self, answer: ClientResponse, path: str, part: Part) -> bytes:
        first, length = part
        if answer.status == 206:
            begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            if begins is None or int(begins[1]) != first:
                raise DamagedError(f"{self._uri(path)} was asked for bytes from {first} and sent others")
            return await _body(answer, length)
        if sum(part) > _MOST_SKIPPED_BYTES:
            raise NoPartsError(
                f"the server of {self._uri(path)} sends no parts of objects (ranges); copy the object to a store"
            )
        return (await _body(answer, sum(part), cut=True))[first:]

    def _check(self, answer: ClientResponse, path: str) -> None:
        """Raise the OSError of an answer that is no object."""
        if answer.status not in (200, 206):
            said = f"{self._uri(path)} is answered with {answer.status} {answer.reason or ''}".rstrip()
            raise error_of(answer.status, said)
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding != "identity":  # it would take memory without bound to decode, and ETag and size are of the code
            raise PermissionError(f"{self._uri(path)} is sent with the encoding {encoding}, which was not asked for")

    @contextlib.asynccontextmanager
    async def _answer(
        self, method: str, path: str, headers: dict[str, str], seconds: float | None = None
    ) -> AsyncIterator[ClientResponse]:
        """The answer to a request; the body is not read yet. Redirects on the same server are followed."""
        url = URL(self._uri(path))
        timeout = ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                check_host(url.host or "")
                proxy, for_proxy = _proxy_of(url)
                async with self._connected().request(
                    method, url, headers=headers | for_proxy, allow_redirects=False, timeout=timeout, **proxy
                ) as answer:
                    if answer.status not in _REDIRECTS:
                        yield answer
                        return
                    url = self._followed(url, answer.headers.get("Location", ""))
            raise PermissionError(f"{self._uri(path)} redirects more than {_MOST_REDIRECTS} times")
        except ClientPayloadError as error:
            raise DamagedError(f"the body of {self._uri(path)} ends early: {error}") from error
        except ClientError as error:
            refused = _refused(error)
            if refused is not None:
                raise refused from None
            raise ConnectionError(f"{self._uri(path)}: {error}") from error
        except TimeoutError as error:
            raise TimeoutError(f"{self._uri(path)} timed out: {error}") from error

    def _followed(self, url: URL, location: str) -> URL:
        """Where a redirect leads. PermissionError if that is another server: its owner did not choose what is read."""
        with contextlib.suppress(ValueError):  # no URL, or one without a host
            target = url.join(URL(location))
            if target.origin() == url.origin():
                return target
        raise PermissionError(f"{url} redirects to {location}, another server; name the object by its own address")

    def _connected(self) -> ClientSession:
        if self.session is None:
            self.session = ClientSession(
                connector=TCPConnector(socket_factory=checked_socket),
                cookie_jar=DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": f"m2f-pipeline/{__version__}"},
            )
            weakref.finalize(self, _close, self.loop, self.session)
        return self.session

    def _uri(self, path: str) -> str:
        return f"{self.protocol}://{self._strip_protocol(path)}"


class HttpFileSystem(WebFileSystem):
    """Objects behind http:// URLs."""

    protocol = "http"


class HttpsFileSystem(WebFileSystem):
    """Objects behind https:// URLs."""

    protocol = "https"


async def _body(answer: ClientResponse, most_bytes: int, *, cut: bool = False) -> bytes:
    """The body. If it is longer than `most_bytes`, TooManyBytesError before more is read; with `cut`, its beginning."""
    blocks, number = [], 0
    if not cut and (answer.content_length or 0) > most_bytes:
        raise TooManyBytesError(f"the server sends {answer.content_length:,} bytes; the limit is {most_bytes:,}")
    async for block in answer.content.iter_chunked(_BLOCK_BYTES):
        blocks.append(block)
        number += len(block)
        if number > most_bytes and not cut:
            raise TooManyBytesError(f"the server sends more than the {most_bytes:,} bytes that are read")
        if number >= most_bytes and cut:
            answer.close()
            break
    return b"".join(blocks)[:most_bytes]


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


def _whole_size(answer: ClientResponse) -> int | None:
    """The size of the whole object; None if the server does not say."""
    if answer.status in (206, 416):
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if re.fullmatch("[0-9]{1,18}", total) else None
    return answer.content_length


def _proxy_of(url: URL) -> tuple[dict[str, Any], dict[str, str]]:
    """Options and headers that send a request to the proxy that the environment names, with the proxy's password.

    aiohttp would find the proxy by itself, and send what `.netrc` has for the host, too: objects are public here.
    """
    proxy = urllib.request.getproxies().get(url.scheme)
    if not proxy or urllib.request.proxy_bypass(url.host or ""):
        return {}, {}
    at = URL(proxy)
    if at.user is None:
        return {"proxy": at}, {}
    user = base64.b64encode(f"{at.user}:{at.password or ''}".encode()).decode()
    signed = {"Proxy-Authorization": f"Basic {user}"}
    bare = at.with_user(None)
    # For https, the proxy sees the request for a tunnel only.
    return ({"proxy": bare, "proxy_headers": signed}, {}) if url.scheme == "https" else ({"proxy": bare}, signed)


def _refused(error: BaseException | None) -> RefusedAddressError | None:
    """The refusal of an address behind an error of the client."""
    while error is not None and not isinstance(error, RefusedAddressError):
        error = error.__cause__ or error.__context__
    return error


def _close(loop: Any, session: ClientSession) -> None:
    with contextlib.suppress(Exception):  # at the end of the process the loop may have gone
        sync(loop, session.close, timeout=0.1)
