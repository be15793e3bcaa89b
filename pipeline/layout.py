"""Names of the objects below an output.

A run lives in `<output>/_runs/<run_id>/`:

    run.json    what it is: settings, fingerprint, plan files; written once the plan is complete
    plan/       the images, by shard
    attempts/   one object per driver that worked on the run
    journal/    receipts of done shards
    report.json the books; a run that has one is finished and published
"""


def part_path(table: str, run_id: str, shard: int, sha256: str) -> str:
    """Where a part lies, relative to the output."""
    return f"{run_folder(table, run_id)}/shard-{shard:06d}-{sha256[:16]}.parquet"


def run_folder(table: str, run_id: str) -> str:
    """Where the parts of a run lie, relative to the output."""
    return f"{table}/run={run_id}"
