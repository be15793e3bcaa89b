"""Lines of worker processes come out as lines of the driver's log. The real Ray, in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.places import ROOT

JOB = """
import logging, sys
from pipeline.cluster.environment import set_ray_environment
set_ray_environment()
from pipeline.telemetry.log_lines import send_log_lines, show_log_lines
show_log_lines(sys.argv[1])
import ray
from pipeline.cluster.resources import connect

@ray.remote
class Worker:
    def work(self):
        send_log_lines()
        logging.getLogger("pipeline.segment.actor").error("a crash", extra={"shard": 7})
        print("printed by a library")
        print("a complaint", file=sys.stderr)

if __name__ == "__main__":
    connect()
    worker = Worker.remote()
    ray.get(worker.work.remote())
    sys.stdin.readline()  # until the test has seen all lines
"""


@pytest.mark.thorough  # in `make test`, tests/jobs/test_process_killers.py looks at such lines as text
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_lines_of_workers_are_lines_of_the_driver(tmp_path, log_format):
    job = tmp_path / "job.py"
    job.write_text(JOB)
    wanted = {"a crash": "ERROR", "printed by a library": "INFO", "a complaint": "WARNING"}
    process = subprocess.Popen(
        [sys.executable, str(job), log_format],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = []
    while sum(any(words in line for line in lines) for words in wanted) < len(wanted):
        line = process.stderr.readline()
        assert line, lines
        lines.append(line)
    _, rest = process.communicate("\n", timeout=300)
    lines += rest.splitlines()
    for words, level in wanted.items():
        [line] = [line for line in lines if words in line]
        if log_format == "json":
            said = json.loads(line)
            assert (said["level"], said["message"]) == (level, words) and said["worker"].startswith("Worker ")
            assert said.get("shard") == (7 if words == "a crash" else None)
        else:
            assert f"Z {level}: {words} [Worker " in line
    assert log_format == "text" or all(json.loads(line) for line in lines)
