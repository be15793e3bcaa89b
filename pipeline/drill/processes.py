"""The processes of a job by what they do, and their end by SIGKILL: for drills.

Only processes below given ones are found, by parentage, so that a drill never touches another job of the machine.
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

# How the command line of a process begins; what follows says which method is running.
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
    """A process as it was seen: psutil's handle, which names one process for good, and the command line."""

    handle: psutil.Process
    command: str

    @property
    def pid(self) -> int:
        return int(self.handle.pid)

    def is_alive(self) -> bool:
        """Whether this very process still runs; one that is dead and that nobody has reaped does not."""
        try:
            return self.handle.is_running() and self.handle.status() not in _DEAD
        except psutil.NoSuchProcess:
            return False


def look_at(pid: int) -> Process | None:
    """The process that has this pid now. None where there is no such process, or a dead one that nobody has reaped."""
    try:
        handle = psutil.Process(pid)
        process = Process(handle, " ".join(handle.cmdline()))
    except psutil.Error:
        return None
    return process if process.is_alive() else None


def processes_below(roots: Iterable[int]) -> list[Process]:
    """Living processes that descend from `roots`, without these themselves."""
    psutil.process_iter.cache_clear()  # it would give the handle of a dead process for another with the same pid
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
    """The processes below `roots` that have this role now."""
    if role == "raylet":
        return [process for process in processes_below(roots) if process.command.split(" ")[0].endswith(RAYLET_PROGRAM)]
    return [process for process in processes_below(roots) if process.command.startswith(_TITLES[role])]


def kill(process: Process, number: int = signal.SIGKILL) -> bool:
    """Send the signal to this very process; False where it is gone, also where its pid is another's by now."""
    try:
        if not process.is_alive():
            return False
        process.handle.send_signal(number)
    except psutil.NoSuchProcess:
        return False
    return True


def kill_one(role: Role, roots: Iterable[int], chance: random.Random) -> Process | None:
    """Kill a process of this role, chosen by lot; None where there is none."""
    candidates = sorted(find(role, roots), key=lambda process: process.pid)
    while candidates:
        process = candidates.pop(chance.randrange(len(candidates)))
        if kill(process):
            return process
    return None


def kill_all_below(roots: Iterable[int], seconds: float = 30.0) -> None:
    """End everything below `roots`, and them; for the end of a drill. RuntimeError where something stays.

    `roots` are children of this process that nobody has waited for, so that their pids are theirs for certain.
    """
    roots = list(roots)
    end = time.monotonic() + seconds
    known = {process.pid: process for process in map(look_at, roots) if process is not None}
    while True:
        # Orphans of a process that is dead by now keep no tie to it: remember whom we have seen.
        known |= {process.pid: process for process in processes_below([*roots, *known])}
        known = {pid: process for pid, process in known.items() if process.is_alive()}
        if not known:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"processes do not end: {[process.command[:80] for process in known.values()]}")
        for process in known.values():
            kill(process)
        time.sleep(0.05)


def outlive(processes: Iterable[Process], patience_seconds: float) -> list[Process]:
    """Wait for processes to end by themselves; kill those that do not in time, and give them."""
    left = list(processes)
    end = time.monotonic() + patience_seconds
    while (left := [process for process in left if process.is_alive()]) and time.monotonic() < end:
        time.sleep(0.05)
    for process in left:
        kill(process)
    return left
