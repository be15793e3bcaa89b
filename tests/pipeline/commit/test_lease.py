"""One driver at a time: refused while the holder lives, taken over when it is gone, lost when another has it."""

import os
import signal
import subprocess
import sys
import time
import uuid

import fsspec
import pytest

from pipeline.commit.lease import Lease
from pipeline.errors import BrokenRunError, RunError
from pipeline.store.conditional_writes import read_stored, replace_object
from pipeline.store.filesystem import open_filesystem
from tests.support.places import ROOT

HOLD = """
import sys, time
from pipeline.commit.lease import Lease
from pipeline.store.filesystem import open_filesystem

filesystem, path = open_filesystem(sys.argv[1])
with Lease(filesystem, path, float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""


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


def test_a_second_driver_is_refused_at_once_and_may_start_when_the_first_has_ended(uri):
    with lease(uri, 30):
        started = time.monotonic()
        with pytest.raises(RunError, match=rf"in use by process {os.getpid()} on .* runs out in \d+ s"), lease(uri, 30):
            pass
        assert time.monotonic() - started < 5
    with lease(uri, 30) as second:
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


def test_a_holder_elsewhere_that_falls_silent_is_taken_over_when_its_time_is_up(uri, monkeypatch):
    """As if the other process were on another machine: all that is seen of it is that it renews no more."""
    monkeypatch.setattr("pipeline.commit.lease._is_gone", lambda process: False)
    process = holder(uri, 4)
    try:
        time.sleep(6)  # longer than the lease lasts, but it is renewed
        with pytest.raises(RunError, match="in use"), lease(uri, 4):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = time.monotonic()
    while True:
        try:
            with lease(uri, 4) as second:
                taken = time.monotonic() - killed
                second.check()
                break
        except RunError:
            assert time.monotonic() - killed < 20
            time.sleep(0.1)
    assert taken > 1, "the lease had time left"


def test_who_wakes_up_after_another_took_over_learns_it(uri, monkeypatch):
    monkeypatch.setattr("pipeline.commit.lease._is_gone", lambda process: False)
    losses = []
    with lease(uri, 2, on_loss=lambda: losses.append(True)) as first:
        first.ended.set()  # suspended: it renews no more
        first.thread.join()
        time.sleep(2.5)
        with pytest.raises(BrokenRunError, match="not renewed for 2 s"):
            first.check()
        first.lost = None
        with lease(uri, 2) as second:
            first.ended.clear()
            first._keep()  # awake: the next renewal
            with pytest.raises(BrokenRunError, match="another driver took it"):
                first.check()
            assert losses == [True]
            second.check()
        # The end of the first leaves the lease of the second alone.


def test_a_store_that_fails_for_a_moment_does_not_cost_the_lease(tmp_path, monkeypatch):
    failures = iter([OSError("busy")] * 2)

    def sometimes(*args):
        for error in failures:
            raise error
        return replace_object(*args)

    monkeypatch.setattr("pipeline.commit.lease.replace_object", sometimes)
    with lease(str(tmp_path / "lease.json"), 4) as held:
        time.sleep(4.5)
        held.check()


def test_a_store_that_stays_away_costs_it_before_another_may_have_it(tmp_path, monkeypatch):
    def away(*args):
        raise OSError("no route to host")

    monkeypatch.setattr("pipeline.commit.lease.replace_object", away)
    losses = []
    with lease(str(tmp_path / "lease.json"), 2, on_loss=lambda: losses.append(time.monotonic())) as held:
        end = held.renewed_at + 2.2
        while not losses:
            assert time.monotonic() < end
            time.sleep(0.01)
        with pytest.raises(BrokenRunError, match="no route to host"):
            held.check()


def test_a_store_without_conditional_writes_is_said_to_be_one(caplog):
    filesystem = fsspec.filesystem("memory")
    with caplog.at_level("WARNING", logger="pipeline.commit.lease"), Lease(filesystem, "/lease.json", 5) as held:
        held.check()
    assert "one job at a time" in caplog.text


def test_a_damaged_lease_runs_out_like_any_other(tmp_path):
    path = tmp_path / "lease.json"
    path.write_text("{")
    with pytest.raises(RunError, match="in use"), lease(str(path), 4):
        pass
    os.utime(path, (time.time() - 5,) * 2)
    with lease(str(path), 4):
        assert read_stored(fsspec.filesystem("file"), str(path)).data != b"{"
