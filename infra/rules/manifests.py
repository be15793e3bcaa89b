"""Kubernetes objects as rules see them: the pods in them, quantities as numbers, and faults."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Object = dict[str, Any]

_SUFFIXES = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SUFFIXES |= {f"{name}i": 1024.0 ** (number + 1) for number, name in enumerate("KMGTPE")}
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job")


@dataclass(frozen=True)
class Fault:
    """`rule` names the rule that `where` breaks; `message` says how, and what to do."""

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.rule}]"


@dataclass(frozen=True)
class Pod:
    """A pod template in an object. `part` is head, worker, submitter, or empty for a workload of Kubernetes itself."""

    where: str
    part: str
    group: Object  # the head group or worker group; for others an empty object
    template: Object

    @property
    def spec(self) -> Object:
        spec: Object = self.template.get("spec") or {}
        return spec

    @property
    def containers(self) -> list[Object]:
        return [*(self.spec.get("initContainers") or []), *(self.spec.get("containers") or [])]

    def volume(self, path: str, container: Object) -> Object | None:
        """The volume that the container mounts at `path`."""
        names = [mount["name"] for mount in container.get("volumeMounts") or [] if mount["mountPath"] == path]
        return next((v for v in self.spec.get("volumes") or [] if v["name"] in names), None)


@dataclass(frozen=True)
class RayJobSpec:
    """The spec of a RayJob, or of one that a RayCronJob or our CronJob makes."""

    where: str
    holder: Object
    spec: Object

    @property
    def cluster(self) -> Object:
        cluster: Object = self.spec.get("rayClusterSpec") or {}
        return cluster


def name_of(obj: Object) -> str:
    return f"{obj.get('kind')} {obj.get('metadata', {}).get('name')}"


def quantity(value: Any) -> float:
    """A Kubernetes quantity as a number: bytes, CPUs, pieces. ValueError if it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([a-zA-Z]*)", str(value))
    if match is None or (match[2] and match[2] not in _SUFFIXES):
        raise ValueError(f"{value!r} is no quantity")
    return float(match[1]) * _SUFFIXES.get(match[2], 1.0)


def gib(size: float) -> str:
    return f"{size / 2**30:g} GiB"


@dataclass(frozen=True)
class Manifests:
    """All objects that are applied together."""

    objects: tuple[Object, ...]

    def of_kind(self, *kinds: str) -> list[Object]:
        return [obj for obj in self.objects if obj.get("kind") in kinds]

    def named(self, kind: str, name: str) -> Object | None:
        return next((obj for obj in self.of_kind(kind) if obj["metadata"].get("name") == name), None)

    @cached_property
    def ray_jobs(self) -> list[RayJobSpec]:
        jobs = [RayJobSpec(name_of(obj), obj, obj.get("spec") or {}) for obj in self.of_kind("RayJob")]
        for obj in self.of_kind("RayCronJob"):
            jobs.append(RayJobSpec(name_of(obj), obj, (obj.get("spec") or {}).get("jobTemplate") or {}))
        return jobs

    @cached_property
    def clusters(self) -> list[tuple[str, Object]]:
        """Where, and the spec of each RayCluster: those of their own, and those of jobs."""
        own = [(name_of(obj), obj.get("spec") or {}) for obj in self.of_kind("RayCluster")]
        return own + [(job.where, job.cluster) for job in self.ray_jobs if job.cluster]

    @cached_property
    def pods(self) -> list[Pod]:
        return list(self._pods())

    def _pods(self) -> Iterator[Pod]:
        for obj in self.of_kind(*_WORKLOADS):
            yield Pod(name_of(obj), "", {}, obj["spec"].get("template") or {})
        for obj in self.of_kind("CronJob"):
            yield Pod(name_of(obj), "", {}, obj["spec"]["jobTemplate"]["spec"].get("template") or {})
        for obj in self.of_kind("Pod"):
            yield Pod(name_of(obj), "", {}, obj)
        for job in self.ray_jobs:
            if "submitterPodTemplate" in job.spec:
                yield Pod(f"{job.where}, submitter", "submitter", {}, job.spec["submitterPodTemplate"])
        for where, cluster in self.clusters:
            head = cluster.get("headGroupSpec") or {}
            yield Pod(f"{where}, head", "head", head, head.get("template") or {})
            for group in cluster.get("workerGroupSpecs") or []:
                yield Pod(f"{where}, workers {group.get('groupName')}", "worker", group, group.get("template") or {})


def environment(container: Object) -> dict[str, str]:
    """Variables that have a literal value."""
    return {each["name"]: str(each["value"]) for each in container.get("env") or [] if "value" in each}


def strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text below `value`, with its path."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from strings(below, f"{path}.{key}")
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from strings(below, f"{path}[{number}]")
    elif isinstance(value, str):
        yield path, value


def words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
