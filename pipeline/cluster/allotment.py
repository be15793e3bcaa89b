"""Which actors get how many CPUs and GPUs of the cluster.

Ray Data hangs without an error when actor pools hold every CPU and a task can never start, or when an actor fits on no
node; so this module checks that everything fits before anything starts.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from m2f_core.layers.cpu_instructions import cpu_instructions
from pipeline.cluster.resources import UNBOUNDED, Resources, shape_of_this_node
from pipeline.config import Settings
from pipeline.device.precision import check_precision
from pipeline.errors import RunError
from pipeline.node_labels import ANY_NODE, NodeChoice
from pipeline.store.filesystem import one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

READ_PLAN_CPUS = 0.1  # a task that reads a Parquet file of the plan
# Tasks at once. Without a limit, Ray Data finds that a larger cluster could read the plan much faster, and has the
# autoscaler start nodes for that. One task reads a plan file of 64 shards in a second, more than 100 GPUs need.
READ_PLAN_TASKS = 2
FETCH_CPUS = 0.2  # an actor that waits for the store with 16 threads
WRITE_CPUS = 0.2  # an actor that encodes and writes: about 2 ms of CPU an image
_HELPER_CPUS = FETCH_CPUS + WRITE_CPUS
_MODEL_CPUS = 4  # decoding threads per GPU (640x480 JPEGs at Swin-T speed need 3), or model threads on CPUs


@dataclass(frozen=True)
class Allotment:
    """Actors of each pool and what each model actor reserves."""

    device: str  # cuda | cpu
    model_actors: tuple[int, int]  # min, max
    model_actors_at_start: int
    model_cpus: float  # of each model actor
    model_gpus: float  # of each model actor: 0, 1 or a part of a GPU
    helpers: tuple[int, int]  # min, max of the actors that fetch, and of those that write
    model_nodes: NodeChoice = ANY_NODE
    helper_nodes: NodeChoice = ANY_NODE
    # Model actors on each GPU, if they may decode with more threads where the node has more CPUs than they reserve
    share_cpus_of_gpu: int | None = None
    # For run.json: device, precision, and the CPU's instructions if models run on this machine's CPU
    computed_on: dict[str, str | None] = field(default_factory=dict)
    device_names: tuple[str, ...] = ()  # `cpu`, or the kinds of GPUs that the cluster has or can start, if Ray knows

    @property
    def device_units(self) -> float:
        """CPUs of each model actor, or its part of a GPU: what a price is for."""
        return self.model_gpus if self.device == "cuda" else self.model_cpus

    def of_at_most(self, number: int) -> "Allotment":
        """This allotment with at most so many model actors."""
        least, most = (min(number, actors) for actors in self.model_actors)
        helpers = (1, min(number, self.helpers[1])) if self.device == "cuda" else self.helpers
        at_start = min(number, self.model_actors_at_start)
        return replace(self, model_actors=(least, most), model_actors_at_start=at_start, helpers=helpers)

    @property
    def model_threads(self) -> int:
        return max(1, int(self.model_cpus))

    def threads_on(self, cpus: float, gpus: float) -> int:
        """Threads of a model actor on a node with so many CPUs and GPUs.

        All actors of a pool reserve the same number of CPUs: as many as the node with the fewest CPUs beside each GPU
        has for one actor. Where a node has more CPUs, its actors decode with more threads than they reserve CPUs.
        """
        if self.share_cpus_of_gpu is None or gpus < 1:
            return self.model_threads
        return max(self.model_threads, int(_cpus_beside(cpus, gpus, self.share_cpus_of_gpu)))

    def threads_here(self) -> int:
        """Threads of a model actor on the node of this process."""
        return self.threads_on(*shape_of_this_node())


def allot(settings: Settings, resources: Resources) -> Allotment:
    """The CPUs and GPUs to reserve for each actor. RunError if the settings ask for more than the cluster has."""
    model_nodes, helper_nodes = settings.node_choices()
    for_models = resources.matching(model_nodes, "--model-nodes")
    device = settings.device
    where = f" on --model-nodes {model_nodes}" if model_nodes.key else ""
    if device == "auto":
        device = "cuda" if for_models.gpus else "cpu"
        if device == "cpu" and resources.joined:
            logger.warning(
                f"the cluster has no GPU{where} and cannot start one, so models run on CPUs; --device cuda would "
                "refuse this"
            )
    if device == "cuda" and not for_models.gpus:
        raise RunError(f"--device cuda, but the cluster has no GPU{where} and cannot start one; use --device cpu")
    if device == "cpu" and settings.gpus_per_actor is not None:
        raise RunError(
            f"--gpus-per-actor is {settings.gpus_per_actor:g}, but the models run on CPUs; leave the flag out"
        )
    if not resources.joined:  # on a cluster, the model actors check their own machines
        check_precision(settings.precision, device)
    wanted = settings.gpu_actors_range()
    most_gpus = math.inf if wanted is None else wanted[1] / settings.actors_per_gpu()
    most_gpus = most_gpus if device == "cuda" else 0
    for_models, resources = for_models.for_gpus(most_gpus), resources.for_gpus(most_gpus)
    allotment = (_allot_gpus if device == "cuda" else _allot_cpus)(settings, for_models)
    for_helpers = resources.matching(helper_nodes, "--helper-nodes")
    if helper_nodes.key:
        most = min(allotment.helpers[1], max(1, int((for_helpers.cpus - READ_PLAN_CPUS) / _HELPER_CPUS)))
        allotment = replace(allotment, helpers=(1, most))
    allotment = replace(allotment, model_nodes=model_nodes, helper_nodes=helper_nodes)
    _check(allotment, for_models, resources)
    instructions = cpu_instructions() if device == "cpu" and not resources.joined else None
    return replace(
        allotment,
        computed_on={"device": device, "precision": settings.precision, "cpu_instructions": instructions},
        device_names=("cpu",) if device == "cpu" else resources.gpu_kinds,
    )


def run_on_worker(allotment: Allotment, function: Callable[..., T], *args: Any) -> T:
    """Run `function(*args)` once in a worker process with the CPUs and GPUs of a model actor.

    RunErrors of the function pass through; any other exception, or the death of the process, becomes a RunError.
    """
    with_resources = ray.remote(
        num_cpus=allotment.model_cpus,
        num_gpus=allotment.model_gpus,
        max_retries=0,
        max_calls=1,
        **allotment.model_nodes.options(),
    )
    try:
        result: T = ray.get(with_resources(function).remote(*args))
    except RayTaskError as error:
        if isinstance(error.cause, RunError):
            raise error.cause from None
        logger.error(str(error))
        raise RunError(f"a worker failed: {type(error.cause).__name__}: {one_line(error.cause)}") from None
    except RayError as error:
        raise RunError(f"a worker's process ended: {one_line(error)}") from None
    return result


def _allot_gpus(settings: Settings, resources: Resources) -> Allotment:
    """Model actors on every GPU, one or several, each with an actor that fetches and one that writes."""
    per_gpu = settings.actors_per_gpu()
    wanted = settings.gpu_actors_range()
    if wanted is None and resources.gpus >= UNBOUNDED:
        raise RunError("the autoscaler sets no limit to the number of GPUs; set one with --gpu-actors MIN:MAX")
    least, most = wanted or (1, resources.gpus * per_gpu)
    cpus: float = settings.cpus_per_actor or min(
        _cpus_beside(group.cpus, group.gpus, per_gpu) for group in resources.groups if group.gpus >= 1 and group.count
    )
    at_start = min(max(resources.gpus_now * per_gpu, least), most)  # all at once, because Ray grows a pool slowly
    return Allotment(
        "cuda",
        (least, most),
        at_start,
        cpus,
        settings.gpus_per_actor or 1.0,
        helpers=(1, most),
        share_cpus_of_gpu=None if settings.cpus_per_actor else per_gpu,
    )


def _cpus_beside(cpus: float, gpus: float, actors_per_gpu: int) -> float:
    """CPUs for each model actor on a node with so many CPUs and GPUs."""
    return _most_cpus(cpus / (gpus * actors_per_gpu) - _HELPER_CPUS - READ_PLAN_CPUS)


def _allot_cpus(settings: Settings, resources: Resources) -> Allotment:
    """Model actors share the CPUs that one fetching and one writing actor leave; CPU models need no more than these."""
    wanted = settings.gpu_actors_range()
    spare = resources.cpus - _HELPER_CPUS - READ_PLAN_CPUS
    largest = max((group.cpus for group in resources.groups if group.count), default=0.0)
    cpus: float = settings.cpus_per_actor or _most_cpus(min(largest, spare / (wanted[1] if wanted else 1)))
    most = max(1, min(resources.room_for(cpus, 0), int(spare / cpus)))
    if wanted is None and resources.cpus >= UNBOUNDED:
        raise RunError("the autoscaler sets no limit to the number of CPUs; set one with --gpu-actors MIN:MAX")
    least, most = wanted or (1, most)
    at_start = min(max(resources.room_for(cpus, 0, now=True), least), most)
    return Allotment("cpu", (least, most), at_start, cpus, 0, helpers=(1, 1))


def _most_cpus(there_are: float) -> float:
    """A whole number of CPUs, at most _MODEL_CPUS; if less than one CPU is available, that fraction."""
    return float(min(_MODEL_CPUS, math.floor(there_are))) if there_are >= 1 else round(max(there_are, 0.1), 2)


def _check(allotment: Allotment, for_models: Resources, resources: Resources) -> None:
    most = allotment.model_actors[1]
    or_gpus = ", or raise --gpus-per-actor" if 0 < allotment.model_gpus < 1 else ""
    room = for_models.room_for(allotment.model_cpus, allotment.model_gpus)
    if most > room:
        part = " and a GPU" if allotment.model_gpus == 1 else f" and {allotment.model_gpus:g} of a GPU"
        each = f"{allotment.model_cpus:g} CPUs" + (part if allotment.model_gpus else "")
        largest = max((group for group in for_models.groups if group.count), key=lambda group: (group.gpus, group.cpus))
        raise RunError(
            f"{most} model actors of {each} each do not fit: the nodes that the cluster has or can start hold {room} "
            f"of them, and the largest node has {largest.cpus:g} CPUs and {largest.gpus:g} GPUs; "
            f"lower --gpu-actors or --cpus-per-actor{or_gpus}"
        )
    needed = most * allotment.model_cpus + allotment.helpers[1] * _HELPER_CPUS + READ_PLAN_CPUS
    if needed > resources.cpus + 1e-6:
        raise RunError(
            f"{most} model actors of {allotment.model_cpus:g} CPUs and the actors that read and write need "
            f"{needed:.1f} CPUs, but the cluster has (or can start) {resources.cpus:g}; "
            f"lower --gpu-actors or --cpus-per-actor{or_gpus}"
        )
