"""Check a store: the proofs that every run makes, then each property on its own. For jobs/check_store.py."""

import logging
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.store.proofs import find_faults, store_name
from pipeline.store_check.properties import Finding, Verdict, properties
from pipeline.store_check.settings import StoreCheckSettings
from pipeline.store_check.trial import Trial

logger = logging.getLogger(__name__)

_PROOF = "the proofs at the start of a run"


@dataclass(frozen=True)
class Latency:
    """How long requests of one kind took, in ms, one at a time."""

    kind: str
    number: int
    median: float
    most: float


@dataclass(frozen=True)
class StoreCheck:
    """The result of a check."""

    store: str
    findings: tuple[Finding, ...]
    latencies: tuple[Latency, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of all findings; a note is no fault."""
        worst = max(finding.verdict for finding in self.findings)
        return Verdict.OK if worst is Verdict.NOTE else worst


def check_store(settings: StoreCheckSettings, say: Callable[[Finding], None]) -> StoreCheck:
    """Try the store of `settings.output`. RunError if nothing can be written there.

    `say` is called with each finding when it is made. Everything that was written is removed at the end.
    """
    trial = Trial(settings.output)
    findings: list[Finding] = []
    try:
        with trial.output.errors():
            trial.put("first", b"x")
            findings.append(_prove(trial))
        say(findings[0])
        for one in properties(settings.objects, settings.rounds):
            findings.append(one.of(trial))
            say(findings[-1])
    finally:
        left = trial.remove_all()
        if left:
            logger.warning("%d objects below %s could not be removed", len(left), trial.output.uri)
    name = store_name(trial.filesystem, trial.output.root)
    return StoreCheck(name, tuple(findings), tuple(_latencies(trial)))


def _prove(trial: Trial) -> Finding:
    faults = find_faults(trial.filesystem, trial.output.runs)
    if not faults:
        return Finding(_PROOF, "hold", Verdict.OK)
    worst = Verdict.UNSAFE if all(fault.is_usable for fault in faults) else Verdict.UNUSABLE
    return Finding(_PROOF, "; ".join(f"the store {fault.words}" for fault in faults), worst)


def _latencies(trial: Trial) -> list[Latency]:
    return [
        Latency(kind, len(times), statistics.median(times), max(times)) for kind, times in trial.milliseconds.items()
    ]
