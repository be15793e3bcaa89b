"""Turn the output lines of worker processes into log records of the driver.

Ray sends each line to the driver and prints it there with a prefix. That ignores the driver's log format and breaks its
live display. Here each line becomes a record of the driver's log, with its worker as a field. Ray still drops repeated
lines and still selects which of the autoscaler's lines users see.

This file holds the private names of Ray that it needs; its test names the one that an upgrade removes.
"""

import io
import logging
import re
from typing import Any

from ray._private import worker as rays_worker
from ray._private.ray_constants import (
    RAY_DEDUP_LOGS_AGG_WINDOW_S,
    RAY_DEDUP_LOGS_ALLOW_REGEX,
    RAY_DEDUP_LOGS_SKIP_REGEX,
)
from ray._private.ray_logging import LogDeduplicator

from pipeline.telemetry.log_lines import record_from

# These are not Ray's own two instances, because Ray prints the rest of its own when it shuts down.
_repetitions = {
    is_err: LogDeduplicator(RAY_DEDUP_LOGS_AGG_WINDOW_S, RAY_DEDUP_LOGS_ALLOW_REGEX, RAY_DEDUP_LOGS_SKIP_REGEX)
    for is_err in (False, True)
}

# When a run is stopped, Ray Data kills its actors, and Ray then announces retries that will not happen.
_KILLED_ON_PURPOSE = "was killed by `ray.kill`"


def log_worker_lines() -> None:
    """Call before ray.init with `log_to_driver`. May be called again."""
    rays_worker.print_to_stdstream = _log


def _log(data: dict[str, Any], ignore_prefix: bool = False) -> None:
    batches = [data] if data.get("pid") == "autoscaler" else _repetitions[bool(data["is_err"])].deduplicate(data)
    for batch in batches:
        text = io.StringIO()
        rays_worker.print_worker_logs(batch, text, ignore_prefix=True)
        is_warning = batch["is_err"] or batch.get("pid") == "raylet"
        for line in text.getvalue().splitlines():
            plain = re.sub(r"\x1b\[[0-9;]*m", "", line)  # Ray colours what it repeats
            if plain.strip() and _KILLED_ON_PURPOSE not in plain:
                record = record_from(plain, _name(batch), logging.WARNING if is_warning else logging.INFO)
                logging.getLogger(record.name).handle(record)


def _name(data: dict[str, Any]) -> str:
    """`SegmentImages 4711 on 10.0.0.7`"""
    actor = data.get("actor_name") or data.get("task_name") or ""
    stage = re.fullmatch(r"MapWorker\(MapBatches\((\w+)\)\)", actor)
    where = "" if data.get("ip") == data.get("localhost") else f" on {data.get('ip')}"
    return f"{stage[1] if stage else actor} {data.get('pid')}{where}".strip()
