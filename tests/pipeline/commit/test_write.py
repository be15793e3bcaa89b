"""Parts: names known beforehand, equal bytes for equal rows, whole or not there."""

import hashlib
import os

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commit.encode import encode_shard
from pipeline.commit.write import ShardWriter, part_bytes
from pipeline.errors import RunError
from pipeline.layout import Output, part_path
from pipeline.schema import SCHEMA_VERSION, TABLES
from pipeline.segment.actor import segmented_table
from pipeline.store.filesystem import put_object
from tests.pipeline.commit.test_encode import SPEC, fetched, segmented


def tables():
    label_map = np.arange(6, dtype=np.uint8).reshape(2, 3)
    return encode_shard(3, segmented_table(fetched(2, {1: "not_found"}), [segmented(label_map % 4), None]), SPEC)


def test_the_receipt_says_what_lies_on_disk(tmp_path):
    receipt = ShardWriter(Output.open(str(tmp_path)), "run1").write(3, tables(), started=1.0)
    assert (receipt.shard, receipt.num_images, receipt.failed_by_code) == (3, 2, {"not_found": 1})
    for table, part in receipt.parts.items():
        assert part.path == part_path(table, "run1", 3, part.sha256)
        data = (tmp_path / part.path).read_bytes()
        assert len(data) == part.size_bytes and hashlib.sha256(data).hexdigest() == part.sha256
        assert pq.read_metadata(tmp_path / part.path).num_rows == part.num_rows


def test_parts_carry_the_schema_and_its_version_also_when_empty(tmp_path):
    for name, rows in tables().items():
        for part in (rows, rows.slice(0, 0)):
            schema = pq.read_schema(fsspec.filesystem("memory").open(_stored(part_bytes(name, part))))
            assert schema.equals(TABLES[name])
            assert schema.metadata[b"m2f_schema_version"] == str(SCHEMA_VERSION).encode()


def test_equal_rows_give_equal_bytes():
    assert part_bytes("images", tables()["images"]) == part_bytes("images", tables()["images"])


def test_writing_again_leaves_one_part(tmp_path):
    writer = ShardWriter(Output.open(str(tmp_path)), "run1")
    assert writer.write(3, tables(), started=1.0).parts == writer.write(3, tables(), started=2.0).parts
    assert len(list(tmp_path.rglob("*.parquet"))) == 2


def test_a_late_writer_with_other_rows_leaves_the_part_of_a_receipt_alone(tmp_path):
    receipt = ShardWriter(Output.open(str(tmp_path)), "run1").write(3, tables(), started=1.0)
    other = {name: table.slice(0, 1) for name, table in tables().items()}
    ShardWriter(Output.open(str(tmp_path)), "run1").write(3, other, started=2.0)
    for part in receipt.parts.values():
        assert hashlib.sha256((tmp_path / part.path).read_bytes()).hexdigest() == part.sha256


def test_a_write_that_dies_leaves_nothing_to_read(tmp_path, monkeypatch):
    filesystem = fsspec.filesystem("file")
    target = tmp_path / "part.parquet"
    put_object(filesystem, str(target), b"old")

    def dies(fd):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", dies)
    try:
        put_object(filesystem, str(target), b"new and longer")
    except OSError:
        pass
    else:
        raise AssertionError("the write did not fail")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["part.parquet"]


def test_a_node_that_has_not_the_output_does_not_write_parts_that_nobody_finds(tmp_path):
    writer = ShardWriter(Output.open(str(tmp_path)), "run1")
    with pytest.raises(RunError, match=r"--output .* does not exist on "):
        writer.check_visible()
    (tmp_path / "_runs" / "run1").mkdir(parents=True)
    writer.check_visible()


def _stored(data):
    fsspec.filesystem("memory").pipe_file("/part", data)
    return "/part"


def test_a_flipped_byte_in_a_part_is_found_by_readers():
    data = bytearray(part_bytes("images", tables()["images"]))
    at = data.index(b"file:///0.jpg")
    data[at + 8] ^= 1  # the key of another image
    assert b"file:///1.jpg" in data
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(pa.BufferReader(bytes(data)), page_checksum_verification=True)
