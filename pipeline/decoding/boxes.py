"""The boxes of ISO base media files (AVIF, HEIF) and of JPEG 2000."""

from collections.abc import Iterator

from pipeline.errors import ErrorCode, ImageError

MAX_BOXES = 100_000  # one behind the other; read one by one in Python: 0.1 s


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, begin, end) of the contents of boxes that follow one another. ImageError if there are more than
    MAX_BOXES.
    """
    number = 0
    while start + 8 <= end:
        number += 1
        if number > MAX_BOXES:
            raise ImageError(ErrorCode.TOO_LARGE, f"boxes: {number:,} or more are more than the limit of {MAX_BOXES:,}")
        length, begin = int.from_bytes(data[start : start + 4], "big"), start + 8
        kind = data[start + 4 : start + 8]
        if length == 1:
            length, begin = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
        stop = end if length == 0 else start + length
        if stop < begin or stop > end:
            stop = end
        yield kind, begin, stop
        start = stop


def brands(data: bytes) -> set[bytes]:
    """The brands that the first box names; none if the first box is of another kind."""
    if data[4:8] != b"ftyp":
        return set()
    box = data[: int.from_bytes(data[:4], "big")]
    return {box[8:12]} | {box[at : at + 4] for at in range(16, len(box), 4)}
