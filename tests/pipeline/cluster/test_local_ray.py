"""A local Ray: a first start that fails as on a busy machine is repeated, Ctrl-C ends all processes at once, and nobody
else reaches it."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.environment import set_ray_environment
from pipeline.cluster.local_ray import start_local_ray
from pipeline.errors import RunError
from tests.support.places import ROOT
from tests.support.sockets import is_loopback, listening
from tests.support.waiting import PATIENCE_SECONDS, wait_until


def test_others_are_told_apart_from_this_machine():
    assert all(map(is_loopback, ["127.0.0.1", "127.0.0.53", "::1", "::ffff:127.0.0.1"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.0.2.2", "::ffff:192.0.2.2", "::ffff:0.0.0.0"]))


def test_a_folder_that_another_user_has_laid_out_for_ray_is_refused(tmp_path, monkeypatch):
    (tmp_path / f"m2f-{os.geteuid()}").symlink_to("/")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(RunError, match=r"Ray cannot start on this machine: .* another user; set RAY_TMPDIR"):
        start_local_ray(log_to_driver=False)


def test_a_job_that_joins_a_cluster_leaves_rays_addresses_alone(monkeypatch):
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": "10.0.0.1:6379", "HOME": "/"})
    set_ray_environment()
    assert os.environ.keys() == {"RAY_ADDRESS", "HOME", "RAY_USAGE_STATS_ENABLED"}
    del os.environ["RAY_ADDRESS"]
    set_ray_environment()
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_a_user_without_a_home_gets_one_for_ray_train(tmp_path, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": "10.0.0.1:6379"})
    set_ray_environment()
    assert os.environ["HOME"] == str(tmp_path / f"m2f-{os.geteuid()}")


# Python runs this file at the start of each process of Ray; the first dashboard agent takes too long.
SLOW = """
import os, sys, time
if any("dashboard/agent.py" in arg for arg in sys.orig_argv):
    try:
        os.close(os.open(os.environ["SLOW_ONCE"], os.O_CREAT | os.O_EXCL))
        time.sleep(600)
    except FileExistsError:
        pass
"""
PROGRAM = """
import logging, os
import psutil, ray
from pipeline.cluster.environment import set_ray_environment
set_ray_environment()
logging.basicConfig(format="%(message)s")
from pipeline.cluster.resources import connect
assert connect().cpus > 1
raylets = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
print(len(raylets), ray.get(ray.remote(lambda: 42).remote()))
"""


@pytest.mark.thorough
def test_a_start_that_a_busy_machine_ends_is_repeated(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(SLOW))
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_raylet_start_wait_time_s"},
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "SLOW_ONCE": str(tmp_path / "slow"),
        "RAY_raylet_start_wait_time_s": "40",
    }
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "slow").exists() and "4 attempts left" in done.stderr, done.stderr
    assert done.stdout.split() == ["1", "42"], "one raylet is left, that of the second start"


ENDED = """
import atexit, os
atexit.register(os._exit, 0)  # the first registered runs last
import psutil, ray
from pipeline.cluster.environment import set_ray_environment
set_ray_environment()
from pipeline.cluster.local_ray import end_own_ray_at_once
end_own_ray_at_once()  # without a Ray nothing happens
from pipeline.cluster.resources import connect
connect()
ray.get(ray.remote(lambda: 42).remote())
below = psutil.Process().children(recursive=True)
from tests.pipeline.cluster.test_local_ray import check_that_others_are_kept_out
check_that_others_are_kept_out(os.getpid(), below)
assert {"raylet", "gcs_server"} <= {process.name() for process in below}
print(*(process.pid for process in below), flush=True)
atexit.register(print, "left", flush=True)
end_own_ray_at_once()
"""


def check_that_others_are_kept_out(pid: int, below: list[psutil.Process]) -> None:
    """No process listens on the network, this machine can read the metrics, and only this user can enter the folder."""
    import ray

    listeners = listening([pid, *(process.pid for process in below)])
    assert {"raylet", "gcs_server"} <= listeners.keys()
    assert all(map(is_loopback, set().union(*listeners.values()))), listeners
    [node] = ray.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer:
        assert b"# HELP ray_" in answer.read()
    place = Path(os.environ["RAY_TMPDIR"])
    [private] = place.iterdir()
    assert private.name == f"m2f-{os.geteuid()}" and stat.S_IMODE(private.stat().st_mode) == 0o700
    sockets = Path(node["ObjectStoreSocketName"])
    assert sockets.exists() and sockets.is_relative_to(private / "ray")


@pytest.mark.thorough  # the sockets are checked in `make test` too, in jobs/test_process_killers.py
def test_a_ray_keeps_others_out_and_leaves_nothing_when_it_is_ended_at_once():
    place = tempfile.mkdtemp(prefix="m2f-")  # short: the path of a socket may have 107 bytes
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": place}
    done = subprocess.run([sys.executable, "-c", ENDED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pids, left = done.stdout.splitlines()
    assert left == "left", "other functions of atexit run"
    wait_until(lambda: not [pid for pid in map(int, pids.split()) if psutil.pid_exists(pid)])
    shutil.rmtree(place)
