"""What a RayCluster must have: an autoscaler that works, a head that stays, workers that leave in time."""

from collections.abc import Iterator
from typing import Any

from infra.rules.manifests import Fault, Manifests, Object, Pod, environment, quantity, words

# Label of a node -> seconds that a pod has between the notice and the end of such a node, less ten to be safe.
_SPOT_SECONDS = {
    ("karpenter.sh/capacity-type", "spot"): 110,
    ("eks.amazonaws.com/capacityType", "SPOT"): 110,
    ("cloud.google.com/gke-spot", "true"): 25,
    ("cloud.google.com/gke-preemptible", "true"): 25,
    ("kubernetes.azure.com/scalesetpriority", "spot"): 25,
}
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
_DRAIN_DEFAULT = 30.0  # of Ray 2.60
_EXIT_SECONDS = 10  # for Ray to end its processes after the drain
_GRACE_DEFAULT = 30  # of Kubernetes


def spot_seconds(pod: Pod) -> int | None:
    """The longest grace period on the spot machines that the pod's nodeSelector asks for; None for other machines."""
    selector = pod.spec.get("nodeSelector") or {}
    return min((seconds for (key, value), seconds in _SPOT_SECONDS.items() if selector.get(key) == value), default=None)


def gpus_of(group: Object) -> int:
    """GPUs of one pod of a worker group."""
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    return int(quantity(((containers[0].get("resources") or {}).get("limits") or {}).get("nvidia.com/gpu", 0)))


def check_clusters(manifests: Manifests) -> Iterator[Fault]:
    for where, cluster in manifests.clusters:
        if (cluster.get("authOptions") or {}).get("mode") != "token":
            said = "authOptions.mode is not token: any pod that reaches the dashboard can run code with the pods' role"
            yield Fault("token-authentication", where, said)
        if not cluster.get("rayVersion"):
            yield Fault("ray-version", where, "rayVersion is not set; KubeRay needs it for token authentication")
        groups = cluster.get("workerGroupSpecs") or []
        yield from _autoscaling(where, cluster, groups)
        yield from _groups(where, groups)
    for pod in manifests.pods:
        if pod.part in ("head", "worker"):
            yield from _start_params(pod)


def _autoscaling(where: str, cluster: Object, groups: list[Object]) -> Iterator[Fault]:
    head = cluster.get("headGroupSpec") or {}
    switch = "RAY_enable_autoscaler_v2"
    containers = ((head.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    if switch in {each["name"] for each in containers[0].get("env") or []}:
        yield Fault("autoscaler", where, f"remove {switch} from the head; autoscalerOptions.version says it")
    if not cluster.get("enableInTreeAutoscaling"):
        for group in groups:
            if not group.get("minReplicas") == group.get("maxReplicas") == group.get("replicas"):
                said = (
                    f"workers {group.get('groupName')}: no autoscaling, but replicas, minReplicas, maxReplicas differ"
                )
                yield Fault("autoscaler", where, said)
        return
    if (cluster.get("autoscalerOptions") or {}).get("version") != "v2":
        yield Fault("autoscaler", where, "autoscalerOptions.version is not v2")
    for name, group in (("head", head), *((f"workers {g.get('groupName')}", g) for g in groups)):
        policy = ((group.get("template") or {}).get("spec") or {}).get("restartPolicy", "Never")
        if policy != "Never":
            yield Fault("autoscaler", where, f"{name}: restartPolicy is {policy}; autoscaler v2 needs Never")


def _groups(where: str, groups: list[Object]) -> Iterator[Fault]:
    for group in groups:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas")
        if most is None:
            yield Fault(
                "replicas", where, f"workers {group.get('groupName')}: maxReplicas is not set: no limit of cost"
            )
        elif not 0 <= least <= group.get("replicas", least) <= most:
            said = f"workers {group.get('groupName')}: not minReplicas {least} <= replicas <= maxReplicas {most}"
            yield Fault("replicas", where, said)
    if len({group.get("priority", 0) for group in groups}) > 1:
        shapes = {group.get("groupName", ""): _shape(group) for group in groups if gpus_of(group)}
        if len({str(shape) for shape in shapes.values()}) > 1:
            said = (
                f"worker groups {words(shapes)} differ in resources, so Ray looks at the fit, not at their priorities"
            )
            yield Fault("fallback", where, said)


def _shape(group: Object) -> dict[str, Any]:
    container = group["template"]["spec"]["containers"][0]
    limits = (container.get("resources") or {}).get("limits") or {}
    return {name: limits.get(name) for name in ("cpu", "memory", "nvidia.com/gpu")} | (
        group.get("rayStartParams") or {}
    )


def _start_params(pod: Pod) -> Iterator[Fault]:
    params = pod.group.get("rayStartParams") or {}
    for name, value in params.items():
        if not isinstance(value, str):
            yield Fault(
                "ray-start-params", pod.where, f"{name} is {value!r}; rayStartParams are texts: put it in quotes"
            )
    if pod.part == "head" and str(params.get("num-cpus")) != "0":
        said = 'rayStartParams needs num-cpus: "0": an actor on the head would take memory from the driver'
        yield Fault("head-without-actors", pod.where, said)


def check_grace(manifests: Manifests) -> Iterator[Fault]:
    """A worker that goes: Ray's drain ends before Kubernetes kills, and Kubernetes kills before the machine is gone."""
    for pod in manifests.pods:
        spot = spot_seconds(pod)
        if pod.part == "head":
            if spot is not None:
                yield Fault("head-on-demand", pod.where, "the head is on spot machines; its loss ends the attempt")
            continue
        if pod.part != "worker":
            continue
        grace = pod.spec.get("terminationGracePeriodSeconds", _GRACE_DEFAULT)
        drain = float(environment(pod.containers[-1]).get(DRAIN, _DRAIN_DEFAULT))
        if drain + _EXIT_SECONDS > grace:
            said = f"{DRAIN} {drain:g} and {_EXIT_SECONDS} s to end are more than terminationGracePeriodSeconds {grace}"
            yield Fault("grace-period", pod.where, said)
        if spot is not None and grace > spot:
            said = f"terminationGracePeriodSeconds is {grace} s, but the notice of these spot machines allows {spot} s"
            yield Fault("grace-period", pod.where, said)


def check_head_stays(manifests: Manifests) -> Iterator[Fault]:
    """A budget for head pods, so that a drained node waits for the end of the run."""
    if not manifests.clusters:
        return
    for budget in manifests.of_kind("PodDisruptionBudget"):
        labels = (budget["spec"].get("selector") or {}).get("matchLabels") or {}
        if labels.get("ray.io/node-type") == "head" and budget["spec"].get("maxUnavailable") == 0:
            return
    said = (
        "no PodDisruptionBudget with maxUnavailable: 0 selects ray.io/node-type: head; a node drain would end the run"
    )
    yield Fault("disruption-budget", manifests.clusters[0][0], said)
