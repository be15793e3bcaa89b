"""The plan as a source of Ray Data. Not in `run.py`, so that tasks that read the plan need not load PyTorch."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipeline.commit.run_record import PlanFile
from pipeline.input_spec import InputSpec
from pipeline.layout import Output
from pipeline.plan.plan_files import read_plan_file
from pipeline.schema import pack_shard


class ShardSource(Datasource):
    """One read task per plan file; one row per shard that is not done."""

    def __init__(self, output: str, inputs: InputSpec, shards: "list[tuple[PlanFile, list[int]]]"):
        super().__init__()
        self.output = output
        self.inputs = inputs
        self.shards = shards

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        return [self._read_task(plan_file, pending) for plan_file, pending in self.shards]

    def _read_task(self, plan_file: PlanFile, pending: list[int]) -> ReadTask:
        output, inputs = self.output, self.inputs

        def read() -> Iterator[pa.Table]:
            for shard, images in read_plan_file(Output.open(output), inputs, plan_file, pending):
                yield pack_shard(shard, images)

        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=(plan_file.path,), exec_stats=None)
        return ReadTask(read, metadata)
