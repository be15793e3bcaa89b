"""Requests over HTTP that go nowhere but where they were sent, take no more memory than said, and end.

One client for the stores whose libraries follow redirects to any host, read bodies without a bound, or repeat requests
by rules of their own. It is used on one event loop, and only there.
"""

import base64
import contextlib
import json
import re
import urllib.request
import weakref
from collections.abc import AsyncIterator
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
from fsspec.asyn import sync
from yarl import URL

from m2f_core import __version__
from pipeline.store.objects import DamagedError, TooManyBytesError
from pipeline.store.other.addresses import RefusedAddressError, check_host, checked_socket
from pipeline.store.other.answer import Part

MOST_REDIRECTS = 5  # on one server
REDIRECTS = (301, 302, 303, 307, 308)
_CONNECT_SECONDS, _SILENT_SECONDS = 10.0, 30.0
_BLOCK_BYTES = 2**18


class HttpClient:
    """Sends requests on `loop`, without cookies and without credentials of its own."""

    def __init__(self, loop: Any):
        self.loop = loop
        self._session: ClientSession | None = None

    @contextlib.asynccontextmanager
    async def answer(
        self,
        method: str,
        url: URL,
        headers: dict[str, str],
        name: str,
        seconds: float | None = None,
        *,
        is_elsewhere_an_answer: bool = False,
    ) -> AsyncIterator[ClientResponse]:
        """The answer to a request, whatever its status; its body is not read yet. `name` is the object in messages.

        Redirects on the same server are followed. A redirect to another one is the answer if the caller says so, else
        a PermissionError, as are addresses that nothing is read from. Raises ConnectionError, TimeoutError (after
        `seconds` in all); DamagedError if the body ends early.
        """
        timeout = ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS)
        try:
            for _ in range(MOST_REDIRECTS + 1):
                check_host(url.host or "")
                proxy, for_proxy = _proxy_of(url)
                async with self._connected().request(
                    method, url, headers=headers | for_proxy, allow_redirects=False, timeout=timeout, **proxy
                ) as answer:
                    target = followed(url, answer) if answer.status in REDIRECTS else url
                    if answer.status not in REDIRECTS or (is_elsewhere_an_answer and not _same(target, url)):
                        yield answer
                        return
                    if target is None or not _same(target, url):
                        raise PermissionError(
                            f"{name} redirects to {answer.headers.get('Location')}, another server; name the object by "
                            "its own address"
                        )
                    url = target
            raise PermissionError(f"{name} redirects more than {MOST_REDIRECTS} times")
        except ClientPayloadError as error:
            raise DamagedError(f"the body of {name} ends early: {error}") from error
        except ClientError as error:
            refused = _refused(error)
            if refused is not None:
                raise refused from None
            raise ConnectionError(f"{name}: {error}") from error
        except TimeoutError as error:
            raise TimeoutError(f"{name} timed out: {error}") from error

    def _connected(self) -> ClientSession:
        if self._session is None:
            self._session = ClientSession(
                connector=TCPConnector(socket_factory=checked_socket),
                cookie_jar=DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept-Encoding": "identity", "User-Agent": f"m2f-pipeline/{__version__}"},
            )
            weakref.finalize(self, _close, self.loop, self._session)
        return self._session


async def body_of(answer: ClientResponse, most_bytes: int, *, cut: bool = False) -> bytes:
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


def range_of(part: Part | None) -> dict[str, str]:
    """The header that asks for a part; none for the whole object."""
    return {} if part is None else {"Range": f"bytes={part[0]}-{sum(part) - 1}"}


async def whole_of(answer: ClientResponse, name: str, most_bytes: int) -> bytes:
    """The body of an answer to a request for a whole object: as `body_of`. DamagedError if it is a part."""
    if answer.status != 200:
        raise DamagedError(f"{name} was asked for as a whole, and a part was sent")
    return await body_of(answer, most_bytes)


async def part_of(answer: ClientResponse, name: str, part: Part) -> bytes:
    """The body of an answer to a request for a part: as `body_of`. DamagedError if it is the whole or another part."""
    if answer.status != 206:
        raise DamagedError(f"{name} was asked for a part and sent as a whole")
    begins = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    if begins is None or int(begins[1]) != part[0]:
        raise DamagedError(f"{name} was asked for bytes from {part[0]} and sent others")
    return await body_of(answer, part[1])


async def json_of(answer: ClientResponse, name: str, most_bytes: int) -> Any:
    """The body as JSON. DamagedError if it is none, as from a proxy that answers in place of the store."""
    try:
        return json.loads(await body_of(answer, most_bytes))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"the answer for {name} is no JSON: {error}") from None


def whole_size(answer: ClientResponse) -> int | None:
    """The size of the whole object; None if the server does not say."""
    if answer.status in (206, 416):
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if re.fullmatch("[0-9]{1,18}", total) else None
    return answer.content_length


def status_line(answer: ClientResponse, name: str) -> str:
    """An answer that is no object, for a message."""
    return f"{name} is answered with {answer.status} {answer.reason or ''}".rstrip()


def followed(url: URL, answer: ClientResponse) -> URL | None:
    """Where a redirect leads; None if that is no URL with a host."""
    with contextlib.suppress(ValueError):
        target = url.join(URL(answer.headers.get("Location", "")))
        target.origin()
        return target
    return None


def _same(target: URL | None, url: URL) -> bool:
    """Whether both URLs are of one server. Whoever owns another one did not choose what is read."""
    return target is not None and target.origin() == url.origin()


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
