"""A pool's processes end with the process that made the pool."""

import os
import subprocess
import sys

import psutil
import pytest

from pipeline.errors import RunError
from pipeline.guard.worker_pool import worker_pool
from tests.support.places import ROOT
from tests.support.waiting import wait_until

PROGRAM = """
import os
import time
from pipeline.guard.worker_pool import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool:
        both = [pool.submit(time.sleep, 0.5) for _ in range(2)]
        print(*{pool.submit(os.getpid).result() for _ in both}, flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_workers_end_with_a_process_that_is_killed(how, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command, environment = [sys.executable, str(tmp_path / "program.py")], {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        workers = psutil.Process(process.pid).children(recursive=True)
        assert pids and {worker.pid for worker in workers} >= set(pids)
        getattr(process, how)()
        wait_until(lambda: not any(worker.is_running() and worker.status() != "zombie" for worker in workers))


def test_a_worker_that_dies_is_an_error():
    with pytest.raises(RunError, match="a worker process died"), worker_pool(1) as pool:
        pool.submit(os._exit, 1).result()


def double(number: int) -> int:
    return 2 * number


def test_it_is_a_pool():
    with worker_pool(1) as pool:
        assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]
