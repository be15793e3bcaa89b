"""A web server whose objects behave as a test says: with or without ETags, ranges, HEAD; slow, cut off, redirecting."""

import contextlib
import hashlib
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

LAST_MODIFIED = "Sun, 29 Nov 2026 00:00:00 GMT"


@dataclass
class WebObject:
    """What the server does when its path is asked for. `statuses` are answered first, one each, without an object."""

    data: bytes = b""
    etag: str | None = "of the content"
    last_modified: str | None = None
    has_ranges: bool = True
    status: int = 200  # of an answer with the whole object
    has_head: bool = True
    says_size: bool = True
    sent_bytes: int | None = None  # then the connection is closed
    waits_for: threading.Event | None = None  # before the second half of the body
    headers: dict[str, str] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    redirect: str | None = None

    def version(self) -> dict[str, str]:
        etag = f'"{hashlib.sha1(self.data).hexdigest()[:8]}"' if self.etag == "of the content" else self.etag
        given = {"ETag": etag, "Last-Modified": self.last_modified}
        return {name: value for name, value in given.items() if value is not None}


class WebServer(http.server.ThreadingHTTPServer):
    """`objects` by path; `asked`: method, path and Range of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, WebObject] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        self.headers_seen: list[dict[str, str]] = []

    def add(self, path: str, data: bytes = b"", **fields: Any) -> str:
        """Serve an object at `path`; returns its URI."""
        self.objects[path] = WebObject(data, **fields)
        return self.uri(path)

    def uri(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no fault of the test."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WebServer

    def do_GET(self) -> None:
        one = self._begin()
        if one is not None:
            self._answer(one, with_body=True)

    def do_HEAD(self) -> None:
        one = self._begin()
        if one is None:
            return
        if one.has_head:
            self._answer(one, with_body=False)
        else:
            self._empty(405)

    def do_CONNECT(self) -> None:
        self._begin()

    def _begin(self) -> WebObject | None:
        self.server.asked.append((self.command, self.path, self.headers.get("Range")))
        self.server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        one = self.server.objects.get(self.path)
        if one is None:
            self._empty(404)
        elif one.statuses:
            self._empty(one.statuses.pop(0))
        elif one.redirect is not None:
            self._empty(302, {"Location": one.redirect})
        else:
            return one
        return None

    def _empty(self, status: int, headers: dict[str, str] | None = None) -> None:
        if status == 0:  # the connection is reset
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, one: WebObject, *, with_body: bool) -> None:
        data, status, extra = one.data, one.status, {}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if wanted and one.has_ranges:
            first, last = int(wanted[1]), int(wanted[2])
            if first >= len(data):
                self._empty(416, {"Content-Range": f"bytes */{len(data)}", **one.version()})
                return
            extra["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
            data, status = data[first : last + 1], 206
        self.send_response(status)
        if one.says_size:
            extra["Content-Length"] = str(len(data))
        else:
            self.close_connection = True
            extra["Connection"] = "close"
        for name, value in {**one.version(), **extra, **one.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if not with_body:
            return
        if one.sent_bytes is not None:
            self.wfile.write(data[: one.sent_bytes])
            self.close_connection = True
            return
        half = len(data) // 2
        self.wfile.write(data[:half])
        if one.waits_for is not None:
            self.wfile.flush()
            one.waits_for.wait(60)
        self.wfile.write(data[half:])

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def web_server() -> Iterator[WebServer]:
    with WebServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
