"""Who is found, who is killed, and above all who is not."""

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.drill.processes import find, kill, kill_all_below, kill_one, look_at, outlive, processes_below
from tests.support.waiting import wait_until

FETCH, MODEL = "ray::MapWorker(MapBatches(FetchImages)).submit", "ray::MapWorker(MapBatches(SegmentImages))"


class Job:
    """A process with children that call themselves what Ray's workers call themselves."""

    def __init__(self, *titles: str):
        lines = [f"(exec -a '{title}' sleep 600) &" for title in titles]
        self.process = subprocess.Popen(["bash", "-c", "\n".join([*lines, "wait"])], start_new_session=True)
        self.pid = self.process.pid
        wait_until(
            lambda: sorted(p.command.removesuffix(" 600") for p in processes_below([self.pid])) == sorted(titles)
        )

    def close(self) -> None:
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def two_jobs() -> Iterator[tuple[Job, Job]]:
    jobs = Job(FETCH, MODEL, MODEL), Job(FETCH, MODEL)
    yield jobs
    for job in jobs:
        job.close()


def test_roles_are_told_by_the_title_and_jobs_by_parentage(two_jobs):
    one, other = two_jobs
    assert [len(find(role, [one.pid])) for role in ("fetch", "model", "write", "read plan", "raylet")] == [
        1,
        2,
        0,
        0,
        0,
    ]
    assert len(find("model", [one.pid, other.pid])) == 3
    assert not {p.pid for p in find("model", [one.pid])} & {p.pid for p in find("model", [other.pid])}
    assert find("model", [one.process.pid + 4_000_000]) == []


def test_one_of_the_role_dies_and_nobody_else(two_jobs):
    one, other = two_jobs
    before = {p.pid for p in processes_below([one.pid, other.pid])}
    victim = kill_one("model", [one.pid], random.Random(1))
    assert victim is not None and victim.command.startswith(MODEL)
    assert outlive([victim], 10) == []
    assert {p.pid for p in processes_below([one.pid, other.pid])} == before - {victim.pid}
    assert kill_one("write", [one.pid], random.Random(1)) is None


def test_a_pid_that_is_anothers_by_now_is_left_alone(two_jobs):
    [process] = find("fetch", [two_jobs[0].pid])
    began = process.handle.create_time()
    stale = look_at(process.pid)
    # As psutil remembers a process of the same pid that began an hour before.
    stale.handle._create_time, stale.handle._ident = began - 3600, (process.pid, began - 3600)
    assert not stale.is_alive() and not kill(stale)
    assert find("fetch", [two_jobs[0].pid]) == [process]


def test_who_is_dead_gets_no_signal_reaped_or_not():
    child = subprocess.Popen(["sleep", "600"])
    seen = look_at(child.pid)
    child.kill()
    assert outlive([seen], 30) == []  # dead, and not reaped
    assert look_at(child.pid) is None and not kill(seen) and child.pid not in pids_below_this()
    child.wait()
    assert look_at(child.pid) is None and not kill(seen)


def pids_below_this() -> set[int]:
    return {process.pid for process in processes_below([os.getpid()])}


def test_everything_below_ends_also_what_becomes_an_orphan(two_jobs):
    one, other = two_jobs
    below = processes_below([one.pid])
    kill_all_below([one.pid])
    assert outlive(below, 0) == [] and one.process.wait() == -signal.SIGKILL
    assert len(processes_below([other.pid])) == 2


def test_who_does_not_end_in_time_is_killed_and_named(two_jobs):
    [fetch] = find("fetch", [two_jobs[0].pid])
    assert outlive([fetch], 0.1) == [fetch]
    assert outlive([fetch], 10) == []


def test_the_titles_are_those_of_ray(ray_session):
    """Ray makes them from the names of our classes and of its own."""
    import ray.data

    from pipeline.commit.write import EncodeAndWrite
    from pipeline.drill.processes import _TITLES
    from pipeline.inputs.fetch import FetchImages
    from pipeline.plan.source import ShardSource
    from pipeline.segment.actor import SegmentImages

    names = [FetchImages.__name__, SegmentImages.__name__, EncodeAndWrite.__name__, ShardSource.__name__]
    assert [title for title, name in zip(_TITLES.values(), names, strict=True) if name not in title] == []

    class Look:
        def __call__(self, row):
            return {"title": [Path("/proc/self/cmdline").read_text().split("\0")[0]]}

    dataset = ray.data.from_items([{"x": 1}]).map_batches(
        Look, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=0.1
    )
    assert dataset.take(1)[0]["title"].startswith(_TITLES["model"].replace("SegmentImages", "Look")[:-1])
    assert any(process.command for process in find("raylet", [os.getpid()]))
