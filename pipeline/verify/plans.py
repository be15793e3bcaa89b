"""The plans of the runs as rows, to compare with the rows of the table `images`."""

from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit.run_record import PlanFile
from pipeline.layout import Output
from pipeline.schema import ADDED_COLUMNS, PLAN
from pipeline.store.filesystem import one_line
from pipeline.verify.books import Books
from pipeline.verify.findings import Findings, Kind

_COLUMNS = ["image_key", "shard", "reason", "etag", "size_bytes", "row_group", "attributes"]
PLANNED = pa.schema([pa.field("run_id", pa.string()), *(PLAN.field(name) for name in _COLUMNS)])
_MOST_FILE_BYTES = 2**30


def planned_images(
    output: Output,
    runs: Iterable[Books],
    is_wanted: Callable[[str, int], bool],
    findings: Findings,
    unknown: set[str],
) -> Iterator[pa.RecordBatch]:
    """PLANNED of the wanted shards (run, shard) of the runs.

    A run whose plan is not as it was is added to `unknown`: some of its rows may lack. RunError if the store does not
    answer.
    """
    for books in runs:
        for file in books.record.plan.files:
            shards = [
                s for s in range(file.first_shard, file.first_shard + file.num_shards) if is_wanted(books.run_id, s)
            ]
            if not shards:
                continue
            try:
                yield from _read(output, books.run_id, file, shards)
            except (pa.ArrowException, ValueError, OSError) as error:
                path = file.path.removeprefix(f"{output.root}/")
                findings.add(Kind.RECORD, "plan", one_line(error), run_id=books.run_id, file=path)
                unknown.add(books.run_id)


def _read(output: Output, run_id: str, plan_file: PlanFile, shards: Iterable[int]) -> Iterator[pa.RecordBatch]:
    data = output.read_or_none(plan_file.path, _MOST_FILE_BYTES)
    if data is None:
        raise ValueError("it does not exist")
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    there = [field for field in PLAN if field.name in file.schema_arrow.names or field.name not in ADDED_COLUMNS]
    if not file.schema_arrow.equals(pa.schema(there)):
        raise ValueError("its columns are not those of a plan")
    if file.num_row_groups != plan_file.num_shards:
        raise ValueError(f"it has {file.num_row_groups} shards, but run.json says {plan_file.num_shards}")
    for shard in shards:
        rows = file.read_row_group(shard - plan_file.first_shard)
        if rows["shard"].unique().to_pylist() != [shard]:
            raise ValueError(f"the row group of shard {shard} has other shards")
        if any(rows[field.name].null_count for field in there if not field.nullable):
            raise ValueError(f"shard {shard} has null as a value")
        columns = [rows[n] if n in rows.column_names else pa.nulls(rows.num_rows, PLAN.field(n).type) for n in _COLUMNS]
        planned = pa.table([pa.repeat(run_id, rows.num_rows), *columns], names=PLANNED.names)
        yield from planned.cast(PLANNED).combine_chunks().to_batches()
