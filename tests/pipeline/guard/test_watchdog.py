"""A process whose step hangs, with or without Python's lock, or that grows without end, ends and says over what."""

import json
import subprocess
import sys

import pytest

# The watchdog's clock stands still unless a test moves it: what a busy machine does meanwhile counts for nothing.
START = """
import threading, time
from pipeline.guard import planted_faults, watchdog
from pipeline.guard.memory import MemoryBound, private_bytes
from pipeline.guard.watchdog import TRIED_ONE_BY_ONE, start_watchdog, watch

class Clock:
    now, looks, sleep = 0.0, 0, staticmethod(time.sleep)

    def monotonic(self):
        self.looks += 1
        return self.now

    def move(self, seconds):
        "And wait until the watchdog has looked."
        self.now += seconds
        seen = self.looks
        while self.looks < seen + 3:
            time.sleep(0.01)

clock = watchdog.time = Clock()

def start(seconds):
    start_watchdog(seconds, TRIED_ONE_BY_ONE, MemoryBound(private_bytes(), 600 * 2**20))
"""


def ends(body: str) -> tuple[int, str]:
    """Exit code and standard error of a process that runs `body`."""
    done = subprocess.run([sys.executable, "-c", START + body], stderr=subprocess.PIPE, text=True)
    return done.returncode, done.stderr


def test_a_step_that_hangs_ends_the_process_with_a_line_that_names_it():
    body = """
start(600)
with watch("decoding", "s3://bucket/good.jpg"):
    clock.move(500)
with watch("decoding", "s3://bucket/evil.jpg"):
    clock.now += 601
    planted_faults.trip(planted_faults.marker("hang"))
"""
    code, said = ends(body)
    assert code == 1
    [sent] = map(json.loads, said.splitlines())
    assert (sent["level"], sent["image_key"]) == ("ERROR", "s3://bucket/evil.jpg"), "as the workers' other lines"
    line = sent["message"]
    assert (
        ": decoding s3://bucket/evil.jpg did not finish within 600 s (--step-timeout). The process ends; the shard"
        in line
    )
    assert line.endswith("after two such crashes its images are processed one by one.")


def test_a_step_that_never_lets_pythons_lock_go_ends_the_process_too():
    body = """
def decode():
    with watch("decoding", "s3://bucket/evil.jpg"):
        start(1)
        planted_faults.trip(planted_faults.marker("hang-with-lock"))
threading.Thread(target=decode).start()
time.sleep(3600)
"""
    code, said = ends(body)
    assert code == 1
    assert "Timeout (0:00:02)!" in said and "in decode" in said, "every thread's stack, so also the one that hangs"


def test_a_process_that_grows_without_end_ends_and_names_what_it_was_at():
    body = """
start(600)
with watch("decoding", "s3://bucket/evil.jpg"), watch("decoding", "s3://bucket/other.jpg"):
    planted_faults.trip(planted_faults.marker("allocate"))
"""
    code, said = ends(body)
    assert code == 1
    [line] = [json.loads(line)["message"] for line in said.splitlines()]
    assert "too much memory: it grew by 0." in line or "too much memory: it grew by 1." in line
    assert "more than the 0.6 GiB that its work can need" in line
    assert (
        "Steps in progress: decoding s3://bucket/evil.jpg; decoding s3://bucket/other.jpg. The process ends; " in line
    )


@pytest.mark.parametrize("step", ["clock.move(700)", "with watch('a', 'b'): clock.move(500)"])
def test_a_process_that_waits_or_goes_on_is_left_alone(step):
    """For longer than the watchdog waits: idle, or with steps of which each is quick enough."""
    assert ends(f"start(600)\nfor _ in range(4):\n    {step}\n") == (0, "")
