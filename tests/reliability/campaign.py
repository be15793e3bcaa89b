"""Kill a job's processes hundreds of times and count what its tables lost: `python -m tests.reliability.campaign`.

One trial is one output: drivers are started on it one after another, and with each, processes are killed with SIGKILL
at random moments (the driver, actors of every kind, the raylet of a node) or in a chosen step of the commit protocol,
until one driver ends with exit code 0. Some nodes and drivers get SIGTERM first, as spot instances and `ray job stop`
do it. A driver may also be frozen (SIGSTOP) until another has taken its place, and woken then. At the end the trial's
Delta tables are compared, row by row, with those of a run that nobody disturbed.

Everything is real: a SeaweedFS, a Ray cluster of several nodes, the program's own command line. Kept alive over the
trials are the store, the cluster's head, and a process that drivers are forked from. `--seed` repeats the choices, not
the moments. Needs Linux.
"""

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import s3fs

from jobs.common.command_line import parse
from pipeline.drill.fault_proxy import FaultProxy, Rule
from pipeline.drill.processes import ACTORS, Role, find, kill_one
from pipeline.guard.kill_points import POINTS, VARIABLE
from pipeline.scenes.settings import ScenesSettings
from pipeline.scenes.write import write_scenes
from pipeline.tables.compare import Rows, check_books, compare, read_rows
from tests.reliability.cluster import LocalCluster, local_cluster
from tests.reliability.verdict import Trial, show
from tests.support.drivers import Driver, Drivers, drivers
from tests.support.inputs import make_model
from tests.support.s3_server import S3Server, embedded_s3

BUCKET = "m2f-campaign"
_VICTIMS: tuple[Role, ...] = (*ACTORS, "read plan")
_IN_ACTORS = ("segments part written", "images part written")
_NOTICE_SECONDS = 5.0  # between SIGTERM and SIGKILL
_MOST_ATTEMPTS = 60  # of a trial


@dataclass(frozen=True)
class CampaignSettings:
    """Kill a job's processes at random moments and in every step of its commit, and compare its tables."""

    kills: int = 200
    """Processes to kill."""
    seed: int = 0
    """Of the choices; the moments depend on the machine."""
    nodes: int = 2
    """Ray nodes; the driver's is never killed."""
    images: int = 240
    """Images of a run, 64x64 pixels each."""
    images_per_shard: int = 4
    """Images of a shard."""
    minutes: float = 60.0
    """Start no new trial after so many minutes."""
    storage_faults: float = 0.0
    """Share of the requests that the store breaks on top, in each of the ways of store_faults.py but stalls."""
    lease_seconds: float = 3.0
    """Short, so that a driver soon follows the one before it."""
    run_seconds: float = 300.0
    """The longest that a driver may take."""


class Campaign:
    """Runs trials on one cluster and store."""

    def __init__(
        self,
        settings: CampaignSettings,
        cluster: LocalCluster,
        forking: Drivers,
        proxy: FaultProxy,
        flags: list[str],
    ):
        self.settings = settings
        self.proxy = proxy  # between the runs and their store, where there are storage faults
        self.cluster = cluster
        self.forking = forking
        self.flags = flags
        self.chance = random.Random(settings.seed)
        self.reference = Rows({}, {})
        self.usual_seconds = 0.0  # of a run that nobody disturbs

    def run_reference(self) -> None:
        started = time.monotonic()
        trial = Trial("reference")
        if code := self._finish(trial, driver := self._start(trial.name)):
            raise RuntimeError(f"the undisturbed run ended with {code}:\n{driver.said()[-3000:]}")
        self.usual_seconds = time.monotonic() - started
        self.reference = read_rows(f"s3://{BUCKET}/reference")
        if lines := check_books(self.reference, self.reference.images):
            raise RuntimeError(f"the undisturbed run is wrong: {lines}")
        if len(self.reference.images) != self.settings.images or not self.reference.segments:
            raise RuntimeError(f"the undisturbed run has {len(self.reference.images)} images")

    def run_trial(self, number: int) -> Trial:
        trial = Trial(f"trial-{number:03d}")
        ways = (self._points_in_order, self._at_random, self._at_random, self._frozen, self._at_random)
        ways[number % len(ways)](trial)
        return self.complete(trial)

    def complete(self, trial: Trial) -> Trial:
        """Drivers until one ends with 0; then the comparison."""
        while self._attempt(trial) != 0:
            if trial.exit_codes.total() > _MOST_ATTEMPTS:
                raise RuntimeError(f"{trial.name} does not come to an end; logs: {self.forking.logs}")
        self._compare(trial)
        return trial

    # --- ways to disturb a run ----------------------------------------------------------------------------------------

    def _points_in_order(self, trial: Trial) -> None:
        """Every step of the protocol, one driver after the other. At steps of actors two of these die first."""
        for point in POINTS:
            if point in _IN_ACTORS:
                victim = f"write actor at: {point}"
                self._attempt(
                    trial, point=f"{point}:4", act=lambda driver, v=victim: self._await_deaths(trial, driver, v)
                )
            else:
                self._attempt(trial, point=point)

    def _at_random(self, trial: Trial) -> None:
        """Whoever is there, whenever, several in one run."""
        quota = self.chance.randint(6, 14)
        code = -9
        while trial.kills.total() < quota and code != 0:
            left = quota - trial.kills.total()
            code = self._attempt(trial, act=lambda driver, left=left: self._disturb(trial, driver, left))

    def _frozen(self, trial: Trial) -> None:
        """A driver that sleeps through its lease and wakes when another is at work in its place."""
        sleeper = self._start(trial.name)
        role = self.chance.choice((None, "model", "write"))
        while role is not None and not sleeper.ended.wait(0.05) and not find(role, self.cluster.roots):
            pass
        sleeper.ended.wait(self.chance.uniform(0.1, 1.0))
        if sleeper.kill(signal.SIGSTOP):
            trial.kills["driver frozen"] += 1
            time.sleep(self.settings.lease_seconds)
            second = self._start_when_free(trial.name)
            second.ended.wait(self.chance.uniform(0.1, 1.0) * self.usual_seconds)
            sleeper.kill(signal.SIGCONT)
            self._disturb(trial, second, 3)
            self._finish(trial, second)
        self._finish(trial, sleeper)

    def _disturb(self, trial: Trial, driver: Driver, kills: int) -> None:
        """Kill up to so many, the driver as the last one or not at all, until it has ended."""
        done = 0
        while done < kills and not driver.ended.wait(self.chance.uniform(0.2, 2.5)):
            there = [role for role in _VICTIMS if find(role, self.cluster.roots)]
            # The driver is rarely meant while its actors are at work, lest few of these ever die.
            victim = self.chance.choice([*(3 * there), "driver"] if there else ["driver", *(6 * [None])])
            if victim is None:
                continue
            if victim == "driver":
                self._end_driver(trial, driver)
                return
            # A node now and then, where there is work to lose: it takes seconds to come back.
            notice = self.chance.choice([0.0, _NOTICE_SECONDS])
            if victim == "model" and self.chance.random() < 0.25 and self.cluster.kill_worker_node(self.chance, notice):
                self.cluster.add_worker()
                if notice:
                    trial.notices["node"] += 1
                else:
                    trial.kills["raylet"] += 1
                done += 1
            elif kill_one(victim, self.cluster.roots, self.chance) is not None:
                trial.kills["read task" if victim == "read plan" else f"{victim} actor"] += 1
                done += 1

    def _end_driver(self, trial: Trial, driver: Driver) -> None:
        if self.chance.random() < 0.25:  # as `ray job stop` does it
            if driver.kill(signal.SIGTERM):
                trial.notices["driver"] += 1
                driver.ended.wait(_NOTICE_SECONDS)
                driver.kill()
        elif driver.kill():
            trial.kills["driver"] += 1

    def _await_deaths(self, trial: Trial, driver: Driver, victim: str) -> None:
        """Until two writing actors have killed themselves; then the driver, lest the run be finished."""
        seen: set[int] = set()
        while not driver.ended.wait(0.05):
            seen |= {process.pid for process in find("write", self.cluster.roots)}
            if len(seen) > 2:  # there is one at a time
                trial.kills[victim] += 2
                if driver.kill():
                    trial.kills["driver"] += 1
                return

    # --- drivers ------------------------------------------------------------------------------------------------------

    def _attempt(
        self, trial: Trial, *, point: str | None = None, act: Callable[[Driver], None] = lambda driver: None
    ) -> int:
        """One driver, from start to end, while `act` happens to it. Its exit code."""
        driver = self._start(trial.name, point)
        act(driver)
        code = self._finish(trial, driver)
        seconds = time.monotonic() - driver.started
        why = (driver.said().strip().splitlines() or [""])[-1][:300] if code > 0 else ""
        print(f"{trial.name}: {point or 'no point'}: exit code {code} after {seconds:.1f} s {why}", file=sys.stderr)
        if code == -9 and point in POINTS:
            trial.kills[f"driver at: {point}"] += 1
        return code

    def _start(self, name: str, point: str | None = None) -> Driver:
        environment = {}
        if point is not None:
            environment[VARIABLE] = point
            if point.partition(":")[0] in _IN_ACTORS:  # workers of a cluster get their environment in this way
                environment["RAY_JOB_CONFIG_JSON_ENV_VAR"] = json.dumps(
                    {"runtime_env": {"env_vars": {VARIABLE: point}}}
                )
        # Where one driver follows the other, each should be up soon; else there are two models, to have more to kill.
        models = "1" if point is not None else "1:2"
        output = f"s3://{BUCKET}/{name}"
        return self.forking.start(*self.flags, "--output", output, "--gpu-actors", models, **environment)

    def _start_when_free(self, name: str) -> Driver:
        """A driver that the lease has let in."""
        while True:
            driver = self._start(name)
            if not driver.ended.wait(self.settings.lease_seconds) or "in use by" not in driver.said():
                return driver

    def _finish(self, trial: Trial, driver: Driver) -> int:
        code = driver.wait(self.settings.run_seconds)
        trial.exit_codes[code] += 1
        if code == 2 and "in use by" in driver.said():
            time.sleep(0.5)  # of a predecessor that is not known to be dead
        elif code not in (0, 1, -signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM):
            trial.complaints.append(f"exit code {code}: {driver.said()[-500:]}")
        return code

    # --- the verdict --------------------------------------------------------------------------------------------------

    def _compare(self, trial: Trial) -> None:
        rows = read_rows(f"s3://{BUCKET}/{trial.name}")
        found = compare(self.reference, rows)
        trial.lost, trial.duplicated, trial.differing = map(len, (found.lost, found.duplicated, found.differing))
        if found:
            trial.complaints.append(str(found))
        trial.complaints += check_books(rows, self.reference.images)


def faults(share: float) -> list[Rule]:
    """Each kind for this share of the requests that it can meet.

    Flipped bytes only where a whole object is read that the program itself reads: neither the store's listings nor the
    log of the Delta tables, whose readers are others', have a checksum.
    """
    return [
        Rule(".", "slow_down", probability=share),
        Rule(".", "internal_error", probability=share),
        Rule(".", "reset", probability=share),
        Rule("^PUT ", "lost_answer", probability=share),
        Rule("^GET ", "truncate", probability=share),
        Rule(r"^GET /(?!.*(\?|_delta_log))", "flip", probability=share),
    ]


@contextlib.contextmanager
def environment_of(server: S3Server) -> Iterator[None]:
    """This process's own way to the store; also past what s3fs remembers of another."""
    before = dict(os.environ)
    os.environ.update(server.environment)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def campaign(settings: CampaignSettings, folder: Path) -> Iterator[Campaign]:
    """Store, cluster, images, model and the undisturbed run, ready for trials. `folder` takes data and logs."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(embedded_s3(folder))
        stack.enter_context(environment_of(server))
        server.bucket(BUCKET)
        write_scenes(ScenesSettings(f"s3://{BUCKET}/scenes", number=settings.images, height=64, width=64))
        make_model(folder / "model")
        proxy = stack.enter_context(FaultProxy(server.url, seed=settings.seed))
        endpoint = {"AWS_ENDPOINT_URL": proxy.url} if settings.storage_faults else {}
        cluster = stack.enter_context(local_cluster(settings.nodes - 1, {"OMP_NUM_THREADS": "1", **endpoint}))
        environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
        forking = stack.enter_context(drivers(folder, environment))
        flags = [
            *("--input", f"s3://{BUCKET}/scenes/images", "--model", str(folder / "model"), "--device", "cpu"),
            *("--image-size", "64:107", "--images-per-shard", str(settings.images_per_shard), "--run-id", "campaign"),
            *("--cpus-per-actor", "1", "--lease-seconds", str(settings.lease_seconds)),
            *("--progress-seconds", "3600", "--max-failure-rate", "0"),
        ]
        running = Campaign(settings, cluster, forking, proxy, flags)
        running.run_reference()
        proxy.set_rules(faults(settings.storage_faults))
        yield running


def main() -> int:
    settings = parse(CampaignSettings, sys.argv[1:], prog="campaign.py")
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory(prefix="m2f-campaign-") as folder, campaign(settings, Path(folder)) as running:
        started = time.monotonic()
        while sum(trial.kills.total() for trial in trials) < settings.kills:
            if time.monotonic() - started > 60 * settings.minutes:
                break
            trials.append(trial := running.run_trial(len(trials)))
            print(f"{trial.name}: {trial.kills.total()} kills, {trial.exit_codes.total()} drivers", file=sys.stderr)
        seconds = time.monotonic() - started
    return 0 if show(trials, seconds, asdict(settings)) else 1


if __name__ == "__main__":
    sys.exit(main())
