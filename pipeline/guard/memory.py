"""How much memory a process holds, what the machine has left, and what a model actor can need at most.

The bound is a watch over the memory that is really held, and not RLIMIT_DATA or RLIMIT_AS: those fail whichever thread
allocates next, also threads of Ray that then abort with no name in any message, and they count address space, of which
CUDA reserves hundreds of times what it uses.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 2**30
# Measured peaks: 6 to 7 bytes a pixel while decoding and reducing, 0.8 KiB a padded pixel in a forward pass of Swin-T
# on the CPU. The bounds are some five times those: they shall stop what grows without end, not what is large.
_BYTES_PER_PIXEL = 32
_BYTES_PER_PADDED_PIXEL = {"cpu": 4096, "cuda": 64}
_BYTES_ANYWAY = {"cpu": 1 * GIB, "cuda": 5 * GIB}  # CUDA's libraries load their kernels when they are first used
# Ray's memory monitor ends workers, and not the ones that grow, when 5 % are left. We are earlier.
_RESERVED_SHARE = 0.08
_SHORT_SHARE = 0.15  # from here on batches get smaller


@dataclass(frozen=True)
class MachineMemory:
    """Bytes that this machine, or the container, has and could still give."""

    total: int
    available: int

    @property
    def is_short(self) -> bool:
        return self.available < _SHORT_SHARE * self.total

    @property
    def is_nearly_gone(self) -> bool:
        return self.available < _RESERVED_SHARE * self.total


def machine_memory(control_group: Path = Path("/sys/fs/cgroup")) -> MachineMemory:
    """The memory of the machine or of the control group, which psutil does not know: the one with less left."""
    memory = psutil.virtual_memory()
    machine = MachineMemory(memory.total, memory.available)
    group = _group_memory(control_group)
    return group if group is not None and group.available < machine.available else machine


def _group_memory(folder: Path) -> MachineMemory | None:
    """Limit and use of the control group, version 2 or 1; None where there is no limit. Page cache counts as free."""
    for limit, usage, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        try:
            total = int((folder / limit).read_text())  # "max" is no number
            used = int((folder / usage).read_text())
            counters = dict(line.split() for line in (folder / stat).read_text().splitlines())
        except (OSError, ValueError):
            continue
        return MachineMemory(total, max(0, total - used + int(counters.get(cache, 0))))
    return None


def private_bytes(pid: int | None = None) -> int:
    """Memory of the process alone, without Ray's object store and other shared pages; 0 where it cannot be read."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))  # only Linux tells them apart


@dataclass(frozen=True)
class MemoryBound:
    """How far a process may grow beyond what it held when it was ready for its first image, in bytes."""

    base: int
    room: int

    def breach(self, pid: int | None = None) -> str | None:
        """What is wrong with the memory of process `pid` (default: this one), or None."""
        grown = private_bytes(pid) - self.base
        if grown > self.room:
            return f"it grew by {grown / GIB:.1f} GiB, more than the {self.room / GIB:.1f} GiB that its work can need"
        # A process that has grown little is not why the machine runs out, and to end it would help nobody.
        if grown > self.room / 4 and (machine := machine_memory()).is_nearly_gone:
            left = f"{machine.available / GIB:.1f} of {machine.total / GIB:.1f} GiB"
            return f"it grew by {grown / GIB:.1f} GiB, and the machine has only {left} left"
        return None


def room_to_work(
    *,
    encoded_bytes: int,
    max_image_pixels: int,
    decoding: int,
    batch_pixels: int,
    device: str,
) -> int:
    """Bytes that `decoding` images at once, a batch of `batch_pixels` padded pixels on the device and `encoded_bytes`
    can take at the very most.
    """
    pixels = max_image_pixels * (decoding + 1)  # one more is being reduced
    return (
        _BYTES_ANYWAY[device]
        + encoded_bytes
        + pixels * _BYTES_PER_PIXEL
        + batch_pixels * _BYTES_PER_PADDED_PIXEL[device]
    )
