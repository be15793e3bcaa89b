"""The plan as a source of Ray Data. Not in `run.py`, so that tasks that read the plan need not load PyTorch."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from pipeline.commit.run_record import PlanFile
from pipeline.input_spec import InputSpec
from pipeline.layout import Output
from pipeline.plan.plan_files import follow_plan, read_plan_file
from pipeline.plan.rounds import Round
from pipeline.schema import pack_shard


class ShardSource(Datasource):
    """One row per shard of a round. One read task per plan file; those that wait for plan files may read several."""

    def __init__(self, output: str, run_id: str, inputs: InputSpec, shards: Round):
        super().__init__()
        self.output, self.run_id, self.inputs, self.shards = output, run_id, inputs, shards

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *args: Any, **kwargs: Any) -> list[ReadTask]:
        planned = [self._read_task(plan_file, pending) for plan_file, pending in self.shards.shards]
        return planned + [self._waiting_task(numbers) for numbers in self.shards.awaited]

    def _read_task(self, plan_file: PlanFile, pending: list[int]) -> ReadTask:
        output, inputs = self.output, self.inputs

        def read() -> Iterator[pa.Table]:
            for shard, images in read_plan_file(Output.open(output), inputs, plan_file, pending):
                yield pack_shard(shard, images)

        return _task(read, plan_file.path)

    def _waiting_task(self, numbers: range) -> ReadTask:
        place, run_id, inputs = self.output, self.run_id, self.inputs

        def read() -> Iterator[pa.Table]:
            output = Output.open(place)
            for shard, images in follow_plan(output, inputs, output.run(run_id), numbers):
                yield pack_shard(shard, images)

        return _task(read)


def _task(read: Any, *paths: str) -> ReadTask:
    return ReadTask(read, BlockMetadata(num_rows=None, size_bytes=None, input_files=paths, exec_stats=None))
