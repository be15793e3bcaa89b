"""A server of Google Cloud Storage for tests: gcp-storage-emulator, as it comes or with what Google does besides.

Besides: pages, conditions on the generation, headers with generation and checksum, requester pays, errors.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

from tests.support.waiting import PATIENCE_SECONDS


class GoogleServer(ThreadingHTTPServer):
    """`statuses` are answered first, one each. `asked`: path with query, and headers, of each GET."""

    daemon_threads = True

    def __init__(self, is_google: bool):
        self.storage = Storage(use_memory_fs=True)
        super().__init__(("127.0.0.1", 0), partial(_Handler, self.storage))
        self.is_google = is_google
        self.statuses: list[int] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.page_size = 1000
        self.requester_pays = False
        self.damage = b""  # is put behind each object that is sent

    @property
    def environment(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self.server_port}", "NO_GCE_CHECK": "true"}

    def bucket(self, name: str, objects: dict[str, bytes]) -> str:
        """Create a bucket with objects and return its URI."""
        create_bucket(name, self.storage)
        for key, data in objects.items():
            self.put(f"{name}/{key}", data)
        return f"gs://{name}"

    def put(self, path: str, data: bytes) -> None:
        import gcsfs.core

        gcsfs.core.GCSFileSystem(token="anon", endpoint_url=self.environment["STORAGE_EMULATOR_HOST"]).pipe_file(
            path, data
        )

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no fault of the test."""


class _Handler(RequestHandler):
    server: GoogleServer
    timeout = PATIENCE_SECONDS

    def do_GET(self) -> None:  # noqa: N802
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        if self.server.statuses:
            status = self.server.statuses.pop(0)
            if status:
                self._json({"error": {"code": status, "message": f"a planned {status}"}}, status)
        elif self.server.is_google:
            self._as_google()
        else:
            super().do_GET()

    def _as_google(self) -> None:
        place, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if self.server.requester_pays and "userProject" not in query:
            message = "Bucket is a requester pays bucket but no user project provided."
            self._json({"error": {"code": 400, "message": message}}, 400)
            return
        match = re.fullmatch(r"/storage/v1/b/([^/]+)/o(?:/([^/]+))?", place)
        assert match is not None, f"{self.path} is not asked of Google"
        try:
            if match[2] is None:
                self._list(match[1], query)
            else:
                self._object(match[1], unquote(match[2]), query)
        except NotFound:
            self._json({"error": {"code": 404, "message": f"No such object: {place}"}}, 404)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix = query["prefix"][0] if "prefix" in query else None
        items, _ = self.storage.get_file_list(bucket, prefix, None, None, soft_deleted=False)
        after = query.get("pageToken", [""])[0]
        items = sorted((one for one in items if one["name"] > after), key=lambda one: one["name"])
        page = items[: min(int(query["maxResults"][0]), self.server.page_size)]
        answer: dict[str, Any] = {"kind": "storage#objects"}
        if page:  # Google leaves `items` out, too
            answer["items"] = [{name: str(one[name]) for name in ("name", "generation", "size")} for one in page]
        if len(page) < len(items):
            answer["nextPageToken"] = page[-1]["name"]
        self._json(answer)

    def _object(self, bucket: str, key: str, query: dict[str, list[str]]) -> None:
        found = self.storage.get_file_obj(bucket, key)
        if query.get("ifGenerationMatch", [found["generation"]])[0] != found["generation"]:
            self._json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
            return
        if query.get("alt") != ["media"]:
            self._json({name: found[name] for name in query["fields"][0].split(",")})
            return
        data = self.storage.get_file(bucket, key)
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        headers = {"x-goog-generation": found["generation"], "x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        status = 200
        if wanted:
            first, last = int(wanted[1]), int(wanted[2])
            status = 206 if first < len(data) else 416
            end = min(last, len(data) - 1)
            headers["Content-Range"] = f"bytes {f'{first}-{end}' if status == 206 else '*'}/{len(data)}"
            data = data[first : last + 1]
        self._send(data + self.server.damage, status, headers)

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def google_server(*, is_google: bool = True) -> Iterator[GoogleServer]:
    """A running server; `is_google=False` is the emulator as it comes."""
    with GoogleServer(is_google) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()
