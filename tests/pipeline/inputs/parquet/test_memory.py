"""The memory of a reader of Parquet files, in a process of its own: row groups, however large the file is."""

import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.support.parquet_files import hugging_face
from tests.support.places import ROOT

pytestmark = pytest.mark.thorough

ROWS, ROWS_OF_A_GROUP, IMAGE_BYTES = 20_000, 1000, 40 * 2**10
GROUP_MIB = ROWS_OF_A_GROUP * IMAGE_BYTES >> 20  # 39
# The table of a shard that the next stage gets; what pyarrow, malloc and the listing keep.
SHARD_MIB, REST_MIB = GROUP_MIB, 40
PROGRAM = """
import sys
from pathlib import Path
import pyarrow as pa
from pipeline.input_spec import InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import list_inputs
from pipeline.plan.shards import PLANNED_IMAGES, group_into_shards
from pipeline.plan.taper import ShardSize
from pipeline.schema import pack_shard

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) // 1024

def as_new(table):
    reasons = pa.array(["new"] * table.num_rows)
    return table.append_column("reason", reasons).select(PLANNED_IMAGES.names).cast(PLANNED_IMAGES)

def read(path):
    spec = InputSpec.of(path)
    stage, number = FetchImages(spec), 0
    listed = (as_new(table) for table in list_inputs(spec))
    for shard, images in enumerate(group_into_shards(listed, ShardSize(max_images=256, max_bytes=128 * 2**20))):
        fetched = stage(pack_shard(shard, images))["images"].combine_chunks().flatten()
        assert fetched.field("error_code").null_count == len(fetched), fetched.field("error_message")[0]
        number += len(fetched)
        del fetched  # the next stage has it
    return number

small, large, rows = sys.argv[1:]
read(small)  # what the libraries load
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
assert read(large) == int(rows)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_reader_holds_two_row_groups_of_a_large_file(tmp_path):
    writer = None
    for first in range(0, ROWS, ROWS_OF_A_GROUP):
        names = [f"{row:05}.jpg" for row in range(first, first + ROWS_OF_A_GROUP)]
        table = hugging_face([os.urandom(IMAGE_BYTES) for _ in names], names)
        writer = writer or pq.ParquetWriter(tmp_path / "large.parquet", table.schema, compression="none")
        writer.write_table(table)
        if not first:
            pq.write_table(table.slice(0, 8), tmp_path / "small.parquet")
    assert writer is not None
    writer.close()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "small.parquet"), str(tmp_path / "large.parquet")]
    done = subprocess.run([*command, str(ROWS)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * GROUP_MIB + SHARD_MIB + REST_MIB, done.stdout
