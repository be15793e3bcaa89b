"""run.json and report.json of runs that were never started, and receipts that nobody wrote."""

import json
from dataclasses import asdict
from typing import Any

from pipeline.commit.receipt import PartRecord, Receipt
from pipeline.commit.run_record import ModelRecord, PlanFile, PlanSummary, RunRecord
from pipeline.commit.run_report import Report
from pipeline.layout import part_path
from pipeline.schema import SCHEMA_VERSION, TABLES


def run_json(
    run_id: str,
    *,
    weights_sha256: str = "w",
    categories: Any = (),
    num_shards: int = 1,
    model_type: str = "mask2former",
    **changes: Any,
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
        model=ModelRecord("model", weights_sha256, list(categories), model_type),
        plan=PlanSummary((PlanFile("000000.parquet", 0, num_shards),) if num_shards else (), num_shards, num_shards, 0),
        counts={},
        versions={},
    )
    return json.dumps({**asdict(record), **changes})


def report(run_id: str, **changes: Any) -> Report:
    """The report of a run without images."""
    moments = {"created": "2026-11-23T09:00:00.000000+00:00", "finished_at": "2026-11-23T10:00:00+00:00"}
    counts = dict.fromkeys(("num_images", "num_ok", "num_failed", "num_removed", "num_segments"), 0)
    shards = {"num_shards": 0, "num_shards_done_before": 0}
    values = {
        **moments,
        **counts,
        **shards,
        "counts": {},
        "failed_by_code": {},
        "seconds": 1.0,
        "images_per_second": 1.0,
    }
    return Report(**{"run_id": run_id, **values, **changes})


def receipt(run_id: str, shard: int, num_images: int = 1, **changes: Any) -> Receipt:
    """The receipt of a shard whose parts do not exist."""
    digest = f"{shard:064x}"
    parts = {
        table: PartRecord(part_path(table, run_id, shard, digest), num_images, 1, digest, None, None)
        for table in TABLES
    }
    return Receipt(
        **{"failed_by_code": {}, "num_removed": 0, "started": 1.0, "finished": 2.0, "parts": parts, **changes},
        shard=shard,
        num_images=num_images,
    )
