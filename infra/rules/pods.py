"""What every pod must have: the restricted profile, a pinned image, secrets by reference, resources that add up."""

import re
from collections.abc import Iterator

from infra.rules.manifests import Fault, Manifests, Object, Pod, environment, gib, quantity, strings

PLACEHOLDER_IMAGE = "m2f-pipeline"
_PINNED = re.compile(r"[^@\s]+@sha256:(?!0{64}$)[0-9a-f]{64}")
_SECRET_NAMES = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL", re.IGNORECASE)
_SECRET_VALUES = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|://[^/\s:@]+:[^/\s@]+@|-----BEGIN [A-Z ]*PRIVATE KEY|\bhf_\w{30,}"
)


def check_security(manifests: Manifests) -> Iterator[Fault]:
    """The restricted profile of the Pod Security Standards, and a root file system that nobody can write."""
    for pod in manifests.pods:
        of_pod = pod.spec.get("securityContext") or {}
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if pod.spec.get(key):
                yield Fault("pod-security", pod.where, f"{key} is on; remove it")
        for volume in pod.spec.get("volumes") or []:
            if "hostPath" in volume:
                yield Fault(
                    "pod-security", pod.where, f"volume {volume['name']} is a hostPath; use emptyDir or a claim"
                )
        for container in pod.containers:
            where = f"{pod.where}, container {container.get('name')}"
            yield from _security(where, {**of_pod, **(container.get("securityContext") or {})})
    for where, cluster in manifests.clusters:
        if cluster.get("enableInTreeAutoscaling"):
            options = cluster.get("autoscalerOptions") or {}
            head = ((cluster.get("headGroupSpec") or {}).get("template") or {}).get("spec") or {}
            of_pod = head.get("securityContext") or {}
            yield from _security(f"{where}, autoscaler", {**of_pod, **(options.get("securityContext") or {})})


def _security(where: str, context: Object) -> Iterator[Fault]:
    wanted = {
        "runAsNonRoot: true": context.get("runAsNonRoot") is True,
        "seccompProfile.type: RuntimeDefault": (context.get("seccompProfile") or {}).get("type") == "RuntimeDefault",
        "allowPrivilegeEscalation: false": context.get("allowPrivilegeEscalation") is False,
        "capabilities.drop: [ALL]": "ALL" in ((context.get("capabilities") or {}).get("drop") or []),
        "readOnlyRootFilesystem: true": context.get("readOnlyRootFilesystem") is True,
    }
    missing = [setting for setting, is_there in wanted.items() if not is_there]
    if missing:
        yield Fault("pod-security", where, f"securityContext lacks {'; '.join(missing)}")
    if context.get("privileged") or context.get("runAsUser") == 0 or (context.get("capabilities") or {}).get("add"):
        yield Fault(
            "pod-security", where, "securityContext has privileged, runAsUser: 0 or capabilities.add; remove them"
        )


def check_temporary_folder(manifests: Manifests) -> Iterator[Fault]:
    """Ray and the job write below /tmp, which the read-only root file system does not allow."""
    for pod in manifests.pods:
        if not pod.part:
            continue
        for container in pod.containers:
            if (pod.volume("/tmp", container) or {}).get("emptyDir") is None:
                where = f"{pod.where}, container {container.get('name')}"
                yield Fault("temporary-folder", where, "no emptyDir is mounted at /tmp, where Ray and the job write")


def check_images(manifests: Manifests, allow_placeholders: bool) -> Iterator[Fault]:
    found = {c.get("image", ""): pod.where for pod in manifests.pods for c in pod.containers}
    for image, where in sorted(found.items()):
        if image == PLACEHOLDER_IMAGE:
            if not allow_placeholders:
                yield Fault(
                    "placeholder", where, f"image {image} is a placeholder; set `images:` in kustomization.yaml"
                )
        elif not _PINNED.fullmatch(image):
            yield Fault(
                "image-unpinned", where, f"image {image!r} has no digest; set `digest: sha256:...` under `images:`"
            )


def check_secrets(manifests: Manifests) -> Iterator[Fault]:
    """Secrets by reference only: what stands in a manifest lies in a repository and in etcd's ConfigMaps."""
    for obj in manifests.of_kind("Secret"):
        where = f"Secret {obj['metadata'].get('name')}"
        yield Fault("secret-by-value", where, "remove it from the manifests; create it with kubectl or an operator")
    for pod in manifests.pods:
        for container in pod.containers:
            for name in environment(container):
                if _SECRET_NAMES.search(name):
                    where = f"{pod.where}, container {container.get('name')}"
                    yield Fault("secret-by-value", where, f"variable {name} has a value; use valueFrom.secretKeyRef")
    for job in manifests.ray_jobs:
        for line in str(job.spec.get("runtimeEnvYAML", "")).splitlines():
            name = line.partition(":")[0].strip()
            if _SECRET_NAMES.search(name):
                yield Fault(
                    "secret-by-value", job.where, f"runtimeEnvYAML has {name}, which Ray's dashboard shows; use envFrom"
                )
    for obj in manifests.objects:
        for path, text in strings(obj):
            if _SECRET_VALUES.search(text):
                where = f"{obj.get('kind')} {obj['metadata'].get('name')}"
                yield Fault(
                    "secret-by-value", where, f"{path.lstrip('.')} looks like a key or a password; use a secret"
                )


def check_resources(manifests: Manifests) -> Iterator[Fault]:
    """Requests and limits; memory that is promised once; disks that fit."""
    for pod in manifests.pods:
        for container in pod.containers:
            yield from _resources(pod, container, f"{pod.where}, container {container.get('name')}")


def _resources(pod: Pod, container: Object, where: str) -> Iterator[Fault]:
    resources = container.get("resources") or {}
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    if not {"cpu", "memory"} <= set(requests) or "memory" not in limits:
        yield Fault("resources", where, "needs requests for cpu and memory, and a limit for memory")
        return
    for name in sorted({"memory", "nvidia.com/gpu", "ephemeral-storage"} & (set(requests) | set(limits))):
        if quantity(requests.get(name, 0)) != quantity(limits.get(name, 0)):
            said = (
                f"{name}: request {requests.get(name)} and limit {limits.get(name)} differ; a node may promise it twice"
            )
            yield Fault("resources", where, said)
    memory = quantity(limits["memory"])
    volumes = [(volume["name"], volume["emptyDir"]) for volume in pod.spec.get("volumes") or [] if "emptyDir" in volume]
    in_memory = [(name, each) for name, each in volumes if each.get("medium") == "Memory"]
    on_disk = [(name, each) for name, each in volumes if each.get("medium") != "Memory"]
    for name, each in volumes:
        if "sizeLimit" not in each:
            yield Fault("resources", where, f"emptyDir {name} has no sizeLimit")
            return
    disk = sum(quantity(each["sizeLimit"]) for _, each in on_disk)
    if "ephemeral-storage" in limits and disk > quantity(limits["ephemeral-storage"]):
        yield Fault("resources", where, f"emptyDirs take {gib(disk)}, more than the limit of ephemeral-storage")
    if pod.part in ("head", "worker"):
        shm = sum(quantity(each["sizeLimit"]) for _, each in in_memory)
        yield from _memory_of_ray(pod, container, where, memory, shm)


def _memory_of_ray(pod: Pod, container: Object, where: str, memory: float, shm: float) -> Iterator[Fault]:
    """Pages of /dev/shm count as memory of the container: object store <= /dev/shm, and /dev/shm + heap <= limit."""
    params = pod.group.get("rayStartParams") or {}
    if not {"object-store-memory", "memory"} <= set(params):
        said = (
            "rayStartParams needs object-store-memory and memory (bytes), or Ray promises the container's memory twice"
        )
        yield Fault("memory-adds-up", where, said)
        return
    store, heap = float(params["object-store-memory"]), float(params["memory"])
    if (pod.volume("/dev/shm", container) or {}).get("emptyDir", {}).get("medium") != "Memory":
        yield Fault(
            "memory-adds-up", where, "no emptyDir with medium: Memory is mounted at /dev/shm, for the object store"
        )
    elif store > shm:
        yield Fault(
            "memory-adds-up", where, f"the object store of {gib(store)} does not fit into /dev/shm of {gib(shm)}"
        )
    if shm + heap > memory:
        said = f"/dev/shm of {gib(shm)} and a heap of {gib(heap)} are more than the limit of {gib(memory)}"
        yield Fault("memory-adds-up", where, said)
