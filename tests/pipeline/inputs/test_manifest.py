"""Manifests: what Python's csv and json write is listed as it is; what is wrong is one line that names the place."""

import csv
import gzip
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Settings
from pipeline.errors import ErrorCode, ImageError, RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs import listing
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import list_inputs, refuse_empty
from pipeline.inputs.lists import manifest_files
from pipeline.inputs.reads import ListedImage
from pipeline.inputs.sources import input_spec
from pipeline.store.filesystem import local_etag
from tests.support.listed import list_images
from tests.support.places import ROOT

pytestmark = pytest.mark.usefixtures("fresh_s3")


def listed(path, **fields) -> list[ListedImage]:
    return list(list_images(str(path), format="manifest", **fields))


def keys(path, **fields) -> list[str]:
    return [image.image_key for image in listed(path, **fields)]


# --- round trips ------------------------------------------------------------------------------------------------------

# Whatever UTF-8 can hold, in a bucket and not in the names that programs leave. A CSV of Python has no NUL.
NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), min_size=1, max_size=20)
ENTRIES = st.lists(
    st.builds(
        lambda name, size, etag, key: {"uri": f"s3://bucket/x/{name}", "size": size, "etag": etag, "key": key},
        NAMES.filter(lambda name: "?" not in name and "&" not in name and not name.endswith("/")),
        st.none() | st.integers(0, 2**62),
        st.sampled_from(["", "0123456789abcdef0123456789abcdef", "abc-3"]),
        st.just("") | NAMES,
    ),
    min_size=1,
    max_size=8,
)


def as_listed(entry: dict) -> tuple:
    return entry["key"] or entry["uri"], entry["uri"], entry["size"], entry["etag"]


def read_back(folder, name: str, data: bytes, monkeypatch) -> list[tuple]:
    path = folder / name
    path.write_bytes(data)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.input_spec.LEFT_BY_PROGRAMS", ())
        patched.setattr("pipeline.inputs.selection.LEFT_BY_PROGRAMS", ("no such name",))
        found = listed(path)
    return [(image.image_key, image.object, image.size_bytes, image.etag) for image in found]


@given(entries=ENTRIES, quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), tab=st.booleans())
def test_what_pythons_csv_writes_is_listed(tmp_path_factory, entries, quoting, tab):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(entries[0]), quoting=quoting, delimiter="\t" if tab else ",")
    writer.writeheader()
    writer.writerows(entries)
    folder = tmp_path_factory.getbasetemp() / "csv"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = read_back(folder, "m.tsv" if tab else "m.csv", text.getvalue().encode(), monkeypatch)
    assert found == [as_listed(entry) for entry in entries]


@given(entries=ENTRIES, ascii_only=st.booleans(), ends=st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_what_pythons_json_writes_is_listed(tmp_path_factory, entries, ascii_only, ends):
    text = "".join(json.dumps(entry, ensure_ascii=ascii_only) + ends for entry in entries)
    folder = tmp_path_factory.getbasetemp() / "json"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = read_back(folder, "m.jsonl", text.encode(), monkeypatch)
    assert found == [as_listed(entry) for entry in entries]


@given(entries=ENTRIES, dictionary=st.booleans(), large=st.booleans())
def test_a_parquet_file_is_listed(tmp_path_factory, entries, dictionary, large):
    table = pa.Table.from_pylist(
        entries,
        pa.schema({"uri": "string", "size": "uint32", "etag": "string", "key": "string"})
        if all((entry["size"] or 0) < 2**32 for entry in entries)
        else None,
    )
    if table.schema.field("uri").type != pa.string():
        return
    uris = table["uri"].cast(pa.large_string()) if large else table["uri"]
    table = table.set_column(0, "uri", uris.dictionary_encode() if dictionary else uris)
    if pa.types.is_null(table["size"].type):
        table = table.set_column(1, "size", table["size"].cast(pa.int32()))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=3)
    folder = tmp_path_factory.getbasetemp() / "parquet"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = read_back(folder, "m.parquet", buffer.getvalue(), monkeypatch)
    assert found == [as_listed(entry) for entry in entries]


@given(entries=ENTRIES)
def test_lines_of_text_are_listed(tmp_path_factory, entries):
    uris = [entry["uri"] for entry in entries if "\n" not in entry["uri"] and not entry["uri"].endswith("\r")]
    folder = tmp_path_factory.getbasetemp() / "text"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = read_back(folder, "m.txt", "\n".join(uris).encode(), monkeypatch)
    assert found == [(uri, uri, None, "") for uri in uris]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.txt", "m.parquet"])
def test_a_long_manifest_is_read_in_batches(name, tmp_path, monkeypatch):
    """Blocks end in the middle of rows; every row is there once and in order."""
    monkeypatch.setattr(manifest_files, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(manifest_files, "_ROWS", 7)
    uris = [f"s3://bucket/{'é' * (number % 40)}/{number:05d}.jpg" for number in range(3000)]
    write = {
        "m.csv": lambda path: path.write_text("uri,label\n" + "".join(f'{uri},"a\nb"\n' for uri in uris)),
        "m.jsonl": lambda path: path.write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in uris)),
        "m.txt": lambda path: path.write_text("\n".join(uris)),
        "m.parquet": lambda path: pq.write_table(pa.table({"uri": uris}), path, row_group_size=100),
    }
    write[name](tmp_path / name)
    tables = list(list_inputs(InputSpec(InputSpec.of(str(tmp_path / name)).sources, format="manifest")))
    assert [key for table in tables for key in table["image_key"].to_pylist()] == uris
    assert max(table.num_rows for table in tables) < 200


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".txt"])
def test_compressed_manifests_and_manifests_that_are_cut_off(ending, tmp_path):
    lines = [f"s3://bucket/{number:04d}" for number in range(2000)]
    text = {
        ".csv": "uri\n" + "".join(f"{uri}\n" for uri in lines),
        ".jsonl": "".join(f'{{"uri": "{uri}"}}\n' for uri in lines),
        ".txt": "\n".join(lines),
    }[ending].encode()
    # Several members, as parallel compressors write them.
    (tmp_path / f"m{ending}.gz").write_bytes(gzip.compress(text[:5000]) + gzip.compress(text[5000:]))
    (tmp_path / f"m{ending}.zst").write_bytes(pa.compress(text, "zstd", asbytes=True))
    for compression in (".gz", ".zst"):
        path = tmp_path / f"m{ending}{compression}"
        assert keys(path) == lines
        cut = tmp_path / f"cut{ending}{compression}"
        cut.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(RunError, match="cut"):
            keys(cut)


def test_the_mark_of_windows_editors_is_no_part_of_the_first_line(tmp_path):
    for name, text in {
        "m.txt": "s3://b/a\r\n",
        "m.csv": "uri\r\ns3://b/a\r\n",
        "m.jsonl": '{"uri": "s3://b/a"}',
    }.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert keys(tmp_path / name) == ["s3://b/a"]


# --- what is listed ---------------------------------------------------------------------------------------------------


def test_paths_of_a_local_manifest_are_below_its_folder(tmp_path):
    (tmp_path / "m.txt").write_text(f"a b.jpg\nsub/../c.jpg\nfile://{tmp_path}/d%20.jpg\n/etc/e.jpg\n")
    assert keys(tmp_path / "m.txt") == [
        f"file://{tmp_path}/a b.jpg",
        f"file://{tmp_path}/c.jpg",
        f"file://{tmp_path}/d%20.jpg",
        "file:///etc/e.jpg",
    ]


def test_keys_are_spelled_as_a_listing_spells_them(tmp_path):
    (tmp_path / "m.txt").write_text("s3a://b/x/a.jpg\ns3://b/x//b.jpg\n")
    assert keys(tmp_path / "m.txt") == ["s3://b/x/a.jpg", "s3://b/x//b.jpg"]


def test_kept_columns_become_attributes(tmp_path):
    (tmp_path / "m.csv").write_text("caption,uri,n\n" + '"a ""cat""",s3://b/a,1\n')
    [image] = listed(tmp_path / "m.csv", keep_columns=("caption", "n"))
    assert json.loads(image.attributes) == {"caption": 'a "cat"', "n": "1"}
    (tmp_path / "m.jsonl").write_text('{"uri": "s3://b/a", "tags": ["x", "\\ud800"], "n": 1}\n')
    [image] = listed(tmp_path / "m.jsonl", keep_columns=("tags", "n"))
    assert json.loads(image.attributes) == {"tags": ["x", "\ud800"], "n": 1}
    pq.write_table(pa.table({"uri": ["s3://b/a"], "x": [float("nan")], "y": [{"a": 1}]}), tmp_path / "m.parquet")
    [image] = listed(tmp_path / "m.parquet", keep_columns=("x", "y"))
    assert json.loads(image.attributes) == {"x": None, "y": {"a": 1}}
    assert listed(tmp_path / "m.parquet")[0].attributes is None


def test_attributes_are_json_to_their_depth_and_bounded(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"uri": "s3://b/a", "tags": [NaN, {"x": Infinity}, "é"]}\n')
    [image] = listed(tmp_path / "m.jsonl", keep_columns=("tags",))
    assert image.attributes == '{"tags": [null, {"x": null}, "é"]}'
    long = "x" * 70_000
    (tmp_path / "m.jsonl").write_text(f'{{"uri": "s3://b/a", "n": 1}}\n{{"uri": "s3://b/b", "n": "{long}"}}\n')
    short, too_long = listed(tmp_path / "m.jsonl", keep_columns=("n",))
    assert (short.attributes, short.fault) == ('{"n": 1}', None)
    assert too_long.attributes is None
    assert too_long.fault == "too_large: the kept columns have 70009 bytes as JSON; the limit is 65,536"


def test_patterns_and_names_of_programs_apply_to_the_objects(tmp_path, caplog):
    (tmp_path / "m.csv").write_text(
        "uri,key\n"
        "s3://b/train/a.jpg,1\ns3://b/train/a.txt,2\ns3://b/val/a.jpg,3\n"
        "s3://b/train/.DS_Store,4\ns3://b/train/,5\ns3://b/train/skip.jpg,6\n"
    )
    assert keys(tmp_path / "m.csv", include=("train/*.jpg",), exclude=("skip.*",)) == ["1"]
    assert "2 names are left out, because they were left by programs, or are excluded by --exclude" in caplog.text
    assert "1 names are left out, because they are marks of folders" in caplog.text


def test_a_folder_of_manifests_is_read_as_one(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        pq.write_table(pa.table({"uri": [f"s3://b/{number}"]}), folder / f"part-{number}.parquet")
    (folder / "_SUCCESS").write_bytes(b"")
    (folder / ".part-0.parquet.crc").write_bytes(b"crc")
    assert keys(folder) == ["s3://b/0", "s3://b/1", "s3://b/2"]
    (folder / "notes.md").write_text("x")
    with pytest.raises(RunError, match=r"notes\.md is no manifest by its name; a manifest ends in \.parquet"):
        keys(folder)


def test_one_line_counts_the_images_without_an_etag(tmp_path, caplog):
    (tmp_path / "m.csv").write_text('uri,etag\ns3://b/a,"""x"""\ns3://b/b,\ns3://b/c,\n')
    assert [image.etag for image in listed(tmp_path / "m.csv")] == ["x", "", ""]
    assert caplog.text.count("without an ETag") == 1 and "2 images come without an ETag" in caplog.text


# --- what is wrong ----------------------------------------------------------------------------------------------------

BAD = {
    "no URI": ("m.txt", b"s3://b/a\n\ns3://b/b\nhttp:/x\x00y\n", "line 4 is 'http:/x\\x00y', which is no path"),
    "the web": ("m.txt", b"s3://b/a\nhttp://169.254.169.254/x\n", "line 2 is an object of http://, which"),
    "another": ("m.csv", b"uri\ns3://b/a\nzip://a::s3://b/c\n", "row 2 is an object of zip://, which is no store"),
    "no key": ("m.csv", b"uri\ns3://b/a\ns3://b/\n", "row 2 is 's3://b/', which names no object"),
    "no bucket": ("m.csv", b"uri\ns3:///a\n", "row 1 is 's3:///a', which names no object"),
    "an empty URI": ("m.csv", b"uri,size\ns3://b/a,1\n,2\n", "row 2 names no object"),
    "no uri column": ("m.csv", b"file,etag\na,b\n", "has no column uri; it has 'file, etag'"),
    "two of them": ("m.csv", b"uri,url\na,b\n", "has the columns uri and url, which mean the same"),
    "one twice": ("m.csv", b"uri,uri\na,b\n", "has the column 'uri' twice"),
    "too few values": ("m.csv", b"uri,size\ns3://b/a,1\ns3://b/b\n", "#3: Expected 2 columns, got 1"),
    "no header": ("m.csv", b"s3://b/a\ns3://b/b\n", "has no column uri"),
    "an empty CSV": ("m.csv", b"", "m.csv is no manifest that can be read"),
    "no UTF-8": ("m.csv", b"uri\ns3://b/\xff\n", "UTF8"),
    "text that is not UTF-8": ("m.txt", b"s3://b/a\ns3://b/\xff\n", "line 2 is not UTF-8"),
    "JSON that is not UTF-8": ("m.jsonl", b'{"uri": "s3://b/a"}\n{"uri": "\xff"}\n', "line 2 is not JSON"),
    "a surrogate": ("m.jsonl", b'\n{"uri": "s3://b/\\ud800"}\n', "line 2 has a uri that is not UTF-8"),
    "no JSON": ("m.jsonl", b'{"uri": "s3://b/a"}\n\nnonsense\n', "line 3 is not JSON"),
    "JSON that is no object": ("m.jsonl", b'["s3://b/a"]\n', "line 1 is ['s3://b/a'], not a JSON object"),
    "JSON nested deep": ("m.jsonl", b"[" * 100_000 + b"\n", "line 1 is not JSON"),
    "a URI that is a number": ("m.jsonl", b'{"uri": 5}\n', "line 1 has 5 as uri"),
    "a size that is true": ("m.jsonl", b'{"uri": "s3://b/a", "size": true}\n', "line 1 has True as size"),
    "a size that is no number": ("m.csv", b"uri,size\ns3://b/a,big\n", "row 1 has 'big' as size"),
    "a size below 0": ("m.csv", b"uri,size\ns3://b/a,-1\n", "row 1 has '-1' as size"),
    "a line without end": ("m.txt", b"x" * (2**20 + 1), "line 1 is longer than 1,048,576 bytes"),
    "a secret": ("m.txt", b"s3://b/a\ns3://KEY:SECRET0123@b/x\n", "line 2 cannot be read: the URI s3://***@b/x holds"),
    "a query of the web": ("m.txt", b"s3://b/a\nhttps://h/x?token=SECRET0123\n", "line 2 is an object of https://"),
    "a signature": ("m.txt", b"s3://b/x?X-Amz-Signature=SECRET0123\n", "line 1 holds credentials"),
    "no Parquet": ("m.parquet", b"PAR1", "m.parquet is no manifest that can be read"),
    "no gzip": ("m.csv.gz", b"uri\ns3://b/a\n", "m.csv.gz"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_one_line_that_names_file_and_place(what, tmp_path):
    name, data, said = BAD[what]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RunError) as refused:
        listed(tmp_path / name)
    line = str(refused.value)
    assert said in line and f"--input file://{tmp_path}/{name}" in line.replace(f" {tmp_path}", f" file://{tmp_path}")
    assert "\n" not in line and "SECRET" not in line


@pytest.mark.parametrize("size", [2**63, 1.5])
def test_sizes_of_a_parquet_file_are_whole_and_fit(size, tmp_path):
    sizes = pa.array([size], pa.uint64() if size == 2**63 else None)
    pq.write_table(pa.table({"uri": ["s3://b/a"], "size": sizes}), tmp_path / "m.parquet")
    with pytest.raises(RunError, match=r"m\.parquet"):
        listed(tmp_path / "m.parquet")
    pq.write_table(pa.table({"uri": ["s3://b/a"], "size": [-1]}), tmp_path / "m.parquet")
    with pytest.raises(RunError, match="row 1 has a size below 0"):
        listed(tmp_path / "m.parquet")


def test_bytes_that_are_no_text_in_a_parquet_file(tmp_path):
    wrong = pa.array([b"s3://b/\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"uri": wrong}), tmp_path / "m.parquet")
    with pytest.raises(RunError, match=r"m\.parquet is no manifest that can be read: .*UTF8"):
        listed(tmp_path / "m.parquet")
    kept = pa.table({"uri": ["s3://b/a"], "plain": wrong, "inner": pa.StructArray.from_arrays([wrong], ["x"])})
    pq.write_table(kept, tmp_path / "m.parquet")
    [image] = listed(tmp_path / "m.parquet", keep_columns=("plain",))
    assert json.loads(image.attributes) == {"plain": "s3://b/\ufffd"}
    with pytest.raises(RunError, match=r"a value that cannot be read in .*--keep-columns, in rows 1 to 1: .*utf-8"):
        listed(tmp_path / "m.parquet", keep_columns=("inner",))


def test_dates_beyond_those_of_python_are_kept_as_text(tmp_path):
    far = pa.array([10_030 * 365 * 86_400 * 1000], pa.timestamp("ms"))
    pq.write_table(pa.table({"uri": ["s3://b/a"], "taken": far}), tmp_path / "m.parquet")
    [image] = listed(tmp_path / "m.parquet", keep_columns=("taken",))
    assert json.loads(image.attributes)["taken"].startswith("11993-")


def test_a_kept_column_that_is_not_there(tmp_path):
    for name, text in {"m.csv": "uri\ns3://b/a\n", "m.jsonl": '{"uri": "s3://b/a"}\n', "m.txt": "s3://b/a\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(RunError, match="--keep-columns"):
            listed(tmp_path / name, keep_columns=("caption",))


def test_a_manifest_without_images_or_that_is_not_there(tmp_path):
    for name, data in {"m.csv": b"uri\n", "m.txt": b"\n\n", "m.jsonl": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RunError, match=rf"--input .*{name} names no images"):
            refuse_empty(InputSpec(InputSpec.of(str(tmp_path / name)).sources, format="manifest"))
    with pytest.raises(RunError, match=r"gone\.csv does not exist"):
        listed(tmp_path / "gone.csv")


def test_a_container_has_no_key_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setitem(listing._CONTAINERS, "tar", lambda container: [])
    (tmp_path / "m.csv").write_text("uri,key\ns3://b/a.TAR,x\n")
    with pytest.raises(RunError, match=r"s3://b/a\.TAR is a tar or Parquet file, whose images have keys of their own"):
        listed(tmp_path / "m.csv")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("m.csv", "manifest"), ("m.JSONL", "manifest"), ("m.txt.gz", "manifest"), ("manifest.json", "inventory")],
)
def test_auto_takes_no_list_for_an_image(name, wanted, tmp_path):
    (tmp_path / name).write_text("uri\n")
    settings = {"input": str(tmp_path / name), "output": str(tmp_path / "out")}
    with pytest.raises(RunError, match=f"seems to name images; give --input-format {wanted}"):
        input_spec(Settings(**settings))
    assert input_spec(Settings(**settings, input_format="images")).format == "images"
    assert input_spec(Settings(**settings, input_format="manifest")).names_its_images
    (tmp_path / "folder.csv").mkdir()
    assert input_spec(Settings(**{**settings, "input": str(tmp_path / "folder.csv")})).format == "auto"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tombstone_removed": True}, "--tombstone-removed is not for --input-format manifest"),
        ({"allow_scheme": ("gopher",)}, "--allow-scheme gopher is no store that this program reads; give file, s3"),
        ({"allow_scheme": ("ftp",)}, "--allow-scheme ftp is no store"),
        ({"allow_scheme": ("file",), "input_format": "auto"}, "--allow-scheme is for --input-format manifest"),
    ],
)
def test_settings_that_a_list_does_not_go_with(fields, said, tmp_path):
    with pytest.raises(RunError, match=said):
        input_spec(Settings(**{"input": str(tmp_path), "output": "out", "input_format": "manifest", **fields}))


# --- what a manifest in a bucket may name -----------------------------------------------------------------------------


def test_a_manifest_in_a_bucket_names_only_objects_of_stores(s3):
    bucket, uri = a_bucket(s3), "file:///etc/passwd"
    s3.client.put_object(Bucket=BUCKET, Key="bad.txt", Body=f"s3://b/a\n{uri}\n".encode())
    with pytest.raises(RunError, match=r"bad\.txt: line 2 is an object of file://.*--allow-scheme file"):
        keys(f"{bucket}/bad.txt")
    assert keys(f"{bucket}/bad.txt", allow_schemes=("file",)) == ["s3://b/a", uri]
    for web, scheme in (("http://169.254.169.254/latest", "http"), ("https://h/a", "https"), ("ftp://h/a", "ftp")):
        s3.client.put_object(Bucket=BUCKET, Key="bad.txt", Body=f"s3://b/a\n{web}\n".encode())
        with pytest.raises(RunError, match=rf"bad\.txt: line 2 is an object of {scheme}://, which"):
            keys(f"{bucket}/bad.txt", allow_schemes=("file",))
    s3.client.put_object(Bucket=BUCKET, Key="bad.txt", Body=b"s3://b/a\nhttps://h/a?b\n")
    with pytest.raises(RunError, match=r"bad\.txt: line 2 (cannot be read: the URI .*|)holds credentials or a query"):
        keys(f"{bucket}/bad.txt", allow_schemes=("http", "https"))
    for path in ("/etc/passwd", "../x"):
        s3.client.put_object(Bucket=BUCKET, Key="path.txt", Body=path.encode())
        with pytest.raises(RunError, match=r"line 1 is .*, which is no URI such as s3://bucket/key"):
            keys(f"{bucket}/path.txt")


BUCKET = "m2f-manifests"


def a_bucket(s3) -> str:
    if BUCKET not in [bucket["Name"] for bucket in s3.client.list_buckets()["Buckets"]]:
        s3.bucket(BUCKET)
    return f"s3://{BUCKET}"


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path, **fields) -> list:
    spec = InputSpec(InputSpec.of(str(path)).sources, format="manifest", **fields)
    return FetchImages(spec).fetch_all(listed(path, **fields))


def test_images_without_etag_are_read_and_get_that_of_the_store(tmp_path, s3):
    (tmp_path / "a.jpg").write_bytes(b"local")
    bucket = a_bucket(s3)
    etag = s3.client.put_object(Bucket=BUCKET, Key="odd #1%20.jpg", Body=b"in the bucket")["ETag"].strip('"')
    (tmp_path / "m.txt").write_text(f"a.jpg\n{bucket}/odd #1%20.jpg\ngone.jpg\n{bucket}/gone.jpg\n")
    local, remote, *gone = read(tmp_path / "m.txt")
    assert (local.data, local.etag) == (b"local", local_etag((tmp_path / "a.jpg").stat()))
    assert (remote.data, remote.etag) == (b"in the bucket", etag)
    assert [error.code for error in gone] == [ErrorCode.NOT_FOUND, ErrorCode.NOT_FOUND]


def test_an_object_of_another_size_than_the_manifest_says_has_changed(tmp_path, s3, no_pauses):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    s3.client.put_object(Bucket=BUCKET, Key="five", Body=b"12345") if a_bucket(s3) else None
    (tmp_path / "m.csv").write_text(f"uri,size\na.jpg,4\ns3://{BUCKET}/five,6\n")
    for error in read(tmp_path / "m.csv"):
        assert isinstance(error, ImageError) and error.code is ErrorCode.CHANGED, error
        assert "the object has 5" in error.message


def test_an_object_that_is_no_image_by_its_size_is_not_read(tmp_path, s3, monkeypatch, no_pauses):
    """The manifest does not say how large the objects are."""
    monkeypatch.setattr("pipeline.inputs.verified.MAX_OBJECT_BYTES", 4)
    a_bucket(s3)
    s3.client.put_object(Bucket=BUCKET, Key="large", Body=b"12345")
    (tmp_path / "large").write_bytes(b"12345")
    (tmp_path / "m.txt").write_text(f"large\ns3://{BUCKET}/large\n/dev/zero\n")
    codes = [error.code for error in read(tmp_path / "m.txt")]
    assert codes == [ErrorCode.TOO_LARGE, ErrorCode.TOO_LARGE, ErrorCode.ACCESS_DENIED]


def test_a_manifest_in_a_bucket_is_read_by_ranges_of_one_version(s3, monkeypatch, no_pauses):
    bucket = a_bucket(s3)
    uris = [f"s3://b/{number:05d}" for number in range(5000)]
    s3.client.put_object(Bucket=BUCKET, Key="long.txt", Body="\n".join(uris).encode())
    monkeypatch.setattr("pipeline.inputs.lists.object_stream._BLOCK_BYTES", 10_000)
    monkeypatch.setattr(manifest_files, "_BLOCK_BYTES", 10_000)
    assert keys(f"{bucket}/long.txt") == uris
    tables = list_inputs(InputSpec(InputSpec.of(f"{bucket}/long.txt").sources, format="manifest"))
    next(tables)
    s3.client.put_object(Bucket=BUCKET, Key="long.txt", Body="\n".join(uris[::-1]).encode())
    with pytest.raises(RunError, match=r"long\.txt is no manifest that can be read: the object had ETag"):
        list(tables)


MEMORY = """
import resource, sys
from pipeline.input_spec import InputSpec
from pipeline.inputs.listing import list_inputs
list(list_inputs(InputSpec(InputSpec.of(sys.argv[1]).sources, format="manifest")).__next__().schema)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(t.num_rows for t in list_inputs(InputSpec(InputSpec.of(sys.argv[2]).sources, format="manifest")))
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.txt", "m.parquet"])
def test_memory_does_not_grow_with_the_manifest(name, tmp_path):
    """A million rows, 60 MB of URIs; the process may take 60 MiB for buffers."""
    write = {
        "m.csv": lambda file, uris: file.write("uri\n" + "".join(f"{uri}\n" for uri in uris)),
        "m.jsonl": lambda file, uris: file.write("".join(f'{{"uri": "{uri}"}}\n' for uri in uris)),
        "m.txt": lambda file, uris: file.write("".join(f"{uri}\n" for uri in uris)),
    }
    for folder, number in (("small", 20_000), ("large", 1_000_000)):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / name
        uris = (f"s3://a-bucket-of-photographs/2026/11/30/camera/{n:012d}.jpg" for n in range(number))
        if name == "m.parquet":
            with pq.ParquetWriter(path, pa.schema({"uri": pa.string()})) as writer:
                for _ in range(number // 20_000):
                    writer.write_table(pa.table({"uri": [next(uris) for _ in range(20_000)]}))
        else:
            with path.open("w") as file:
                write[name](file, uris)
    places = [str(tmp_path / folder / name) for folder in ("small", "large")]
    done = subprocess.run([sys.executable, "-c", MEMORY, *places], capture_output=True, text=True, cwd=ROOT, check=True)
    rows, grown_kib = map(int, done.stdout.split())
    assert rows == 1_000_000
    assert grown_kib < 60 * 1024
