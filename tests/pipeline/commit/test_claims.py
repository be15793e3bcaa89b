"""The lease for stores without conditional writes: in virtual time, at every moment at most one driver may write."""

import heapq
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable

import pytest

from pipeline.commit import claims, held_lease
from pipeline.commit.claims import ClaimLease
from pipeline.drill.fault_proxy import FaultProxy, Rule
from pipeline.errors import BrokenRunError, RunError
from tests.support.places import ROOT

SECONDS = 20.0


class VirtualTime:
    """Runs threads one at a time, each until it sleeps; the clock jumps to the next that wakes up."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waiting: list[tuple[float, int, threading.Event]] = []
        self.number = 0
        self.idle = threading.Event()
        self.failures: list[BaseException] = []
        self.after_each_step: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)  # as the module `time` for what is not about waiting

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        wake = self._schedule(seconds)
        self.idle.set()
        wake.wait()

    def _schedule(self, seconds: float) -> threading.Event:
        wake = threading.Event()
        self.number += 1
        heapq.heappush(self.waiting, (self.now + seconds, self.number, wake))
        return wake

    def start(self, work: Callable[[], None], after: float) -> None:
        wake = self._schedule(after)

        def run() -> None:
            wake.wait()
            try:
                work()
            except BaseException as error:
                self.failures.append(error)
            self.idle.set()

        threading.Thread(target=run, daemon=True).start()

    def run(self) -> None:
        while self.waiting:
            self.now, _, wake = heapq.heappop(self.waiting)
            self.idle.clear()
            wake.set()
            assert self.idle.wait(60)
            self.after_each_step()
        assert not self.failures, self.failures


class SlowStore:
    """Objects in memory; a request takes effect somewhere between its start and its end."""

    def __init__(self, clock: VirtualTime, latency: Callable[[], float]):
        self.clock, self.latency, self.objects = clock, latency, dict[str, bytes]()

    def _sent(self) -> None:
        self.clock.sleep(self.latency())

    def pipe_file(self, path: str, data: bytes) -> None:
        self._sent()
        self.objects[path] = data
        self._sent()

    def cat_file(self, path: str) -> bytes:
        self._sent()
        if path not in self.objects:
            raise FileNotFoundError(path)
        data = self.objects[path]
        self._sent()
        return data

    def ls(self, folder: str, detail: bool) -> list[str]:
        self._sent()
        listed = list(self.objects)
        self._sent()
        return listed

    def rm_file(self, path: str) -> None:
        self._sent()
        self.objects.pop(path, None)
        self._sent()


class Simulation:
    """Drivers that come, hold the lease, are suspended or die, on a store of random speed."""

    def __init__(self, seed: int, num_drivers: int, slow: float):
        self.chance = random.Random(seed)
        self.clock = VirtualTime()
        self.clock.after_each_step = self.look
        self.slow = slow
        self.store = SlowStore(self.clock, self.latency)
        self.holding: list[ClaimLease] = []
        self.taken = self.refused = self.most_at_once = 0
        for _ in range(num_drivers):
            self.clock.start(self.drive, self.chance.uniform(0, 4 if self.chance.random() < 0.7 else 120))

    def uuid4(self) -> uuid.UUID:
        """As the module `uuid`: tokens decide who wins, so they belong to the seed."""
        return uuid.UUID(int=self.chance.getrandbits(128), version=4)

    def latency(self) -> float:
        return self.chance.uniform(2, 12) if self.chance.random() < self.slow else self.chance.uniform(0, 0.3)

    def drive(self) -> None:
        lease = ClaimLease(self.store, "runs", SECONDS)
        try:
            lease._take()
        except RunError:
            self.refused += 1
            return
        self.taken += 1
        self.holding.append(lease)
        for _ in range(self.chance.randint(0, 12)):
            suspended = self.chance.random() < 0.1
            self.clock.sleep(self.chance.uniform(SECONDS / 2, 4 * SECONDS) if suspended else SECONDS / 4)
            lease._renew()
            if lease.lost is not None:
                return
        if self.chance.random() < 0.5:  # otherwise it was killed, and its holder object stays
            self.holding.remove(lease)
            lease._remove([lease._holder(lease.token)])

    def look(self) -> None:
        may_write = [lease for lease in self.holding if may(lease)]
        self.most_at_once = max(self.most_at_once, len(may_write))


def may(lease: ClaimLease) -> bool:
    """Whether the driver with this lease would write now."""
    before = lease.lost
    try:
        lease.check()
    except BrokenRunError:
        return False
    finally:
        lease.lost = before
    return True


@pytest.fixture
def simulate(monkeypatch) -> Callable[..., Simulation]:
    """Runs a simulation to its end. Its drivers see nothing of each other's processes, as on different machines."""
    monkeypatch.setattr(held_lease, "process_identity", lambda pid: "")
    monkeypatch.setattr(claims, "is_gone", lambda process: False)

    def run(seed: int, num_drivers: int, slow: float) -> Simulation:
        simulation = Simulation(seed, num_drivers, slow)
        for module in (claims, held_lease):
            monkeypatch.setattr(module, "time", simulation.clock)
        monkeypatch.setattr(claims, "uuid", simulation)
        simulation.clock.run()
        return simulation

    return run


def test_of_drivers_that_start_together_one_proceeds(simulate):
    for seed in range(20):
        ended = simulate(seed, num_drivers=3, slow=0.0)
        assert ended.most_at_once == 1 and ended.taken >= 1
        assert ended.taken + ended.refused == 3


def test_at_no_moment_may_two_drivers_write_however_slow_the_store_is(simulate):
    taken = refused = 0
    for seed in range(120):
        ended = simulate(seed, num_drivers=seed % 4 + 2, slow=(0.0, 0.05, 0.2)[seed % 3])
        assert ended.most_at_once <= 1, f"seed {seed}"
        taken, refused = taken + ended.taken, refused + ended.refused
    assert taken > 120 and refused > 60, "the drivers hardly met"


@pytest.mark.parametrize("broken", ["limits", "claims", "holders"])
def test_without_one_of_its_rules_two_drivers_would_write(simulate, monkeypatch, broken):
    """So the simulation would find a mistake in the rules."""
    if broken == "limits":
        monkeypatch.setattr(claims, "_limit", lambda *args: None)
    else:
        kind = {"claims": claims._CLAIM, "holders": claims._HOLDER}[broken]
        tokens = claims._tokens
        monkeypatch.setattr(claims, "_tokens", lambda of, names: [] if of is kind else tokens(of, names))
    assert any(simulate(seed, num_drivers=4, slow=0.2).most_at_once > 1 for seed in range(200))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"pid": [], "host": "\\u001b[2J", "process": "a/b/c", "seconds": "x", "replaces": 3}',
        b'{"seconds": 1e300, "process": null, "replaces": [1, {}]}',
        b'{"seconds": NaN}',
    ],
)
def test_whatever_lies_under_the_name_of_a_holder_runs_out_like_one(content):
    read = claims._parse(content, SECONDS)
    assert read.seconds == SECONDS and read.process == ""
    assert "\x1b" not in read.who + read.since


HOLD = """
import sys, time
from pipeline.commit.claims import ClaimLease
from pipeline.errors import RunError
from pipeline.store.filesystem import open_filesystem

try:
    with ClaimLease(*open_filesystem(sys.argv[1]), 8):
        print("held", flush=True)
        sys.stdin.read()
except RunError as error:
    print(error, flush=True)
"""


@pytest.mark.thorough
def test_of_four_processes_on_a_store_that_ignores_conditions_one_holds_the_lease(s3):
    """In real time, on a real server; the next takes over at once from a process of this machine that was killed."""
    place = f"{s3.bucket(f'claims-{uuid.uuid4().hex[:8]}')}/_runs"
    with FaultProxy(s3.url, [Rule("^PUT ", "ignore_conditions")], sign=True) as store:
        environment = {**os.environ, **s3.environment, "AWS_ENDPOINT_URL": store.url, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", HOLD, place]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        four = [subprocess.Popen(command, env=environment, **pipes) for _ in range(4)]
        try:
            lines = [process.stdout.readline().strip() for process in four]
            [holder] = [process for process, line in zip(four, lines, strict=True) if line == "held"]
            refused = [line for line in lines if line != "held"]
            assert all(line.startswith(f"--output is in use by process {holder.pid} on ") for line in refused), lines
            holder.kill()
            holder.wait()
            after = subprocess.run(command, env=environment, input="", capture_output=True, text=True)
            assert after.stdout == "held\n", after
        finally:
            for process in four:
                process.kill()
                process.communicate()
