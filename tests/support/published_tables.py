"""Runs published by hand, as `pipeline/tables/publish.py` does it: parts, then one transaction of AddActions."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.transaction import AddAction

from pipeline.commit.write import part_bytes
from pipeline.layout import Output, part_path
from pipeline.schema import TABLES
from pipeline.store.filesystem import open_filesystem, put_object
from pipeline.tables.current_view import delta_options, table_uri
from pipeline.tables.publish import app_id


def image_row(image_key: str, run_id: str, night: int, **fields: Any) -> dict[str, Any]:
    """A row of `images` of a run that was planned `night` days after the first."""
    return {
        "image_key": image_key,
        "status": "ok",
        "error_code": None,
        "error_message": None,
        "height": 480,
        "width": 640,
        "etag": "e1",
        "size_bytes": 1000,
        "num_segments": 1,
        "run_id": run_id,
        "run_created": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=night),
        "shard": 0,
        "fingerprint": "now",
        "attempt": 1,
        "reason": "new",
        **fields,
    }


def segment_row(image_key: str, run_id: str, segment_id: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "image_key": image_key,
        "segment_id": segment_id,
        "category_id": 17,
        "category_name": "cat",
        "isthing": True,
        "score": 0.5,
        "area": 4,
        "bbox": [0.0, 1.0, 2.0, 2.0],
        "segmentation": {"size": [480, 640], "counts": "0102"},
        "run_id": run_id,
        "shard": 0,
        **fields,
    }


def publish(
    output: str, table: str, run_id: str, shards: Sequence[Sequence[dict[str, Any]] | pa.Table], statistics: bool = True
) -> DeltaTable:
    """Write each shard's rows as a part and add all of them in one transaction; the table as it is then."""
    filesystem, root = open_filesystem(output)
    actions = []
    for shard, rows in enumerate(shards):
        content = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=TABLES[table])
        data = part_bytes(table, content)
        path = part_path(table, run_id, shard, hashlib.sha256(data).hexdigest())
        put_object(filesystem, f"{root}/{path}", data)
        stats: dict[str, Any] = {"numRecords": len(content)}
        if statistics and len(content):
            bounds = pc.min_max(content["image_key"]).as_py()
            stats |= {"minValues": {"image_key": bounds["min"]}, "maxValues": {"image_key": bounds["max"]}}
        actions.append(AddAction(path.removeprefix(f"{table}/"), len(data), {}, 0, True, json.dumps(stats)))
    published = DeltaTable.create(
        table_uri(Output.open(output), table),
        schema=TABLES[table],
        mode="ignore",
        storage_options=delta_options(Output.open(output)),
    )
    properties = CommitProperties(app_transactions=[Transaction(app_id(run_id), len(shards))])
    published.create_write_transaction(actions, mode="append", schema=published.schema(), commit_properties=properties)
    return published


def publish_run(output: str, run_id: str, images: Sequence[dict[str, Any]], segments: Sequence[dict[str, Any]]) -> None:
    """Both tables in the order that counts."""
    publish(output, "segments", run_id, [segments])
    publish(output, "images", run_id, [images])
