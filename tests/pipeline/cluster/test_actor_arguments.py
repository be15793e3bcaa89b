"""Actors of a pool start with arguments by value: Ray's line about lost arguments does not come, a restart needs none.

The real Ray, in a process of its own, because Ray prints the line from C++ to the file descriptor, once a process.
"""

import os
import subprocess
import sys
import textwrap

import pytest

from tests.support.places import ROOT

JOB = """
import logging, os, signal
import ray
from pipeline.cluster.actor_arguments import pass_actor_arguments_by_value
from pipeline.cluster.local_ray import init_again_if_busy
from tests.support.boards import answering_board
from ray.data import ActorPoolStrategy

class DiesOnce:
    def __init__(self, marker, tell): self.marker, self.tell = marker, tell
    def __call__(self, batch):
        with self.tell(7, "segmenting", "a"):
            return self.work(batch)
    def work(self, batch):
        if not os.path.exists(self.marker):
            open(self.marker, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"id": batch["id"] + 1}

if __name__ == "__main__":
    import sys
    if sys.argv[1] == "by value":
        pass_actor_arguments_by_value()
        pass_actor_arguments_by_value()
    init_again_if_busy(num_cpus=2, logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    board = answering_board()
    rows = ray.data.range(2, override_num_blocks=1).map_batches(
        DiesOnce, fn_constructor_args=(sys.argv[2], board.in_hand), compute=ActorPoolStrategy(size=1), max_restarts=-1,
        max_task_retries=4,
    ).take_all()
    assert [row["id"] for row in rows] == [1, 2], rows
    assert board.look().stages == {"segmenting"}, "the workers found the board"
"""


@pytest.mark.thorough  # in `make test`, tests/jobs/test_process_killers.py looks for the line
@pytest.mark.parametrize(("how", "printed"), [("by value", False), ("by reference", True)])
def test_an_actor_restarts_and_ray_has_nothing_to_say_about_its_arguments(tmp_path, how, printed):
    """`by reference` is Ray's own way; once its line is gone there too, this file is no longer needed."""
    job = tmp_path / "job.py"
    job.write_text(textwrap.dedent(JOB))
    done = subprocess.run(
        [sys.executable, str(job), how, str(tmp_path / "died")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert ("constructor arguments in the object store" in done.stderr) == printed, done.stderr
