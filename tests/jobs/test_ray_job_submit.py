"""The way into a cluster: `ray job submit` to a head that was started as an administrator starts it."""

import contextlib
import json
import os
import re
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

import pyarrow.dataset
import pytest

from tests.support.places import ROOT
from tests.support.s3_server import free_ports
from tests.support.waiting import PATIENCE_SECONDS, wait_until

RAY = Path(sysconfig.get_path("scripts")) / "ray"
MARK = "M2F_TEST_HEAD"  # in the environment of every process of the cluster, also of those that leave its session

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes of the cluster in /proc")


@dataclass(frozen=True)
class Submission:
    """What `ray job submit` said and what the cluster says about the job."""

    returncode: int
    said: str
    status: str
    logs: str


@dataclass(frozen=True)
class Head:
    """A Ray head with a dashboard, and the environment of its processes."""

    address: str
    environment: dict[str, str]

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

    def get(self, path: str) -> dict[str, str]:
        with urllib.request.urlopen(self.address + path, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
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
    }
    flags = [f"--{name}={port}" for name, port in ports.items() if not name.isupper()]
    flags += ["--num-cpus=3", "--object-store-memory=500000000", f"--temp-dir={folder}", "--block"]
    log = Path(folder) / "head.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [RAY, "start", "--head", *flags], env=environment, stdout=file, stderr=file, start_new_session=True
        )
    head = Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
    try:
        wait_until_ready(head, process, log)
        # The API answers before the node's agent does, and until then a submission is refused.
        wait_until(lambda: head.ray_job("submit", "--no-wait", "--", "true").returncode == 0, "for the node's agent")
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


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory) -> Path:
    """What a user submits: the three packages and nothing else. The copy says where it is imported from."""
    folder = tmp_path_factory.mktemp("working_dir")
    for package in ("jobs", "pipeline", "m2f_core"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pipeline" / "__init__.py").write_text('print("pipeline is", __file__, flush=True)\n')
    return folder


@pytest.fixture
def folder(tmp_path, photographs) -> Path:
    """Three of the photographs."""
    (tmp_path / "photographs").mkdir()
    for path in sorted(photographs.iterdir())[:3]:
        shutil.copy(path, tmp_path / "photographs")
    return tmp_path / "photographs"


def test_a_submitted_job_succeeds_and_writes_the_tables(head, working_dir, folder, tmp_path, tiny_checkpoint):
    output = tmp_path / "tables"
    job = head.submit(
        "good",
        working_dir,
        *("--input", folder, "--output", output, "--model", tiny_checkpoint),
        *("--image-size", "96:160", "--images-per-shard", "2", "--run-id", "submitted"),
        OMP_NUM_THREADS="1",
    )
    assert (job.returncode, job.status) == (0, "SUCCEEDED"), job.said
    assert "Job 'good' succeeded" in job.said
    assert f"{output}/segments (Delta table, version 1)" in job.logs

    images = pyarrow.dataset.dataset(output / "images" / "run=submitted").to_table().to_pylist()
    segments = pyarrow.dataset.dataset(output / "segments" / "run=submitted").to_table()
    assert {row["image_key"] for row in images} == {f"file://{path}" for path in folder.iterdir()}
    assert {row["status"] for row in images} == {"ok"} and {row["shard"] for row in images} == {0, 1}
    assert segments.num_rows == sum(row["num_segments"] for row in images) > 0

    # The submitted copy ran, in the driver and in the actors, not a package that happens to be installed on the nodes.
    lines = re.findall(r"^(.*?)pipeline is (\S+)", job.logs, flags=re.MULTILINE)  # Ray puts the actor in front
    assert all("working_dir_files" in path for _, path in lines), lines
    assert {bool(origin) for origin, _ in lines} == {False, True}, "no line of the driver, or none of an actor"


@pytest.mark.thorough
def test_a_submission_with_wrong_arguments_fails_with_its_line(head, working_dir, folder, tmp_path, tiny_checkpoint):
    output = tmp_path / "tables"
    job = head.submit(
        "bad",
        working_dir,
        *("--input", folder, "--output", output, "--model", tiny_checkpoint, "--gpu-actors", "3:1"),
    )
    assert (job.returncode, job.status) == (1, "FAILED")
    errors = [line for line in job.logs.splitlines() if "error" in line.lower()]
    assert errors == ["segment_bucket.py: error: --gpu-actors is '3:1'; it needs 1 <= MIN <= MAX"]
    assert "Traceback" not in job.logs
    assert not list(output.rglob("*.parquet"))


@pytest.mark.thorough
def test_a_submission_that_asks_for_more_than_the_cluster_has_fails(
    head, working_dir, folder, tmp_path, tiny_checkpoint
):
    """Known only after joining the cluster."""
    output = tmp_path / "tables"
    job = head.submit(
        "greedy",
        working_dir,
        *("--input", folder, "--output", output, "--model", tiny_checkpoint, "--cpus-per-actor", "500"),
    )
    assert (job.returncode, job.status) == (1, "FAILED")
    [error] = [line for line in job.logs.splitlines() if line.startswith("segment_bucket.py: error: ")]
    assert "--cpus-per-actor" in error and "3" in error
    assert "Traceback" not in job.logs
    assert not list(output.rglob("*.parquet"))


@pytest.mark.thorough
def test_a_job_that_is_stopped_goes_on_where_it_was(head, working_dir, photographs, tmp_path, tiny_checkpoint):
    """`ray job stop` sends SIGTERM, and SIGKILL three seconds later."""
    output = tmp_path / "tables"
    (tmp_path / "many").mkdir()
    for copy in range(24):  # 12 s of work, of which the start of `ray job stop` takes up to 4
        for path in photographs.iterdir():
            shutil.copy(path, tmp_path / "many" / f"{copy}-{path.name}")
    args = [
        *("--input", tmp_path / "many", "--output", output, "--model", tiny_checkpoint, "--run-id", "stopped"),
        *("--image-size", "96:160", "--images-per-shard", "4"),
    ]
    head.submit("stopped", working_dir, *args, wait=False, OMP_NUM_THREADS="1")
    journal = output / "_runs" / "stopped" / "journal"

    def has_committed() -> bool:
        job = head.get("/api/jobs/stopped")
        assert job["status"] in ("PENDING", "RUNNING"), head.get("/api/jobs/stopped/logs")["logs"]
        return any(journal.glob("*.jsonl"))

    wait_until(has_committed)
    stop = head.ray_job("stop", "stopped")
    assert stop.returncode == 0, stop.stderr
    assert head.get("/api/jobs/stopped")["status"] == "STOPPED"
    logs = head.get("/api/jobs/stopped/logs")["logs"]
    assert "segment_bucket.py: stopped by SIGTERM" in logs
    assert not (output / "images" / "_delta_log").exists(), "it was to be stopped in the middle"
    receipts = "".join(path.read_text() for path in journal.glob("*.jsonl")).splitlines()

    job = head.submit("again", working_dir, *args, OMP_NUM_THREADS="1")
    assert (job.returncode, job.status) == (0, "SUCCEEDED"), job.said
    assert "Traceback" not in job.logs
    done_before = int(re.search(r" shards, (\d+) done before", job.logs)[1])
    assert done_before == len(receipts) > 0
    images = pyarrow.dataset.dataset(output / "images" / "run=stopped").to_table(columns=["image_key"])
    keys = images.column("image_key").to_pylist()
    assert sorted(keys) == sorted(f"file://{path}" for path in (tmp_path / "many").iterdir())
