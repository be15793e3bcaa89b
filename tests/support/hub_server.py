"""The addresses of the Hugging Face hub that reading a repository needs, and a second server for its large files."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.web_server import WebServer, web_server


@dataclass
class HubFile:
    data: bytes
    is_large: bool

    @property
    def git_name(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def entry(self) -> dict[str, Any]:
        large = {"oid": hashlib.sha256(self.data).hexdigest(), "size": len(self.data), "pointerSize": 134}
        return {"type": "file", "oid": self.git_name, "size": len(self.data)} | (
            {"lfs": large} if self.is_large else {}
        )


class HubServer(http.server.ThreadingHTTPServer):
    """`files` of `datasets/owner/name` by revision and path. Statuses come first, one each."""

    daemon_threads = True

    def __init__(self, elsewhere: WebServer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.elsewhere = elsewhere
        self.files: dict[tuple[str, str], HubFile] = {}
        self.statuses: list[int] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.page_size = 1000
        self.next_server: str | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, path: str, data: bytes, *, is_large: bool = False, revision: str = "main") -> None:
        self.files[revision, path] = file = HubFile(data, is_large)
        if is_large:
            self.elsewhere.add(f"/{file.git_name}?signature=SECRET0123", data)

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no fault of the test."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_GET(self) -> None:
        self.server.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.server.statuses:
            status = self.server.statuses.pop(0)
            self._send(status, b"", {"X-Error-Message": f"a planned {status}"})
            return
        place = urlsplit(self.path)
        path, query = place.path, parse_qs(place.query)
        if found := re.fullmatch(r"/api/datasets/owner/name/tree/([^/]+)/?(.*)", path):
            self._tree(unquote(found[1]), unquote(found[2]), query)
        elif (found := re.fullmatch(r"/datasets/owner/name/resolve/([^/]+)/(.+)", path)) and (
            file := self.server.files.get((unquote(found[1]), unquote(found[2])))
        ):
            self._file(file)
        else:
            self._send(404, b"", {"X-Error-Message": "Entry not found"})

    do_HEAD = do_GET  # noqa: N815

    def _tree(self, revision: str, folder: str, query: dict[str, list[str]]) -> None:
        assert query["recursive"] == ["true"]
        prefix = f"{folder}/" if folder else ""
        paths = sorted(p for of, p in self.server.files if of == revision and p.startswith(prefix))
        if not paths and folder:
            self._send(404, b"", {"X-Error-Message": "Folder not found"})
            return
        start = int(query.get("cursor", ["0"])[0])
        page = paths[start : start + self.server.page_size]
        entries = [{**self.server.files[revision, path].entry, "path": path} for path in page]
        folders = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "a folder"}] if not start else []
        end, headers = start + len(page), {}
        if end < len(paths):
            endpoint = self.server.next_server or self.server.endpoint
            address = f"{endpoint}{urlsplit(self.path).path}?recursive=true&cursor={end}"
            headers["Link"] = f'<{address}>; rel="next"'
        self._send(200, json.dumps(folders + entries).encode(), headers)

    def _file(self, file: HubFile) -> None:
        headers = {"X-Repo-Commit": "c" * 40, "ETag": f'"{file.git_name}"'}
        if file.is_large:
            linked = {"X-Linked-Etag": f'"{file.entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(file.data))}
            address = self.server.elsewhere.uri(f"/{file.git_name}?signature=SECRET0123")
            self._send(302, b"", {**headers, **linked, "Location": address})
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        data, status = file.data, 200
        if wanted:
            first, last = int(wanted[1]), int(wanted[2])
            status = 206 if first < len(data) else 416
            end = min(last, len(data) - 1)
            headers["Content-Range"] = f"bytes {f'{first}-{end}' if status == 206 else '*'}/{len(data)}"
            data = data[first : last + 1]
        self._send(status, data, headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def hub_server() -> Iterator[HubServer]:
    with web_server() as elsewhere, HubServer(elsewhere) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
