"""run.json of runs that were never started."""

import json
from dataclasses import asdict
from typing import Any

from pipeline.commit.run_record import ModelRecord, PlanSummary, RunRecord
from pipeline.schema import SCHEMA_VERSION


def run_json(
    run_id: str, *, weights_sha256: str = "w", categories: Any = (), num_shards: int = 1, **changes: Any
) -> str:
    """A run.json with all of its fields."""
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        run_id=run_id,
        created="2026-11-23T09:00:00.000000+00:00",
        fingerprint="0123456789abcdef",
        input="file:///photographs",
        limit=None,
        mode="incremental",
        tombstone_removed=False,
        settings={},
        results={"task": "panoptic"},
        model_license="unknown",
        model=ModelRecord("model", weights_sha256, list(categories)),
        plan=PlanSummary((), 0, num_shards, 0),
        counts={},
        versions={},
    )
    return json.dumps({**asdict(record), **changes})
