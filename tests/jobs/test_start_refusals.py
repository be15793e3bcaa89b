"""A machine on which a job cannot run: one line that names the cause, and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cluster.environment import set_ray_environment

ROOT = Path(__file__).parents[2]


def refused(*args: object, **environment: str) -> str:
    """The last line on stderr of a job that ends with exit code 2 and without a stack."""
    process = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 2, process.stderr
    assert "Traceback" not in process.stderr
    return process.stderr.splitlines()[-1]


@pytest.mark.thorough
@pytest.mark.parametrize("job", ["segment_bucket.py", "selfcheck.py"])
def test_bf16_on_a_cpu_without_amx(photographs, tiny_checkpoint, tmp_path, job):
    flags = ["--input", photographs, "--output", tmp_path, "--model", tiny_checkpoint, "--precision", "bf16"]
    line = refused(
        f"jobs/{job}",
        *flags,
        "--device",
        "cpu",
        ATEN_CPU_CAPABILITY="avx2",
        ONEDNN_MAX_CPU_ISA="AVX2",
    )
    assert line.startswith(f"{job}: error: --precision bf16: bf16 on a CPU needs AMX, this CPU has AVX2")
    assert not list(tmp_path.rglob("run.json"))


def test_ray_has_minutes_to_start_unless_the_user_says_otherwise(monkeypatch):
    names = ("RAY_raylet_start_wait_time_s", "RAY_gcs_server_port_wait_time_s")
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_MODE": "disabled", names[0]: "7"})
    set_ray_environment()
    assert [os.environ[name] for name in names] == ["7", "300"]  # the other default is 60
