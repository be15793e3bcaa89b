"""The settings of jobs that work on finished runs: their names, types, defaults and help texts.

`jobs/` turns these dataclasses into command lines, as it does with `pipeline/config.py`. Nothing heavy is imported
here, so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import Annotated

from pipeline.setting_fields import IN_AND_OUT, LEASE_SECONDS, RUN_CONTROL, LeaseSeconds, check_fields


@dataclass(frozen=True)
class RollBackSettings:
    """Take the rows of one finished run out of the published tables, as if that night had not been.

    Each image shows its row from the run before, or no row. The next run processes the images again that need it.
    Without --yes, the job only prints how many rows the run has.
    """

    output: Annotated[str, IN_AND_OUT]
    """Change the tables below this folder or URI prefix, the --output of the run."""
    run_id: Annotated[str, IN_AND_OUT]
    """Take out the rows of this run."""
    yes: Annotated[bool, RUN_CONTROL] = False
    """Change the tables. Without this flag, nothing is written."""
    lease_seconds: LeaseSeconds = LEASE_SECONDS
    """Keep other drivers off --output for N seconds after the last sign of life of this job."""
    allow_unsafe_store: Annotated[bool, RUN_CONTROL] = False
    """Change the tables although the store does not keep other jobs away; give this flag if the runs have it."""

    def __post_init__(self) -> None:
        check_fields(self)
