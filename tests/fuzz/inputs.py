"""Readers of inputs in which a stranger may have written: tars, Parquet files, and lists of images."""

import gzip
import io
import json
import tarfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ImageError
from pipeline.input_spec import InputFormat, InputSpec
from pipeline.inputs.container import Container, KeptIndexes, LeftOut
from pipeline.inputs.listing import list_inputs
from pipeline.inputs.reads import ImageReader, ListedImage, one_request_each
from pipeline.inputs.tar.images import list_tar
from pipeline.store.filesystem import local_etag, open_filesystem
from tests.fuzz.files import folder, output, put
from tests.support import inventories
from tests.support.parquet_files import hugging_face
from tests.support.tars import member, tar_of


def container(data: bytes) -> Container:
    path = put("in/a.tar", data)
    filesystem, _ = open_filesystem(str(path))
    uri = f"file://{path}"
    return Container(filesystem, uri, local_etag(path.stat()), len(data), InputSpec.of(uri), LeftOut())


def read_tar(data: bytes) -> object:
    """One byte, then a tar. If the byte is odd, checksums are mended: bytes changed at random hardly ever leave one."""
    tar = bytearray(data[1:])
    for place in range(0, len(tar) - 511 if data[:1] and data[0] % 2 else 0, 512):
        if tar[place + 257 : place + 262] == b"ustar":
            tar[place + 148 : place + 156] = b" " * 8
            tar[place + 148 : place + 156] = b"%06o\0 " % sum(tar[place : place + 512])
    one = container(bytes(tar))
    images = [ListedImage(**row) for table in list_tar(one) for row in table.to_pylist()]
    assert len({image.image_key for image in images}) == len(images), "two images have one key"
    reader = ImageReader(one.spec)
    for group in one_request_each([image for image in images if image.fault is None]):
        for image, read in zip(group, reader.read(group, 2, 60.0), strict=True):
            assert isinstance(read, ImageError) or len(read.data) == image.size_bytes, "other bytes than listed"
    return images


def tar_seeds() -> list[bytes]:
    """A tar of each format with long names, links and global headers; without the padding at its end."""
    members = [
        member("a.jpg", b"x" * 600),
        member("d/" + "e" * 120 + ".png", b"1"),
        member("link.jpg", type=tarfile.LNKTYPE, linkname="a.jpg"),
        member("a.jpg", b"2", pax_headers={"size": "1", "comment": "c" * 40}),
        member("s.jpg", b"3", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}),
    ]
    tars = [tar_of(members, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    return [
        bytes((mends,)) + tar[:7000] for tar in (*tars, tar_of(members[:1], tarfile.USTAR_FORMAT)) for mends in (0, 1)
    ]


@cache
def indexed() -> Container:
    return container(tar_of([member("a.jpg", b"1"), member("a.jpg", b"2"), member("b.json", b"{}")]))


def read_kept_index(data: bytes) -> object:
    from pipeline.inputs.tar.kept_index import _checked

    return _checked(data, indexed())


def kept_index_seeds() -> list[bytes]:
    kept_by = replace(indexed(), kept=KeptIndexes(output(), may_write=True))
    list_tar(kept_by)
    return [Path(path).read_bytes() for path in output().list_indexes()]


# --- Parquet ----------------------------------------------------------------------------------------------------------


def read_parquet(data: bytes) -> object:
    """One byte, then a Parquet file. The byte says which columns are wanted."""
    flags = _PARQUET_FLAGS[data[0] % len(_PARQUET_FLAGS)] if data else {}
    spec = replace(InputSpec.of(f"file://{put('in/a.parquet', data[1:])}"), format="parquet", **flags)
    images = [ListedImage(**row) for table in list_inputs(spec) for row in table.to_pylist()]
    assert len({image.image_key for image in images}) == len(images), "two images have one key"
    reader = ImageReader(spec)
    for group in one_request_each([image for image in images if image.fault is None]):
        assert len(reader.read(group, 2, 60.0)) == len(group)
    return images


_PARQUET_FLAGS: tuple[dict[str, Any], ...] = (
    {},
    {"image_column": "image", "key_column": "id", "keep_columns": ("caption", "id")},
)


def parquet_seeds() -> list[bytes]:
    """Two row groups with a null, plain and compressed, with and without a dictionary."""
    columns = {"id": pa.array([1, 2, None], pa.int32()), "caption": ["a", None, "c" * 40]}
    table = hugging_face([b"1" * 70, None, b"3"], ["a.png", None, "a.png"], **columns)
    seeds = []
    for number, options in enumerate(({"compression": "none", "use_dictionary": False}, {"compression": "zstd"})):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, row_group_size=2, **options)
        seeds.append(bytes((number,)) + buffer.getvalue())
    return seeds


# --- lists ------------------------------------------------------------------------------------------------------------

_ENDINGS = (".parquet", ".csv", ".tsv", ".jsonl", ".txt", ".csv.gz")


def _listed(path: Path, form: InputFormat, **fields: Any) -> list[pa.Table]:
    return list(list_inputs(replace(InputSpec.of(f"file://{path}"), format=form, **fields)))


def read_manifest(data: bytes) -> object:
    """One byte, which says the format, then a manifest."""
    ending = _ENDINGS[data[0] % len(_ENDINGS)] if data else ".txt"
    keep = ("caption",) if ending != ".txt" else ()
    return _listed(put(f"in/manifest{ending}", data[1:]), "manifest", keep_columns=keep)


def manifest_seeds() -> list[bytes]:
    rows = [
        {"uri": "s3://bucket/a.jpg", "etag": '"e"', "size": 3, "key": "first", "caption": "x"},
        {"uri": "s3://bucket/b c.jpg", "etag": "", "size": None, "key": None, "caption": None},
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    lines = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
    text = "\n".join((",".join(rows[0]), *lines)).encode()
    contents = (
        buffer.getvalue(),
        text,
        text.replace(b",", b"\t"),
        "\n".join(map(json.dumps, rows)).encode(),
        "\n".join(str(row["uri"]) for row in rows).encode(),
        gzip.compress(text),
    )
    return [bytes((number,)) + content for number, content in enumerate(contents)]


def read_inventory(data: bytes) -> object:
    """One byte, then manifest.json, or a data file of the format that the byte says. Checksums are right."""
    which = data[0] % 4 if data else 3
    kind = inventories.FORMATS[which % 3]
    objects = _inventory(kind)
    if which == 3:
        manifest = data[1:]
    else:
        name = next(name for name in objects if name.startswith("data/"))
        objects[name] = data[1:]
        content = json.loads(objects[f"{inventories.DATE}/manifest.json"])
        content["files"][0] |= {"size": len(data) - 1, "MD5checksum": inventories.md5(data[1:])}
        manifest = json.dumps(content).encode()
    objects |= inventories.with_manifest_bytes(manifest)
    return _listed(inventories.write(folder() / "inventory", objects) / inventories.DATE, "inventory")


def _inventory(kind: str) -> dict[str, bytes]:
    rows = [
        inventories.row("photographs", "a b.jpg"),
        inventories.row("photographs", "old.jpg", 1, IsLatest=False),
        inventories.row("photographs", "gone.jpg", None, None, IsDeleteMarker=True),
    ]
    return inventories.inventory("photographs", [rows], kind)


def inventory_seeds() -> list[bytes]:
    seeds = [bytes((number,)) + list(_inventory(kind).values())[-1] for number, kind in enumerate(inventories.FORMATS)]
    return [*seeds, b"\3" + _inventory("CSV")[f"{inventories.DATE}/manifest.json"]]
