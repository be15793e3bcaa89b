"""What is left of the memory, of the machine and of its control group; when a process is too large."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipeline.guard import memory
from pipeline.guard.memory import GIB, MachineMemory, MemoryBound, machine_memory, private_bytes, room_to_work


def tree(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("group", "total", "available"),
    [
        ({}, 1000, 600),
        ({"memory.max": "max\n", "memory.current": "1\n", "memory.stat": "inactive_file 0\n"}, 1000, 600),
        (
            {"memory.max": "512000", "memory.current": "409600", "memory.stat": "anon 1\ninactive_file 51200\n"},
            500,
            150,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "512000",
                "memory/memory.usage_in_bytes": "409600",
                "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 51200\n",
            },
            500,
            150,
        ),
        # Version 1 without a limit says a number beyond all memory.
        (
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "409600",
                "memory/memory.stat": "total_inactive_file 0\n",
            },
            1000,
            600,
        ),
    ],
)
def test_the_smaller_of_machine_and_container_counts(tmp_path, monkeypatch, group, total, available):
    of_machine = SimpleNamespace(total=1000 * 1024, available=600 * 1024)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: of_machine)
    assert machine_memory(tree(tmp_path, group)) == MachineMemory(total * 1024, available * 1024)


def test_this_machine_has_plausible_figures():
    machine = machine_memory()
    assert 0 < machine.available <= machine.total


def test_the_memory_of_a_process_grows_by_what_it_holds():
    # A process of its own: what other tests have freed can go back to the system at any time.
    grown = (
        "import os\n"
        "from pipeline.guard.memory import private_bytes\n"
        "before = private_bytes()\n"
        "block = bytearray(b'x') * (128 * 2**20)\n"
        "print(private_bytes(os.getpid()) - before)\n"
    )
    output = subprocess.run([sys.executable, "-c", grown], capture_output=True, text=True, check=True).stdout
    assert 124 * 2**20 < int(output) < 140 * 2**20
    assert private_bytes(2**22 + 1) == 0, "no such process"


def test_a_process_is_too_large_beyond_its_room_or_where_it_takes_the_last_of_the_machine(monkeypatch):
    bound = MemoryBound(base=1 * GIB, room=8 * GIB)
    for held, left, said in (
        (8, 50, None),
        (10, 50, "it grew by 9.0 GiB, more than the 8.0 GiB that its work can need"),
        (8, 7, "it grew by 7.0 GiB, and the machine has only 7.0 of 100.0 GiB left"),
        (2, 7, None),  # not because of this one
    ):
        monkeypatch.setattr(memory, "private_bytes", lambda pid, held=held: held * GIB)
        monkeypatch.setattr(memory, "machine_memory", lambda left=left: MachineMemory(100 * GIB, left * GIB))
        assert bound.breach() == said


def test_the_room_of_the_defaults_is_a_few_times_what_was_measured():
    room = room_to_work(
        encoded_bytes=GIB, max_image_pixels=64_000_000, decoding=2, batch_pixels=800 * 1344, device="cpu"
    )
    measured = 2 * 64_000_000 * 7 + 800 * 1344 * 810
    assert 3 * measured < room < 16 * GIB
