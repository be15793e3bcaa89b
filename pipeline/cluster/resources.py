"""Join or start a Ray cluster, and find the CPUs and GPUs that it has or that its autoscaler can start."""

import contextlib
import logging
import math
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster.autoscaler_groups import startable_groups
from pipeline.cluster.environment import joins_a_cluster
from pipeline.cluster.local_ray import start_local_ray
from pipeline.cluster.worker_lines import log_worker_lines
from pipeline.config import actors_on_a_gpu
from pipeline.errors import RunError
from pipeline.store.filesystem import one_line

_KIND = "accelerator_type:"  # Ray's resource of a node with such a GPU
UNBOUNDED = 1_000_000  # number of nodes in a group without an autoscaler limit


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one shape: CPUs and GPUs of each, how many the cluster can have, and how many it has now."""

    cpus: float
    gpus: float
    count: int
    count_now: int


@dataclass(frozen=True)
class Resources:
    """The nodes of a cluster, including those that its autoscaler can start."""

    groups: tuple[NodeGroup, ...]
    joined: bool = True  # false if this process started Ray itself
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


def connect(log_to_driver: bool = True) -> Resources:
    """Join the cluster of this job, or start Ray on this machine; return the CPUs and GPUs there.

    `log_to_driver`: log the workers' output here, with the workers' names.
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
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    now = Counter(map(_shape, nodes))
    may_start: Counter[tuple[float, float]] = Counter()
    for group in startable_groups() if joins_a_cluster() else ():
        # Groups of one shape add up: spot and on-demand, or one group for each zone.
        nodes.append(group.resources)
        may_start[_shape(group.resources)] += UNBOUNDED if group.max_count == -1 else group.max_count
    shapes = {**now, **may_start}
    return Resources(
        tuple(NodeGroup(*shape, max(now[shape], may_start[shape]), now[shape]) for shape in shapes),
        joined=joins_a_cluster(),
        gpu_kinds=tuple(sorted({name.removeprefix(_KIND) for name in chain(*nodes) if name.startswith(_KIND)})),
    )


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Place a small actor on the driver's node: worker nodes come and go, and would take the actor's state along."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _shape(resources: "dict[str, float]") -> tuple[float, float]:
    return float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0))
