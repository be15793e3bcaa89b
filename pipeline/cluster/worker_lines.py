"""What worker processes print, as log lines of the driver.

Ray brings each line to the driver and prints it with a prefix, past the driver's log format and across its live
display. Here each line becomes a record of the driver's log, with its worker as a field. Ray still leaves out
repetitions, and picks what of the autoscaler's lines concerns people.

This file holds the private names of Ray that this needs; its test names the one that an upgrade takes away.
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

# Not Ray's two instances: Ray prints what is left in these when it shuts down.
_repetitions = {
    is_err: LogDeduplicator(RAY_DEDUP_LOGS_AGG_WINDOW_S, RAY_DEDUP_LOGS_ALLOW_REGEX, RAY_DEDUP_LOGS_SKIP_REGEX)
    for is_err in (False, True)
}

# Ray Data ends the actors of a run that is stopped in this way, and Ray announces retries that nobody waits for.
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
