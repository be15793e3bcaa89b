"""A Ray head as an administrator starts it, for `ray job submit`. The processes of the cluster are found in /proc."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import ROOT
from tests.support.s3_server import free_ports
from tests.support.waiting import PATIENCE_SECONDS, wait_until

RAY = Path(sysconfig.get_path("scripts")) / "ray"
MARK = "M2F_TEST_HEAD"  # in the environment of every process of the cluster, also of those that leave its session


@dataclass(frozen=True)
class Submission:
    """What `ray job submit` said and what the cluster says about the job."""

    returncode: int
    said: str
    status: str
    logs: str


@dataclass(frozen=True)
class Head:
    """A Ray head with a dashboard, the environment of its processes, and the folder of its session's files."""

    address: str
    environment: dict[str, str]
    folder: Path

    def listed(self, submission_id: str) -> str:
        """The status of a job in `ray list jobs`; `ray job list` must show the same."""
        command = [RAY, "list", "jobs", "--address", self.address, "--format", "json", "--detail"]
        said = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout
        [status] = {job["status"] for job in json.loads(said) if job["submission_id"] == submission_id}
        [line] = [text for text in self.ray_job("list").stdout.split("JobDetails(") if f"'{submission_id}'" in text]
        assert f"JobStatus.{status}" in line
        return str(status)

    def files(self) -> dict[str, str]:
        """What lies in the session's folder: logs of Ray, of the job and of its workers."""
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path): path.read_bytes().decode("latin-1") for path in paths}

    def submit(
        self, submission_id: str, working_dir: Path, *args: object, wait: bool = True, **env_vars: str
    ) -> Submission:
        """`ray job submit`, waiting for the end or not."""
        run = self.ray_job(
            *("submit", "--submission-id", submission_id, *([] if wait else ["--no-wait"])),
            *("--working-dir", working_dir, "--runtime-env-json", json.dumps({"env_vars": env_vars})),
            *("--", "python", "jobs/segment_bucket.py", *args),
        )
        job = self.get(f"/api/jobs/{submission_id}")
        logs = self.get(f"/api/jobs/{submission_id}/logs")
        return Submission(run.returncode, run.stdout + run.stderr, job["status"], logs["logs"])

    def ray_job(self, action: str, *args: object) -> "subprocess.CompletedProcess[str]":
        command = [RAY, "job", action, "--address", self.address, *args]
        return subprocess.run(
            list(map(str, command)), env=self.environment, capture_output=True, text=True, check=False
        )

    def takes_jobs(self) -> bool:
        """Submit a job that does nothing, without the seconds that the command line takes to start."""
        data, header = json.dumps({"entrypoint": "true"}).encode(), {"Content-Type": "application/json"}
        try:
            urllib.request.urlopen(urllib.request.Request(f"{self.address}/api/jobs/", data, header)).close()
        except OSError:  # refused, or no answer
            return False
        return True

    def get(self, path: str) -> dict[str, str]:
        with urllib.request.urlopen(self.address + path, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)


@contextlib.contextmanager
def ray_head(**more: str) -> Iterator[Head]:
    """A head with the environment that this process has now, and `more`; its processes are gone afterwards."""
    folder = tempfile.mkdtemp(prefix="m2f-", dir="/tmp")  # short: socket paths below it may have 107 bytes
    ports = dict(
        zip(
            (
                "port",
                "dashboard-port",
                "dashboard-agent-listen-port",
                "dashboard-agent-grpc-port",
                "runtime-env-agent-port",
                "metrics-export-port",
                "ray-client-server-port",
                "node-manager-port",
                "object-manager-port",
                "AUTOSCALER_METRIC_PORT",
                "DASHBOARD_METRIC_PORT",
            ),
            map(str, free_ports(11)),
            strict=True,
        )
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",  # the `python` of a job
        "RAY_AUTH_MODE": "disabled",  # whatever token lies in the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1, not the address of the network
        **{name: port for name, port in ports.items() if name.isupper()},
        MARK: folder,
        **more,
    }
    flags = [f"--{name}={port}" for name, port in ports.items() if not name.isupper()]
    flags += ["--num-cpus=3", "--object-store-memory=500000000", f"--temp-dir={folder}", "--block"]
    log = Path(folder) / "head.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [RAY, "start", "--head", *flags], env=environment, stdout=file, stderr=file, start_new_session=True
        )
    head = Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment, Path(folder))
    try:
        wait_until_ready(head, process, log)
        # The API answers before the node's agent does, and until then a submission is refused.
        wait_until(head.takes_jobs, "for the node's agent")
        assert len(processes_of(process.pid, folder)) >= 3, "the search for processes finds none"
        yield head
    finally:
        end(process, folder)
        left = processes_of(process.pid, folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert left == {}, "processes of the cluster are left behind"


def wait_until_ready(head: Head, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until the job API answers."""
    end = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            head.get("/api/jobs/")
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the head did not start:\n{log.read_text()[-3000:]}") from None
            time.sleep(0.2)


def end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """Kill this cluster alone. `ray stop` would end every Ray of the machine, SIGTERM would drain for 30 seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (left := processes_of(process.pid, mark)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def processes_of(session: int, mark: str) -> dict[int, str]:
    """Living processes of the session or with the mark, with their command lines."""
    entry = f"{MARK}={mark}".encode()
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()  # empty: dead, not reaped
            ours = os.getsid(int(folder.name)) == session or entry in (folder / "environ").read_bytes().split(b"\0")
            if command and ours:
                found[int(folder.name)] = command[:200]
    return found


def make_working_dir(folder: Path) -> None:
    """What a user submits: the three packages and nothing else. The copy says where it is imported from."""
    for package in ("jobs", "pipeline", "m2f_core"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pipeline" / "__init__.py").write_text('print("pipeline is", __file__, flush=True)\n')
