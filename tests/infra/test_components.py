"""Components on top of an overlay, alone and all together, as a user's kustomization lists them."""

import re
import subprocess

import pytest
import yaml

from infra.check_manifests import faults
from tests.support.manifests import (
    COMPONENTS,
    KUBERNETES,
    combined,
    fetch_weights,
    find,
    is_of_ray,
    ray_validator,
    schema_faults,
)
from tests.support.places import ROOT


def test_every_component_is_tested():
    assert sorted(COMPONENTS) == sorted(path.name for path in (KUBERNETES / "components").iterdir())


@pytest.mark.parametrize("components", [*((each,) for each in COMPONENTS), COMPONENTS], ids="-".join)
def test_a_component_keeps_schemas_and_rules(tmp_path, components):
    objects = combined(tmp_path, "gpu-spot", *components)
    assert faults(objects, allow_placeholders=True) == []
    validate = ray_validator() or (lambda obj: [])  # test_overlays.py skips where the definitions are missing
    broken = {obj["kind"]: validate(obj) if is_of_ray(obj) else schema_faults(obj) for obj in objects}
    assert {kind: found for kind, found in broken.items() if found} == {}


def test_the_interactive_cluster_has_the_machines_of_the_night(tmp_path):
    objects = combined(tmp_path, "gpu-spot", *COMPONENTS)
    cluster = find(objects, "RayCluster")["spec"]
    assert cluster.pop("suspend") is True
    assert cluster == find(objects, "RayCronJob")["spec"]["jobTemplate"]["rayClusterSpec"]
    assert len(cluster["workerGroupSpecs"]) == 2


def test_prometheus_reads_ports_that_ray_has_and_is_let_in(tmp_path):
    objects = combined(tmp_path, "gpu-spot", "monitoring")
    head = find(objects, "RayCronJob")["spec"]["jobTemplate"]["rayClusterSpec"]["headGroupSpec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in head["spec"]["containers"][0]["ports"]}
    monitor = find(objects, "PodMonitor")["spec"]
    read = [ports[endpoint["port"]] for endpoint in monitor["podMetricsEndpoints"]]
    let_in = find(objects, "NetworkPolicy", "m2f-prometheus")["spec"]["ingress"][0]["ports"]
    assert sorted(read) == sorted(port["port"] for port in let_in)
    ours = {name: value for name, value in monitor["selector"]["matchLabels"].items() if not name.startswith("ray.io/")}
    assert ours.items() <= head["metadata"]["labels"].items()


def test_grafana_finds_the_dashboard(tmp_path):
    config_map = find(combined(tmp_path, "gpu-spot", "monitoring"), "ConfigMap", "m2f-dashboard")
    assert config_map["data"] == {"dashboard.json": (ROOT / "infra" / "monitoring" / "dashboard.json").read_text()}
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_the_command_of_the_page_makes_an_object_of_the_alerts():
    page = (ROOT / "docs" / "cluster.md").read_text()
    [command] = re.findall(r"^(\{ printf .*?\}) \| kubectl apply -f -$", page, re.DOTALL | re.MULTILINE)
    made = subprocess.run(["bash", "-euc", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rules = yaml.safe_load(made)
    assert (rules["apiVersion"], rules["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((ROOT / "infra" / "monitoring" / "rules.yaml").read_text())


def test_weights_are_read_only_for_the_night_and_lie_where_the_job_puts_them(tmp_path):
    objects = combined(tmp_path, "gpu-spot", "weights", "on-demand-fallback")
    cluster = find(objects, "RayCronJob")["spec"]["jobTemplate"]["rayClusterSpec"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert len(pods) == 3
    for pod in pods:
        [mount] = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "weights"]
        assert mount == {"name": "weights", "mountPath": "/models", "readOnly": True}
    job = find(objects, "Job")["spec"]["template"]["spec"]["containers"][0]
    assert job["command"][-1].startswith("/models/")


def test_a_checkpoint_is_fetched_once(tiny_checkpoint, tmp_path, capsys):
    arguments = [f"file://{tiny_checkpoint}", str(tmp_path / "models" / "checkpoint")]
    assert fetch_weights().main(arguments) == 0 and fetch_weights().main(arguments) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "already" not in first and "already" in second
    files = {path.name: path.read_bytes() for path in (tmp_path / "models" / "checkpoint").iterdir()}
    assert files and all((tiny_checkpoint / name).read_bytes() == content for name, content in files.items())


def test_another_checkpoint_is_not_overwritten(tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    assert fetch_weights().main([str(tiny_checkpoint), str(folder)]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert fetch_weights().main(["synthetic-scenes", str(folder)]) == 2
    assert "holds another checkpoint than synthetic-scenes" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("arguments", [[], ["a"], ["/nowhere", "{folder}"]])
def test_wrong_arguments_are_one_line(arguments, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    assert fetch_weights().main([each.format(folder=folder) for each in arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not folder.exists()
