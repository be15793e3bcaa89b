"""A Ray cluster of several nodes on this machine, for drivers that join it by RAY_ADDRESS and for nodes that die."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.drill.processes import find, kill, kill_all_below, outlive, processes_below
from tests.support.places import ROOT
from tests.support.s3_server import free_ports
from tests.support.waiting import PATIENCE_SECONDS

_RAY = Path(sysconfig.get_path("scripts")) / "ray"
# A port of its own for everything that would otherwise take a default one: other Rays run on the machine.
_PORTS = (
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)


@dataclass
class LocalCluster:
    """A head and workers. `roots` are the processes below which everything of the cluster runs."""

    folder: Path
    address: str
    environment: dict[str, str]
    cpus_per_node: int
    head: "subprocess.Popen[bytes]"
    workers: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    num_started: int = 0

    @property
    def roots(self) -> list[int]:
        return [self.head.pid, *(worker.pid for worker in self.workers)]

    def add_worker(self) -> None:
        """Start a node and wait until its raylet runs; Ray knows of it a moment later."""
        self.num_started += 1
        log = self.folder / f"worker-{self.num_started}.log"
        command = [sys.executable, "-m", "tests.reliability.node", self.address, str(self.cpus_per_node)]
        worker = _start(log, command, self.environment)
        self.workers.append(worker)
        _wait(lambda: "started" in log.read_text(), worker, log, "a worker node")

    def kill_worker_node(self, chance: random.Random, notice_seconds: float = 0.0) -> bool:
        """SIGKILL to the raylet of one worker node, whose workers die with it; False where there is none.

        With a notice, as spot instances get one, it is SIGTERM, and SIGKILL so much later.
        """
        alive = [worker for worker in self.workers if worker.poll() is None and find("raylet", [worker.pid])]
        if not alive:
            return False
        victim = chance.choice(alive)
        raylets = find("raylet", [victim.pid])
        if notice_seconds:
            below = processes_below([victim.pid])
            killed = sum(kill(raylet, signal.SIGTERM) for raylet in raylets) > 0
            outlive(below, notice_seconds)
        else:
            killed = sum(map(kill, raylets)) > 0
        self.workers.remove(victim)
        kill_all_below([victim.pid])
        victim.wait()
        return killed


@contextlib.contextmanager
def local_cluster(
    num_workers: int, more_environment: dict[str, str] | None = None, cpus_per_node: int = 2
) -> Iterator[LocalCluster]:
    """Start a head (where drivers run) and its workers; kill them all at the end, and nothing else."""
    folder = Path(tempfile.mkdtemp(prefix="m2f-", dir="/tmp"))  # short: socket paths below it may have 107 bytes
    port, autoscaler, dashboard = free_ports(3)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        **(more_environment or {}),
        "PYTHONPATH": str(ROOT),  # workers import this checkout, whatever is installed
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1, not the address of the network
        "AUTOSCALER_METRIC_PORT": str(autoscaler),
        "DASHBOARD_METRIC_PORT": str(dashboard),
        # A node that is killed is found dead by its closed connection; this bounds what that misses.
        "RAY_health_check_failure_threshold": "5",
        "RAY_health_check_period_ms": "1000",
    }
    command = [str(_RAY), "start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus_per_node}"]
    command += ["--include-dashboard=false", "--object-store-memory=200000000", f"--temp-dir={folder}"]
    command += [f"--{name}={port}" for name, port in zip(_PORTS, free_ports(len(_PORTS)), strict=True)]
    log = folder / "head.log"
    head = _start(log, command, environment)
    cluster = LocalCluster(folder, f"127.0.0.1:{port}", environment, cpus_per_node, head)
    try:
        _wait(lambda: "Ray runtime started" in log.read_text(), head, log, "the head")
        for _ in range(num_workers):
            cluster.add_worker()
        yield cluster
    finally:
        kill_all_below(cluster.roots)
        for process in (head, *cluster.workers):
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(log: Path, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def _wait(condition: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path, what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{what} did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)
