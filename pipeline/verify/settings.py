"""The settings of a check of published tables: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line. Nothing heavy is imported here, so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from pipeline.setting_fields import IN_AND_OUT, RESOURCES, RUN_CONTROL, check_fields


@dataclass(frozen=True)
class VerifySettings:
    """Check the published tables of an output: that nothing is lost, double, damaged or impossible.

    Each finished run is checked against its own records (settings, plan, receipts, report), each part against the hash
    in its receipt, each row against the table format, and each mask is measured again. Nothing is written below
    --tables.
    """

    tables: Annotated[str, IN_AND_OUT]
    """Check the tables below this folder or URI prefix, the --output of the runs."""
    report: Annotated[str | None, IN_AND_OUT] = None
    """Write the findings to this JSON file or URI, too."""
    run_id: Annotated[str | None, RUN_CONTROL] = None
    """Check the rows of this finished run. Default: the rows of all finished runs, and so the current view."""
    sample: Annotated[int | None, RUN_CONTROL, Interval(ge=1, le=2**31)] = None
    """Check only N of the shards and merged files, evenly chosen; what compares whole runs is left out then. Default:
    check all."""
    workers: Annotated[int | None, RESOURCES, Interval(ge=1, le=1024)] = None
    """Read and check in N processes. Default: one per CPU."""

    def __post_init__(self) -> None:
        check_fields(self)
