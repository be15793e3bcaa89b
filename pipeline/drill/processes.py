"""Find the processes of a job by their role, and kill them: for drills.

Only descendants of given processes are found, so that a drill never touches another job on the machine.
"""

import random
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import psutil

from pipeline.cluster.ray_private import RAYLET_PROGRAM, map_actor_title, read_task_title

Role = Literal["fetch", "model", "write", "read plan", "raylet"]

# Role -> start of the process's command line; the name of the running method follows.
_TITLES: dict[Role, str] = {
    "fetch": map_actor_title("FetchImages"),
    "model": map_actor_title("SegmentImages"),
    "write": map_actor_title("EncodeAndWrite"),
    "read plan": read_task_title("ShardSource"),
}
_DEAD = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
ACTORS: tuple[Role, ...] = ("fetch", "model", "write")


@dataclass(frozen=True)
class Process:
    """A process as it was found: psutil's handle, which always means this one process, and the command line."""

    handle: psutil.Process
    command: str

    @property
    def pid(self) -> int:
        return int(self.handle.pid)

    def is_alive(self) -> bool:
        """Whether exactly this process still runs; a zombie does not count as running."""
        try:
            return self.handle.is_running() and self.handle.status() not in _DEAD
        except psutil.NoSuchProcess:
            return False


def look_at(pid: int) -> Process | None:
    """The process that has this pid now. None if there is no such process or it is a zombie."""
    try:
        handle = psutil.Process(pid)
        process = Process(handle, " ".join(handle.cmdline()))
    except psutil.Error:
        return None
    return process if process.is_alive() else None


def processes_below(roots: Iterable[int]) -> list[Process]:
    """Living descendants of `roots`, without `roots` themselves."""
    psutil.process_iter.cache_clear()  # the cache may hold a dead process with the same pid
    children: dict[int, list[Process]] = {}
    for handle in psutil.process_iter(["ppid", "cmdline", "status"]):
        if handle.info["status"] not in _DEAD:
            process = Process(handle, " ".join(handle.info["cmdline"] or ()))
            children.setdefault(handle.info["ppid"], []).append(process)
    found: list[Process] = []
    waiting = list(roots)
    while waiting:
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += [process.pid for process in below]
    return found


def find(role: Role, roots: Iterable[int]) -> list[Process]:
    """The descendants of `roots` that have this role now."""
    if role == "raylet":
        return [process for process in processes_below(roots) if process.command.split(" ")[0].endswith(RAYLET_PROGRAM)]
    return [process for process in processes_below(roots) if process.command.startswith(_TITLES[role])]


def kill(process: Process, number: int = signal.SIGKILL) -> bool:
    """Send the signal to exactly this process; False if it is gone, even if its pid was reused."""
    try:
        if not process.is_alive():
            return False
        process.handle.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def kill_one(role: Role, roots: Iterable[int], chance: random.Random) -> Process | None:
    """Kill a random process of this role; None if there is no such process."""
    candidates = sorted(find(role, roots), key=lambda process: process.pid)
    while candidates:
        process = candidates.pop(chance.randrange(len(candidates)))
        if kill(process):
            return process
    return None


def kill_all_below(roots: Iterable[int], seconds: float = 30.0) -> None:
    """Kill `roots` and all their descendants at the end of a drill. RuntimeError if a process does not end.

    `roots` are children of this process that have not been waited for, so their pids cannot have been reused.
    """
    roots = list(roots)
    end = time.monotonic() + seconds
    known = {process.pid: process for process in map(look_at, roots) if process is not None}
    while True:
        # An orphan has lost the link to its dead parent, so remember every process that was found.
        known |= {process.pid: process for process in processes_below([*roots, *known])}
        known = {pid: process for pid, process in known.items() if process.is_alive()}
        if not known:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"these processes do not end: {[process.command[:80] for process in known.values()]}")
        for process in known.values():
            kill(process)
        time.sleep(0.05)


def outlive(processes: Iterable[Process], patience_seconds: float) -> list[Process]:
    """Wait for processes to end by themselves; kill those that do not end in time, and return these."""
    left = list(processes)
    end = time.monotonic() + patience_seconds
    while (left := [process for process in left if process.is_alive()]) and time.monotonic() < end:
        time.sleep(0.05)
    for process in left:
        kill(process)
    return left
