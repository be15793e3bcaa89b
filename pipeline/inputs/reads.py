"""Read the planned images of a shard: which of them one request serves, and how each kind of image is read."""

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import fsspec

from pipeline.errors import ErrorCode, ImageError
from pipeline.input_spec import InputSpec
from pipeline.inputs.kept import Kept
from pipeline.inputs.parquet.file import TAIL_BYTES, DamagedFileError, ParquetFooter
from pipeline.inputs.parquet.rows import read_rows
from pipeline.inputs.verified import CorruptError, read_range, read_tail, read_verified, request_seconds
from pipeline.store.filesystem import one_line, path_of
from pipeline.store.other.opening import open_input

# In a tar, the header of a file lies before its first byte; it is read too, and shows whether the place is right.
_HEADER_BYTES = tarfile.BLOCKSIZE
# Images side by side in a tar are one request, up to this many bytes: S3 serves 8 MiB at full speed.
_MOST_RANGE_BYTES = 8 * 2**20
# Bytes between two images that are read and dropped rather than asked for apart: headers, labels, other members.
_MOST_GAP_BYTES = 64 * 2**10
# The row groups of a shard are read in the order of the files, so that a footer is soon not needed again.
_FOOTERS = 16


@dataclass(frozen=True)
class ListedImage:
    """An image as the listing found it. The fields are columns of schema.LISTED and have the same meaning."""

    image_key: str
    etag: str
    size_bytes: int | None
    object_uri: str | None = None
    position: int | None = None
    row_group: int | None = None
    fault: str | None = None
    attributes: str | None = None

    @property
    def object(self) -> str:
        """The URI of the object to read."""
        return self.object_uri or self.image_key


@dataclass(frozen=True)
class ReadImage:
    """The encoded bytes of an image, and the ETag of the object that they were read from."""

    data: bytes
    etag: str


def one_request_each(images: Sequence[ListedImage]) -> list[list[ListedImage]]:
    """The images in groups that one read serves: a whole object, a range of a tar, a row group of a Parquet file."""
    groups: list[list[ListedImage]] = []
    for kind, of_kind in groupby(sorted(images, key=_kind), key=_kind):
        if kind == "whole":
            groups += [[image] for image in of_kind]
        elif kind == "range":
            groups += _ranges(sorted(of_kind, key=lambda image: (image.object, image.position)))
        else:
            ordered = sorted(of_kind, key=lambda image: (image.object, image.row_group, image.position))
            groups += [list(rows) for _, rows in groupby(ordered, key=lambda image: (image.object, image.row_group))]
    return groups


def _kind(image: ListedImage) -> str:
    return "whole" if image.position is None else "range" if image.row_group is None else "rows"


def _ranges(images: Sequence[ListedImage]) -> Iterator[list[ListedImage]]:
    group: list[ListedImage] = []
    for image in images:
        if group and not _continues(group, image):
            yield group
            group = []
        group.append(image)
    if group:
        yield group


def _continues(group: Sequence[ListedImage], image: ListedImage) -> bool:
    first, last = _extent(group)
    start, end = _extent([image])
    if group[0].object != image.object or first < 0:  # a wrong place in the plan costs its own image only
        return False
    return start - last <= _MOST_GAP_BYTES and end - first <= _MOST_RANGE_BYTES


def _extent(images: Sequence[ListedImage]) -> tuple[int, int]:
    """(first byte, byte after the last) of images in one tar, with their headers."""
    return (
        min(i.position or 0 for i in images) - _HEADER_BYTES,
        max((i.position or 0) + (i.size_bytes or 0) for i in images),
    )


def _member(data: memoryview, image: ListedImage) -> ReadImage | ImageError:
    """The image whose header is at the beginning of `data`.

    The name in the header is not compared: long names and hard links have their names elsewhere.
    """
    size = image.size_bytes or 0
    try:
        header = tarfile.TarInfo.frombuf(data[:_HEADER_BYTES].tobytes(), "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        return _no_member(image, one_line(error))
    if header.isdir() or header.size not in (size, 0):  # 0 if the size stands in a PAX header
        return _no_member(image, f"the header there says {header.size} bytes")
    return ReadImage(data[_HEADER_BYTES : _HEADER_BYTES + size].tobytes(), image.etag)


def _no_member(image: ListedImage, why: str) -> ImageError:
    what = f"no file of {image.size_bytes} bytes lies at byte {image.position} of the tar: {why}"
    return ImageError(ErrorCode.DAMAGED_CONTAINER, what)


class ImageReader:
    """Reads groups of images; keeps the file systems of all schemes that it has met. Thread safe."""

    def __init__(self, spec: InputSpec):
        self.spec = spec
        self.filesystems: dict[str, fsspec.AbstractFileSystem] = {}
        self.footers: Kept[tuple[str, str], ParquetFooter] = Kept(_FOOTERS)  # by URI and ETag

    def place(self, uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system and the path in it. RunError if the store cannot be opened."""
        scheme = uri.partition("://")[0]
        if scheme not in self.filesystems:
            self.filesystems[scheme] = open_input(uri, self.spec.access)[0]
        filesystem = self.filesystems[scheme]
        return filesystem, path_of(filesystem, uri)

    def read(self, images: Sequence[ListedImage], attempt: int, step_timeout: float) -> list[ReadImage | ImageError]:
        """Each image of a group of `one_request_each`, in order. `attempt` is 1 at the first time.

        Raises the errors of `read_verified`, which concern the whole group.
        """
        filesystem, path = self.place(images[0].object)
        if _kind(images[0]) == "whole":
            [image] = images
            seconds = request_seconds(image.size_bytes or 0, attempt, step_timeout)
            return [ReadImage(*read_verified(filesystem, path, image.etag, image.size_bytes, seconds))]
        if images[0].row_group is not None:
            return self._read_rows(filesystem, path, images, images[0].row_group, attempt, step_timeout)
        first, end = _extent(images)
        if first < 0:
            return [_no_member(image, "no header fits before it") for image in images]
        seconds = request_seconds(end - first, attempt, step_timeout)
        data = memoryview(read_range(filesystem, path, images[0].etag, first, end - first, seconds))
        members = [_member(data[(image.position or 0) - _HEADER_BYTES - first :], image) for image in images]
        if attempt == 1 and any(isinstance(member, ImageError) for member in members):
            raise CorruptError(f"the headers read from byte {first} of ETag {images[0].etag} are not those of the plan")
        return members

    def _read_rows(
        self,
        filesystem: fsspec.AbstractFileSystem,
        path: str,
        images: Sequence[ListedImage],
        row_group: int,
        attempt: int,
        step_timeout: float,
    ) -> list[ReadImage | ImageError]:
        etag = images[0].etag

        def read(first: int, length: int) -> bytes:
            seconds = request_seconds(length, attempt, step_timeout)
            return read_range(filesystem, path, etag, first, length, seconds)

        def footer() -> ParquetFooter:
            seconds = request_seconds(TAIL_BYTES, attempt, step_timeout)
            return ParquetFooter.read(*read_tail(filesystem, path, etag, TAIL_BYTES, seconds), read)

        try:
            rows = [image.position or 0 for image in images]
            found = read_rows(self.footers.get((images[0].object, etag), footer), row_group, rows, self.spec, read)
        except DamagedFileError as error:
            return [ImageError(ErrorCode.DAMAGED_CONTAINER, str(error))] * len(images)
        return [one if isinstance(one, ImageError) else ReadImage(one, etag) for one in found]
