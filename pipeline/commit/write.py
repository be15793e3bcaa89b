"""Tables of a shard -> Parquet parts named by their content -> receipt.

One atomic PUT writes a part, to `<table>/run=<run_id>/shard-000042-<sha256>.parquet`. If a shard is processed again and
gives the same bytes, its parts have the same names. If it gives other bytes (because a read failed the first time), the
new part lies beside the old part, and the receipt decides which of the two counts. So a part never overwrites a
different part, however late it is written.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit.encode import EncodeSpec, encode_shard, warm_up
from pipeline.commit.receipt import PartRecord, Receipt
from pipeline.errors import RunError
from pipeline.guard.kill_points import reached
from pipeline.guard.watchdog import TRIED_AGAIN, start_watchdog, watch
from pipeline.layout import Output, part_path
from pipeline.schema import ALL_TABLES, ORDER, costs_of, unpack_shard, visit_of
from pipeline.store.filesystem import check_visible, put_object, store_errors_as
from pipeline.telemetry.costs import Costs, add_up
from pipeline.telemetry.in_flight import Tell
from pipeline.telemetry.instruments import label_run
from pipeline.telemetry.metrics import WRITTEN_BYTES, count_shard

_BYTES_OF_LOGITS = 8 * 2**20  # of a row group: whoever reads a row reads its row group


def part_bytes(table: str, rows: pa.Table) -> bytes:
    """`rows` as a Parquet file with the schema of `table`, even if there are no rows. Equal rows give equal bytes.

    Pages carry checksums: without them, an image_key with a flipped bit would look like an image that was removed.
    """
    sink, schema = pa.BufferOutputStream(), ALL_TABLES[table]
    with pq.ParquetWriter(sink, schema, compression="zstd", store_schema=True, write_page_checksum=True) as writer:
        for group in _row_groups(table, rows.cast(schema)):
            writer.write_table(group)
    return bytes(sink.getvalue())


def _row_groups(table: str, rows: pa.Table) -> Iterator[pa.Table]:
    """A part is one row group; of `logits`, whose rows are large, a row group has about 8 MiB, or one row."""
    if table != "logits":
        yield rows
        return
    start = size = 0
    for place, inputs in enumerate(rows["inputs"]):
        of_row = sum(len(one["masks"].as_py()) for one in inputs)
        if place > start and size + of_row > _BYTES_OF_LOGITS:
            yield rows.slice(start, place - start)
            start, size = place, 0
        size += of_row
    yield rows.slice(start)


@dataclass(frozen=True)
class ShardWriter:
    """Writes the parts of one shard and returns the receipt."""

    output: Output
    run_id: str

    def check_visible(self) -> None:
        """Raise RunError if this machine does not see the output folder in which the driver made the plan."""
        check_visible(self.output.filesystem, self.output.run(self.run_id).path, self.output.flag)

    def write(self, shard: int, tables: dict[str, pa.Table], started: float) -> Receipt:
        """Write `tables` (by name). RunError if the output cannot be written."""
        parts = {}
        for name in (name for name in ORDER if name in tables):
            data = part_bytes(name, tables[name])
            digest = hashlib.sha256(data).hexdigest()
            path = part_path(name, self.run_id, shard, digest)
            with store_errors_as(RunError, f"--output cannot be written: {path}"):
                put_object(self.output.filesystem, self.output.at(path), data)
            WRITTEN_BYTES.add(len(data), table=name)
            keys = pc.min_max(tables[name].column("image_key")).as_py()
            parts[name] = PartRecord(path, tables[name].num_rows, len(data), digest, keys["min"], keys["max"])
            reached(f"{name} part written")
        images = tables["images"]
        codes = images.column("error_code").drop_null().to_pylist()
        return Receipt(
            shard=shard,
            num_images=images.num_rows,
            num_removed=images.column("status").to_pylist().count("removed"),
            failed_by_code=dict(sorted(Counter(codes).items())),
            parts=parts,
            started=started,
            finished=time.time(),
        )


class EncodeAndWrite:
    """CPU actor: computes, checks and writes the rows of a shard, and returns its receipt."""

    def __init__(self, encode: EncodeSpec, output_uri: str, run_id: str, step_timeout: float, tell: Tell):
        self.encode = encode
        self.writer = ShardWriter(Output.open(output_uri), run_id)
        self.tell = tell
        label_run(run_id)
        warm_up()
        start_watchdog(step_timeout, TRIED_AGAIN)

    def __call__(self, row: pa.Table) -> pa.Table:
        self.writer.check_visible()
        shard, images = unpack_shard(row)
        first_key, visit = images.column("image_key")[0].as_py(), visit_of(row)
        began, costs = time.monotonic(), Costs()
        with self.tell(shard, "writing", first_key, costs), watch("encoding and writing", f"shard {shard}"):
            with costs.of_process("encode"):
                tables = encode_shard(shard, images, self.encode)
            with costs.of_process("write"):
                receipt = self.writer.write(shard, tables, visit.started)
        outcomes = {
            "ok": receipt.num_images - receipt.num_failed - receipt.num_removed,
            "removed": receipt.num_removed,
            **receipt.failed_by_code,
        }
        count_shard("writing", outcomes, time.monotonic() - began, costs.seconds)
        seconds = add_up(costs_of(row), costs.seconds)
        receipt = replace(receipt, seconds=seconds, model_actor=visit.actor, model_ended=visit.ended)
        return pa.table({"receipt": [receipt.to_json()]})
