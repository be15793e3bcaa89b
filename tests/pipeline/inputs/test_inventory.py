"""S3 Inventory: what a listing of the bucket would show, from files that are checked; damage is one line."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs.listing import refuse_empty
from pipeline.inputs.reads import ListedImage
from tests.support.inventories import DATE, FORMATS, data_file, inventory, row, with_manifest, write
from tests.support.listed import list_images
from tests.support.requests_seen import requests_seen

pytestmark = pytest.mark.usefixtures("fresh_s3")

BUCKET = "photographs"
ODD = (
    "a b.jpg",
    "a+b.jpg",
    "100%.jpg",
    "a%20b.jpg",
    'it\'s "q", x.jpg',
    "é/日本 🐈.jpg",
    "line\nend.jpg",
    "x#y?z=1&w.jpg",
)


def listed(place, **fields) -> list[ListedImage]:
    return list(list_images(str(place), format="inventory", **fields))


def facts(images: list[ListedImage]) -> list[tuple]:
    return [(image.image_key, image.size_bytes, image.etag) for image in images]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_current_objects_are_listed_and_no_others(kind, tmp_path, caplog):
    rows = [
        *(row(BUCKET, key, number) for number, key in enumerate(ODD)),
        row(BUCKET, "old.jpg", 1, IsLatest=False),
        row(BUCKET, "gone.jpg", None, None, IsDeleteMarker=True),
        row(BUCKET, "gone.jpg", 4, IsLatest=False),
        row(BUCKET, "folder/", 0),
        row(BUCKET, "folder/Thumbs.db", 9),
    ]
    write(tmp_path, inventory(BUCKET, [rows[:5], rows[5:]], kind))
    expected = [(f"s3://{BUCKET}/{key}", number, "e" * 32) for number, key in enumerate(ODD)]
    assert facts(listed(tmp_path / DATE / "manifest.json")) == expected
    assert "1 names are left out, because they are marks of folders" in caplog.text
    assert "1 names are left out, because they were left by programs" in caplog.text
    assert facts(listed(tmp_path / DATE)) == facts(listed(tmp_path)) == expected
    assert facts(listed(tmp_path, include=("é/**",))) == [expected[5]]


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_that_an_inventory_leaves_out(kind, tmp_path, caplog):
    rows = [row(BUCKET, "a.jpg"), row(BUCKET, "b/")]
    write(tmp_path, inventory(BUCKET, [rows], kind, ("Bucket", "Key")))
    assert facts(listed(tmp_path)) == [(f"s3://{BUCKET}/a.jpg", None, "")]
    assert "1 images come without an ETag" in caplog.text
    write(tmp_path, inventory(BUCKET, [rows[:1]], kind, ("Key", "ETag", "Size", "Bucket")))
    assert facts(listed(tmp_path)) == [(f"s3://{BUCKET}/a.jpg", 3, "e" * 32)]


KEYS = st.lists(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0?&"), min_size=1, max_size=20)
    .map(lambda name: f"x/{name}.jpg")
    .filter(lambda key: "/._" not in key and "__MACOSX" not in key),
    min_size=1,
    max_size=6,
    unique=True,
)


@given(keys=KEYS, kind=st.sampled_from(FORMATS))
def test_any_key_comes_back(tmp_path_factory, keys, kind):
    folder = tmp_path_factory.mktemp("inventory")
    write(folder, inventory(BUCKET, [[row(BUCKET, key) for key in keys]], kind))
    assert [image.image_key for image in listed(folder)] == [f"s3://{BUCKET}/{key}" for key in keys]


def test_the_newest_complete_date_is_taken(tmp_path):
    for day in ("26", "27", "28"):
        objects = inventory(BUCKET, [[row(BUCKET, f"{day}.jpg")]], "CSV", date=f"2026-11-{day}T01-00Z")
        write(tmp_path, objects)
    (tmp_path / "2026-11-28T01-00Z" / "manifest.checksum").unlink()  # S3 writes it last
    (tmp_path / "hive").mkdir()
    assert [image.image_key for image in listed(tmp_path)] == [f"s3://{BUCKET}/27.jpg"]


def test_nothing_is_listed_of_the_source_bucket(s3):
    s3.bucket("inventories")
    objects = inventory("m2f-never-listed", [[row("m2f-never-listed", "a.jpg")]], "CSV")
    for name, content in objects.items():
        s3.client.put_object(Bucket="inventories", Key=f"prefix/m2f-never-listed/all/{name}", Body=content)
    with requests_seen() as seen:
        found = listed("s3://inventories/prefix/m2f-never-listed/all/")
    assert [image.image_key for image in found] == ["s3://m2f-never-listed/a.jpg"]
    lists = [request for request in seen if request.method == "GET" and "list-type=2" in request.url]
    assert lists and all("/inventories?" in request.url for request in lists)  # of the dates
    assert not [request for request in seen if "/m2f-never-listed/a.jpg" in request.url]
    with requests_seen() as seen:
        assert listed(f"s3://inventories/prefix/m2f-never-listed/all/{DATE}/manifest.json") == found
    assert seen and not [request for request in seen if "list-type=2" in request.url]


def test_an_inventory_of_an_empty_bucket_names_no_images(tmp_path):
    write(tmp_path, inventory(BUCKET, [], "CSV"))
    with pytest.raises(RunError, match="names no images"):
        refuse_empty(InputSpec(InputSpec.of(str(tmp_path)).sources, format="inventory"))


# --- damage -----------------------------------------------------------------------------------------------------------


def a_manifest(objects: dict[str, bytes]) -> Any:
    return json.loads(objects[f"{DATE}/manifest.json"])


def with_field(**fields: Any) -> Callable[[dict[str, bytes]], None]:
    return lambda objects: objects.update(with_manifest({**a_manifest(objects), **fields}))


def with_file(**fields: Any) -> Callable[[dict[str, bytes]], None]:
    def change(objects: dict[str, bytes]) -> None:
        manifest = a_manifest(objects)
        manifest["files"][0].update(fields)
        objects.update(with_manifest(manifest))

    return change


def with_data(data: bytes) -> Callable[[dict[str, bytes]], None]:
    from tests.support.inventories import md5

    def change(objects: dict[str, bytes]) -> None:
        objects[f"data/{DATE}-0.csv.gz"] = data
        with_file(size=len(data), MD5checksum=md5(data))(objects)

    return change


def with_rows(*rows: dict[str, Any]) -> Callable[[dict[str, bytes]], None]:
    return with_data(data_file(rows, "CSV"))


def csv_of(text: bytes) -> bytes:
    import gzip

    return gzip.compress(text)


DATA = f"data/{DATE}-0.csv.gz"
DAMAGE: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "a manifest that was changed": (
        lambda o: o.update({f"{DATE}/manifest.json": o[f"{DATE}/manifest.json"] + b" "}),
        "manifest.json does not have the MD5 that manifest.checksum says",
    ),
    "no manifest.json": (lambda o: o.pop(f"{DATE}/manifest.json"), "manifest.json does not exist"),
    "no checksum": (lambda o: o.pop(f"{DATE}/manifest.checksum"), "nor a folder with dates"),
    "a data file that was changed": (
        lambda o: o.update({DATA: bytes(len(o[DATA]))}),
        f"{DATE}-0.csv.gz does not have the MD5",
    ),
    "a data file that was cut": (lambda o: o.update({DATA: o[DATA][:-1]}), f"{DATE}-0.csv.gz has "),
    "no data file": (lambda o: o.pop(DATA), f"{DATE}-0.csv.gz does not exist"),
    "no JSON": (lambda o: o.update(with_manifest("x")), "is no manifest.json of an S3 Inventory"),
    "no file format": (with_field(fileFormat="XML"), "fileFormat is 'XML'"),
    "no bucket": (with_field(sourceBucket="a/../b"), "sourceBucket is 'a/../b'"),
    "another bucket": (with_field(sourceBucket="another"), "row 1 is of the bucket 'photographs', not of another"),
    "files that are a number": (with_field(files=5), "files is 5"),
    "a file below itself": (with_file(key="x/.."), "a data file has the key 'x/..'"),
    "a file of no name": (with_file(key="x/"), "a data file has the key 'x/'"),
    "no MD5": (with_file(MD5checksum="../x"), "MD5checksum"),
    "a size below 0": (with_file(size=-1), "files[0].size is -1"),
    "a file twice": (
        lambda o: with_field(files=a_manifest(o)["files"] * 2)(o),
        "a data file is there twice",
    ),
    "no column Key": (with_field(fileSchema="Bucket, Size"), "it has no column Key, but 'Bucket, Size'"),
    "a column twice": (with_field(fileSchema="Bucket, Key, Key"), "fileSchema names a column twice"),
    "another number of columns": (with_field(fileSchema="Bucket, Key"), "Expected 2 columns, got 8"),
    "no gzip": (with_data(b"Bucket,Key"), "cannot be read"),
    "gzip that was cut": (lambda o: with_data(o[DATA][:-9])(o), "cannot be read"),
    "no truth": (with_rows(row(BUCKET, "a", IsLatest="perhaps")), "is_latest is 'perhaps', neither true nor false"),
    "no size": (with_rows(row(BUCKET, "a", "big")), "cannot be read"),
    "a size of a key below 0": (with_rows(row(BUCKET, "a", -5)), "the key 'a' has a size below 0"),
    "no UTF-8 behind the percent": (
        with_data(csv_of(b'"photographs","%FF","v","true","false","1","","e"\n')),
        "cannot be read: 'utf-8' codec",
    ),
    "an empty key": (with_rows(row(BUCKET, "")), "the key '' is 's3://photographs/', which names no object"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_one_line_that_names_the_file(what, tmp_path):
    change, said = DAMAGE[what]
    objects = inventory(BUCKET, [[row(BUCKET, "a.jpg")]], "CSV")
    change(objects)
    write(tmp_path, objects)
    with pytest.raises(RunError) as refused:
        listed(tmp_path)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("kind", ["ORC", "Parquet"])
def test_a_data_file_of_another_format_is_a_line(kind, tmp_path):
    objects = inventory(BUCKET, [[row(BUCKET, "a.jpg")]], "CSV")
    with_field(fileFormat=kind)(objects)
    write(tmp_path, objects)
    with pytest.raises(RunError, match=rf"the data file .*{DATE}-0\.csv\.gz cannot be read"):
        listed(tmp_path)


def test_data_files_are_read_beside_the_manifest_whatever_it_says(tmp_path):
    """manifest.json is untrusted: it could name any object that the job may read. So a copy is read, too."""
    objects = inventory(BUCKET, [[row(BUCKET, "a.jpg")]], "CSV")
    with_file(key=f"../../../secrets/{DATE}-0.csv.gz")(objects)
    write(tmp_path / "copy", objects)
    assert [image.image_key for image in listed(tmp_path / "copy")] == [f"s3://{BUCKET}/a.jpg"]


def test_a_pattern_is_no_inventory(tmp_path):
    from pipeline.input_spec import Source

    spec = InputSpec((Source(str(tmp_path), "*/manifest.json"),), format="inventory")
    with pytest.raises(RunError, match="not a pattern"):
        refuse_empty(spec)
