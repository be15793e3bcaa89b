"""A process whose step hangs, with or without Python's lock, or that grows without end, ends and says over what."""

import subprocess
import sys
import time

import pytest

START = """
import threading, time
from pipeline.guard import planted_faults
from pipeline.guard.memory import MemoryBound, private_bytes
from pipeline.guard.watchdog import TRIED_ONE_BY_ONE, start_watchdog, watch
start_watchdog({seconds}, TRIED_ONE_BY_ONE, MemoryBound(private_bytes(), 600 * 2**20))
"""


def ends(body: str, seconds: float = 1.0) -> tuple[int, str, float]:
    """Exit code, standard error and seconds of a process that starts a watchdog of `seconds` and runs `body`."""
    started = time.monotonic()
    code = START.format(seconds=seconds) + body
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stderr, time.monotonic() - started


def test_a_step_that_hangs_ends_the_process_with_a_line_that_names_it():
    body = """
with watch("decoding", "s3://bucket/good.jpg"):
    pass
with watch("decoding", "s3://bucket/evil.jpg"):
    planted_faults.trip(planted_faults.marker("hang"))
"""
    code, said, _ = ends(body)
    assert code == 1
    [line] = said.splitlines()
    assert ": decoding s3://bucket/evil.jpg is not done after 1 s (--step-timeout). The process ends; the shard" in line
    assert line.endswith("after two such ends its images are tried one by one.")


def test_a_step_that_never_lets_pythons_lock_go_ends_the_process_too():
    body = """
def decode():
    with watch("decoding", "s3://bucket/evil.jpg"):
        planted_faults.trip(planted_faults.marker("hang-with-lock"))
threading.Thread(target=decode).start()
time.sleep(1000)
"""
    code, said, seconds = ends(body)
    assert code == 1 and seconds < 20
    assert "Timeout (0:00:02)!" in said and "in decode" in said, "every thread's stack, so also the one that hangs"


def test_a_process_that_grows_without_end_ends_and_names_what_it_was_at():
    body = """
with watch("decoding", "s3://bucket/evil.jpg"), watch("decoding", "s3://bucket/other.jpg"):
    planted_faults.trip(planted_faults.marker("allocate"))
"""
    code, said, _ = ends(body, seconds=60.0)  # on a busy machine growing takes more than one
    assert code == 1
    [line] = said.splitlines()
    assert "memory runs out: it grew by 0." in line or "memory runs out: it grew by 1." in line
    assert "more than the 0.6 GiB that its work can need" in line
    assert "It was at: decoding s3://bucket/evil.jpg; decoding s3://bucket/other.jpg. The process ends; " in line


@pytest.mark.parametrize("body", ["time.sleep(2.5)", "for _ in range(6):\n    with watch('a', 'b'): time.sleep(0.5)"])
def test_a_process_that_waits_or_goes_on_is_left_alone(body):
    assert ends(body)[:2] == (0, "")
