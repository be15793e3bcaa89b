"""A machine on which a job cannot run: one line that names the cause, and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("selfcheck", [[], ["--selfcheck"]])
def test_bf16_on_a_cpu_without_amx(photographs, tiny_checkpoint, tmp_path, selfcheck):
    flags = ["--input", photographs, "--output", tmp_path, "--model", tiny_checkpoint, "--precision", "bf16"]
    line = refused(
        "jobs/segment_bucket.py",
        *flags,
        "--device",
        "cpu",
        *selfcheck,
        ATEN_CPU_CAPABILITY="avx2",
        ONEDNN_MAX_CPU_ISA="AVX2",
    )
    assert line.startswith("segment_bucket.py: error: --precision bf16: bf16 on a CPU needs AMX, this CPU has AVX2")
    assert not list(tmp_path.rglob("run.json"))
