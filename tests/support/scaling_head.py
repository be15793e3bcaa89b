"""A Ray head with Ray's own autoscaler, whose machines are raylets on this machine: as after `ray up`, from no node."""

import contextlib
import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ray_head import MARK, end, processes_of
from tests.support.s3_server import free_ports
from tests.support.waiting import wait_until

# Ray's provider for tests takes this id for the head's.
_HEAD_ID = "f" * 51 + "00000"


@dataclass(frozen=True)
class ScalingHead:
    """`environment` is that of a driver on the head."""

    environment: dict[str, str]


@contextlib.contextmanager
def scaling_head(node_types: dict[str, dict[str, Any]], max_workers: int) -> Iterator[ScalingHead]:
    """`node_types`: as in a file for `ray up`, without the head's, which offers no CPU."""
    folder = tempfile.mkdtemp(prefix="m2f-", dir="/tmp")  # short: socket paths below it may have 107 bytes
    port, *ports = map(str, free_ports(10))
    config = {
        "cluster_name": "m2f-test",
        "max_workers": max_workers,
        "idle_timeout_minutes": 5,
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
        "head_node_type": "head",
        "available_node_types": {"head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **node_types},
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
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**environment, **autoscaler}, stdout=output, stderr=output, start_new_session=True
        )
    driver = {**environment, "RAY_ADDRESS": f"127.0.0.1:{port}"}

    def is_up() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        words = " ".join(processes_of(process.pid, folder).values())
        return "Ray runtime started" in log.read_text() and "/monitor.py" in words

    try:
        wait_until(is_up, "for the head and its autoscaler")
        yield ScalingHead(driver)
    finally:
        end(process, folder)
        left = processes_of(process.pid, folder)
        shutil.rmtree(folder, ignore_errors=True)
    assert left == {}, "processes of the cluster are left behind"
