"""A reverse proxy in front of an S3 endpoint that breaks requests by given rules: for drills and tests.

Everything is streamed. Requests are forwarded byte for byte with the client's Host header, because the signature covers
this header. A server that accepts only its own name (AWS) needs `sign=True`: requests are then signed again with the
credentials of the usual AWS chain. The proxy runs in a thread of the calling process and listens on loopback only.
"""

import asyncio
import contextlib
import hashlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import aiohttp
import yarl
from aiohttp import web

from pipeline.errors import RunError

Fault = Literal[
    "slow_down",  # 503; this and the next four faults never reach the store
    "internal_error",  # 500
    "access_denied",  # 403; on PUT, POST and DELETE this simulates a bucket that has turned read-only
    "no_space",  # 507
    "reset",  # the connection is reset before the request reaches the store
    "latency",  # the request succeeds after a wait of `seconds`
    "lost_answer",  # the store obeys, but the client gets no answer: this makes repeated writes dangerous
    "stall",  # half of the answer, then nothing for `seconds`, then the connection is closed
    "truncate",  # half of the answer, then the connection is closed
    "flip",  # one byte of the answer is changed
    "ignore_conditions",  # If-None-Match and If-Match are dropped, as some gateways do; needs `sign=True`
    "refuse_conditions",  # 501 for a request with If-None-Match or If-Match, as from stores that know neither
    "forget",  # a PUT or DELETE is confirmed and never reaches the store, as if it showed only later
]
_ERRORS: dict[str, tuple[int, str, str]] = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "access_denied": (403, "AccessDenied", "Access Denied"),
    "no_space": (507, "InsufficientStorage", "There is no space left."),
    "refuse_conditions": (
        501,
        "NotImplemented",
        "A header you provided implies functionality that is not implemented.",
    ),
}
_CONDITIONS = ("If-None-Match", "If-Match")
_OF_ANSWERS = ("stall", "truncate", "flip")
WRITES = "^(PUT|POST|DELETE) "  # value for Rule.match

# These headers belong to one connection, not to the message. The proxy itself answers Expect.
_HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
_CHUNK_BYTES = 65536
_Headers = list[tuple[str, str]]
_START_SECONDS = 10


@dataclass(frozen=True)
class Rule:
    """A fault and the requests that it breaks. `match` is searched in `METHOD /path?query`, escaped as sent."""

    match: str
    fault: Fault
    probability: float = 1.0
    times: int | None = None  # None: no limit
    after: int = 0  # number of matching requests to let through first
    seconds: float = 0.5  # length of a latency or stall


class FaultProxy:
    """A running proxy. `url` takes the place of the endpoint; `fired` counts broken requests by fault."""

    def __init__(self, upstream: str, rules: Iterable[Rule] = (), *, seed: int = 0, sign: bool = False):
        self.upstream = upstream.rstrip("/")
        self._sign = _signer(self.upstream) if sign else None
        self.url = ""
        self.fired: Counter[str] = Counter()
        self.num_requests = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()  # rules come from the caller's thread
        self._rules: list[tuple[Rule, Counter[str]]] = []
        self.set_rules(rules)

    def set_rules(self, rules: Iterable[Rule]) -> None:
        """Replace the rules and reset their counts. The first rule that fires on a request decides."""
        armed = [(rule, Counter[str]()) for rule in rules]
        with self._lock:
            self._rules = armed

    def __enter__(self) -> "FaultProxy":
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True, name="fault-proxy")
        self._thread.start()
        if not ready.wait(_START_SECONDS) or not self.url:
            raise RuntimeError("the fault proxy did not start")
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run(ready))
        finally:
            ready.set()
            self._loop.close()

    async def _run(self, ready: threading.Event) -> None:
        self._ended = asyncio.Event()
        # The proxy has no time-outs, because a drill tests the client's. It closes idle connections before a store
        # does; otherwise there would be faults that no rule asked for.
        async with aiohttp.ClientSession(
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=30),
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as self._session:
            # Cancel a handler when its client hangs up; otherwise stalls would go on.
            server = web.Server(self._handle, auto_decompress=False, handler_cancellation=True, access_log=None)
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}"
            ready.set()
            await self._ended.wait()
            await runner.cleanup()

    def _pick(self, line: str, faults: Callable[[str], bool]) -> Rule | None:
        """The rule that fires on this request, if any."""
        with self._lock:
            for rule, counts in self._rules:
                if not faults(rule.fault) or not re.search(rule.match, line):
                    continue
                counts["matched"] += 1
                spent = rule.times is not None and counts["fired"] >= rule.times
                if spent or counts["matched"] <= rule.after or self._random.random() >= rule.probability:
                    continue
                counts["fired"] += 1
                self.fired[rule.fault] += 1
                return rule
        return None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.num_requests += 1
        line = f"{request.method} {request.raw_path}"
        rule = self._pick(line, lambda fault: fault not in _OF_ANSWERS)
        fault = rule.fault if rule is not None else ""
        if fault == "reset":
            return _reset(request)
        if request.headers.get("Expect", "").lower() == "100-continue" and request.writer is not None:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        has_condition = any(name in request.headers for name in _CONDITIONS)
        if fault in _ERRORS and (fault != "refuse_conditions" or has_condition):
            await request.read()  # an answer while the client still sends would look like a reset to the client
            return _error(*_ERRORS[fault])
        if fault == "forget":
            return _confirmed(await request.read())
        if fault == "latency" and rule is not None:
            await asyncio.sleep(rule.seconds)
        try:
            without = _CONDITIONS if fault == "ignore_conditions" else ()
            async with self._send_on(request, without) as answer:
                if fault == "lost_answer":
                    return _reset(request)
                has_body = request.method != "HEAD" and answer.status < 300 and answer.content_length != 0
                late = self._pick(line, lambda fault: fault in _OF_ANSWERS) if has_body else None
                return await _pass_back(request, answer, late)
        except aiohttp.ClientConnectionError:
            return _error(502, "BadGateway", "The store behind the fault proxy does not answer.")

    def _send_on(
        self, request: web.BaseRequest, without: Iterable[str] = ()
    ) -> "aiohttp.client._RequestContextManager":
        dropped = _HOP_BY_HOP | {b"expect"} | {name.lower().encode() for name in without}
        headers = [
            (n.decode("latin-1"), v.decode("latin-1")) for n, v in request.raw_headers if n.lower() not in dropped
        ]
        url = f"{self.upstream}{request.raw_path}"
        if self._sign is not None:
            headers = self._sign(request.method, url, headers)
        body: AsyncIterator[bytes] | bytes | None = None
        if request.body_exists:
            body = request.content.iter_chunked(_CHUNK_BYTES)
        elif "Content-Length" in request.headers:
            body = b""
        return self._session.request(
            request.method, yarl.URL(url, encoded=True), headers=headers, data=body, allow_redirects=False
        )


async def _pass_back(request: web.BaseRequest, answer: aiohttp.ClientResponse, rule: Rule | None) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for name, value in answer.raw_headers:
        if name.lower() not in _HOP_BY_HOP:
            response.headers.add(name.decode("latin-1"), value.decode("latin-1"))
    length = answer.content_length
    chunks: AsyncIterator[bytes] = answer.content.iter_chunked(_CHUNK_BYTES)
    if rule is not None and length is None:  # a listing: read it whole, since only then its middle is known
        body = await answer.read()
        length, chunks = len(body), _once(body)
    await response.prepare(request)
    if request.method != "HEAD":
        if rule is None or length is None:
            async for data in chunks:
                await response.write(data)
        elif not await _write_broken(response, chunks, length // 2, rule):
            if request.transport is not None:
                request.transport.close()
            return response
    await response.write_eof()
    return response


async def _write_broken(response: web.StreamResponse, chunks: AsyncIterator[bytes], middle: int, rule: Rule) -> bool:
    """Write the answer with the fault; False if the answer ends in the middle, counted in bytes."""
    sent = 0
    async for data in chunks:
        place = middle - sent
        if 0 <= place < len(data):
            if rule.fault != "flip":
                await response.write(data[:place])
                if rule.fault == "stall":
                    await asyncio.sleep(rule.seconds)
                return False
            data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        await response.write(data)
        sent += len(data)
    return True


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _reset(request: web.BaseRequest) -> web.StreamResponse:
    """Close the connection with RST instead of FIN, without any part of an answer."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response(status=500)  # this response is never sent


def _confirmed(body: bytes) -> web.Response:
    """The answer of a store that has done what it was asked to do."""
    return web.Response(headers={"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'})


def _error(status: int, code: str, message: str) -> web.Response:
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message>'
        "<RequestId>fault-proxy</RequestId></Error>"
    )
    return web.Response(status=status, body=body.encode(), content_type="application/xml")


def _signer(endpoint: str) -> Callable[[str, str, _Headers], _Headers]:
    """Signs requests for `endpoint` with this process's own credentials; the client's body hash stays the same."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.session import get_session

    session = get_session()
    credentials = session.get_credentials()
    if credentials is None:
        raise RunError(f"no AWS credentials are found; the fault proxy needs them to sign requests to {endpoint}")
    region = session.get_config_variable("region") or "us-east-1"
    old = {"authorization", "host", "x-amz-date", "x-amz-security-token"}

    class KeptHash(S3SigV4Auth):
        def payload(self, request: AWSRequest) -> str:
            return str(request.context["hash"])

    def sign(method: str, url: str, headers: _Headers) -> _Headers:
        kept = [(name, value) for name, value in headers if name.lower() not in old]
        of_amz = {name.lower(): value for name, value in kept if name.lower().startswith("x-amz-")}
        request = AWSRequest(method=method, url=url, headers=of_amz)
        request.context["hash"] = of_amz.get("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
        KeptHash(credentials.get_frozen_credentials(), "s3", region).add_auth(request)
        others = [(name, value) for name, value in kept if name.lower() not in of_amz]
        return [*others, *request.headers.items()]

    return sign
