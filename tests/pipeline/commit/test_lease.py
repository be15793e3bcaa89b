"""One driver at a time: refused while the holder lives, taken over when it is gone, lost when another has it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace

import fsspec
import pytest

from pipeline.commit.lease import Lease
from pipeline.errors import BrokenRunError, RunError
from pipeline.store.conditional_writes import Stored, read_stored, replace_object
from pipeline.store.filesystem import open_filesystem
from tests.support.places import ROOT
from tests.support.waiting import wait_until

# Renews as often as it can, so that tests need not wait for it.
HOLD = """
import sys, time
from pipeline.commit import lease
from pipeline.store.filesystem import open_filesystem

lease.RENEWALS = 10_000
with lease.Lease(*open_filesystem(sys.argv[1]), float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(3600)
"""
SECONDS = 600  # of a lease: no machine is so busy that one runs out by itself


class Clock:
    """Time as lease.py sees it: it passes when a test or a waiting lease says so. Objects age with it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def read_stored(self, filesystem: fsspec.AbstractFileSystem, path: str, most_bytes: int) -> Stored | None:
        found = read_stored(filesystem, path, most_bytes)
        return found and replace(found, age_seconds=found.age_seconds + self.now)


class Ticks(threading.Event):
    """A lease's `ended` that ends after a number of renewals, for which nobody waits but the clock."""

    def __init__(self, clock: Clock, number: int):
        super().__init__()
        self.clock, self.left = clock, number

    def wait(self, timeout: float | None = None) -> bool:
        if self.left == 0:
            return True
        self.left -= 1
        self.clock.now += timeout
        return False


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    for module in ("lease", "held_lease"):
        monkeypatch.setattr(f"pipeline.commit.{module}.time", clock)
    monkeypatch.setattr("pipeline.commit.lease.read_stored", clock.read_stored)
    return clock


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path) -> str:
    if request.param == "local":
        return str(tmp_path / "_runs" / "lease.json")
    server = request.getfixturevalue("s3")
    if "lease" not in [bucket["Name"] for bucket in server.client.list_buckets()["Buckets"]]:
        server.bucket("lease")
    return f"s3://lease/{uuid.uuid4().hex}/lease.json"


def lease(uri: str, seconds: float, **options) -> Lease:
    return Lease(*open_filesystem(uri), seconds, **options)


def holder(uri: str, seconds: float) -> subprocess.Popen:
    """Another process that holds the lease."""
    command = [sys.executable, "-c", HOLD, uri, str(seconds)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_at_once_and_may_start_when_the_first_has_ended(uri, clock):
    with lease(uri, SECONDS):
        said = rf"in use by process {os.getpid()} on .* runs out in \d+ s"
        with pytest.raises(RunError, match=said), lease(uri, SECONDS):
            pass
        assert clock.now == 0, "it did not wait"
    with lease(uri, SECONDS) as second:
        second.check()


def test_a_holder_that_was_killed_on_this_machine_is_no_holder(uri):
    process = holder(uri, 600)
    try:
        with pytest.raises(RunError, match=f"process {process.pid}"), lease(uri, 600):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with lease(uri, 600) as second:
        second.check()


def test_a_holder_elsewhere_that_falls_silent_is_taken_over_when_its_time_is_up(uri, clock, monkeypatch):
    """As if the other process were on another machine: all that is seen of it is that it renews no more."""
    monkeypatch.setattr("pipeline.commit.lease.is_gone", lambda process: False)
    process = holder(uri, SECONDS)
    try:
        wait_until(lambda: json.loads(read_stored(*open_filesystem(uri)).data)["renewals"] > 1)
        with pytest.raises(RunError, match="in use"), lease(uri, SECONDS):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    clock.now = SECONDS * 0.75
    with lease(uri, SECONDS) as second:
        # The object's real age is part of what the store says of it, so the last quarter may be a little shorter.
        assert SECONDS * 0.75 < clock.now <= SECONDS, "the lease had time left"
        second.check()


def test_who_wakes_up_after_another_took_over_learns_it(uri, clock, monkeypatch):
    monkeypatch.setattr("pipeline.commit.lease.is_gone", lambda process: False)
    losses = []
    with lease(uri, SECONDS, on_loss=lambda: losses.append(True)) as first:
        first.ended.set()  # suspended: it renews no more
        first.thread.join()
        clock.now += SECONDS + 1
        with pytest.raises(BrokenRunError, match=f"not renewed for {SECONDS} s"):
            first.check()
        first.lost = None
        with lease(uri, SECONDS) as second:
            first.ended = Ticks(clock, 1)
            first._keep()  # awake: the next renewal
            with pytest.raises(BrokenRunError, match="another driver took the lease"):
                first.check()
            assert losses == [True]
            second.check()
        # The end of the first leaves the lease of the second alone.


def test_a_store_that_fails_for_a_moment_does_not_cost_the_lease(tmp_path, clock, monkeypatch):
    failures = iter([OSError("busy")] * 2)

    def sometimes(*args):
        for error in failures:
            raise error
        return replace_object(*args)

    monkeypatch.setattr("pipeline.commit.lease.replace_object", sometimes)
    held = lease(str(tmp_path / "lease.json"), SECONDS)
    held.ended = Ticks(clock, 5)
    with held:
        held.thread.join()
        assert clock.now > SECONDS and held.renewals == 5
        held.check()


def test_a_store_that_stays_away_costs_it_before_another_may_have_it(tmp_path, clock, monkeypatch):
    def away(*args):
        raise OSError("no route to host")

    monkeypatch.setattr("pipeline.commit.lease.replace_object", away)
    losses = []
    held = lease(str(tmp_path / "lease.json"), SECONDS, on_loss=lambda: losses.append(clock.now))
    held.ended = Ticks(clock, 100)
    with held:
        held.thread.join()
        assert len(losses) == 1 and losses[0] <= SECONDS
        with pytest.raises(BrokenRunError, match="no route to host"):
            held.check()


def test_a_damaged_lease_is_refused_until_somebody_deletes_it(tmp_path):
    """Nobody knows whose it is, so nobody knows that its holder is gone."""
    path = tmp_path / "lease.json"
    path.write_text("{")
    os.utime(path, (time.time() - SECONDS - 1,) * 2)
    with pytest.raises(RunError, match=r"lease\.json is damaged, .* delete the lease"), lease(str(path), SECONDS):
        pass
    assert path.read_text() == "{"
    path.unlink()
    with lease(str(path), SECONDS) as held:
        held.check()
