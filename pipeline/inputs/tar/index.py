"""Find the images in a tar by its headers. Python's tarfile reads the headers, of every format that it knows.

The names in a tar are names only, never paths: `../x`, `/x` and `./x` are kept as they are written. Of several members
of one name, each is an image: the second is called `NAME#2`, and so on.
"""

import posixpath
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from m2f_core.config.fields import excerpt
from pipeline.errors import ErrorCode
from pipeline.input_spec import LEFT_BY_PROGRAMS
from pipeline.inputs.tar.range_file import RangeFile
from pipeline.store.filesystem import one_line
from pipeline.text.patterns import any_regex

BLOCK = tarfile.BLOCKSIZE  # bytes of a header; data is padded to whole blocks

# A member is an image by its name: most members of a tar are labels, captions and the like.
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".hif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf",
    ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}  # fmt: skip

# Bytes of the headers of one member: names, and what PAX headers say beside them.
_MOST_HEADER_BYTES = 2**20
# A tar ends with zeros, and `cat a.tar b.tar` has these zeros in the middle. Tars are written in records of 10 KiB,
# and of at most 1 MiB.
_MOST_ZERO_BYTES = 2**20 + BLOCK
_ZERO_CHUNK = 64 * 2**10
_ROWS = 10_000  # members that are Python objects at a time

# What a scan counts. Of the first three, no row is made.
NO_IMAGE, BY_PROGRAM, LINK = "no_image", "by_program", "link"
TWICE, NOT_UTF8, NO_END, AFTER_END, NO_IMAGES = "twice", "not_utf8", "no_end", "after_end", "no_images"
COUNTED = frozenset((NO_IMAGE, BY_PROGRAM, LINK, TWICE, NOT_UTF8, NO_END, AFTER_END, NO_IMAGES))

IMAGES = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # of the member, unique
        pa.field("position", pa.int64(), nullable=False),  # of the first byte of its data; its header lies before it
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("fault", pa.string()),  # as in schema.LISTED
    ]
)
_MEMBERS = pa.schema([*IMAGES, pa.field("is_image", pa.bool_()), pa.field("link", pa.string())])


class UnsupportedTarError(ValueError):
    """The object is a tar in a form from which no member can be read alone."""


@dataclass(frozen=True)
class TarIndex:
    """The images of a tar, and what else it holds.

    images: a table of IMAGES, in the order of the tar.
    counts: numbers of members by COUNTED, each with the name of one of them; 1 and "" for what the tar itself is.
    damage: set if the tar cannot be read to its end; one line that says why and at which byte.
    """

    images: pa.Table
    counts: dict[str, tuple[int, str]] = field(default_factory=dict)
    damage: str | None = None


def index_tar(file: RangeFile, is_enough: Callable[[str], bool] | None = None) -> TarIndex:
    """Read the headers, up to the first image for whose key `is_enough` returns True.

    ValueError if the object does not begin as a tar does, UnsupportedTarError if it is compressed. Raises also the
    errors of RangeFile.
    """
    scan = _Scan(file, is_enough)
    members = _gathered(scan.members())
    if members["link"].null_count < members.num_rows:
        members = _with_links(members)
    images = _images(members, scan.counts)
    scan.counts.add(NO_IMAGES, "", not images.num_rows and scan.damage is None)
    return TarIndex(images, scan.counts.as_dict(), scan.damage)


class _Counts:
    def __init__(self) -> None:
        self.number: Counter[str] = Counter()
        self.example: dict[str, str] = {}

    def add(self, what: str, name: str, number: int = 1) -> None:
        if number:
            self.number[what] += number
            self.example.setdefault(what, name)

    def as_dict(self) -> dict[str, tuple[int, str]]:
        return {what: (number, self.example[what]) for what, number in self.number.items()}


class _Headers(tarfile.TarFile):
    """A tar whose headers are read one by one: TarFile itself takes a damaged header for the end of the tar."""

    def next(self) -> None:
        """Opening a TarFile reads the first member."""
        return

    def member_at(self, position: int) -> tarfile.TarInfo:
        """The member whose first header lies there; then `offset` is the place of the next member's."""
        self.fileobj.seek(position)
        return tarfile.TarInfo.fromtarfile(self)


_Row = tuple[str, int, int, str | None, bool, str | None]  # of _MEMBERS


class _Scan:
    def __init__(self, file: RangeFile, is_enough: Callable[[str], bool] | None):
        self.file, self.is_enough = file, is_enough
        self.counts = _Counts()
        self.damage: str | None = None
        self.headers = _Headers(fileobj=cast(Any, file), encoding="utf-8", errors="surrogateescape")

    def members(self) -> Iterator[_Row]:
        """A row of _MEMBERS for each file and each hard link."""
        self._check_begin()
        position, has_ended = 0, False
        while True:
            self.file.seek(position)
            block = self.file.peek(BLOCK)
            if not block:
                self.counts.add(NO_END, "", not has_ended)
                return
            if not any(block):
                has_ended, after = True, self._after_zeros(position)
                if after is None:
                    return
                position = after
                continue
            member = self._member_at(position)
            if isinstance(member, str):
                if has_ended:
                    self.counts.add(AFTER_END, "")
                else:
                    self.damage = f"the header at byte {position} is damaged ({member}); what follows is not read"
                return
            has_ended, position = False, self.headers.offset
            if (row := self._row(member)) is not None:
                yield row
                if self.is_enough is not None and row[4] and self.is_enough(f"{self.file.container.uri}#{row[0]}"):
                    return

    def _check_begin(self) -> None:
        begin = self.file.peek(BLOCK)
        if not begin:
            raise ValueError("the tar is empty, without a byte")
        for signature, program in _COMPRESSED.items():
            if begin.startswith(signature):
                raise UnsupportedTarError(
                    f"the tar is compressed with {program}, so no image in it can be read alone; decompress the tar"
                )
        if any(begin) and isinstance(member := self._member_at(0), str):
            raise ValueError(f"it is no tar: {member}")

    def _member_at(self, position: int) -> tarfile.TarInfo | str:
        """The member whose first header lies there, or what is wrong with its headers."""
        self.file.allow(_MOST_HEADER_BYTES)
        try:
            member = self.headers.member_at(position)
        except (tarfile.TarError, ValueError, IndexError, RecursionError) as error:
            return one_line(error)
        if member.size < 0 or self.headers.offset <= position:
            return "its size is below 0"
        if sum(len(key) + len(value) for key, value in self.headers.pax_headers.items()) > _MOST_HEADER_BYTES:
            return "it adds to global headers that are longer than headers are"
        return member

    def _after_zeros(self, position: int) -> int | None:
        """The next block that is not zero; None if there is none."""
        end = min(position + _MOST_ZERO_BYTES, self.file.size)
        while position < end:
            self.file.seek(position)
            chunk = self.file.peek(min(_ZERO_CHUNK, end - position))
            if rest := chunk.lstrip(b"\0"):
                return (position + len(chunk) - len(rest)) // BLOCK * BLOCK
            position += len(chunk)
        self.counts.add(AFTER_END, "", position < self.file.size)
        return None

    def _row(self, member: tarfile.TarInfo) -> _Row | None:
        name = _as_utf8(member.name)
        is_image = name.lower().endswith(IMAGE_SUFFIXES)
        if member.isdir():
            return None
        if member.issym() or member.isdev():
            self.counts.add(LINK, name, is_image)
            return None
        self.counts.add(NOT_UTF8, name, is_image and name != member.name)
        if member.islnk():
            return name, 0, 0, None, is_image, _as_utf8(member.linkname)
        first, fault = member.offset_data, None
        size = max(0, min(member.size, self.file.size - first))
        if member.issparse():
            fault = f"{ErrorCode.UNSUPPORTED.value}: it is a sparse file; make the tar without the option --sparse"
        elif size < member.size:
            fault = _damaged(f"the tar ends at byte {self.file.size}, {member.size - size} bytes before the image does")
        return name, first, size, fault, is_image, None


def _as_utf8(name: str) -> str:
    """The name with `\\xff` in place of each byte that is not UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _damaged(why: str) -> str:
    return f"{ErrorCode.DAMAGED_CONTAINER.value}: {why}"


def _gathered(rows: Iterator[_Row]) -> pa.Table:
    """The rows as a table of _MEMBERS, without a Python object for each of them at one time."""
    tables = [_MEMBERS.empty_table()]
    while page := list(islice(rows, _ROWS)):
        tables.append(pa.table(list(map(list, zip(*page, strict=True))), schema=_MEMBERS))
    return pa.concat_tables(tables)


def _with_links(members: pa.Table) -> pa.Table:
    """Hard links get place, size and fault of the member before them that they name, as tarfile extracts them."""
    columns = members.to_pydict()
    where: dict[str, int] = {}
    for row, (name, link) in enumerate(zip(columns["name"], columns["link"], strict=True)):
        if link is not None:
            if (target := where.get(posixpath.normpath(link))) is None:
                columns["fault"][row] = _damaged(
                    f"it is a hard link to {excerpt(link)}, which is not before it in the tar"
                )
                continue
            for column in ("position", "size_bytes", "fault"):
                columns[column][row] = columns[column][target]
        where[posixpath.normpath(name)] = row
    return pa.table(columns, schema=_MEMBERS)


def _images(members: pa.Table, counts: _Counts) -> pa.Table:
    """The members that are images, as a table of IMAGES; the others are counted."""
    for what, is_left in (
        (NO_IMAGE, lambda table: pc.invert(table["is_image"])),
        (BY_PROGRAM, lambda table: pc.match_substring_regex(table["name"], any_regex(LEFT_BY_PROGRAMS))),
    ):
        left = members.filter(is_left(members))
        if left.num_rows:
            counts.add(what, left["name"][0].as_py(), left.num_rows)
            members = members.filter(pc.invert(is_left(members)))
    names = _unique(members["name"], counts)
    columns = {"name": names, **{name: members[name] for name in ("position", "size_bytes", "fault")}}
    return pa.table(columns, schema=IMAGES)


def _unique(names: pa.ChunkedArray, counts: _Counts) -> pa.ChunkedArray:
    """The names, with `#2`, `#3`, ... behind the second, third, ... of one name; no image ends so."""
    if pc.count_distinct(names).as_py() == len(names):
        return names
    seen: Counter[str] = Counter()
    unique = []
    for name in names.to_pylist():
        seen[name] += 1
        counts.add(TWICE, name, seen[name] > 1)
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return pa.chunked_array([pa.array(unique, pa.string())])
