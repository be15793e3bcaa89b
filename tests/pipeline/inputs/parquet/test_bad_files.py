"""Parquet files that are damaged, too large, or lack the columns: rows with a reason, or one line of the flag."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Settings
from pipeline.errors import ErrorCode, ImageError, RunError
from tests.support.listed import list_images
from tests.support.parquet_files import hugging_face, read_all, write


def code_of(found: object) -> ErrorCode | None:
    return found.code if isinstance(found, ImageError) else None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: b"", "does not end in PAR1"),
        (lambda data: data[:-1], "does not end in PAR1"),
        (lambda data: data[:-4] + b"PARE", "encrypted"),
        (lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1", "its footer claims 2,147,483,647 bytes"),
        (lambda data: data[:-40] + b"\xff" * 32 + data[-8:], "its footer is damaged"),
    ],
)
def test_a_damaged_file_is_one_row_and_the_others_are_read(tmp_path, spoil, said):
    path = write(tmp_path / "b.parquet", hugging_face([b"1"], ["x"]))
    path.write_bytes(spoil(path.read_bytes()))
    write(tmp_path / "a.parquet", hugging_face([b"2"], ["a"]))
    [sound, damaged] = list_images(str(tmp_path))
    assert sound.image_key.endswith("a.parquet#a") and damaged.image_key == f"file://{path}"
    assert damaged.fault.startswith("damaged_container: ") and said in damaged.fault


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "2 columns may hold the images; give one as --image-column: image, other"),
        ({"image_column": "picture"}, "--image-column picture: there is no such column, or several; the columns are"),
        ({"image_column": "number"}, "--image-column number holds int64, not bytes; columns of bytes: image, other"),
        ({"image_column": "many"}, "--image-column many holds lists"),
        ({"image_column": "image.nothing"}, "has no field nothing"),
        ({"image_column": "image", "key_column": "nothing"}, "--key-column nothing: there is no such column"),
        ({"image_column": "image", "key_column": "other"}, "--key-column other holds binary, which is no text"),
        ({"image_column": "image", "keep_columns": ("other",)}, "--keep-columns other holds bytes"),
    ],
)
def test_columns_that_no_file_has_are_one_line_of_the_flag(tmp_path, flags, said):
    write(tmp_path / "a.parquet", hugging_face([b"1"], other=[b"2"], number=[1], many=[[b"3"]]))
    with pytest.raises(RunError) as error:
        list(list_images(str(tmp_path), **flags))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert "a.parquet" in str(error.value)


def test_a_file_without_images_beside_others_is_one_row(tmp_path):
    write(tmp_path / "metadata.parquet", pa.table({"file_name": ["b.png"]}))
    with pytest.raises(RunError, match="no column holds images"):
        list(list_images(str(tmp_path)))
    (tmp_path / "b.png").write_bytes(b"1")
    faults = {image.image_key.rpartition("/")[2]: image.fault for image in list_images(str(tmp_path))}
    assert faults["b.png"] is None and faults["metadata.parquet"].startswith("unsupported: no column holds images")


@pytest.mark.parametrize("checksums", [True, False])
def test_a_damaged_page_costs_rows_of_its_row_group_alone(tmp_path, checksums):
    images = [os.urandom(500) for _ in range(40)]
    path = write(
        tmp_path / "a.parquet",
        pa.table({"image": images}),
        row_group_size=20,
        compression="none" if checksums else "zstd",
        use_dictionary=False,
        write_page_checksum=checksums,
    )
    chunk = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    at = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[at : at + 40] = b"\x00" * 40
    path.write_bytes(data)
    found = read_all(path)
    assert {code_of(found[str(row)]) for row in range(20)} == {ErrorCode.DAMAGED_CONTAINER}
    assert [found[str(row)] for row in range(20, 40)] == images[20:]


def test_a_small_file_that_becomes_large_is_not_decompressed(tmp_path, monkeypatch):
    most = 2**20
    monkeypatch.setattr("pipeline.inputs.parquet.rows.MOST_CHUNK_BYTES", most)
    monkeypatch.setattr("pipeline.inputs.parquet.listing.MOST_CHUNK_BYTES", 2**40)  # as if the footer had lied
    write(tmp_path / "zeros.parquet", pa.table({"image": [bytes(most + 1)]}), compression="zstd", use_dictionary=False)
    write(tmp_path / "same.parquet", pa.table({"image": [bytes(most // 4)] * 8}), compression="zstd")
    found = {key: code_of(one) for key, one in read_all(tmp_path / "zeros.parquet").items()}
    assert found == {"0": ErrorCode.TOO_LARGE}
    found = {key: code_of(one) for key, one in read_all(tmp_path / "same.parquet").items()}
    assert list(found.values()) == [None] * 4 + [ErrorCode.TOO_LARGE] * 4, "four rows fit"


def test_a_row_group_that_the_footer_calls_too_large_is_rows_that_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inputs.parquet.listing.MOST_CHUNK_BYTES", 100)
    write(tmp_path / "a.parquet", pa.table({"image": [b"1" * 60, b"2" * 60]}))
    assert {code_of(one) for one in read_all(tmp_path).values()} == {ErrorCode.TOO_LARGE}


def test_a_file_that_is_replaced_after_the_listing_is_changed(tmp_path):
    from pipeline.input_spec import InputSpec
    from tests.support.parquet_files import read_listed

    path = write(tmp_path / "a.parquet", hugging_face([b"1"], ["a"]))
    listed = list(list_images(str(tmp_path)))
    write(path, hugging_face([b"22"], ["a"]))
    found = read_listed(listed, InputSpec.of(str(tmp_path)))
    assert code_of(found["a"]) is ErrorCode.CHANGED


def test_of_a_file_in_a_bucket_the_images_are_not_read_by_the_listing_and_a_row_group_is_one_request(s3):
    from pipeline.input_spec import InputSpec
    from pipeline.inputs.fetch import FetchImages

    uri = s3.bucket("parquet-requests")
    images = [os.urandom(20_000) for _ in range(40)]
    buffer = pa.BufferOutputStream()
    pq.write_table(hugging_face(images), buffer, row_group_size=20)
    s3.client.put_object(Bucket="parquet-requests", Key="a.parquet", Body=bytes(buffer.getvalue()))
    stage = FetchImages(InputSpec.of(uri))
    filesystem, _ = stage.reader.place(uri)
    ranges = []

    def seen(request, **_):
        ranges.append(request.headers["Range"])

    filesystem.s3.meta.events.register("before-send.s3.GetObject", seen)
    try:
        listed = list(list_images(uri))
        assert len(ranges) == 3, "the end of the file, and the names of two row groups"
        assert [one.data for one in stage.fetch_all(listed)] == images
    finally:
        filesystem.s3.meta.events.unregister("before-send.s3.GetObject", seen)
    assert len(ranges) == 3 + 1 + 2, "the end of the file, and two row groups"


@pytest.mark.parametrize("kind", ["images", "tar"])
@pytest.mark.parametrize("flags", [{"image_column": "a"}, {"key_column": "a"}, {"keep_columns": ("a",)}])
def test_columns_of_inputs_without_columns_are_refused(kind, flags):
    with pytest.raises(RunError, match=f"--[a-z]+-columns? is for Parquet files; --input-format {kind} has no columns"):
        Settings(input=("a",), output="b", input_format=kind, **flags)
