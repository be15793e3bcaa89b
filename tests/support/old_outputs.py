"""Outputs that nights have left over months, with times as if they had."""

import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.layout import Output
from pipeline.store.filesystem import put_object
from pipeline.tables.current_view import current_images, current_segments
from tests.support.published_tables import image_row, publish_run, segment_row
from tests.support.run_records import report, run_json

DAY = 86_400.0


def planned_at(days_ago: float) -> datetime:
    """When a run was planned, at a whole second."""
    return datetime.fromtimestamp(int(time.time()), UTC) - timedelta(days=days_ago)


def iso(time: datetime, timespec: str = "microseconds") -> str:
    return time.isoformat(timespec=timespec)


def put(uri: str, path: str, data: str | bytes = b"") -> None:
    output = Output.open(uri)
    put_object(output.filesystem, output.at(path), data.encode() if isinstance(data, str) else data)


def night(
    uri: str, run_id: str, days_ago: float, keys: Iterable[str], removed: Iterable[str] = (), finished: bool = True
) -> None:
    """A run of images with a segment each, and of tombstones; its folder with everything that a run leaves there.

    Not finished: without a report; its parts lie in the output, and no table has them.
    """
    created = planned_at(days_ago)
    ok = [image_row(key, run_id, 0, run_created=created) for key in keys]
    gone = [
        image_row(key, run_id, 0, run_created=created, status="removed", reason="removed", num_segments=0)
        for key in removed
    ]
    put(uri, f"_runs/{run_id}/run.json", run_json(run_id, created=iso(created), weights_sha256=f"weights of {run_id}"))
    for name in ("plan/000000.parquet", "attempts/000001.json", "journal/000001-000000.jsonl"):
        put(uri, f"_runs/{run_id}/{name}", b"x" * 1000)
    if not finished:
        for table in ("images", "segments"):
            put(uri, f"{table}/run={run_id}/shard-000000-0123456789abcdef.parquet", b"x" * 1000)
        return
    publish_run(uri, run_id, [*ok, *gone], [segment_row(key, run_id) for key in keys])
    counts = {"num_images": len(ok) + len(gone), "num_ok": len(ok), "num_removed": len(gone)}
    ended = iso(created + timedelta(hours=1), "seconds")
    report(run_id, created=iso(created), finished_at=ended, **counts).write(Output.open(uri).run(run_id))


def age(place: Path, days: float, pattern: str = "**/*") -> None:
    """Let the files of a local output look as if they were written `days` ago, if they are not older already."""
    then = time.time() - days * DAY
    for path in place.glob(pattern):
        if path.is_file() and path.stat().st_mtime > time.time() - DAY / 2:
            os.utime(path, (then, then))


def view(uri: str, version: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """All rows of the current view of both tables, sorted."""
    return {
        name: sorted(read(uri, version=version).read_all().to_pylist(), key=str)
        for name, read in (("images", current_images), ("segments", current_segments))
    }
