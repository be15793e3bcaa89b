"""What a campaign's trials add up to."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.guard.kill_points import POINTS


@dataclass
class Trial:
    """What was done to one output, and what came of it."""

    name: str
    kills: Counter[str] = field(default_factory=Counter)  # with SIGKILL and nothing before, by victim
    notices: Counter[str] = field(default_factory=Counter)  # with SIGTERM first, by victim
    exit_codes: Counter[int] = field(default_factory=Counter)  # of the drivers
    lost: int = 0
    duplicated: int = 0
    differing: int = 0
    complaints: list[str] = field(default_factory=list)


def show(trials: list[Trial], seconds: float, settings: dict[str, Any]) -> bool:
    """A table by victim, then all of it as one line of JSON. False where something went wrong."""
    kills = sum((trial.kills for trial in trials), Counter[str]())
    table = Table(title=f"{kills.total()} kills, {len(trials)} outputs, {seconds / 60:.1f} min")
    for name in ("killed", "times", "outputs", "lost", "duplicated", "differing"):
        table.add_column(name, justify="left" if name == "killed" else "right")
    order = [f"{who} at: {point}" for point in POINTS for who in ("driver", "write actor")]
    for victim in sorted(kills, key=lambda name: (order.index(name) if name in order else -1, name)):
        hit = [trial for trial in trials if trial.kills[victim]]
        wrong = (sum(getattr(trial, name) for trial in hit) for name in ("lost", "duplicated", "differing"))
        table.add_row(victim, *map(str, (kills[victim], len(hit), *wrong)))
    # Wide, so that names of victims stay on one line in a log.
    Console(width=110, highlight=False).print(table)
    notices = sum((trial.notices for trial in trials), Counter[str]())
    complaints = [f"{trial.name}: {line}" for trial in trials for line in trial.complaints]
    print(*complaints, sep="\n")
    codes = sum((trial.exit_codes for trial in trials), Counter[int]())
    totals = {name: sum(getattr(trial, name) for trial in trials) for name in ("lost", "duplicated", "differing")}
    summary = {
        "settings": settings,
        "kills": kills.total(),
        "kills_by_victim": dict(sorted(kills.items())),
        "ended_after_notice": dict(sorted(notices.items())),
        "outputs": len(trials),
        "drivers_by_exit_code": {str(code): count for code, count in sorted(codes.items())},
        **totals,
        "complaints": len(complaints),
        "images_compared": len(trials) * settings["images"],
        "seconds": round(seconds, 1),
        "kills_per_minute": round(60 * kills.total() / seconds, 2),
    }
    print(json.dumps(summary))
    return not complaints
