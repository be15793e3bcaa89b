"""The settings of jobs that work on finished runs: their names, types, defaults and help texts.

`jobs/` turns these dataclasses into command lines, as it does with `pipeline/config.py`. Nothing heavy is imported
here, so that `--help` answers at once.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from annotated_types import Interval

from pipeline.setting_fields import (
    IN_AND_OUT,
    LEASE_SECONDS,
    RUN_CONTROL,
    LeaseSeconds,
    Section,
    check_fields,
    duration_of,
)

_RETENTION = Section("retention")
# A reader keeps the snapshot that it has opened for as long as it reads.
_LEAST_AGE = timedelta(hours=1)


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


@dataclass(frozen=True)
class PublishSettings:
    """Publish a finished run that --gate of segment_bucket.py has held back, after somebody has looked at it."""

    tables: Annotated[str, IN_AND_OUT]
    """Publish in the tables below this folder or URI prefix, the --output of the run."""
    run_id: Annotated[str, IN_AND_OUT]
    """Publish this run."""
    lease_seconds: LeaseSeconds = LEASE_SECONDS
    """Keep other drivers off --tables for N seconds after the last sign of life of this job."""
    allow_unsafe_store: Annotated[bool, RUN_CONTROL] = False
    """Publish although the store does not keep other jobs away; give this flag if the run has it."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class TidySettings:
    """Make room in an output: remove what no reader of the last versions needs, and what is older than an age.

    Rows that a newer row has replaced, images that are gone from the input, files that no kept version of the tables
    has, and plans, journals and records of old runs. The current rows of all images stay as they are. Without --yes,
    the job only prints what it would remove.
    """

    output: Annotated[str, IN_AND_OUT]
    """Make room below this folder or URI prefix, the --output of the runs."""
    older_than: Annotated[str, _RETENTION] = "30d"
    """Keep everything that was needed within this time, such as 30d, 12h or 90m; at least 1h. A replaced row counts
    from the run that replaced it, a file from the version of the table that dropped it, a run from its end."""
    keep_versions: Annotated[int, _RETENTION, Interval(ge=1, le=100_000)] = 10
    """Keep the last N versions of each table readable, however old they are."""
    unfinished: Annotated[bool, _RETENTION] = False
    """Remove old unfinished runs too that the command which began them could still continue."""
    compact: Annotated[bool, _RETENTION] = True
    """Merge small files of the tables; the small files go when no kept version has them."""
    yes: Annotated[bool, RUN_CONTROL] = False
    """Change the output. Without this flag, nothing is written."""
    lease_seconds: LeaseSeconds = LEASE_SECONDS
    """Keep other drivers off --output for N seconds after the last sign of life of this job."""
    allow_unsafe_store: Annotated[bool, RUN_CONTROL] = False
    """Change the output although the store does not keep other jobs away; give this flag if the runs have it."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.age()

    def age(self) -> timedelta:
        """--older-than as a duration."""
        return duration_of("--older-than", self.older_than, _LEAST_AGE)
