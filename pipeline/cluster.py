"""What the cluster has, and who gets how much of it.

Ray Data hangs without an error when actor pools hold every CPU and a task can never start, so the sum is made here,
before anything starts.
"""

import logging
import math
import os
from dataclasses import dataclass

import ray

from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.ray_environment import joins_a_cluster

READ_PLAN_CPUS = 0.1  # a task that reads a Parquet file of the plan
FETCH_CPUS = 0.2  # an actor that waits for the store with 16 threads
WRITE_CPUS = 0.2  # an actor that encodes and writes: about 2 ms of CPU an image
_PIPELINE_CPUS = READ_PLAN_CPUS + FETCH_CPUS + WRITE_CPUS  # the least that must stay beside the model actors
_MODEL_CPUS = 4  # decode threads for a GPU (640x480 JPEGs at Swin-T speed need 3); model threads without one


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs that the cluster has or can start, and whether it was started by this process."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Allotment:
    """Actors of each pool and what each model actor reserves."""

    device: str  # cuda | cpu
    model_actors: tuple[int, int]  # min, max
    model_cpus: float  # of each model actor
    model_gpus: int
    fetch_actors: tuple[int, int]
    write_actors: tuple[int, int]

    @property
    def model_threads(self) -> int:
        return max(1, int(self.model_cpus))


def connect() -> Resources:
    """Join the cluster of this job, or start Ray on this machine; say what there is to use.

    On a cluster that grows on demand the resources are those that it can reach, not those of this moment.
    """
    if not ray.is_initialized():
        if joins_a_cluster():
            ray.init(logging_level=logging.WARNING)
        else:
            # One CPU more than there are, because fetching and writing mostly wait.
            num_cpus = (os.cpu_count() or 1) + 1
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.WARNING)
    now = ray.cluster_resources()
    reachable = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    return Resources(*(max(now.get(kind, 0.0), reachable.get(kind, 0.0)) for kind in ("CPU", "GPU")))


def allot(settings: Settings, resources: Resources) -> Allotment:
    """Who gets what, in reserved CPUs and GPUs. Raises RunError where the settings ask for more than there is."""
    device = settings.device
    if device == "auto":
        device = "cuda" if resources.gpus >= 1 else "cpu"
    if device == "cuda" and resources.gpus < 1:
        raise RunError("--device cuda, but the cluster has no GPU and cannot start one; use --device cpu")
    wanted = settings.gpu_actors_range()
    if device == "cuda":
        least, most = wanted or (1, int(resources.gpus))
        helpers = most  # a fetching and a writing actor for every GPU
        cpus = settings.cpus_per_actor or _most_cpus((resources.cpus - READ_PLAN_CPUS) / most - FETCH_CPUS - WRITE_CPUS)
    else:
        helpers = 1  # models on CPUs never outrun one of each
        spare = resources.cpus - _PIPELINE_CPUS
        cpus = settings.cpus_per_actor or _most_cpus(spare / (wanted[1] if wanted else 1))
        # Without GPUs there is nothing to wait for: the pool starts at full width.
        least, most = wanted or 2 * (max(1, int(spare / cpus)),)
    allotment = Allotment(device, (least, most), cpus, int(device == "cuda"), (1, helpers), (1, helpers))
    _check(allotment, resources)
    return allotment


def _most_cpus(there_are: float) -> float:
    """Whole CPUs, _MODEL_CPUS at most; on a machine with less than one to spare, what there is."""
    return float(min(_MODEL_CPUS, math.floor(there_are))) if there_are >= 1 else round(max(there_are, 0.1), 2)


def _check(allotment: Allotment, resources: Resources) -> None:
    most = allotment.model_actors[1]
    if allotment.model_gpus and most > resources.gpus:
        raise RunError(
            f"--gpu-actors asks for {most} GPUs and the cluster has (or can start) {resources.gpus:g}; "
            f"ask for at most {int(resources.gpus)}"
        )
    helpers = allotment.fetch_actors[1] * FETCH_CPUS + allotment.write_actors[1] * WRITE_CPUS
    needed = most * allotment.model_cpus + helpers + READ_PLAN_CPUS
    if needed > resources.cpus + 1e-6:
        raise RunError(
            f"{most} model actors of {allotment.model_cpus:g} CPUs and the actors that read and write need "
            f"{needed:.1f} CPUs, the cluster has (or can start) {resources.cpus:g}; "
            "lower --gpu-actors or --cpus-per-actor"
        )
