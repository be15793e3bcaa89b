"""Join or start a Ray cluster, and find the CPUs and GPUs that it has or that its autoscaler can start."""

import contextlib
import functools
import logging
import math
import os
import signal
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.autoscaler_groups import Startable, startable_groups
from pipeline.cluster.environment import joins_a_cluster
from pipeline.cluster.local_ray import start_local_ray
from pipeline.cluster.worker_lines import log_worker_lines
from pipeline.config import actors_on_a_gpu
from pipeline.errors import RunError
from pipeline.node_labels import NodeChoice
from pipeline.store.filesystem import one_line

_GPU_KIND = "accelerator_type:"  # Ray's resource of a node with such a GPU
UNBOUNDED = 1_000_000  # number of nodes in a group without an autoscaler limit
_HEAD = "node:__internal_head__"  # a resource that Ray gives to the head only


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind: CPUs and GPUs of each, how many the cluster can have, and how many it has now."""

    cpus: float
    gpus: float
    count: int
    count_now: int
    heads: int = 0  # of these nodes; the autoscaler's limits do not count the head
    labels: tuple[tuple[str, str], ...] = ()  # those that --model-nodes and --helper-nodes ask for


@dataclass(frozen=True)
class Resources:
    """The nodes of a cluster, including those that its autoscaler can start."""

    groups: tuple[NodeGroup, ...]
    joined: bool = True  # false if this process started Ray itself
    most_nodes: int | None = None  # the most of all groups together without the head; None: no such limit
    gpu_kinds: tuple[str, ...] = ()  # of the nodes' GPUs, as Ray calls them (A10G), as far as Ray knows them

    @property
    def cpus(self) -> float:
        return sum(group.cpus * group.count for group in self.groups)

    @property
    def gpus(self) -> int:
        return sum(int(group.gpus) * group.count for group in self.groups)

    @property
    def gpus_now(self) -> int:
        return sum(int(group.gpus) * group.count_now for group in self.groups)

    def matching(self, choice: NodeChoice, flag: str) -> "Resources":
        """The nodes of this choice. RunError, which names the flag, if there are none."""
        groups = tuple(group for group in self.groups if choice.matches(dict(group.labels)))
        if choice.key and not sum(group.count * group.cpus for group in groups):
            raise RunError(f"{flag} {choice}: the cluster has no node with this label, and cannot start one")
        return replace(self, groups=groups)

    def for_gpus(self, wanted: float) -> "Resources":
        """The nodes that the cluster has if its autoscaler starts as many GPUs as `wanted`, as far as there are any.

        Where a limit holds for all groups together, each node of one group takes the place of a node of another: nodes
        with GPUs come first until there are enough, then the nodes with most CPUs.
        """
        if self.most_nodes is None:
            return self
        counts = [group.heads for group in self.groups]
        left = self.most_nodes
        wanted -= sum(int(group.gpus) * group.heads for group in self.groups)

        def take(place: int, most: float) -> int:
            nonlocal left
            taken = int(min(self.groups[place].count - counts[place], left, most))
            counts[place] += taken
            left -= taken
            return taken

        places = range(len(self.groups))
        for place in sorted(places, key=lambda p: (-self.groups[p].gpus, -self.groups[p].cpus)):
            if (gpus := int(self.groups[place].gpus)) and wanted > 0:
                wanted -= gpus * take(place, math.ceil(min(wanted, UNBOUNDED) / gpus))
        for place in sorted(places, key=lambda p: -self.groups[p].cpus):
            take(place, left)
        groups = tuple(replace(group, count=count) for group, count in zip(self.groups, counts, strict=True))
        return replace(self, groups=groups, most_nodes=None)

    def room_for(self, cpus: float, gpus: float, *, now: bool = False) -> int:
        """How many actors that reserve `cpus` and `gpus` fit on all possible nodes, or on the present nodes (`now`).

        `gpus` is at most 1: Ray gives an actor a part of one GPU, never parts of two.
        """

        def on_one(group: NodeGroup) -> int:
            by_cpus = math.floor(group.cpus / cpus + 1e-6)
            return min(by_cpus, int(group.gpus) * actors_on_a_gpu(gpus)) if gpus else by_cpus

        return sum(on_one(group) * (group.count_now if now else group.count) for group in self.groups)


@contextlib.contextmanager
def _same_sigterm_handler() -> Iterator[None]:
    """Restore the job's SIGTERM handler after ray.init, which sets its own.

    The C++ part of Ray's handler aborts the process (exit code -6) if the process takes more than 3 s to exit.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def connect(log_to_driver: bool = True, label_keys: Collection[str] = ()) -> Resources:
    """Join the cluster of this job, or start Ray on this machine; return the CPUs and GPUs there.

    `log_to_driver`: log the workers' output here, with the workers' names. `label_keys`: tell nodes with different
    values of these labels apart.
    """
    if not ray.is_initialized():
        log_worker_lines()
        if joins_a_cluster():
            try:
                with _same_sigterm_handler():
                    ray.init(logging_level=logging.WARNING, log_to_driver=log_to_driver)
            except (OSError, RuntimeError, ValueError, RayError) as error:
                address = os.environ["RAY_ADDRESS"]
                raise RunError(f"cannot join the Ray cluster at {address} (RAY_ADDRESS): {one_line(error)}") from None
        else:
            with _same_sigterm_handler():
                start_local_ray(log_to_driver)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    kind = functools.partial(_kind, label_keys=label_keys)
    heads = Counter(kind(node["Resources"], node.get("Labels", {})) for node in nodes if _HEAD in node["Resources"])
    now = Counter(kind(node["Resources"], node.get("Labels", {})) for node in nodes if _HEAD not in node["Resources"])
    startable = startable_groups() if joins_a_cluster() else Startable()
    may_start: Counter[_Kind] = Counter()
    for group in startable.groups:
        # Groups of one kind add up: spot and on-demand, or one group for each zone.
        may_start[kind(group.resources, group.labels)] += UNBOUNDED if group.max_count == -1 else group.max_count
    groups = [
        NodeGroup(*shape, max(now[it], may_start[it]) + heads[it], now[it] + heads[it], heads[it], labels)
        for it in {**heads, **now, **may_start}
        for shape, labels in [it]
    ]
    resources = [node["Resources"] for node in nodes] + [group.resources for group in startable.groups]
    kinds = {name.removeprefix(_GPU_KIND) for name in chain(*resources) if name.startswith(_GPU_KIND)}
    return Resources(
        tuple(groups),
        joined=joins_a_cluster(),
        most_nodes=startable.most_nodes,
        gpu_kinds=tuple(sorted(kinds)),
    )


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Place a small actor on the driver's node: worker nodes come and go, and would take the actor's state along."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def shape_of_this_node() -> tuple[float, float]:
    """CPUs and GPUs of the node on which this actor or task runs."""
    own = ray.get_runtime_context().get_node_id()
    return next((_shape(node["Resources"]) for node in ray.nodes() if node["NodeID"] == own), (0.0, 0.0))


_Kind = tuple[tuple[float, float], tuple[tuple[str, str], ...]]


def _kind(resources: Mapping[str, float], labels: Mapping[str, str], label_keys: Collection[str]) -> _Kind:
    return _shape(resources), tuple((key, labels[key]) for key in sorted(label_keys) if key in labels)


def _shape(resources: Mapping[str, float]) -> tuple[float, float]:
    return float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0))
