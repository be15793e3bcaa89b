"""Tables of a shard -> Parquet parts under names known beforehand -> receipt.

A part is one atomic PUT under `<table>/run=<run_id>/shard-000042.parquet`. Writing a shard again writes the same names
(and within one attempt the same bytes), so nothing is ever there twice.
"""

import hashlib
import time
from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.journal import PartRecord, Receipt
from pipeline.schema import TABLES
from pipeline.storage import check_visible, open_filesystem, put_object


def part_path(table: str, run_id: str, shard: int) -> str:
    """Where a part lies, relative to the output."""
    return f"{table}/run={run_id}/shard-{shard:06d}.parquet"


def part_bytes(table: str, rows: pa.Table) -> bytes:
    """`rows` as a Parquet file with the schema of `table`, also when empty; equal rows give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows.cast(TABLES[table]), sink, compression="zstd", store_schema=True)
    return bytes(sink.getvalue())


@dataclass(frozen=True)
class ShardWriter:
    """Writes the parts of one shard and returns the receipt."""

    output: str
    run_id: str

    def check_visible(self) -> None:
        """Raise RunError where this machine has not the output that the driver planned in."""
        filesystem, root = open_filesystem(self.output)
        check_visible(filesystem, f"{root}/_runs/{self.run_id}", "--output")

    def write(self, shard: int, tables: dict[str, pa.Table], started: float) -> Receipt:
        """`tables` by name. `images` is written last: where it lies, the shard's segments lie too."""
        filesystem, root = open_filesystem(self.output)
        parts = {}
        for name in ("segments", "images"):
            path = part_path(name, self.run_id, shard)
            data = part_bytes(name, tables[name])
            put_object(filesystem, f"{root}/{path}", data)
            parts[name] = PartRecord(path, tables[name].num_rows, len(data), hashlib.sha256(data).hexdigest())
        codes = tables["images"].column("error_code").drop_null().to_pylist()
        failed_by_code = dict(sorted(Counter(codes).items()))
        return Receipt(shard, tables["images"].num_rows, failed_by_code, parts, started, finished=time.time())
