"""A local Ray whose first start fails as on a busy machine: its processes end, and the next start succeeds."""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.support.places import ROOT

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
