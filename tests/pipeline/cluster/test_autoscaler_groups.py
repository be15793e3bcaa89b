"""What the autoscaler can start counts, although Ray's own autoscaler does not tell it: at night no GPU is up yet."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import requests
from ray.autoscaler._private.kuberay import autoscaling_config

from pipeline.cluster import autoscaler_groups, resources
from pipeline.cluster.autoscaler_groups import Startable, StartableGroup, startable_groups
from pipeline.errors import RunError
from tests.support.manifests import find, overlay
from tests.support.places import ROOT
from tests.support.scaling_head import scaling_head
from tests.support.tables import read_report

IN_KUBERAY = {"RAY_CLUSTER_NAME": "m2f-night-x", "RAY_CLUSTER_NAMESPACE": "m2f", "RAY_enable_autoscaler_v2": "true"}


class ApiServer:
    """In place of Ray's client of the API server: answers with the RayCluster of an overlay."""

    answer = "gpu-on-demand-fallback"

    def __init__(self, namespace: str):
        assert namespace == IN_KUBERAY["RAY_CLUSTER_NAMESPACE"]

    def get(self, path: str) -> dict:
        assert path == f"rayclusters/{IN_KUBERAY['RAY_CLUSTER_NAME']}"
        if self.answer == "403":
            raise requests.HTTPError("403 Client Error: Forbidden")
        spec = find(overlay(self.answer), "RayCronJob")["spec"]["jobTemplate"]["rayClusterSpec"]
        return {"metadata": {"name": "m2f-night-x", "namespace": "m2f"}, "spec": spec}


@pytest.fixture
def in_kuberay(monkeypatch):
    for name, value in IN_KUBERAY.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(autoscaler_groups, "autoscaler_config", lambda: None)
    monkeypatch.setattr(autoscaling_config.node_provider, "KubernetesHttpApiClient", ApiServer)
    monkeypatch.setattr(autoscaling_config, "RAYCLUSTER_FETCH_RETRY_S", 0)


def test_worker_groups_of_kuberay_count_with_their_limits(in_kuberay):
    spot, on_demand = startable_groups().groups
    assert startable_groups().most_nodes == 12
    assert (spot.max_count, on_demand.max_count) == (8, 4)
    assert spot.resources == on_demand.resources
    assert (spot.resources["CPU"], spot.resources["GPU"]) == (7.0, 1.0)


def test_a_ray_cluster_that_cannot_be_read_is_one_line(in_kuberay, monkeypatch):
    monkeypatch.setattr(ApiServer, "answer", "403")
    with pytest.raises(
        RunError, match=r"RayCluster m2f-night-x can start: 403 Client Error: Forbidden; the account of"
    ):
        startable_groups()


def test_limits_that_an_autoscaler_has_told_come_first(in_kuberay, monkeypatch):
    from ray.core.generated import autoscaler_pb2

    told = autoscaler_pb2.ClusterConfig()
    told.node_group_configs.add(name="gpu", max_count=3).resources.update({"GPU": 1})
    monkeypatch.setattr(autoscaler_groups, "autoscaler_config", lambda: told)
    assert startable_groups() == Startable((StartableGroup({"GPU": 1.0}, 3),))


@pytest.mark.parametrize("text", ["a: [", "[]", "max_workers: 2", "max_workers: 2\navailable_node_types: 7\n"])
def test_a_broken_file_of_ray_up_is_one_line(tmp_path, monkeypatch, text):
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(text)
    monkeypatch.setattr(autoscaler_groups, "autoscaler_config", lambda: None)
    monkeypatch.setattr(autoscaler_groups, "_file_of_ray_up", lambda: file)
    with pytest.raises(RunError, match=r"how many nodes the autoscaler can start, from \S+yaml: "):
        startable_groups()


@pytest.mark.parametrize(
    ("port", "found"),
    [(6379, Startable((StartableGroup({"CPU": 8.0, "GPU": 1.0}, 8),), most_nodes=8)), (6380, Startable())],
)
def test_the_file_of_the_autoscaler_of_this_cluster_counts(tmp_path, monkeypatch, port, found):
    """A process with the command line of Ray's autoscaler; the driver knows the head by another address."""
    file = tmp_path / "ray_bootstrap_config.yaml"
    shutil.copy(ROOT / "infra" / "ray-up" / "aws.yaml", file)
    flags = ["--gcs-address=10.0.0.10:6379", f"--autoscaling-config={file}"]
    sleep = "import sys; print('up', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", sleep, "/ray/autoscaler/v2/monitor.py", *flags]
    monkeypatch.setattr(autoscaler_groups, "autoscaler_config", lambda: None)
    context = SimpleNamespace(gcs_address=f"127.0.0.1:{port}")
    monkeypatch.setattr(autoscaler_groups.ray, "get_runtime_context", lambda: context)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as autoscaler:
        try:
            assert autoscaler.stdout is not None and autoscaler.stdout.readline() == "up\n"
            assert startable_groups() == found
        finally:
            autoscaler.kill()


def test_the_limit_of_all_groups_of_ray_up_is_no_limit_of_each(tmp_path, monkeypatch):
    """Two groups share 6 nodes: counted for each, they would be 10."""
    file = tmp_path / "ray_bootstrap_config.yaml"
    groups = {
        "head": {"resources": {"CPU": 0}, "node_config": {}},
        "spot": {"resources": {"CPU": 8, "GPU": 1}, "node_config": {}},
        "on-demand": {"resources": {"CPU": 16, "GPU": 2}, "node_config": {}, "max_workers": 4},
    }
    file.write_text(json.dumps({"max_workers": 6, "head_node_type": "head", "available_node_types": groups}))
    monkeypatch.setattr(autoscaler_groups, "autoscaler_config", lambda: None)
    monkeypatch.setattr(autoscaler_groups, "_file_of_ray_up", lambda: file)
    monkeypatch.setattr(resources, "startable_groups", startable_groups)
    monkeypatch.setattr(resources, "joins_a_cluster", lambda: True)
    monkeypatch.setattr(resources.ray, "is_initialized", lambda: True)
    head = {"CPU": 0.0, "node:__internal_head__": 1.0}
    monkeypatch.setattr(resources.ray, "nodes", lambda: [{"Alive": True, "Resources": head}])
    found = resources.connect().for_gpus(100)
    assert (found.gpus, found.cpus) == (4 * 2 + 2, 4 * 16 + 2 * 8)
    assert sum(group.count for group in found.groups) == 1 + 6


@pytest.mark.thorough
def test_a_job_starts_on_a_cluster_that_has_no_node_but_the_head(tmp_path):
    """With Ray's own autoscaler: the GPUs that it can start are counted, and CPUs are started for the job."""
    node_types = {
        "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        "gpu": {"resources": {"CPU": 4, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 3},
    }
    scenes = tmp_path / "scenes"
    drawn = [sys.executable, ROOT / "jobs" / "make_scenes.py", "--output", scenes, "--number", "4"]
    subprocess.run(drawn, check=True, cwd=ROOT)
    with scaling_head(node_types, max_workers=4) as head:

        def run(*command: object) -> "subprocess.CompletedProcess[str]":
            words = [sys.executable, *map(str, command)]
            return subprocess.run(words, env=head.environment, cwd=ROOT, capture_output=True, text=True, check=False)

        code = "import json; from pipeline.cluster.resources import connect; r = connect(log_to_driver=False); "
        counted = run("-c", f"{code}print(json.dumps([r.gpus, r.gpus_now, r.cpus, len(r.groups)]))")
        assert counted.returncode == 0, counted.stderr
        assert json.loads(counted.stdout.splitlines()[-1]) == [3, 0, 14.0, 3]

        flags = ["--input", scenes / "images", "--output", tmp_path / "out", "--device", "cpu"]
        flags += ["--gpu-actors", "1:1", "--cpus-per-actor", "1"]
        job = run(ROOT / "jobs" / "segment_bucket.py", *flags)
        assert job.returncode == 0, job.stderr
        assert read_report(tmp_path / "out")["num_images"] == 4
