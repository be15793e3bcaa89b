"""Images that an S3 Inventory names: reports of a bucket that S3 writes each night, so that nobody lists the bucket.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html describes manifest.json and
manifest.checksum. Everybody who may write to the bucket of the inventory can change manifest.json. So this reader
trusts no path in manifest.json: it reads data files only from the folder `data` beside the folder of manifest.json.
"""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Len
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from m2f_core.config.fields import excerpt
from pipeline.errors import RunError
from pipeline.input_spec import InputSpec, Source
from pipeline.inputs.lists.inventory_files import read_rows
from pipeline.inputs.lists.named import NamedObjects, WrongEntryError
from pipeline.inputs.lists.object_stream import ObjectStream
from pipeline.look_ahead import look_ahead
from pipeline.store.filesystem import is_web, list_folder, one_line, uri_of
from pipeline.store.json_records import STRICT, Count, parse_record
from pipeline.store.objects import read_bytes, read_or_none
from pipeline.store.other.opening import open_input
from pipeline.store.temporary_folders import scratch_folder

_MANIFEST, _CHECKSUM = "manifest.json", "manifest.checksum"
_MOST_MANIFEST_BYTES, _MOST_CHECKSUM_BYTES = 64 * 2**20, 1024
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\dZ")
_FILES_AHEAD = 2  # data files that are fetched while one is read
_MD5 = re.compile(r"[0-9a-fA-F]{32}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{1,254}")


@checked_dataclass(frozen=True, config=STRICT)
class _DataFile:
    key: Annotated[str, Len(1, 1024)]
    size: Count
    MD5checksum: str

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]


@checked_dataclass(frozen=True, config=STRICT)
class _Manifest:
    sourceBucket: str  # noqa: N815 - the names of S3
    fileFormat: Literal["CSV", "ORC", "Parquet"]  # noqa: N815
    fileSchema: Annotated[str, Len(1, 10_000)]  # noqa: N815
    files: list[_DataFile]


_ADAPTER = TypeAdapter(_Manifest)


@dataclass(frozen=True)
class _Inventory:
    """A checked manifest.json, and where its data files lie."""

    filesystem: fsspec.AbstractFileSystem
    path: str  # of manifest.json
    manifest: _Manifest

    @property
    def uri(self) -> str:
        return uri_of(self.filesystem, self.path)

    def data_path(self, file: _DataFile) -> str:
        """CONFIG/data/NAME beside CONFIG/DATE/manifest.json, whatever folder its key says: copies may lie elsewhere."""
        return f"{self.path.rsplit('/', 2)[0]}/data/{file.name}"


def list_inventory(spec: InputSpec, source: Source) -> Iterator[pa.Table]:
    """The current objects of an inventory, as tables of LISTED. RunError, which names the file, for what is damaged."""
    filesystem, path = open_input(source.uri, spec.access)
    if is_web(source.uri):
        raise RunError(f"--input {source}: an inventory is read from a store or a folder, not from the web")
    if source.pattern:
        raise RunError(f"--input {source}: an inventory is manifest.json, or the folder of its dates, not a pattern")
    inventory = _open(filesystem, _manifest_path(filesystem, path, source))
    objects = NamedObjects(spec)
    with scratch_folder() as folder, ThreadPoolExecutor(_FILES_AHEAD, thread_name_prefix="inventory") as threads:

        def fetch(numbered: tuple[int, _DataFile]) -> "Future[tuple[_DataFile, Path]]":
            number, file = numbered
            return threads.submit(_fetch, inventory, file, folder / str(number))

        for file, fetched in look_ahead(fetch, enumerate(inventory.manifest.files), _FILES_AHEAD):
            yield from _tables(inventory, file, fetched, objects)
            fetched.unlink()


def _manifest_path(filesystem: fsspec.AbstractFileSystem, path: str, source: Source) -> str:
    """The manifest.json that the input names. If the input is a folder of dates, the newest date that is complete."""
    if path.endswith(f"/{_MANIFEST}"):
        return path
    folder = path.rstrip("/")
    if _DATE.fullmatch(folder.rpartition("/")[2]):
        return f"{folder}/{_MANIFEST}"
    dates = sorted((one for one in map(_name, list_folder(filesystem, folder)) if _DATE.fullmatch(one)), reverse=True)
    for date in dates:
        # S3 writes manifest.checksum last.
        if _read_or_none(filesystem, f"{folder}/{date}/{_CHECKSUM}", _MOST_CHECKSUM_BYTES) is not None:
            return f"{folder}/{date}/{_MANIFEST}"
    raise RunError(
        f"--input {source} is neither {_MANIFEST} of an S3 Inventory nor a folder with dates such as "
        f"2026-11-29T01-00Z that hold {_MANIFEST} and {_CHECKSUM}"
    )


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _read_or_none(filesystem: fsspec.AbstractFileSystem, path: str, most_bytes: int) -> bytes | None:
    return read_or_none(filesystem, path, "--input", most_bytes)


def _open(filesystem: fsspec.AbstractFileSystem, path: str) -> _Inventory:
    data = read_bytes(filesystem, path, "--input", _MOST_MANIFEST_BYTES)
    checksum_path = f"{path.rpartition('/')[0]}/{_CHECKSUM}"
    checksum = read_bytes(filesystem, checksum_path, "--input", _MOST_CHECKSUM_BYTES)
    uri = uri_of(filesystem, path)
    if checksum.strip().lower() != _md5(data).encode():
        raise RunError(
            f"--input {uri} does not have the MD5 that {_CHECKSUM} says; the inventory is incomplete or changed"
        )
    try:
        manifest = parse_record(_ADAPTER, data)
        _check(manifest)
    except ValueError as error:
        raise RunError(f"--input {uri} is no {_MANIFEST} of an S3 Inventory: {one_line(error)}") from None
    return _Inventory(filesystem, path, manifest)


def _check(manifest: _Manifest) -> None:
    """ValueError if a name leads elsewhere. pydantic has checked types and bounds."""
    if not _BUCKET.fullmatch(manifest.sourceBucket):
        raise ValueError(f"sourceBucket is {excerpt(manifest.sourceBucket)}, which is no name of a bucket")
    for file in manifest.files:
        if file.name in ("", ".", "..") or "\0" in file.name or "\\" in file.name:
            raise ValueError(f"a data file has the key {excerpt(file.key)}")
        if not _MD5.fullmatch(file.MD5checksum):
            raise ValueError(f"the MD5checksum of {excerpt(file.name)} is {excerpt(file.MD5checksum)}")
    names = [file.name for file in manifest.files]
    if len(set(names)) < len(names):
        raise ValueError("a data file is there twice")


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _fetch(inventory: _Inventory, file: _DataFile, to: Path) -> tuple[_DataFile, Path]:
    """The data file on the disk, with the size and the MD5 that manifest.json says."""
    path = inventory.data_path(file)
    name = f"--input {inventory.uri}: the data file {uri_of(inventory.filesystem, path)}"
    try:
        stream = ObjectStream(inventory.filesystem, path)
    except FileNotFoundError:
        raise RunError(f"{name} does not exist") from None
    if stream.size_bytes != file.size:
        raise RunError(f"{name} has {stream.size_bytes} bytes, not {file.size}")
    digest = hashlib.md5(usedforsecurity=False)
    with to.open("wb") as copy:
        while block := stream.read(8 * 2**20):
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != file.MD5checksum.lower():
        raise RunError(f"{name} does not have the MD5 {file.MD5checksum}; the inventory is incomplete or changed")
    return file, to


def _tables(inventory: _Inventory, file: _DataFile, fetched: Path, objects: NamedObjects) -> Iterator[pa.Table]:
    manifest, first = inventory.manifest, 1
    name = f"--input {inventory.uri}: the data file {uri_of(inventory.filesystem, inventory.data_path(file))}"
    try:
        for rows in read_rows(fetched, manifest.fileFormat, manifest.fileSchema):
            other = pc.index(pc.not_equal(rows.bucket, manifest.sourceBucket), True).as_py()
            if other >= 0:
                raise RunError(
                    f"{name}: row {first + other:,} is of the bucket {excerpt(rows.bucket[other].as_py())}, not of "
                    f"{manifest.sourceBucket}"
                )
            chosen = rows.current()
            uris = pc.binary_join_element_wise(f"s3://{manifest.sourceBucket}/", chosen["key"], "")
            try:
                yield objects.table(uris, chosen.get("etag"), chosen.get("size"))
            except WrongEntryError as error:
                raise RunError(
                    f"{name}: the key {excerpt(chosen['key'][error.place].as_py())} {error.clause}"
                ) from None
            first += len(rows.bucket)
    except (ValueError, pa.ArrowException, OSError) as error:
        raise RunError(f"{name} cannot be read: {one_line(error)}") from None
