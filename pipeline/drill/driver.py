"""A driver as a child process of a drill, with its own Ray: start it, disturb it, kill it, wait for it."""

import os
import random
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.drill.processes import Role, find, kill_all_below, kill_one, outlive, processes_below

_ROOT = Path(__file__).parents[2]
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0  # for a Ray whose driver has died to end by itself


class Driver:
    """`command` as a process in its own session; its output goes to `log`."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path):
        self.log = log
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        # Use the drill's own code, even if a job is started by its path in a checkout.
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                list(command),
                env={**inherited, "PYTHONPATH": path, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def wait(self, seconds: float) -> int | None:
        """The driver's exit code; None if it still runs after `seconds`, and is killed with all its child processes."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def ended_within(self, seconds: float) -> bool:
        try:
            self.process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def await_actor(self, role: Role, seconds: float) -> bool:
        """Wait for an actor of this role; False if the driver ends first or the time is over."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if find(role, [self.process.pid]):
                return True
            if self.ended_within(_POLL_SECONDS):
                return False
        return False

    def kill_actors(self, roles: Iterable[Role], chance: random.Random, pause_seconds: float) -> list[str]:
        """Kill an actor of each role, with random pauses; returns the roles of the killed actors."""
        killed: list[str] = []
        for role in roles:
            if self.ended_within(chance.uniform(0, pause_seconds)):
                break
            if kill_one(role, [self.process.pid], chance) is not None:
                killed.append(role)
        return killed

    def kill(self) -> bool:
        """Send SIGKILL to the driver; its Ray ends by itself or is killed. False if the driver had already ended."""
        below = processes_below([self.process.pid])
        alive = self.process.poll() is None
        if alive:
            self.process.kill()
        self.process.wait()
        outlive(below, _PATIENCE_SECONDS)
        return alive

    def close(self) -> None:
        """End the driver, if it still runs, and all its child processes."""
        if self.process.poll() is None:
            kill_all_below([self.process.pid])
            self.process.wait()

    def last_words(self) -> str:
        """The last line that the driver wrote."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "the driver wrote nothing"
