"""Manifests with one fault each: each is refused, for that fault, by a schema or by a rule of ours."""

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from infra.check_manifests import faults
from tests.support.manifests import Object, find, is_of_ray, overlay, ray_validator, schema_faults

OVERLAY = "gpu-on-demand-fallback"


class Night:
    """The objects of an overlay, with short names for the places where things go wrong."""

    def __init__(self, objects: list[Object]):
        self.objects = objects
        self.template = find(objects, "RayCronJob")
        self.job = self.template["spec"]["jobTemplate"]
        self.cluster = self.job["rayClusterSpec"]
        self.head = self.cluster["headGroupSpec"]
        self.workers, self.fallback = self.cluster["workerGroupSpecs"]
        self.pod = self.workers["template"]["spec"]
        self.container = self.pod["containers"][0]
        self.cron_job = find(objects, "CronJob")
        self.network = find(objects, "NetworkPolicy")["spec"]

    def remove(self, kind: str) -> None:
        self.objects[:] = [obj for obj in self.objects if obj["kind"] != kind]

    def settings(self, old: str, new: str) -> None:
        data = find(self.objects, "ConfigMap", "m2f-night-settings")["data"]
        assert old in data["night.yaml"]
        data["night.yaml"] = data["night.yaml"].replace(old, new)


def put(place: Callable[[Night], Object], **values: Any) -> Callable[[Night], None]:
    return lambda night: place(night).update(values)


def cut(place: Callable[[Night], Object], name: str) -> Callable[[Night], None]:
    return lambda night: place(night).pop(name)


def variable(name: str, value: str) -> Callable[[Night], None]:
    return lambda night: night.container["env"].append({"name": name, "value": value})


def egress_without(port: int) -> Callable[[Night], None]:
    def change(night: Night) -> None:
        for rule in night.network["egress"]:
            rule["ports"] = [each for each in rule.get("ports", []) if each["port"] != port] or None
        night.network["egress"] = [
            {key: value for key, value in rule.items() if value is not None}
            for rule in night.network["egress"]
            if rule["ports"] is not None or {"podSelector": {}} in rule["to"]
        ]

    return change


# Fault -> what makes it, and the start of the reason: `[rule]` of ours, or words of a schema.
OURS: dict[str, tuple[Callable[[Night], Any], str]] = {
    "secret by value": (variable("AWS_SECRET_ACCESS_KEY", "x"), "variable AWS_SECRET_ACCESS_KEY has a value"),
    "secret in runtime_env": (put(lambda n: n.job, runtimeEnvYAML="env_vars:\n  HF_TOKEN: x"), "has HF_TOKEN, which"),
    "password in a URI": (variable("STORE", "http://me:pw@host"), "looks like a key or a password"),
    "secret among the manifests": (
        lambda n: n.objects.append(
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "m2f"}}
        ),
        "remove it from the manifests",
    ),
    "no security context": (cut(lambda n: n.container, "securityContext"), "securityContext lacks allowPrivilege"),
    "writable root": (
        put(lambda n: n.container["securityContext"], readOnlyRootFilesystem=False),
        "lacks readOnlyRoot",
    ),
    "root user": (put(lambda n: n.pod["securityContext"], runAsUser=0), "runAsUser: 0"),
    "autoscaler without context": (
        cut(lambda n: n.cluster["autoscalerOptions"], "securityContext"),
        "autoscaler: securityContext lacks",
    ),
    "submitter of KubeRay": (cut(lambda n: n.job, "submitterPodTemplate"), "submitterPodTemplate is not set"),
    "host path": (
        lambda n: n.pod["volumes"].append({"name": "h", "hostPath": {"path": "/var/run"}}),
        "volume h is a hostPath",
    ),
    "image by tag": (put(lambda n: n.container, image="registry.example.com/m2f:latest"), "has no digest"),
    "image by an empty digest": (put(lambda n: n.container, image="m2f@sha256:" + "0" * 64), "has no digest"),
    "object store above /dev/shm": (
        put(lambda n: n.workers["rayStartParams"], **{"object-store-memory": "8589934592"}),
        "the object store of 8 GiB does not fit into /dev/shm of 7 GiB",
    ),
    "memory promised twice": (
        put(lambda n: n.workers["rayStartParams"], memory="26843545600"),
        "/dev/shm of 7 GiB and a heap of 25 GiB are more than the limit of 25 GiB",
    ),
    "no /dev/shm": (lambda n: n.container["volumeMounts"].pop(1), "is mounted at /dev/shm"),
    "no /tmp": (lambda n: n.container["volumeMounts"].pop(0), "no emptyDir is mounted at /tmp"),
    "disk too small": (
        lambda n: [each.update({"ephemeral-storage": "10Gi"}) for each in n.container["resources"].values()],
        "emptyDirs take 20 GiB",
    ),
    "request below limit": (put(lambda n: n.container["resources"]["requests"], memory="1Gi"), "request 1Gi and limit"),
    "no requests": (cut(lambda n: n.container, "resources"), "needs requests for cpu and memory"),
    "min > max": (put(lambda n: n.workers, minReplicas=9), "not minReplicas 9 <= replicas"),
    "no limit of cost": (cut(lambda n: n.workers, "maxReplicas"), "maxReplicas is not set"),
    "restartPolicy with autoscaler v2": (put(lambda n: n.pod, restartPolicy="Always"), "restartPolicy is Always"),
    "autoscaler v1": (put(lambda n: n.cluster["autoscalerOptions"], version="v1"), "version is not v2"),
    "fallback of another shape": (
        lambda n: n.fallback["template"]["spec"]["containers"][0]["resources"]["limits"].update(cpu="15"),
        "worker groups gpu, gpu-on-demand differ in resources",
    ),
    "actors on the head": (cut(lambda n: n.head["rayStartParams"], "num-cpus"), 'rayStartParams needs num-cpus: "0"'),
    "numbers as start parameters": (
        put(lambda n: n.workers["rayStartParams"], memory=19327352832),
        "memory is 19327352832; rayStartParams are texts",
    ),
    "head on spot": (
        put(lambda n: n.head["template"]["spec"], nodeSelector={"karpenter.sh/capacity-type": "spot"}),
        "the head is on spot machines",
    ),
    "grace period above the spot notice": (
        put(lambda n: n.pod, terminationGracePeriodSeconds=300),
        "the notice of these spot machines allows 110 s",
    ),
    "grace period of Google's spot machines": (
        put(lambda n: n.pod, nodeSelector={"cloud.google.com/gke-spot": "true"}),
        "the notice of these spot machines allows 25 s",
    ),
    "drain above the grace period": (
        lambda n: n.container["env"][1].update(value="89"),
        "are more than terminationGracePeriodSeconds 90",
    ),
    "open dashboard": (cut(lambda n: n.cluster, "authOptions"), "authOptions.mode is not token"),
    "no budget for the head": (lambda n: n.remove("PodDisruptionBudget"), "a node drain would end the run"),
    "ttl without shutdown": (put(lambda n: n.job, ttlSecondsAfterFinished=60), "needs shutdownAfterJobFinishes"),
    "two ways to delete": (put(lambda n: n.job, shutdownAfterJobFinishes=True), "exclude each other"),
    "machines after a deadline": (
        lambda n: n.job["deletionStrategy"].update(deletionRules=n.job["deletionStrategy"]["deletionRules"][:2]),
        "no rule for jobDeploymentStatus: Failed",
    ),
    "machines after `ray job stop`": (put(lambda n: n.template["spec"], suspend=False), "that `ray job stop` stopped"),
    "two schedules": (put(lambda n: n.template["spec"], suspend=False), "several schedules are active"),
    "no deadline": (cut(lambda n: n.job, "activeDeadlineSeconds"), "activeDeadlineSeconds is not set"),
    "deadline of the Job below the night's": (
        put(lambda n: n.job, activeDeadlineSeconds=36000),
        "less than 3 times 36000: nights overlap",
    ),
    "nights overlap": (put(lambda n: n.cron_job["spec"], concurrencyPolicy="Allow"), "concurrencyPolicy is not Forbid"),
    "no time zone": (cut(lambda n: n.cron_job["spec"], "timeZone"), "timeZone is not set"),
    "name too long": (
        put(lambda n: n.template["metadata"], name="m2f-night-of-all-our-photographs-x"),
        "a RayJob would be",
    ),
    "name starts with a digit": (
        put(lambda n: n.template["metadata"], name="2f-night"),
        "a RayJob would be named 2f-night",
    ),
    "template that is not there": (
        put(lambda n: n.template["metadata"], name="night"),
        "there is no RayCronJob m2f-night",
    ),
    "API server cut off": (egress_without(443), "egress does not let the API server and the store"),
    "API server of kubeadm cut off": (egress_without(6443), "egress does not let the API server (TCP 6443"),
    "DNS cut off": (egress_without(53), "egress does not let DNS"),
    "Ray cut off": (lambda n: n.network["egress"].pop(0), "egress does not let Ray within the namespace"),
    "operator cut off": (lambda n: n.network["ingress"].pop(1), "ingress does not let KubeRay's operator"),
    "everybody let in": (lambda n: n.network["ingress"].append({}), "lets everybody in"),
    "no network policy": (lambda n: n.remove("NetworkPolicy"), "no NetworkPolicy for all pods"),
    "rights on secrets": (
        lambda n: find(n.objects, "Role")["rules"].append(
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
        ),
        "grants get on secrets",
    ),
    "rights on all": (put(lambda n: find(n.objects, "Role")["rules"][1], verbs=["*"]), "grants * on rayjobs"),
    "token in workers": (put(lambda n: n.pod, automountServiceAccountToken=True), "never speaks to Kubernetes"),
    "account that is not there": (
        put(lambda n: n.pod, serviceAccountName="nobody"),
        "there is no ServiceAccount nobody",
    ),
    "settings that are not there": (
        lambda n: find(n.objects, "ConfigMap", "m2f-night-settings")["metadata"].update(name="other"),
        "there is no ConfigMap m2f-night-settings",
    ),
    "settings with a typo": (lambda n: n.settings("max_failures", "max_failure"), "unknown names max_failure"),
    "settings out of bounds": (lambda n: n.settings("10000", "-1"), "--max-failures is -1"),
    "more actors than GPUs": (lambda n: n.settings("1:8", "1:13"), "gpu_actors allows 13 actors"),
    "more actors than parts of GPUs": (
        lambda n: n.settings('"1:8"', '"1:25"\ngpus_per_actor: 0.5'),
        "gpu_actors allows 25 actors, but the worker groups can have 12 GPUs for 2 actors each",
    ),
    "a budget that each retry has again": (
        lambda n: n.settings("max_failures: 10000", "max_failures: 10000\nmax_cost: 120"),
        "max_cost is 120, but a night that stopped there failed for KubeRay",
    ),
    "failures that a retry hides": (lambda n: n.settings("max_failure_rate: 1", ""), "the retry of a finished run"),
    "profile of the namespace": (
        lambda n: find(n.objects, "Namespace")["metadata"]["labels"].clear(),
        "pod-security.kubernetes.io/enforce: restricted is missing",
    ),
    "two namespaces": (put(lambda n: n.cron_job["metadata"], namespace="other"), "in several namespaces: m2f, other"),
    "no object of Kubernetes": (cut(lambda n: n.cron_job, "spec"), "an object does not follow its schema: KeyError"),
}
KUBERNETES = {
    "typo in the CronJob": (put(lambda n: n.cron_job["spec"], schedul="x"), "'schedul' was unexpected"),
    "text as a number": (put(lambda n: n.cron_job["spec"], startingDeadlineSeconds="3600"), "is not of type 'integer'"),
    "policy that does not exist": (put(lambda n: n.cron_job["spec"], concurrencyPolicy=["Forbid"]), "is not of type"),
    "port without a number": (put(lambda n: n.network["ingress"][1]["ports"][0], prot="x"), "'prot' was unexpected"),
}
KUBERAY = {
    "unknown field": (put(lambda n: n.job, backofLimit=2), "'backofLimit' was unexpected"),
    "unknown field in a pod": (
        put(lambda n: n.container, imagePullPolice="Always"),
        "'imagePullPolice' was unexpected",
    ),
    "time to live as a text": (put(lambda n: n.job, ttlSecondsAfterFinished="60"), "'60' is not of type 'integer'"),
    "upscaling mode": (put(lambda n: n.cluster["autoscalerOptions"], upscalingMode="Fast"), "'Fast' is not one of"),
    "quantity": (put(lambda n: n.container["resources"]["limits"], memory="25 GB"), "'25 GB' does not match"),
    "toleration": (put(lambda n: n.pod["tolerations"][0], effct="NoSchedule"), "'effct' was unexpected"),
    "no containers": (cut(lambda n: n.pod, "containers"), "'containers' is a required property"),
    "two conditions in a rule": (
        lambda n: n.job["deletionStrategy"]["deletionRules"][0]["condition"].update(jobDeploymentStatus="Failed"),
        "cannot be used together",
    ),
    "switch of the autoscaler twice": (
        lambda n: n.head["template"]["spec"]["containers"][0]["env"].append(
            {"name": "RAY_enable_autoscaler_v2", "value": "1"}
        ),
        "both autoscalerOptions.version and RAY_enable_autoscaler_v2",
    ),
}


def reasons(objects: list[Object]) -> list[str]:
    return [str(fault) for fault in faults(objects, allow_placeholders=True)]


@pytest.fixture
def night() -> Night:
    return Night(overlay(OVERLAY))


def test_the_unbroken_night_has_no_fault(night):
    assert reasons(night.objects) == []


@pytest.mark.parametrize("fault", OURS)
def test_our_rules_refuse(fault, night):
    change, said = OURS[fault]
    change(night)
    assert said in "\n".join(reasons(night.objects))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (dict, key) and (list, index) below `value`."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@hypothesis.settings(max_examples=40)
@hypothesis.given(random=strategies.randoms(use_true_random=False))
def test_objects_of_any_shape_give_faults_and_never_a_stack(random):
    objects = overlay(OVERLAY)
    for _ in range(random.randint(1, 4)):
        holder, key = random.choice(places([obj["spec"] for obj in objects if "spec" in obj]))
        if isinstance(holder, dict):
            holder[key] = random.choice([None, 1, -1, "x", [], {}, True, [None], {"a": None}])
    assert all(fault.rule and fault.where for fault in faults(objects, allow_placeholders=True))


@pytest.mark.parametrize("fault", KUBERNETES)
def test_schemas_of_kubernetes_refuse(fault, night):
    change, said = KUBERNETES[fault]
    change(night)
    assert said in "\n".join(each for obj in night.objects if not is_of_ray(obj) for each in schema_faults(obj))


@pytest.mark.parametrize("fault", KUBERAY)
def test_definitions_of_kuberay_refuse(fault, night):
    validate = ray_validator()
    if validate is None:
        pytest.skip("needs the definitions of KubeRay 1.7 in shared/tools beside the checkout")
    change, said = KUBERAY[fault]
    change(night)
    assert said in "\n".join(validate(night.template))
