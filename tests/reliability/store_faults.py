"""Break the store in every way at once and compare the tables: `python -m tests.reliability.store_faults`.

On top of campaign.faults, answers that stop in the middle and never go on, nor end: clients must give up by themselves.
The same command is given until its exit code is 0; the rows are compared with those of an undisturbed run. The last
line is JSON: what was broken how often, all exit codes, and what was lost, written twice or differs.
"""

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.common.command_line import parse
from pipeline.config import Settings
from pipeline.drill.fault_proxy import Rule
from tests.reliability.campaign import CampaignSettings, campaign, faults
from tests.reliability.verdict import Trial

_FOR_EVER = 24 * 3600.0


@dataclass(frozen=True)
class StoreFaultsSettings:
    """Break requests of every kind in every way, and compare the tables with those of an undisturbed run."""

    share: float = 0.05
    """Of the requests that a fault can meet, how many it does; each of the seven kinds."""
    images: int = 1000
    """Images of the run, 64x64 pixels each."""
    images_per_shard: int = 10
    """Images of a shard."""
    seed: int = 0
    """Of the choices."""


def main() -> int:
    settings = parse(StoreFaultsSettings, sys.argv[1:], prog="store_faults.py")
    of_campaign = CampaignSettings(
        seed=settings.seed,
        images=settings.images,
        images_per_shard=settings.images_per_shard,
        storage_faults=settings.share,
        lease_seconds=Settings.lease_seconds,
        run_seconds=3600.0,
    )
    with tempfile.TemporaryDirectory(prefix="m2f-faults-") as folder, campaign(of_campaign, Path(folder)) as running:
        requests = running.proxy.num_requests  # of the undisturbed run
        stalls = Rule("^GET ", "stall", probability=settings.share, seconds=_FOR_EVER)
        running.proxy.set_rules([*faults(settings.share), stalls])
        started = time.monotonic()
        trial = running.complete(Trial("store-faults"))
        summary = {
            "settings": asdict(settings),
            "requests": running.proxy.num_requests - requests,
            "broken": dict(sorted(running.proxy.fired.items())),
            "exit_codes": trial.exit_codes,
            "lost": trial.lost,
            "duplicated": trial.duplicated,
            "differing": trial.differing,
            "seconds": round(time.monotonic() - started, 1),
            "seconds_undisturbed": round(running.usual_seconds, 1),
        }
    print(*trial.complaints, sep="\n")
    print(json.dumps(summary))
    return 1 if trial.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
