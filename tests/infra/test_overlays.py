"""Every overlay builds, and every object of it keeps the schemas of Kubernetes 1.37 and KubeRay 1.7 and our rules."""

import copy
import re

import pytest
import yaml

from infra.check_manifests import faults
from tests.support.manifests import (
    KUBERNETES,
    OVERLAYS,
    find,
    is_of_ray,
    overlay,
    ray_validator,
    schema_faults,
    start_night,
)
from tests.support.places import ROOT


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_breaks_none_of_our_rules(name):
    assert faults(overlay(name), allow_placeholders=True) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_built_in_kinds_keep_their_schemas(name):
    found = {obj["metadata"]["name"]: schema_faults(obj) for obj in overlay(name) if not is_of_ray(obj)}
    assert len(found) > 3
    assert {each: broken for each, broken in found.items() if broken} == {}


@pytest.mark.parametrize("name", OVERLAYS)
def test_kinds_of_kuberay_keep_their_definitions(name):
    validate = ray_validator()
    if validate is None:
        pytest.skip("needs the definitions of KubeRay 1.7 in shared/tools beside the checkout")
    objects = [obj for obj in overlay(name) if is_of_ray(obj)]
    assert objects
    assert [validate(obj) for obj in objects] == [[] for _ in objects]
    dated = start_night().ray_job(find(objects, "RayCronJob"), "m2f-night-20261130-0100")
    assert validate(dated) == []


def test_the_placeholders_of_the_examples_are_faults_for_users():
    found = {(fault.rule, fault.where) for fault in faults(overlay("gpu-spot"))}
    accounts = {("placeholder", f"ServiceAccount {name}") for name in ("m2f-head", "m2f-worker")}
    assert accounts | {("placeholder", "RayCronJob m2f-night, /etc/m2f/night.yaml")} < found
    assert {rule for rule, _ in found} == {"placeholder"}


def test_the_ray_job_is_described_once():
    files = [
        path
        for path in KUBERNETES.rglob("*.yaml")
        if re.search(r"entrypoint:|name: ray-(head|worker)$", path.read_text(), re.M)
    ]
    assert [path.name for path in files] == ["night-template.yaml"]


def test_the_ray_of_the_manifests_is_the_ray_of_the_image():
    [pinned] = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    template = yaml.safe_load((KUBERNETES / "base" / "night-template.yaml").read_text())
    assert template["spec"]["jobTemplate"]["rayClusterSpec"]["rayVersion"] == pinned


def test_groups_of_the_fallback_differ_only_in_their_place():
    template = find(overlay("gpu-on-demand-fallback"), "RayCronJob")
    spot, on_demand = template["spec"]["jobTemplate"]["rayClusterSpec"]["workerGroupSpecs"]
    assert spot["priority"] > on_demand["priority"]
    assert spot["template"]["spec"]["nodeSelector"] != on_demand["template"]["spec"]["nodeSelector"]
    for group in (spot, on_demand):
        for field in ("groupName", "priority", "maxReplicas"):
            del group[field]
        del group["template"]["spec"]["nodeSelector"], group["template"]["spec"]["tolerations"]
    assert spot == on_demand


def test_the_schedules_of_kuberay_and_kubernetes_agree():
    objects = overlay("gpu-spot")
    by_kubernetes, by_kuberay = find(objects, "CronJob")["spec"], find(objects, "RayCronJob")["spec"]
    assert [by_kubernetes[field] for field in ("schedule", "timeZone")] == [
        by_kuberay[field] for field in ("schedule", "timeZone")
    ]


def test_only_one_of_them_starts_nights():
    for name in OVERLAYS:
        objects = overlay(name)
        starters = [obj for obj in objects if obj["kind"] == "CronJob"]
        starters += [obj for obj in objects if obj["kind"] == "RayCronJob" and not obj["spec"]["suspend"]]
        assert len(starters) == 1, name


def test_a_dated_ray_job_is_the_template_with_its_labels():
    template = find(overlay("kueue"), "RayCronJob")
    before = copy.deepcopy(template)
    job = start_night().ray_job(template, "m2f-night-20261130-0100")
    assert job["spec"] == before["spec"]["jobTemplate"] and job["kind"] == "RayJob"
    assert (
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
        == find(overlay("kueue"), "LocalQueue")["metadata"]["name"]
    )
