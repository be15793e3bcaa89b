"""A run that is planned and taken up, without a driver around it."""

import pyarrow as pa

from pipeline.config import Settings
from pipeline.inputs.listing import list_inputs
from pipeline.plan.shards import PLANNED_IMAGES
from pipeline.runs.begin import Run, take_up
from pipeline.runs.check import check
from pipeline.runs.find import find_run
from pipeline.runs.planning.plan_run import plan_run


def planned(settings: Settings, images_per_shard: int = 512, counts: dict[str, int] | None = None) -> Run:
    """The run to go on with, or a new one of all images of the input; `counts` are those of its run.json."""
    checked = check(settings)
    listed = (
        table.append_column("reason", pa.repeat("new", table.num_rows)).cast(PLANNED_IMAGES)
        for table in list_inputs(checked.inputs)
    )
    return take_up(checked, find_run(checked) or plan_run(checked, listed, counts or {}, images_per_shard, {}))
