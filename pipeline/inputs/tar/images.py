"""The images of a tar, as the listing wants them."""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ErrorCode
from pipeline.inputs.container import Container, fault_of, with_all_columns
from pipeline.inputs.tar import index
from pipeline.inputs.tar.index import TarIndex, UnsupportedTarError, index_tar
from pipeline.inputs.tar.kept_index import keep_index, read_index
from pipeline.inputs.tar.range_file import RangeFile
from pipeline.inputs.verified import ChangedError
from pipeline.store.filesystem import one_line

_LEFT_OUT = {
    index.NO_IMAGE: "lie in tars and do not end as names of images do",
    index.BY_PROGRAM: "lie in tars and were left by programs",
    index.LINK: "are symbolic links or devices in tars",
}
_NOTED = {
    index.TWICE: "images have the name of an image before them in their tar, and got a number behind it",
    index.NOT_UTF8: "images in tars have names that are not UTF-8, and got \\x.. in place of the bytes",
    index.NO_END: "tars lack the end of a tar: they may be cut off",
    index.AFTER_END: "tars are followed by something that is no tar and is not read",
    index.NO_IMAGES: "tars hold no images",
}


def list_tar(container: Container) -> list[pa.Table]:
    """The images of a tar as tables of LISTED, and a row of the tar itself if it cannot be read to its end.

    ValueError if the object is no tar. RunError if the store does not answer.
    """
    try:
        found = _index(container)
    except UnsupportedTarError as error:
        return [fault_of(container, ErrorCode.UNSUPPORTED, one_line(error))]
    except ChangedError as error:
        return [fault_of(container, ErrorCode.CHANGED, one_line(error))]
    _count(container, found)
    damage = [fault_of(container, ErrorCode.DAMAGED_CONTAINER, found.damage)] if found.damage is not None else []
    return [_listed(container, found.images), *damage]


def _index(container: Container) -> TarIndex:
    kept = read_index(container)
    if kept is not None:
        return kept
    found = index_tar(RangeFile(container), container.is_enough)
    if container.is_enough is None:  # else it is a part of an index
        keep_index(container, found)
    return found


def _count(container: Container, found: TarIndex) -> None:
    for what, (number, name) in found.counts.items():
        full_name = f"{container.uri}#{name}" if name else container.uri
        if what in _LEFT_OUT:
            container.left_out.add(_LEFT_OUT[what], full_name, number)
        else:
            container.noted.add(_NOTED[what], full_name, number)


def _listed(container: Container, images: pa.Table) -> pa.Table:
    columns = {
        "image_key": pc.binary_join_element_wise(container.uri, images["name"], "#"),
        "etag": pa.repeat(container.etag, images.num_rows),
        "object_uri": pa.repeat(container.uri, images.num_rows),
        **{name: images[name] for name in ("size_bytes", "position", "fault")},
    }
    return with_all_columns(columns, images.num_rows)
