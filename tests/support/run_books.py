"""Finished runs with all their books, through the program's own writers: plan, parts, receipts, tables, report.

Legend: H, W pixels of an image.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m2f_core.config.labels import Category
from m2f_core.images.quality import Quality
from m2f_core.masks.rle import encode_runs, label_runs
from pipeline.commit.encode import EncodeSpec, encode_shard
from pipeline.commit.journal import Journal
from pipeline.commit.receipt import PartRecord
from pipeline.commit.totals import Totals
from pipeline.commit.write import ShardWriter, part_bytes
from pipeline.layout import Output, part_path
from pipeline.plan.shards import PLANNED_IMAGES, write_plan
from pipeline.schema import SCHEMA_VERSION, SEGMENTED, TABLES
from pipeline.store.filesystem import put_object
from pipeline.tables.publish import Publisher
from tests.support.run_records import report, run_json

CATEGORIES = (
    {"id": 7, "name": "cat", "isthing": 1},
    {"id": 3, "name": "dog", "isthing": 1},
    {"id": 92, "name": "sky", "isthing": 0},
    {"id": 40, "name": "road", "isthing": 0},
)
FINGERPRINT = "0123456789abcdef"
QUALITY = Quality(0.25, 0.75, 7.5, 60.0, 12.0, False, -5)._asdict()


@dataclass(frozen=True)
class Found:
    """An image and what a run found: a map [H, W] of segment numbers (0: none), and the class of each number from 1.

    `failed`: an error code. `removed`: the image is gone from the input.
    """

    key: str
    labels: np.ndarray | None = None
    classes: Sequence[int] = ()
    failed: str | None = None
    removed: bool = False
    attributes: str | None = None
    ids: Sequence[int] | None = None  # default: as each task numbers its segments


@dataclass(frozen=True)
class Shard:
    """The images of a shard as planned, and the rows that a run has written for them."""

    planned: pa.Table
    tables: Mapping[str, pa.Table]


def created_at(days_ago: float = 0) -> datetime:
    return datetime(2026, 11, 23, 9, tzinfo=UTC) - timedelta(days=days_ago)


def spec_of(run_id: str, task: str, created: datetime, attempt: int = 1) -> EncodeSpec:
    categories = tuple(Category(n, c["id"], c["name"], bool(c["isthing"])) for n, c in enumerate(CATEGORIES))
    return EncodeSpec(run_id, created, FINGERPRINT, attempt, task, categories)


def encoded(images: Sequence[Found], number: int, spec: EncodeSpec) -> Shard:
    """A shard, with its rows as the program's own encoder makes them."""
    planned = [
        {
            "image_key": image.key,
            "etag": f"etag of {image.key}",
            "size_bytes": 1000 + place,
            "reason": "removed" if image.removed else "new",
            "attributes": image.attributes,
        }
        for place, image in enumerate(images)
    ]
    segmented = [{**plan, **_result(image, spec.task)} for plan, image in zip(planned, images, strict=True)]
    rows = pa.Table.from_pylist(segmented, schema=SEGMENTED)
    return Shard(pa.Table.from_pylist(planned, schema=PLANNED_IMAGES), encode_shard(number, rows, spec))


def _result(image: Found, task: str) -> dict[str, Any]:
    if image.labels is None:
        said = None if image.failed is None else "it is broken"
        return {"error_code": image.failed, "error_message": said}
    height, width = image.labels.shape
    masks = encode_runs(label_runs(image.labels), height, width)
    ids = image.ids or [image.classes[rle.label - 1] + 1 if task == "semantic" else rle.label for rle in masks]
    return {
        "height": height,
        "width": width,
        "quality": QUALITY,
        "masks": [{"counts": m.counts.decode(), "area": m.area, "bbox": m.bbox_xywh} for m in masks],
        "segments": [
            {
                "segment_id": ids[n],
                "class_id": image.classes[m.label - 1],
                "score": 0.9 - 0.01 * n,
                "mask": n,
                "embedding": None if task == "semantic" else np.array([0.5, n, -n], "<f2").tobytes(),
            }
            for n, m in enumerate(masks)
        ],
    }


def write_run(
    uri: str,
    run_id: str,
    shards: Iterable[Shard],
    *,
    task: str = "panoptic",
    created: datetime | None = None,
    postprocess: str = "reference",
    finished: bool = True,
    published: bool = True,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write the run: parts and receipts as the shards come, then plan, run.json, tables and report.json.

    `record`: fields of run.json.
    """
    output, created = Output.open(uri), created or created_at()
    folder, writer = output.run(run_id), ShardWriter(Output.open(uri), run_id)
    planned, receipts = [], []
    for number, shard in enumerate(shards):
        planned.append(shard.planned)
        receipts.append(replace(writer.write(number, dict(shard.tables), started=1.0), finished=2.0))
    plan = write_plan(planned, output.filesystem, folder.plan)
    usual = {
        "categories": CATEGORIES,
        "created": created.isoformat(timespec="microseconds"),
        "results": {"task": task, "postprocess": postprocess, "embeddings": task != "semantic"},
        "counts": {"new": plan.num_images},
    }
    record = json.loads(run_json(run_id, **{**usual, **(record or {})}))
    files = [{"path": f.path, "first_shard": f.first_shard, "num_shards": f.num_shards} for f in plan.files]
    record["plan"] = {**vars(plan), "files": files}
    put_object(output.filesystem, output.format_json, json.dumps({"schema_version": SCHEMA_VERSION}).encode())
    put_object(output.filesystem, folder.run_json, json.dumps(record).encode())
    journal = Journal.start_attempt(folder)
    journal.append(receipts)
    if published:
        tables = {name for receipt in receipts for name in receipt.parts}
        Publisher(output, run_id, lambda: plan.num_shards, journal, tables=lambda: tables).publish()
    if finished:
        write_report(uri, run_id)


def write_report(uri: str, run_id: str) -> None:
    """report.json with the figures of the receipts."""
    output = Output.open(uri)
    folder = output.run(run_id)
    record = json.loads(output.read(folder.run_json))
    totals = Totals()
    for receipt in Journal(folder).read():
        totals.add(receipt)
    created = datetime.fromisoformat(record["created"])
    report(
        run_id,
        created=record["created"],
        finished_at=(created + timedelta(hours=1)).isoformat(timespec="seconds"),
        counts=record["counts"],
        num_images=totals.num_images,
        num_ok=totals.num_images - totals.num_failed - totals.num_removed,
        num_failed=totals.num_failed,
        num_removed=totals.num_removed,
        num_segments=totals.num_segments,
        failed_by_code=dict(sorted(totals.failed_by_code.items())),
        num_shards=record["plan"]["num_shards"],
    ).write(folder)


# --- what somebody may do to a finished run ---------------------------------------------------------------------------


def part_of(output: Path, table: str, shard: int = 0, run_id: str = "night") -> Path:
    """The file of a part."""
    [path] = (output / table / f"run={run_id}").glob(f"shard-{shard:06d}-*.parquet")
    return path


def change_in_place(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write other rows into a part; receipt and log stay."""
    path.write_bytes(part_bytes(path.parent.parent.name, change(pq.read_table(path, partitioning=None))))


def forge(
    output: Path, table: str, change: Callable[[pa.Table], pa.Table], shard: int = 0, run_id: str = "night"
) -> None:
    """Write other rows into a part, and let its receipt and the log agree with them."""
    path = part_of(output, table, shard, run_id)
    rows = change(pq.read_table(path, partitioning=None))
    data = part_bytes(table, rows)
    path.unlink()
    digest = hashlib.sha256(data).hexdigest()
    name = part_path(table, run_id, shard, digest)
    (output / name).write_bytes(data)
    keys = pc.min_max(rows["image_key"]).as_py()

    def with_new_part(receipt: dict[str, Any]) -> dict[str, Any]:
        part = PartRecord(name, rows.num_rows, len(data), digest, keys["min"], keys["max"])
        number = rows.num_rows if table == "images" else receipt["num_images"]
        return {**receipt, "num_images": number, "parts": {**receipt["parts"], table: asdict(part)}}

    change_receipts(output, lambda receipt: with_new_part(receipt) if receipt["shard"] == shard else receipt, run_id)
    publish_anew(output, run_id)


def change_receipts(
    output: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None], run_id: str = "night"
) -> None:
    """Change each receipt in the journal of the run; None takes a receipt out."""
    for path in (output / "_runs" / run_id / "journal").iterdir():
        receipts = [change(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(receipt) + "\n" for receipt in receipts if receipt is not None))


def publish_anew(output: Path, run_id: str = "night") -> None:
    """Tables with the parts that the journal names now."""
    for table in TABLES:
        shutil.rmtree(output / table / "_delta_log")
    place = Output.open(str(output))
    num_shards = json.loads((output / "_runs" / run_id / "run.json").read_text())["plan"]["num_shards"]
    Publisher(place, run_id, lambda: num_shards, Journal(place.run(run_id), attempt=1)).publish()


def with_value(field: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    """A change of one value; a function makes the new value from the old."""

    def change(rows: pa.Table) -> pa.Table:
        values = rows.to_pylist()
        before = values[row][field]
        values[row][field] = value(before) if callable(value) else value
        assert values[row][field] != before, "the change changes nothing"
        return pa.Table.from_pylist(values, schema=rows.schema)

    return change
