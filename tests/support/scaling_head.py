"""A Ray head with Ray's own autoscaler, whose machines are raylets on this machine: as after `ray up`, from no node."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2, gcs_pb2

from pipeline.cluster.ray_private import START_TIMED_OUT, map_actor_title
from tests.support.ray_head import MARK, end, processes_of
from tests.support.s3_server import free_ports
from tests.support.waiting import wait_until

# Ray's provider for tests takes this id and this type of node for the head's.
_HEAD_ID = "f" * 51 + "00000"
_HEAD_TYPE = "ray.head.default"
_ALIVE = gcs_pb2.GcsNodeInfo.ALIVE
_PREEMPTION = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")


@dataclass(frozen=True)
class Node:
    """A node of the cluster besides the head, with Ray's resources and its raylet."""

    node_id: str
    resources: dict[str, float]
    labels: dict[str, str]
    raylet: int  # pid

    @property
    def gpus(self) -> int:
        return int(self.resources.get("GPU", 0))

    def holds(self, class_name: str) -> bool:
        """Whether an actor of `map_batches` with this class runs here."""
        title = map_actor_title(class_name)
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.raylet).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if " ".join(process.cmdline()).startswith(title):
                        return True
        return False

    def kill(self) -> None:
        """As a machine that is taken away: no process there has time for anything."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(self.raylet), *psutil.Process(self.raylet).children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


@dataclass(frozen=True)
class ScalingHead:
    """`environment` is that of a driver on the head."""

    address: str
    environment: dict[str, str]
    folder: str

    @functools.cached_property
    def _gcs(self) -> GcsClient:
        return GcsClient(address=self.address)

    def nodes(self) -> list[Node]:
        """The nodes that live now, without the head."""
        infos = [i for i in self._gcs.get_all_node_info().values() if i.state == _ALIVE and not i.is_head_node]
        raylets = self._raylets()
        return [
            Node(i.node_id.hex(), dict(i.resources_total), dict(i.labels), raylets[i.node_id.hex()])
            for i in infos
            if i.node_id.hex() in raylets
        ]

    def _raylets(self) -> dict[str, int]:
        """Node id -> pid."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.name() == "raylet" and process.environ().get(MARK) == self.folder:
                    found[process.environ()["RAY_OVERRIDE_NODE_ID_FOR_TESTING"]] = process.pid
        return found

    def announce_end(self, node: Node, seconds: float) -> None:
        """What a spot instance's notice becomes: Ray drains the node, which is to be gone after so many seconds."""
        deadline = int(1000 * (time.time() + seconds))
        accepted, why_not = self._gcs.drain_node(node.node_id, _PREEMPTION, "spot", deadline)
        assert accepted, why_not


@contextlib.contextmanager
def scaling_head(
    node_types: dict[str, dict[str, Any]], max_workers: int, idle_minutes: float = 5
) -> Iterator[ScalingHead]:
    """`node_types`: as in a file for `ray up`, without the head's, which offers no CPU."""
    folder = tempfile.mkdtemp(prefix="m2f-", dir="/tmp")  # short: socket paths below it may have 107 bytes
    port, *ports = map(str, free_ports(10))
    config = {
        "cluster_name": "m2f-test",
        "max_workers": max_workers,
        "idle_timeout_minutes": idle_minutes,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": _HEAD_ID,
        },
        "head_node_type": _HEAD_TYPE,
        "available_node_types": {
            _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **node_types,
        },
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        "file_mounts_sync_continuously": False,
        **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    }
    file = Path(folder) / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(config))
    scripts = sysconfig.get_path("scripts")
    environment = {
        **os.environ,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # 127.0.0.1, not the address of the network
        MARK: folder,
    }
    autoscaler = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "AUTOSCALER_METRIC_PORT": ports[7],
        "DASHBOARD_METRIC_PORT": ports[8],
    }
    flags = ("dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port")
    flags += ("metrics-export-port", "ray-client-server-port", "node-manager-port")
    command = [f"{scripts}/ray", "start", "--head", "--block", f"--port={port}", f"--autoscaling-config={file}"]
    command += [f"--{flag}={number}" for flag, number in zip(flags, ports, strict=False)]
    command += [
        "--num-cpus=0",
        "--object-store-memory=200000000",
        "--node-ip-address=127.0.0.1",
        f"--temp-dir={folder}",
    ]
    log = Path(folder) / "head.log"

    def start() -> "subprocess.Popen[bytes]":
        with log.open("wb") as output:
            return subprocess.Popen(
                command, env={**environment, **autoscaler}, stdout=output, stderr=output, start_new_session=True
            )

    process = start()

    def is_up() -> bool:
        nonlocal process
        if process.poll() is not None:
            assert START_TIMED_OUT in log.read_text(), log.read_text()[-3000:]
            end(process, folder)
            process = start()  # the machine was too busy
        words = " ".join(processes_of(process.pid, folder).values())
        return "Ray runtime started" in log.read_text() and "/monitor.py" in words

    try:
        wait_until(is_up, "for the head and its autoscaler")
        address = f"127.0.0.1:{port}"
        yield ScalingHead(address, {**environment, "RAY_ADDRESS": address}, folder)
    finally:
        end(process, folder)
        left = processes_of(process.pid, folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert left == {}, "processes of the cluster are left behind"
