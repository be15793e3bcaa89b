"""The memory that a process holds, that the machine has left, and that a model actor can need at most.

The bound watches the memory that is really held. RLIMIT_DATA and RLIMIT_AS would not do. They fail the thread that
allocates next, whichever it is, including threads of Ray, which then abort without naming anything. They also count
address space, of which CUDA reserves hundreds of times what it uses.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil

GIB = 2**30
# Measured peaks: 6 to 7 bytes per pixel while decoding and reducing, 0.8 KiB per padded pixel in a forward pass of
# Swin-T on the CPU. The bounds are about five times as high, because they must stop endless growth, not large images.
_BYTES_PER_PIXEL = 32
_BYTES_PER_CUT_PIXEL = 16  # of an image that is cut into tiles, decoded as a whole: 4; a progressive JPEG 7 to 10
_BYTES_PER_PADDED_PIXEL = {"cpu": 4096, "cuda": 64}
_BYTES_ANYWAY = {"cpu": 1 * GIB, "cuda": 5 * GIB}  # CUDA's libraries load their kernels when they are first used
# When 5 % are left, Ray's memory monitor ends workers, and not the workers that grow. This bound acts earlier.
_RESERVED_SHARE = 0.08
_SHORT_SHARE = 0.15  # below this share, batches get smaller


@dataclass(frozen=True)
class MachineMemory:
    """The memory of this machine or container in bytes: the total, and what is still available."""

    total: int
    available: int

    @property
    def is_short(self) -> bool:
        return self.available < _SHORT_SHARE * self.total

    @property
    def is_nearly_gone(self) -> bool:
        return self.available < _RESERVED_SHARE * self.total


def machine_memory(control_group: Path = Path("/sys/fs/cgroup")) -> MachineMemory:
    """The memory of the machine or of its control group (unknown to psutil), whichever has less left."""
    memory = psutil.virtual_memory()
    machine = MachineMemory(memory.total, memory.available)
    group = _group_memory(control_group)
    return group if group is not None and group.available < machine.available else machine


def _group_memory(folder: Path) -> MachineMemory | None:
    """Limit and use of the control group, version 2 or 1. None if there is no limit. Page cache counts as free."""
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
    """Memory of the process alone, without Ray's object store and other shared pages. 0 if it cannot be read."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))  # only Linux reports shared memory


@dataclass(frozen=True)
class MemoryBound:
    """How many bytes a process may grow beyond the memory that it held when it was ready for its first image."""

    base: int
    room: int

    def breach(self, pid: int | None = None) -> str | None:
        """How the memory of process `pid` (default: this process) breaks the bound, or None if it does not."""
        grown = private_bytes(pid) - self.base
        if grown > self.room:
            return f"it grew by {grown / GIB:.1f} GiB, more than the {self.room / GIB:.1f} GiB that its work can need"
        # A process that has grown little does not cause the shortage, and ending it would not help.
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
    max_cut_pixels: int = 0,
) -> int:
    """The most bytes that decoding, the device and encoded data can take together.

    At once, `decoding` images are decoded, a batch of `batch_pixels` padded pixels is on the device, and
    `encoded_bytes` of encoded data are held. Of images of up to `max_cut_pixels` that are cut into tiles, one is held.
    """
    pixels = max_image_pixels * (decoding + 1)  # one more is being reduced
    return (
        _BYTES_ANYWAY[device]
        + encoded_bytes
        + pixels * _BYTES_PER_PIXEL
        + max_cut_pixels * _BYTES_PER_CUT_PIXEL
        + batch_pixels * _BYTES_PER_PADDED_PIXEL[device]
    )
