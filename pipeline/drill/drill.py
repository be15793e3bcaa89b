"""A drill: run the user's own settings on a sample, undisturbed and then with faults, and compare the rows.

The drill starts runs by their command line, as users do, and reads the results from the tables, as users do. So a drill
also tests the machine, the store and its permissions.
"""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from botocore.session import get_session

from pipeline.config import Settings
from pipeline.drill.driver import Driver
from pipeline.drill.fault_proxy import WRITES, FaultProxy, Rule
from pipeline.drill.processes import ACTORS
from pipeline.drill.sample import HarmfulImage, copy_sample, plant
from pipeline.drill.settings import DrillSettings
from pipeline.guard import kill_points, planted_faults
from pipeline.inputs.sources import input_spec
from pipeline.store.filesystem import is_s3, open_filesystem
from pipeline.store.temporary_folders import new_scratch_place, remove_scratch_place
from pipeline.tables.compare import Rows, check_books, compare, read_rows

_LONGEST_SECONDS = 1800.0  # for a driver; a driver that does not end is a finding too
_MOST_DRIVERS = 8  # one after the other on one output
_WORST_POINT = "between segments and images published"
_STEP_SECONDS = 20.0  # highest --step-timeout in a drill: the time that an image that hangs costs
# Temporary faults: clients and pipeline must recover from them without a trace in the tables.
_STORM = (
    Rule(".", "slow_down", probability=0.1, times=40),
    Rule(".", "internal_error", probability=0.05, times=10),
    Rule(".", "reset", probability=0.05, times=10),
    Rule("^PUT ", "lost_answer", probability=0.2, times=5),
    Rule("^GET ", "truncate", probability=0.05, times=5),
    Rule("^GET /.*/input/", "flip", probability=0.2, times=5),
    Rule(".", "latency", probability=0.1, times=50, seconds=0.3),
)

Command = Callable[[Settings], Sequence[str]]  # the command line of a run with these settings


@dataclass(frozen=True)
class Finding:
    """One line of a drill's table."""

    step: str
    done: str
    found: str
    is_good: bool


def drill(settings: DrillSettings, command: Command, say: Callable[[Finding], None]) -> list[Finding]:
    """Run the drill; call `say` with each new finding. Raises RunError if the drill cannot run at all."""
    place = new_scratch_place("drill", settings.scratch, settings.output, settings.input)
    logs = Path(tempfile.mkdtemp(prefix="m2f-drill-"))
    findings: list[Finding] = []
    steps = Drill(settings, command, place, logs)

    def note(finding: Finding) -> None:
        findings.append(finding)
        say(finding)

    try:
        for finding in steps.run():
            note(finding)
    finally:
        for driver in steps.drivers:  # after Ctrl-C a driver may still be running
            driver.close()
        if not settings.keep and (error := remove_scratch_place(place)):
            note(Finding("clean up", f"remove {place}", error, is_good=False))
        if any(logs.iterdir()) and (settings.keep or not all(finding.is_good for finding in findings)):
            note(Finding("logs", "keep", str(logs), is_good=True))
        else:
            shutil.rmtree(logs, ignore_errors=True)
    return findings


class Drill:
    """The steps of a drill, in order."""

    def __init__(self, settings: DrillSettings, command: Command, place: str, logs: Path):
        self.settings = settings
        self.command = command
        self.place = place
        self.logs = logs
        self.source = f"{place}/input"
        self.chance = random.Random(settings.seed)
        self.drivers: list[Driver] = []
        self.usual_seconds = 60.0

    def run(self) -> Iterator[Finding]:
        sample = copy_sample(input_spec(self.settings), self.settings.sample, self.source, self.chance)
        yield Finding("sample", "copy", f"{len(sample)} images", is_good=True)
        clean, reference = self._undisturbed(sample)
        yield clean
        if not clean.is_good:
            return
        yield from self._killed(sample, reference)
        if self.settings.faults and is_s3(open_filesystem(self.place)[0]):
            yield from self._with_store_faults(sample, reference)
        usable = [key for key in sample if reference.images[key][0]["status"] == "ok"]
        if usable:
            yield from self._with_harmful_images(usable, sample, reference)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _undisturbed(self, sample: list[str]) -> tuple[Finding, Rows]:
        started = time.monotonic()
        code, driver = self._drive(self._run_settings("undisturbed"))
        self.usual_seconds = time.monotonic() - started
        rows = read_rows(f"{self.place}/undisturbed")
        lines = check_books(rows, sample)
        if code != 0:
            lines.insert(0, f"exit code {code}: {driver.last_words()}")
        num_segments = sum(map(len, rows.segments.values()))
        found = f"{len(rows.images)} rows, {num_segments} segments, {self.usual_seconds:.0f} s"
        return Finding("undisturbed", "run", "; ".join(lines) or found, is_good=not lines), rows

    def _killed(self, sample: list[str], reference: Rows) -> Iterator[Finding]:
        settings = self._run_settings("killed")
        yield self._kill_workers_then_driver(settings)
        yield self._kill_driver(settings)
        yield self._kill_in_commit(settings)
        yield self._until_done(settings, {})
        yield self._compared("killed", sample, sample, reference)

    def _with_store_faults(self, sample: list[str], reference: Rows) -> Iterator[Finding]:
        settings = self._run_settings("store-faults")
        with self._proxy() as proxy:
            endpoint = {"AWS_ENDPOINT_URL": proxy.url}
            yield self._turn_read_only(settings, endpoint, proxy)
            proxy.set_rules(_STORM)
            yield self._until_done(settings, endpoint)
            fired = ", ".join(f"{count} {fault}" for fault, count in sorted(proxy.fired.items()))
            yield Finding("store fails at times", f"{proxy.num_requests} requests", fired, is_good=True)
        yield self._compared("store-faults", sample, sample, reference)

    def _until_done(self, settings: Settings, environment: dict[str, str]) -> Finding:
        """Run the same command again until it succeeds."""
        codes: list[int | None] = []
        said: list[str] = []
        while (not codes or codes[-1] != 0) and len(codes) < _MOST_DRIVERS:
            code, driver = self._drive(settings, environment)
            codes.append(code)
            if code != 0:
                said.append(driver.last_words())
        found = "; ".join([f"exit codes {', '.join(map(str, codes))}", *dict.fromkeys(said)])
        return Finding("the same command again", "run", found, is_good=codes[-1] == 0)

    def _kill_workers_then_driver(self, settings: Settings) -> Finding:
        driver = self._start(settings)
        driver.await_actor("model", _LONGEST_SECONDS)
        killed = driver.kill_actors([*ACTORS, "model"], self.chance, self.usual_seconds / 10)
        driver.await_actor("write", 5 * self.usual_seconds)
        driver.ended_within(self.chance.uniform(0, 1))
        alive = driver.kill()
        done = f"kill -9: {', '.join([*killed, 'driver'] if alive else killed)}"
        return Finding("workers die", done, _if_late(driver, alive), is_good=True)

    def _kill_driver(self, settings: Settings) -> Finding:
        driver = self._start(settings)
        role = self.chance.choice(ACTORS)
        driver.await_actor(role, _LONGEST_SECONDS)
        moment = self.chance.uniform(0, self.usual_seconds / 4)
        driver.ended_within(moment)
        alive = driver.kill()
        done = f"kill -9 {moment:.1f} s after the first {role} actor"
        return Finding("driver dies", done, _if_late(driver, alive), is_good=True)

    def _kill_in_commit(self, settings: Settings) -> Finding:
        """Kill the driver when one table is published and the other is not."""
        code, driver = self._drive(settings, {kill_points.VARIABLE: _WORST_POINT})
        found = _if_late(driver, alive=code == -9)
        return Finding("driver dies in its commit", f"kill -9 {_WORST_POINT}", found, code in (-9, 0, 1))

    def _turn_read_only(self, settings: Settings, environment: dict[str, str], proxy: FaultProxy) -> Finding:
        """Refuse all writes; the driver must end by itself and name the reason."""
        proxy.set_rules([Rule(WRITES, "access_denied", after=self.chance.randrange(3, 20))])
        code, driver = self._drive(settings, environment)
        refused = "--output" in driver.last_words()
        good = code == 0 or (code in (1, 2) and refused)
        return Finding("bucket turns read-only", "refuse writes", f"exit code {code}: {driver.last_words()}", good)

    def _with_harmful_images(self, usable: list[str], sample: list[str], reference: Rows) -> Iterator[Finding]:
        planted = plant(self.source, usable, self.chance, deadly=self.settings.deadly)
        changes = {"max_failure_rate": 1.0, "max_failures": None}
        step = min(self.settings.step_timeout, _STEP_SECONDS)
        faults = {planted_faults.VARIABLE: "1"}
        code, driver = self._drive(self._run_settings("harmful", **changes, step_timeout=step), faults)
        if code != 0:
            yield Finding("harmful images", "run", f"exit code {code}: {driver.last_words()}", is_good=False)
        rows = read_rows(f"{self.place}/harmful")
        for key, image in planted.items():
            yield _fate(rows, key, image)
        yield self._compared("harmful", [*sample, *planted], sample, reference)

    def _compared(self, name: str, planned: list[str], sample: list[str], reference: Rows) -> Finding:
        rows = read_rows(f"{self.place}/{name}")
        chosen = set(sample)
        lines = check_books(rows, planned)
        if differences := compare(reference, rows, among=lambda key: key in chosen):
            lines.append(str(differences))
        found = f"0 lost, 0 duplicated, 0 differing of {len(sample)}"
        return Finding("counts and rows", f"compare {name}", "; ".join(lines) or found, is_good=not lines)

    # --- drivers ------------------------------------------------------------------------------------------------------

    def _run_settings(self, name: str, **changes: object) -> Settings:
        return self.settings.of_run(self.source, f"{self.place}/{name}", **changes)

    def _start(self, settings: Settings, environment: dict[str, str] | None = None) -> Driver:
        log = self.logs / f"driver-{len(self.drivers) + 1:02d}.log"
        self.drivers.append(Driver(self.command(settings), environment or {}, log))
        return self.drivers[-1]

    def _drive(self, settings: Settings, environment: dict[str, str] | None = None) -> tuple[int | None, Driver]:
        """Run a driver from start to end; its exit code is None if it had to be killed."""
        driver = self._start(settings, environment)
        return driver.wait(_LONGEST_SECONDS), driver

    def _proxy(self) -> FaultProxy:
        """The fault proxy between the runs and their store."""
        given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        region = get_session().get_config_variable("region") or "us-east-1"
        endpoint = given or f"https://s3.{region}.amazonaws.com"
        # AWS accepts only its own host name, so the proxy signs requests to AWS again.
        return FaultProxy(endpoint, seed=self.settings.seed, sign=endpoint.startswith("https://"))


def _if_late(driver: Driver, alive: bool) -> str:
    return "" if alive else f"it had already ended: exit code {driver.process.returncode}: {driver.last_words()}"


def _fate(rows: Rows, key: str, image: HarmfulImage) -> Finding:
    found = rows.images.get(key, [])
    fates = [row["error_code"] or row["status"] for row in found]
    good = len(fates) == 1 and fates[0] in {code.value for code in image.codes}
    expected = " or ".join(code.value for code in image.codes)
    text = ", ".join(fates) or "no row"
    return Finding("harmful image", image.name, text if good else f"{text}; expected {expected}", good)
