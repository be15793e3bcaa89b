"""The groups of nodes that the autoscaler of the cluster can start, of which there may be none yet.

Ray 2.60 has a place for this in its control service (GCS), but its own autoscaler does not fill it in. So the job reads
what the autoscaler reads: the RayCluster object of KubeRay, or the file that `ray up` gave to the head.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import ray
import yaml

from pipeline.cluster.ray_private import (
    AUTOSCALER_FLAG,
    AUTOSCALER_PROGRAM,
    GCS_FLAG,
    autoscaler_config,
    autoscaling_config_of_kuberay,
)
from pipeline.errors import RunError
from pipeline.store.filesystem import one_line

# KubeRay sets these in the head's container, the last one only if the RayCluster has an autoscaler.
_CLUSTER, _NAMESPACE, _AUTOSCALES = "RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE", "RAY_enable_autoscaler_v2"


@dataclass(frozen=True)
class StartableGroup:
    """Ray's resources of each node, and the most nodes that there can be; -1: the autoscaler sets no limit."""

    resources: dict[str, float]
    max_count: int
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Startable:
    """The groups of nodes that an autoscaler can start, and the most nodes of all groups together, if it limits them.

    The head counts towards no limit.
    """

    groups: tuple[StartableGroup, ...] = ()
    most_nodes: int | None = None


def startable_groups() -> Startable:
    """No groups if the cluster does not scale. RunError if it scales, but the limits cannot be read."""
    reported = autoscaler_config()
    if reported is not None and reported.node_group_configs:
        groups = [StartableGroup(dict(group.resources), group.max_count) for group in reported.node_group_configs]
        return Startable(tuple(groups))
    if {_CLUSTER, _NAMESPACE, _AUTOSCALES} <= set(os.environ):
        return _of_kuberay(os.environ[_CLUSTER], os.environ[_NAMESPACE])
    file = _file_of_ray_up()
    return Startable() if file is None else _of_ray_up(file)


def _of_kuberay(name: str, namespace: str) -> Startable:
    try:
        return _groups(autoscaling_config_of_kuberay(name, namespace))
    except Exception as error:  # of requests, of Ray's check of the object, or of a file that is not mounted
        raise RunError(
            f"cannot read how many nodes the autoscaler of RayCluster {name} can start: {one_line(error)}; the account "
            "of the head needs the right to get rayclusters, and a network policy must let it reach the API server"
        ) from None


def _of_ray_up(file: Path) -> Startable:
    try:
        return _groups(yaml.safe_load(file.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"cannot read how many nodes the autoscaler can start, from {file}: {one_line(error)}") from None


def _groups(config: dict[str, Any]) -> Startable:
    """From the autoscaler's own configuration: limits of each type of node, and one of all types together."""
    of_all = config["max_workers"]
    groups = [
        StartableGroup(
            {name: float(number) for name, number in node_type["resources"].items()},
            node_type.get("max_workers", of_all),
            dict(node_type.get("labels") or {}),
        )
        for name, node_type in config["available_node_types"].items()
        if name != config["head_node_type"] and node_type["resources"]
    ]
    return Startable(tuple(groups), int(of_all))


def _file_of_ray_up() -> Path | None:
    """The file of the autoscaler that runs on this machine for this cluster: `ray up` starts it beside the head."""
    # The driver may know this machine by another address than the autoscaler; the port is that of one cluster only.
    _, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        of_cluster = any(word.startswith(GCS_FLAG) and word.endswith(f":{port}") for word in command)
        if of_cluster and any(word.endswith(AUTOSCALER_PROGRAM) for word in command):
            files = [word.removeprefix(AUTOSCALER_FLAG) for word in command if word.startswith(AUTOSCALER_FLAG)]
            return Path(files[0]).expanduser() if files else None
    return None
