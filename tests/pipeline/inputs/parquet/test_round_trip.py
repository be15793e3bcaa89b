"""Parquet files of every kind: each row is listed once and read as pyarrow reads the whole file."""

import io
import json
import math
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ErrorCode, ImageError
from tests.support.listed import list_images
from tests.support.parquet_files import IMAGE, hugging_face, read_all, write

WIDTH = 9  # bytes of a fixed_size_binary
IMAGES = st.one_of(st.none(), st.binary(max_size=40), st.sampled_from([b"", b"the same image" * 9]))
FIXED = st.one_of(st.none(), st.binary(min_size=WIDTH, max_size=WIDTH))
KEYS = {
    "string": (pa.string(), st.text(max_size=5)),
    "large_string": (pa.large_string(), st.text("ab#2", max_size=3)),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), st.sampled_from(["a", "a#2", "b"])),
    "int64": (pa.int64(), st.integers(-5, 5)),
    "bool": (pa.bool_(), st.booleans()),
    "timestamp": (pa.timestamp("us", tz="UTC"), st.datetimes()),
    "float64": (pa.float64(), st.floats()),
}


@st.composite
def tables(draw):
    """(table, name of the column of images, kind of the key column)."""
    num_rows = draw(st.integers(1, 30))

    def rows(values):
        return draw(st.lists(values, min_size=num_rows, max_size=num_rows))

    kind = draw(st.sampled_from(["struct", "binary", "large_binary", "binary_view", "fixed", "nested"]))
    if kind == "struct":
        struct = st.fixed_dictionaries({"bytes": IMAGES, "path": st.one_of(st.none(), st.text("ab/.#1", max_size=3))})
        image = pa.array(rows(st.one_of(st.none(), struct)), IMAGE)
    elif kind == "nested":
        inner = st.one_of(st.none(), st.fixed_dictionaries({"bytes": IMAGES}))
        outer = st.one_of(st.none(), st.fixed_dictionaries({"inner": inner}))
        image = pa.array(rows(outer), pa.struct([("inner", pa.struct([("bytes", pa.large_binary())]))]))
    elif kind == "fixed":
        image = pa.array(rows(FIXED), pa.binary(WIDTH))
    else:
        image = pa.array(rows(IMAGES), getattr(pa, kind)())
    key_kind = draw(st.sampled_from(sorted(KEYS)))
    key_type, keys = KEYS[key_kind]
    plain = key_type.value_type if pa.types.is_dictionary(key_type) else key_type
    key = pa.array(rows(st.one_of(st.none(), keys)), plain)
    key = key.dictionary_encode() if plain is not key_type else key
    columns = {"image": image, "key": key, "note": pa.array(rows(st.one_of(st.none(), st.floats())), pa.float64())}
    names = draw(st.permutations(list(columns)))
    return pa.table({name: columns[name] for name in names}), kind, key_kind


OPTIONS = st.fixed_dictionaries(
    {
        "row_group_size": st.integers(1, 12),
        "compression": st.sampled_from(["none", "snappy", "gzip", "zstd", "lz4", "brotli"]),
        "use_dictionary": st.booleans(),
        "data_page_size": st.sampled_from([1, 64, 2**20]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "write_page_index": st.booleans(),
        "write_page_checksum": st.booleans(),
        "store_schema": st.booleans(),
    }
)


def images_of(table: pa.Table, kind: str) -> list[bytes | None]:
    values = table["image"].to_pylist()
    for name in {"struct": ["bytes"], "nested": ["inner", "bytes"]}.get(kind, []):
        values = [value and value[name] for value in values]
    return values


@given(made=tables(), options=OPTIONS, with_key=st.booleans())
def test_each_row_is_an_image_as_pyarrow_reads_the_whole_file(tmp_path_factory, made, options, with_key):
    table, kind, key_kind = made
    path = write(tmp_path_factory.mktemp("round-trip") / "a.parquet", table, **options)
    fields = {
        "image_column": {"nested": "image.inner"}.get(kind),
        "key_column": "key" if with_key else None,
        "keep_columns": ("note", "key"),
    }
    listed = list(list_images(str(path), **fields))
    assert [image.position for image in listed] == list(range(table.num_rows))
    assert len({image.image_key for image in listed}) == table.num_rows
    assert all(image.image_key.startswith(f"file://{path}#") for image in listed)
    assert [image.row_group for image in listed] == [row // options["row_group_size"] for row in range(len(listed))]

    whole = pq.read_table(io.BytesIO(path.read_bytes()))
    read = list(read_all(path, **fields).values())
    for expected, found in zip(images_of(whole, kind), read, strict=True):
        if expected is None:
            assert isinstance(found, ImageError) and found.code is ErrorCode.UNSUPPORTED
        else:
            assert found == expected

    texts: list[str | None] = [None] * table.num_rows
    if with_key or kind == "struct":
        texts = key_texts(whole, kind, key_kind if with_key else None)
    check_keys([image.image_key.partition("#")[2] for image in listed], texts)
    for image, note in zip(listed, whole["note"].to_pylist(), strict=True):
        assert json.loads(image.attributes)["note"] == (note if note is None or math.isfinite(note) else None)


def key_texts(whole: pa.Table, kind: str, key_kind: str | None) -> list[str | None]:
    if key_kind is None:
        return [value and value["path"] for value in whole["image"].to_pylist()]
    if key_kind in ("string", "large_string", "dictionary", "int64"):
        return [None if value is None else str(value) for value in whole["key"].to_pylist()]
    return whole["key"].cast(pa.string()).to_pylist()


def check_keys(keys: list[str], texts: list[str | None]) -> None:
    """The first row of a text has the text as its key; each other has it with a number, by order."""
    names = [text or str(row) for row, text in enumerate(texts)]
    seen = Counter()
    for key, name in zip(keys, names, strict=True):
        seen[name] += 1
        number = key.removeprefix(f"{name}#")
        assert key == name if seen[name] == 1 else int(number) >= seen[name]
    assert len(set(keys)) == len(keys)


def test_the_second_and_third_row_of_a_name_are_numbered_and_counted(tmp_path, caplog):
    paths = ["a", "b", "a", "a#2", "a", None, "", "5"]
    images = [bytes([row]) for row in range(len(paths))]
    write(tmp_path / "a.parquet", hugging_face(images, paths), row_group_size=3)
    assert read_all(tmp_path) == dict(zip(["a", "b", "a#3", "a#2", "a#4", "5", "6", "5#2"], images, strict=True))
    assert "3 rows of Parquet files have the key of an earlier row of their file" in caplog.text
    assert "2 rows of Parquet files have no key, and are named by their number" in caplog.text


def test_rows_without_bytes_are_rows_that_name_their_path_which_is_not_read(tmp_path):
    url = "http://169.254.169.254/latest/meta-data"
    write(tmp_path / "a.parquet", hugging_face([b"1", None, None], ["a", url, None]))
    found = read_all(tmp_path)
    assert found["a"] == b"1"
    assert str(found[url]) == f"unsupported: not an image: image.bytes is null; its path '{url}' is not read"
    assert str(found["2"]) == "unsupported: not an image: image.bytes is null"


def test_kept_columns_are_json_of_every_kind(tmp_path):
    import datetime
    import decimal

    columns = {
        "id": [1],
        "caption": ["a “cat”"],
        "box": [[1.5, float("nan")]],
        "when": [datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)],
        "price": [decimal.Decimal("1.50")],
        "meta": [{"a": {"b": True}, "c": None}],
    }
    write(tmp_path / "a.parquet", hugging_face([b"1"], **columns))
    [image] = list_images(str(tmp_path), keep_columns=(*columns, "meta.a.b", "image.path"))
    assert json.loads(image.attributes) == {
        "id": 1,
        "caption": "a “cat”",
        "box": [1.5, None],
        "when": "2026-01-02 00:00:00.000000Z",
        "price": "1.50",
        "meta": {"a": {"b": True}, "c": None},
        "meta.a.b": True,
        "image.path": "00000.png",
    }
    assert "“cat”" in image.attributes


def test_names_that_are_not_utf8_are_row_numbers_and_kept_values_keep_what_is_readable(tmp_path):
    raw = pa.array([b"good", b"\xff\xfe", b"b\xffd"])
    text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    write(tmp_path / "a.parquet", pa.table({"image": [b"0", b"1", b"2"], "name": text}))
    listed = list(list_images(str(tmp_path), key_column="name", keep_columns=("name",)))
    assert [image.image_key.partition("#")[2] for image in listed] == ["good", "1", "2"]
    assert json.loads(listed[2].attributes) == {"name": "b\ufffdd"}


def test_patterns_take_images_by_the_names_in_the_file(tmp_path):
    write(tmp_path / "a.parquet", hugging_face([b"1", b"2", b"3"], ["train/a.png", "b.png", "c.jpg"]))
    assert set(read_all(tmp_path, include=("*.png",))) == {"train/a.png", "b.png"}
    assert set(read_all(tmp_path, exclude=("a.parquet#train/*",))) == {"b.png", "c.jpg"}


@pytest.mark.parametrize("name", ["part-0.parquet", "PART.PARQUET"])
def test_beside_images_the_objects_that_end_in_parquet_hold_images(tmp_path, name):
    write(tmp_path / name, hugging_face([b"1"], ["a"]))
    (tmp_path / "b.png").write_bytes(b"2")
    keys = [image.image_key for image in list_images(str(tmp_path))]
    assert sorted(keys) == sorted([f"file://{tmp_path}/{name}#a", f"file://{tmp_path}/b.png"])


def test_a_file_of_any_name_is_one_where_the_format_says_so(tmp_path):
    path = write(tmp_path / "data.bin", hugging_face([b"1"], ["a"]))
    assert read_all(path, format="parquet") == {"a": b"1"}
