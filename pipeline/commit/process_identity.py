"""Which process of which machine holds a lease, and whether that process still exists."""

import os
import re
from pathlib import Path


def process_identity(pid: int) -> str:
    """A unique name of a process on this machine: boot, namespace of process ids, id, start time. Empty if unknown.

    psutil's create_time would not do, because it depends on the system's clock: if the clock is set, two processes read
    different start times of a third process, and a living holder would be taken for dead.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot}/{namespace}/{pid}/{started}"


def is_gone(process: str) -> bool:
    """Whether `process` would be visible from here if it were alive, and no longer exists."""
    return is_alive(process) is False


def is_alive(process: str) -> bool | None:
    """Whether `process` (see `process_identity`) exists; None if it cannot be seen from here."""
    here = process_identity(os.getpid())
    pid = process.split("/")[2:3]
    if not here or process.split("/")[:2] != here.split("/")[:2] or not pid or not re.fullmatch(r"\d{1,9}", pid[0]):
        return None
    return process_identity(int(pid[0])) == process
