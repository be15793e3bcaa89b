"""`make gpu-check`: what this project does on a GPU, in at most eight minutes on a machine with one; fetches nothing.

    python -m tests.gpu.check [--output gpu-check] [--only speed profile] [--fake]

Each step is a process of its own with a time limit of its own. A step that fails, hangs or is killed is recorded with
the figures that it had, and the next one goes on, because a lost device is lost for one process only.
DIR/gpu-check.json has every figure, DIR/gpu-check.md the tables for docs/benchmarks.md, DIR/profile.json a trace for
chrome://tracing. Exit code 1 if a step did not succeed.

With --fake the same steps run on a CPU with a tiny model; what needs a device is replaced by its fake, and figures mean
nothing. A test does this, so that the script does not fail for a typo on the first machine that has a GPU.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from tests.gpu.devices import FakeGpu, Gpu
from tests.gpu.steps import STEPS

SECONDS = 480.0  # for all steps together
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """How a step ended. `rows`: its figures; `said`: why there are none."""

    step: str
    ended: str  # ok, failed, died, timed out, left out
    seconds: float
    rows: list[Row]
    said: str = ""


def run_step(name: str, seconds: float, device: Gpu, folder: Path) -> Outcome:
    """Run one step in a forked process with a session of its own, which is killed as a whole at its limit.

    Rows that the step gave before it failed are kept.
    """
    forking = multiprocessing.get_context("fork")  # PyTorch is imported once; the first CUDA call is the child's
    ours, theirs = forking.Pipe(duplex=False)
    child = forking.Process(target=_child, args=(name, device, folder, theirs))
    started = time.monotonic()
    child.start()
    theirs.close()
    rows: list[Row] = []
    ended, said = _listen(ours, child, started + seconds, rows)
    _end(child, patient=ended != "timed out")
    said = {"timed out": f"not done after {seconds:.0f} s", "died": f"the process ended with {child.exitcode}"}.get(
        ended, said
    )
    return Outcome(name, ended, round(time.monotonic() - started, 1), rows, said)


def _listen(answers: Connection, child: Any, until: float, rows: list[Row]) -> tuple[str, str]:
    """Add rows as they come. How the step ended, and what it said last."""
    while True:
        # Its own processes may keep the connection open after it has died.
        ready = wait([answers, child.sentinel], max(0.0, until - time.monotonic()))
        if answers not in ready:
            return ("died" if ready else "timed out"), ""
        try:
            kind, value = answers.recv()
        except EOFError:
            return "died", ""
        if kind != "row":
            return kind, value
        rows.append(value)


def _end(child: Any, patient: bool) -> None:
    """End the child and all that it has started: its session, by the id that it keeps until it is joined."""
    if patient:
        wait([child.sentinel], 2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.join()


def _child(name: str, device: Gpu, folder: Path, answers: Connection) -> None:
    os.setsid()
    step = STEPS[name]
    try:
        # A process that has asked for CUDA can start no others that use it.
        with contextlib.nullcontext() if step.forks else device.in_place():
            for row in step.run(device, folder):
                answers.send(("row", row))
        answers.send(("ok", ""))
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        answers.send(("failed", f"{type(error).__name__}: {error}"))


def run_steps(names: Sequence[str], device: Gpu, folder: Path, seconds: float = SECONDS) -> list[Outcome]:
    """All steps in their order. What is left of `seconds` bounds each; a step without time is left out."""
    end, outcomes = time.monotonic() + device.patience * seconds, []
    for name in names:
        left = end - time.monotonic()
        if left < 1:
            outcomes.append(Outcome(name, "left out", 0.0, [], "no time was left"))
            continue
        outcomes.append(run_step(name, min(left, device.patience * STEPS[name].seconds), device, folder))
        print(f"{name}: {outcomes[-1].ended} in {outcomes[-1].seconds} s {outcomes[-1].said}", flush=True)
        write(folder, outcomes)  # at once: the machine may go away
    return outcomes


def write(folder: Path, outcomes: Sequence[Outcome]) -> None:
    document = {"benchmark": "gpu-check", "steps": [asdict(outcome) for outcome in outcomes]}
    (folder / "gpu-check.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "gpu-check.md").write_text("\n\n".join(markdown(outcome) for outcome in outcomes) + "\n")


def markdown(outcome: Outcome) -> str:
    """The section of a step: a table of its figures, or why there is none."""
    head = (
        f"### {STEPS[outcome.step].title}\n\n`{outcome.step}`, {outcome.ended} in {outcome.seconds} s. {outcome.said}"
    )
    if not outcome.rows:
        return head
    columns = list(dict.fromkeys(name for row in outcome.rows for name in row))
    lines = ["| " + " | ".join(map(_cell, columns)) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in outcome.rows]
    return f"{head}\n\n" + "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/")


def main(args: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu-check"), metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS), help="these steps alone")
    parser.add_argument("--fake", action="store_true", help="without a GPU; figures mean nothing")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps together")
    parsed = parser.parse_args(args)
    parsed.output.mkdir(parents=True, exist_ok=True)
    device = FakeGpu() if parsed.fake else Gpu()
    outcomes = run_steps(parsed.only, device, parsed.output.resolve(), parsed.seconds)
    print((parsed.output / "gpu-check.md").read_text())
    return 0 if all(outcome.ended == "ok" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
