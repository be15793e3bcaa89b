"""Tables of a shard -> Parquet parts named by their content -> receipt.

A part is one atomic PUT under `<table>/run=<run_id>/shard-000042-<sha256>.parquet`. A shard that is done again gives
the same names where it gives the same bytes; where it does not (a read that failed the first time), the other part lies
beside it and the receipt decides. So no part is ever overwritten by another, whoever writes late.
"""

import hashlib
import time
from collections import Counter
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
from pipeline.schema import TABLES, costs_of, unpack_shard, visit_of
from pipeline.store.filesystem import check_visible, put_object, store_errors_as
from pipeline.telemetry.costs import Costs, add_up
from pipeline.telemetry.in_flight import Tell


def part_bytes(table: str, rows: pa.Table) -> bytes:
    """`rows` as a Parquet file with the schema of `table`, also when empty; equal rows give equal bytes.

    Pages carry checksums: an image_key that a flipped bit has changed would pass for an image that is gone.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(rows.cast(TABLES[table]), sink, compression="zstd", store_schema=True, write_page_checksum=True)
    return bytes(sink.getvalue())


@dataclass(frozen=True)
class ShardWriter:
    """Writes the parts of one shard and returns the receipt."""

    output: Output
    run_id: str

    def check_visible(self) -> None:
        """Raise RunError where this machine has not the output that the driver planned in."""
        check_visible(self.output.filesystem, self.output.run(self.run_id).path, self.output.flag)

    def write(self, shard: int, tables: dict[str, pa.Table], started: float) -> Receipt:
        """`tables` by name. RunError where the output cannot be written."""
        parts = {}
        for name in ("segments", "images"):
            data = part_bytes(name, tables[name])
            digest = hashlib.sha256(data).hexdigest()
            path = part_path(name, self.run_id, shard, digest)
            with store_errors_as(RunError, f"--output cannot be written: {path}"):
                put_object(self.output.filesystem, self.output.at(path), data)
            keys = pc.min_max(tables[name].column("image_key")).as_py()
            parts[name] = PartRecord(path, tables[name].num_rows, len(data), digest, keys["min"], keys["max"])
            reached("segments part written" if name == "segments" else "images part written")
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
    """CPU actor: the rows of a shard, checked and written; gives its receipt."""

    def __init__(self, encode: EncodeSpec, output_uri: str, run_id: str, step_timeout: float, tell: Tell):
        self.encode = encode
        self.writer = ShardWriter(Output.open(output_uri), run_id)
        self.tell = tell
        warm_up()
        start_watchdog(step_timeout, TRIED_AGAIN)

    def __call__(self, row: pa.Table) -> pa.Table:
        self.writer.check_visible()
        shard, images = unpack_shard(row)
        first_key, visit = images.column("image_key")[0].as_py(), visit_of(row)
        with self.tell(shard, "writing", first_key), watch("encoding and writing", f"shard {shard}"):
            costs = Costs()
            with costs.of_process("encode"):
                tables = encode_shard(shard, images, self.encode)
            with costs.of_process("write"):
                receipt = self.writer.write(shard, tables, visit.started)
        seconds = add_up(costs_of(row), costs.seconds)
        receipt = replace(receipt, seconds=seconds, model_actor=visit.actor, model_ended=visit.ended)
        return pa.table({"receipt": [receipt.to_json()]})
