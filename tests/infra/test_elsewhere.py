"""Starts without Kubernetes: files for `ray up`, one machine with Docker, SkyPilot, Hugging Face Jobs."""

import json
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

from infra.check_ray_up import faults, main
from tests.support.places import ROOT

INFRA = ROOT / "infra"
IMAGE = "registry.example.com/m2f-pipeline@sha256:" + "1a" * 32
SECRET = "not-to-be-seen"


def ray_up(name: str) -> dict:
    """A file for `ray up`; a round through JSON makes several objects of one that YAML's anchors share."""
    return json.loads(json.dumps(yaml.safe_load((INFRA / "ray-up" / f"{name}.yaml").read_text())))


@pytest.mark.parametrize("name", ["aws", "on-premise"])
def test_files_for_ray_up_have_no_fault(name):
    assert faults(ray_up(name), allow_placeholders=True) == []


BROKEN = {
    "unknown key": ("aws", lambda c: c.update(max_worker=8), "Ray refuses it: Additional properties"),
    "text as a number": ("aws", lambda c: c.update(max_workers="8"), "'8' is not of type"),
    "no such head": ("aws", lambda c: c.update(head_node_type="cpu"), "Ray refuses it"),
    "half a GPU": ("aws", lambda c: node(c).update(resources={"CPU": 8, "GPU": 0.5}), "0.5 is not of type"),
    "min > max": ("aws", lambda c: node(c).update(min_workers=4, max_workers=2), "min_workers 4 <= max_workers 2"),
    "more than the cluster": ("aws", lambda c: node(c).update(max_workers=9), "<= max_workers 9 <= 8 of the cluster"),
    "typo in node_config": ("aws", lambda c: node(c)["node_config"].update(InstanceTyp="x"), "Unknown parameter"),
    "typo below node_config": (
        "aws",
        lambda c: node(c)["node_config"]["InstanceMarketOptions"].update(Market="spot"),
        'Unknown parameter in InstanceMarketOptions: "Market"',
    ),
    "number as a text in node_config": (
        "aws",
        lambda c: node(c)["node_config"]["BlockDeviceMappings"][0]["Ebs"].update(VolumeSize="150"),
        "Invalid type for parameter BlockDeviceMappings[0].Ebs.VolumeSize",
    ),
    "actors on the head": ("aws", lambda c: node(c, "head").update(resources={"CPU": 4}), "the head offers CPUs"),
    "head on spot": (
        "aws",
        lambda c: node(c, "head")["node_config"].update(InstanceMarketOptions={"MarketType": "spot"}),
        "the head is a spot machine",
    ),
    "no token": ("aws", lambda c: c.update(worker_start_ray_commands=["ray start"]), "without RAY_AUTH_MODE=token"),
    "workers without a machine": ("on-premise", lambda c: c.update(max_workers=3), "max_workers is 3, but worker_ips"),
    "address twice": (
        "on-premise",
        lambda c: c["provider"].update(worker_ips=["10.0.0.10", "10.0.0.11"]),
        "an address stands twice",
    ),
}


def node(config: dict, name: str = "gpu") -> dict:
    return config["available_node_types"][name]


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_files_for_ray_up_are_refused(fault):
    name, change, said = BROKEN[fault]
    config = ray_up(name)
    change(config)
    assert said in "\n".join(faults(config, allow_placeholders=True))


def test_the_checker_of_ray_up_tells_placeholders_and_files_that_are_none(tmp_path, capsys):
    assert main([str(INFRA / "ray-up" / "aws.yaml")]) == 2
    assert "is a placeholder" in capsys.readouterr().out
    (tmp_path / "x.yaml").write_text("- 1")
    assert main([str(tmp_path / "x.yaml")]) == 2 and main([str(tmp_path / "nothing.yaml")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def run(script: str, *args: object, path: Path | str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a script of infra/ with programs from `path`."""
    clean = {"PATH": f"{path}:/usr/bin:/bin", "HOME": environment.pop("HOME", "/nonexistent"), **environment}
    command = [INFRA / script, *map(str, args)]
    return subprocess.run(command, env=clean, capture_output=True, text=True, check=False)


@pytest.fixture
def docker(tmp_path) -> Path:
    """A folder with a `docker` that prints its arguments."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor each in "$@"; do printf "%s\\n" "$each"; done\n')
    program.chmod(0o755)
    return program.parent


def test_one_machine_with_docker(docker, tmp_path):
    (tmp_path / "a b").mkdir()
    settings = tmp_path / "a b" / "night.yaml"
    settings.write_text("input: s3://b/i\n")
    done = run("docker/run.sh", IMAGE, settings, path=docker, AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="eu-central-1")
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[:1] == ["run"] and words[-4:] == [IMAGE, "m2f-segment", "--config", "/etc/m2f/night.yaml"]
    assert f"type=bind,source={settings},destination=/etc/m2f/night.yaml,readonly" in words
    assert {"--read-only", "no-new-privileges", "1000:1000", "--gpus"} <= set(words)
    assert words[words.index("AWS_SECRET_ACCESS_KEY") - 1] == "--env" and SECRET not in done.stdout
    assert "--gpus" not in run("docker/run.sh", IMAGE, settings, path=docker, GPUS="none").stdout


@pytest.mark.parametrize("script", ["docker/run.sh", "hf-jobs/run.sh"])
def test_an_image_without_digest_is_one_line(script, docker, tmp_path):
    done = run(script, "m2f:latest", tmp_path, path=docker)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "m2f:latest has no digest" in done.stderr


def test_settings_that_are_not_there_are_one_line(docker):
    done = run("docker/run.sh", IMAGE, "/nowhere.yaml", path=docker)
    assert done.returncode == 2 and done.stderr == "run.sh: error: /nowhere.yaml cannot be read\n"


def test_hugging_faces_program_takes_the_job():
    """`hf jobs run --dry-run` reads the flags and prints the job, without a network."""
    flags = ["--input", "s3://b/i", "--output", "s3://b/o"]
    scripts = sysconfig.get_path("scripts")
    done = run("hf-jobs/run.sh", IMAGE, *flags, path=scripts, DRY_RUN="1", AWS_SECRET_ACCESS_KEY=SECRET, NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    said = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert ["command", f"m2f-segment --log-format json {shlex.join(flags)}"] in said and ["image", IMAGE] in said
    assert ["secrets", "AWS_SECRET_ACCESS_KEY=***"] in said and SECRET not in done.stdout


def test_the_task_of_skypilot_names_what_exists():
    """Its schema is in a package of 460 MB; docs/cluster.md says that SkyPilot's own check was run by hand."""
    task = yaml.safe_load((INFRA / "skypilot" / "task.yaml").read_text())
    assert set(task) == {"name", "workdir", "resources", "file_mounts", "setup", "run"}
    [(there, here)] = task["file_mounts"].items()
    assert here == "./night.yaml" and f"m2f-segment --config {there}" in task["run"]
    assert "unset RAY_ADDRESS" in task["run"] and "constraints.txt" in task["setup"]
    for script in (task["setup"], task["run"]):
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_every_file_begins_with_the_command_that_starts_it():
    commands = {
        "ray-up/aws.yaml": "ray up infra/ray-up/aws.yaml",
        "ray-up/on-premise.yaml": "ray up infra/ray-up/on-premise.yaml",
        "docker/run.sh": "infra/docker/run.sh registry",
        "skypilot/task.yaml": "sky jobs launch",
        "hf-jobs/run.sh": "infra/hf-jobs/run.sh registry",
    }
    for file, command in commands.items():
        head = (INFRA / file).read_text().split("\n\n")[0][:600]
        assert f"#   {command}" in head, file
        assert not file.endswith(".sh") or os.access(INFRA / file, os.X_OK)
