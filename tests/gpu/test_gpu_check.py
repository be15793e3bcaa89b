"""The script for the first machine with a GPU, without one: every step runs to its end with the fakes."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from tests.gpu import check
from tests.gpu.check import main, run_steps
from tests.gpu.devices import FakeGpu
from tests.gpu.steps import STEPS, Step
from tests.support.places import ROOT
from tests.support.waiting import wait_until


def test_every_step_has_figures(tmp_path):
    """As a process of its own, as people start it: its steps are forks, which hang where threads computed before."""
    command = [sys.executable, "-m", "tests.gpu.check", "--fake", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "gpu-check.json").read_text())["steps"]
    assert [(one["step"], one["ended"]) for one in written] == [(name, "ok") for name in STEPS]
    assert all(one["rows"] for one in written)
    tables = (tmp_path / "gpu-check.md").read_text()
    assert all(step.title in tables for step in STEPS.values())
    assert (tmp_path / "profile.json").stat().st_size > 1000


def test_a_step_that_does_not_succeed_is_recorded_and_the_next_one_goes_on(tmp_path, monkeypatch):
    def fails(device, folder):
        yield {"a figure": 1}
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def dies(device, folder):
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(device, folder):
        if os.fork() == 0:  # a process of its own, which must not stay
            (tmp_path / "below").write_text(str(os.getpid()))
        time.sleep(600)

    made = {"fails": fails, "dies": dies, "hangs": hangs, "is good": lambda device, folder: [{"one|": 1.23456789}]}
    monkeypatch.setattr(check, "STEPS", {name: Step(name, step, 3) for name, step in made.items()})
    monkeypatch.setattr(FakeGpu, "patience", 1.0)
    outcomes = run_steps(list(made), FakeGpu(), tmp_path)
    assert [one.ended for one in outcomes] == ["failed", "died", "timed out", "ok"]
    assert "an illegal memory access" in outcomes[0].said and "-9" in outcomes[1].said
    assert outcomes[0].rows == [{"a figure": 1}], "what it had is kept"
    below = int((tmp_path / "below").read_text())
    wait_until(lambda: not psutil.pid_exists(below) or psutil.Process(below).status() == psutil.STATUS_ZOMBIE)
    tables = (tmp_path / "gpu-check.md").read_text()
    assert "an illegal memory access" in tables and "| one/ |\n|---|\n| 1.235 |" in tables


def test_steps_for_which_no_time_is_left_are_left_out(tmp_path):
    [outcome] = run_steps(["about"], FakeGpu(), tmp_path, seconds=0.05)
    assert outcome.ended == "left out"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_script_says_so(tmp_path):
    assert main(["--output", str(tmp_path), "--only", "about"]) == 1
    assert "PyTorch sees no GPU" in (tmp_path / "gpu-check.md").read_text()
