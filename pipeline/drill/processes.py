"""The processes of a job by what they do, and their end by SIGKILL: for drills. Linux only: it reads /proc.

Only processes below given ones are found, by parentage, so that a drill never touches another job of the machine.
"""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.cluster.ray_private import RAYLET_PROGRAM, map_actor_title, read_task_title

Role = Literal["fetch", "model", "write", "read plan", "raylet"]

# How the command line of a process begins; what follows says which method is running.
_TITLES: dict[Role, str] = {
    "fetch": map_actor_title("FetchImages"),
    "model": map_actor_title("SegmentImages"),
    "write": map_actor_title("EncodeAndWrite"),
    "read plan": read_task_title("ShardSource"),
}
ACTORS: tuple[Role, ...] = ("fetch", "model", "write")


@dataclass(frozen=True)
class Process:
    """A process as it was seen. `started` is in clock ticks since boot: with it, a pid names one process for good."""

    pid: int
    parent: int
    started: int
    command: str


def look_at(pid: int) -> Process | None:
    """The process that has this pid now. None where there is no such process, or a dead one that nobody has reaped."""
    with contextlib.suppress(OSError):
        stat = (Path("/proc") / str(pid) / "stat").read_text()
        state, parent, *rest = stat.rpartition(")")[2].split()
        command = (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        if state not in "ZX":
            return Process(pid, int(parent), int(rest[17]), command.strip())
    return None


def processes_below(roots: Iterable[int]) -> list[Process]:
    """Living processes that descend from `roots`, without these themselves."""
    children: dict[int, list[Process]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        process = look_at(int(folder.name))
        if process is not None:
            children.setdefault(process.parent, []).append(process)
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
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        now = look_at(process.pid)  # the handle holds the pid: what is seen now is what the signal goes to
        if now is None or now.started != process.started:
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
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
        known = {pid: process for pid, process in known.items() if _same(process)}
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
    while (left := [process for process in left if _same(process)]) and time.monotonic() < end:
        time.sleep(0.05)
    for process in left:
        kill(process)
    return left


def _same(process: Process) -> bool:
    now = look_at(process.pid)
    return now is not None and now.started == process.started
