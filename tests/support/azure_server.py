"""Azure Blob Storage for tests: Azurite (npm), behind a server that notes requests and answers some with errors."""

import contextlib
import http.client
import http.server
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.s3_server import free_ports
from tests.support.waiting import PATIENCE_SECONDS

ACCOUNT = "devstoreaccount1"
# Azurite's own, which its documentation publishes.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class AzureServer(http.server.ThreadingHTTPServer):
    """`statuses` are answered first, one each; a redirect leads here again.

    `asked`: method and path of each request, and its headers.
    `damages`: the last byte of each answer is another.
    """

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.port_behind = port
        self.statuses: list[int] = []
        self.damages = False
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    @property
    def environment(self) -> dict[str, str]:
        endpoint = f"http://127.0.0.1:{self.server_port}/{ACCOUNT}"
        text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
        return {"AZURE_STORAGE_CONNECTION_STRING": text}

    def container(self, name: str, blobs: dict[str, bytes], public: str | None = None) -> str:
        """Create a container with blobs and return its URI."""
        self._client().create_container(name, public_access=public)
        for blob, data in blobs.items():
            self.put(f"{name}/{blob}", data)
        return f"abfs://{name}"

    def put(self, path: str, data: bytes, **options: object) -> None:
        container, _, name = path.partition("/")
        self._client().get_blob_client(container, name).upload_blob(data, overwrite=True, **options)

    def _client(self):
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self.environment["AZURE_STORAGE_CONNECTION_STRING"])

    def handle_error(self, *_: object) -> None:
        """A client that has gone is no fault of the test."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: AzureServer

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.server.statuses:
            status = self.server.statuses.pop(0)
            if status:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                if status in (301, 302, 303, 307, 308):
                    self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}{self.path}")
                self.end_headers()
            else:
                self.close_connection = True
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.server.port_behind, timeout=PATIENCE_SECONDS)
        behind.request(self.command, self.path, body, dict(self.headers.items()))
        answer = behind.getresponse()
        data = answer.read()
        if self.server.damages and self.command == "GET" and answer.status in (200, 206):
            data = data[:-1] + b"?"
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data)
        behind.close()

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _forward  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def azure_server(folder: Path) -> Iterator[AzureServer]:
    """A running server with its data in `folder`. Needs `azurite` on the PATH: npm install -g azurite."""
    [port] = free_ports(1)
    command = [shutil.which("azurite-blob") or "azurite-blob", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    options = ["--location", str(folder), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        with AzureServer(port) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield server
            server.shutdown()
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/")
            connection.getresponse().read()
            return
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError("Azurite did not start")
        time.sleep(0.05)
