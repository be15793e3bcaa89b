"""Indexes of tars, kept in the output from run to run, so that no night reads the headers of a tar again.

An index belongs to a URI and an ETag. It only saves time: a tar without an index, or with a damaged one, is read again.
"""

import logging
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from annotated_types import Ge
from pydantic import TypeAdapter, with_config

from m2f_core.config.fields import excerpt
from pipeline.errors import ErrorCode
from pipeline.inputs.container import Container
from pipeline.inputs.tar.index import BLOCK, COUNTED, IMAGES, TarIndex
from pipeline.store.filesystem import one_line, put_object
from pipeline.store.json_records import STRICT, Count, parse_record

logger = logging.getLogger(__name__)

# Of what an index says. The rules of `index` are a part of it: which members are images, and how they are called.
_VERSION = 1
_MOST_BYTES = 256 * 2**20  # of an index: a tar of 10 million images has about as much
_MOST_FAULT = 1000  # characters
_METADATA = b"m2f_tar"


@with_config(STRICT)
@dataclass(frozen=True)
class _Tar:
    """What an index says of its tar beside the images, as JSON in the metadata of the Parquet file."""

    uri: str
    etag: str
    size_bytes: Count
    counts: dict[str, tuple[Annotated[int, Ge(1)], str]]
    damage: str | None


_TAR = TypeAdapter(_Tar)


def read_index(container: Container) -> TarIndex | None:
    """The index of the tar, checked: whoever can write to the output could have put anything there.

    None if there is no index; a damaged one is warned of. RunError if the output cannot be read.
    """
    if container.kept is None or not container.etag:
        return None
    output, path = container.kept.output, _path(container)
    data = output.read_or_none(path, _MOST_BYTES)
    if data is None:
        return None
    try:
        return _checked(data, container)
    except (pa.ArrowException, ValueError, OSError) as error:
        logger.warning("%s; the headers of %s are read again", output.damaged(path, one_line(error)), container.uri)
        return None


def keep_index(container: Container, index: TarIndex) -> None:
    """Write the index of the whole tar, if the output may be written. RunError if that fails."""
    if container.kept is None or not container.kept.may_write or not container.etag:
        return
    tar = _Tar(container.uri, container.etag, container.size_bytes, index.counts, index.damage)
    buffer = pa.BufferOutputStream()
    pq.write_table(index.images.replace_schema_metadata({_METADATA: _TAR.dump_json(tar)}), buffer, compression="zstd")
    data = buffer.getvalue()
    if data.size <= _MOST_BYTES:
        output = container.kept.output
        with output.errors():
            put_object(output.filesystem, output.inside(_path(container)), data.to_pybytes())


def _path(container: Container) -> str:
    assert container.kept is not None
    return container.kept.output.tar_index(container.uri, container.etag, _VERSION)


def _checked(data: bytes, container: Container) -> TarIndex:
    """The index in `data`. ValueError if it is none of this tar; also errors of Arrow."""
    file = pq.ParquetFile(pa.BufferReader(data))
    if not file.schema_arrow.equals(IMAGES):
        raise ValueError("its columns are not those of an index")
    tar = parse_record(_TAR, (file.schema_arrow.metadata or {}).get(_METADATA, b""))
    if (tar.uri, tar.etag, tar.size_bytes) != (container.uri, container.etag, container.size_bytes):
        raise ValueError(f"it belongs to another tar, {excerpt(tar.uri)} with ETag {excerpt(tar.etag)}")
    if not set(tar.counts) <= COUNTED:
        raise ValueError(f"it counts {excerpt(sorted(set(tar.counts) - COUNTED))}, which is not counted")
    if file.metadata.num_rows > container.size_bytes // BLOCK:
        raise ValueError(f"it has {file.metadata.num_rows} images, more than the tar has blocks")
    # As a dictionary, a text is there once, however often a damaged file repeats it.
    coded = pq.read_table(pa.BufferReader(data), read_dictionary=["name", "fault"]).combine_chunks()
    if any(coded[name].null_count for name in ("name", "position", "size_bytes")):
        raise ValueError("it has null as a value")
    _check_texts(coded)
    images = coded.cast(IMAGES)
    if pc.count_distinct(images["name"]).as_py() < images.num_rows:  # a dictionary may hold a text twice
        raise ValueError("it names an image twice")
    _check_places(images, container.size_bytes)
    return TarIndex(images, tar.counts, tar.damage)


def _check_texts(coded: pa.Table) -> None:
    if len(coded["name"].unique()) < coded.num_rows:
        raise ValueError("it names an image twice")
    faults = coded["fault"].unique().drop_null().cast(pa.string()).to_pylist()
    codes = {ErrorCode.DAMAGED_CONTAINER.value, ErrorCode.UNSUPPORTED.value}
    for fault in faults:
        if fault.partition(": ")[0] not in codes or len(fault) > _MOST_FAULT:
            raise ValueError(f"it has the fault {excerpt(fault)}, which images of a tar do not have")


def _check_places(images: pa.Table, tar_bytes: int) -> None:
    position, size = images["position"], images["size_bytes"]
    if _any(pc.less(size, 0)) or _any(pc.greater(size, tar_bytes)):
        raise ValueError("it has an image with a size that the tar does not have")
    if _any(pc.less(position, 0)) or _any(pc.greater(position, tar_bytes)):
        raise ValueError("it has an image outside of the tar")
    is_read = pc.is_null(images["fault"])
    position, size = position.filter(is_read), size.filter(is_read)
    if _any(pc.less(position, BLOCK)) or _any(pc.greater(pc.add(position, size), tar_bytes)):
        raise ValueError("it has an image outside of the tar")
    if _any(pc.not_equal(pc.bit_wise_and(position, BLOCK - 1), 0)):
        raise ValueError("it has an image that does not begin at a block")


def _any(condition: pa.ChunkedArray) -> bool:
    return bool(pc.any(condition).as_py())
