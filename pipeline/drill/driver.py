"""A driver as a child process of a drill, with a Ray of its own: started, disturbed, killed, waited for."""

import os
import random
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.drill.processes import Role, find, kill_all_below, kill_one, outlive, processes_below

_ROOT = Path(__file__).parents[2]
_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0  # with a Ray that has lost its driver


class Driver:
    """`command` as a process of its own session; what it says goes to `log`."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path):
        self.log = log
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        # The same code as the drill's, also where a job is started by its path from a checkout.
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
        """Its exit code, or None where it still runs after that long; then it and all below it are killed."""
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
        """Until an actor of this role is there; False where the driver ends first, or it takes longer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if find(role, [self.process.pid]):
                return True
            if self.ended_within(_POLL_SECONDS):
                return False
        return False

    def kill_actors(self, roles: Iterable[Role], chance: random.Random, pause_seconds: float) -> list[str]:
        """Kill an actor of each role, with random pauses; gives the roles that were met."""
        killed: list[str] = []
        for role in roles:
            if self.ended_within(chance.uniform(0, pause_seconds)):
                break
            if kill_one(role, [self.process.pid], chance) is not None:
                killed.append(role)
        return killed

    def kill(self) -> bool:
        """SIGKILL to the driver alone. Its Ray ends by itself, or is ended. False where the driver had ended before."""
        below = processes_below([self.process.pid])
        alive = self.process.poll() is None
        if alive:
            self.process.kill()
        self.process.wait()
        outlive(below, _PATIENCE_SECONDS)
        return alive

    def close(self) -> None:
        """End it, if it still runs, and everything below it."""
        if self.process.poll() is None:
            kill_all_below([self.process.pid])
            self.process.wait()

    def last_words(self) -> str:
        """The last line that it wrote."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "nothing was written"
