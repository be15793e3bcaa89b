"""A local Ray: a first start that fails as on a busy machine is repeated, and Ctrl-C ends all processes at once."""

import os
import subprocess
import sys
import textwrap

import psutil
import pytest

from tests.support.places import ROOT
from tests.support.waiting import wait_until

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
assert {"raylet", "gcs_server"} <= {process.name() for process in below}
print(*(process.pid for process in below), flush=True)
atexit.register(print, "left", flush=True)
end_own_ray_at_once()
"""


@pytest.mark.thorough  # in `make test`, nobody presses Ctrl-C
def test_a_ray_that_is_ended_at_once_leaves_nothing():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", ENDED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pids, left = done.stdout.splitlines()
    assert left == "left", "other functions of atexit run"
    wait_until(lambda: not [pid for pid in map(int, pids.split()) if psutil.pid_exists(pid)])
