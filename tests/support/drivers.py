"""Drivers by the dozen: processes of the jobs, forked from one process that has imported all of them already.

Importing torch, Ray and numba takes longer than most drivers of a test or a campaign live. A fork runs the same main()
in a process of its own, with the signals and the exit code of its own; only the imports are shared.

As a program (`python -m tests.support.drivers`) this is the process that forks: it reads a request a line (JSON),
answers with the pid of the child, and says later how each child has ended.
"""

import atexit
import contextlib
import importlib
import itertools
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from pipeline.drill.processes import Process, kill, look_at, outlive, processes_below
from tests.support.places import ROOT
from tests.support.sockets import is_loopback, listening
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.without_pages import without_pages

CHANGED_BY = "M2F_TEST_CHANGED_BY"  # modules that a driver imports before it starts


class Driver:
    """A running or ended driver. `returncode` as subprocess has it: -9 after SIGKILL, None while it runs."""

    def __init__(self, pid: int, log: Path):
        self.pid = pid
        self.process = look_at(pid)  # pids come round: a signal is for this one
        self.log = log  # what it wrote to stdout and stderr
        self.returncode: int | None = None
        self.ended = threading.Event()
        self.started = time.monotonic()

    def kill(self, number: int = signal.SIGKILL) -> bool:
        """Send a signal; False where it has ended already."""
        return self.process is not None and not self.ended.is_set() and kill(self.process, number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit code. TimeoutError where it goes on for longer than that."""
        if not self.ended.wait(seconds):
            raise TimeoutError(f"driver {self.pid} still runs after {seconds:g} s; its log: {self.said()}")
        assert self.returncode is not None
        return self.returncode

    def finish(self) -> str:
        """Wait for its end; what it wrote."""
        self.wait()
        return self.said()

    def finish_alone(self) -> str:
        """`finish`, of a driver with a Ray of its own.

        AssertionError where a process that it started outlives it, or listens to more than this machine.
        """
        started: dict[int, Process] = {}
        listeners: dict[str, set[str]] = {}
        for look in itertools.count():
            if self.ended.wait(0.5):
                break
            running = {process.pid: process for process in processes_below([self.pid])}
            started |= running
            for name, addresses in listening([self.pid, *running] if look % 10 == 0 else []).items():  # takes long
                listeners[name] = listeners.get(name, set()) | addresses
        assert outlive(started.values(), PATIENCE_SECONDS) == [], "processes of the driver are left"
        assert {"gcs_server", "raylet"} <= listeners.keys(), self.said()
        assert all(map(is_loopback, set().union(*listeners.values()))), listeners
        return self.finish()

    def wait_until(self, condition: Callable[[], Any]) -> None:
        """Wait while it runs. AssertionError where it ends before the condition holds."""

        def holds() -> bool:
            assert not self.ended.is_set(), f"the driver ended with {self.returncode}: {self.said()}"
            return bool(condition())

        wait_until(holds)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Drivers:
    """Starts drivers, in the environment that this process has at that moment or else in `environment`."""

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None):
        self.logs = logs
        self.environment: Mapping[str, str] = os.environ if environment is None else environment
        self.num_started = 0
        self.running: dict[int, Driver] = {}
        self.pids: queue.Queue[int] = queue.Queue()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.drivers"],
            cwd=ROOT,
            env={**self.environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True, name="drivers")
        self.reader.start()

    def start(self, *args: object, program: str = "segment_bucket", **environment: str) -> Driver:
        """One more driver, of jobs/<program>.py; `environment` on top of that of all."""
        assert self.process.stdin is not None
        self.num_started += 1
        log = self.logs / f"driver-{self.num_started:04d}.log"
        request = {
            "program": program,
            "args": list(map(str, args)),
            "environment": {**self.environment, "PYTHONPATH": str(ROOT), **environment},
            "log": str(log),
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.running[self.pids.get(timeout=PATIENCE_SECONDS)]

    def close(self) -> None:
        """Kill what runs."""
        for driver in list(self.running.values()):
            driver.kill()
        self.process.kill()
        self.process.wait()
        self.reader.join()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if "started" in message:
                self.running[message["started"]] = Driver(message["started"], Path(message["log"]))
                self.pids.put(message["started"])
            else:
                driver = self.running.pop(message["ended"])
                driver.returncode = message["returncode"]
                driver.ended.set()


@contextlib.contextmanager
def drivers(logs: Path, environment: Mapping[str, str] | None = None) -> Iterator[Drivers]:
    forking = Drivers(logs, environment)
    try:
        yield forking
    finally:
        forking.close()


def main() -> None:
    from pipeline.cluster.environment import set_ray_environment

    set_ray_environment()
    import pipeline.report.summary
    import pipeline.run
    import pipeline.train.finetune  # noqa: F401

    running: set[int] = set()
    requests = sys.stdin.fileno()
    waiting = b""
    while True:
        if select.select([requests], [], [], 0.02)[0]:
            data = os.read(requests, 65536)
            if not data:
                return
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _be_a_driver(request)
                running.add(pid)
                _say(started=pid, log=request["log"])
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                _say(ended=pid, returncode=os.waitstatus_to_exitcode(status))


def _say(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def _be_a_driver(request: dict[str, Any]) -> NoReturn:
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.environ.clear()
        os.environ.update(request["environment"])
        for changes in os.environ.get(CHANGED_BY, "").split():
            importlib.import_module(changes)
        program = importlib.import_module(f"jobs.{request['program']}")
        sys.argv = [str(program.__file__), *request["args"]]
        is_with_page = "M2F_TEST_PAGES" in os.environ or request["program"] != "segment_bucket"
        with contextlib.nullcontext() if is_with_page else without_pages(program):
            code = program.main(request["args"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()  # Ray leaves the cluster in one of these
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
