"""The items of a HEIF file and what each is made of, from its boxes alone; and the size of a coded HEVC picture.

Legend: ISO 14496-12 (boxes), ISO 23008-12 (HEIF: `grid`, `iovl`, `iden` are made of other items), ITU H.265 (HEVC).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.decoding.boxes import boxes

_PARAMETER_SETS = 33  # the kind of unit (NAL) that holds the size of the pictures
_MOST_SPS_BYTES = 1_000  # what precedes the size has 100 at most
_MOST_UNITS_AHEAD = 100  # of a configuration; usual ones have three


@dataclass
class Item:
    """One item. `pieces`: (begin, end) of its bytes in the file. `made_of`, `auxiliary_of`: other items, by number."""

    kind: bytes = b""
    pieces: list[tuple[int, int]] = field(default_factory=list)
    made_of: list[int] = field(default_factory=list)
    auxiliary_of: list[int] = field(default_factory=list)
    has_compressed_text: bool = False
    properties: list[tuple[bytes, int, int]] = field(default_factory=list)  # kind, begin and end of each


class Reader:
    """Numbers at a place that moves on. ValueError behind the end."""

    def __init__(self, data: bytes, at: int, end: int):
        self.data, self.at, self.end = data, at, end

    def take(self, num_bytes: int) -> int:
        if self.at + num_bytes > self.end:
            raise ValueError("a box ends early")
        self.at += num_bytes
        return int.from_bytes(self.data[self.at - num_bytes : self.at], "big")

    def text(self) -> bytes:
        """A text that a zero ends."""
        end = self.data.find(b"\0", self.at, self.end)
        if end < 0:
            raise ValueError("a text has no end")
        self.at, found = end + 1, self.data[self.at : end]
        return found


def read_items(data: bytes) -> tuple[int | None, dict[int, Item]]:
    """(number of the primary item, all items by number). No items if the file has none. ValueError if malformed."""
    meta = next(((begin, end) for kind, begin, end in boxes(data, 0, len(data)) if kind == b"meta"), None)
    if meta is None:
        return None, {}
    found = {kind: (begin, end) for kind, begin, end in boxes(data, meta[0] + 4, meta[1])}
    items: dict[int, Item] = {}
    if b"iinf" in found:
        _read_kinds(data, *found[b"iinf"], items)
    if b"iloc" in found:
        _read_places(data, *found[b"iloc"], found.get(b"idat", (0, 0))[0], items)
    if b"iref" in found:
        _read_references(data, *found[b"iref"], items)
    if b"iprp" in found:
        _read_properties(data, *found[b"iprp"], items)
    primary = None
    if b"pitm" in found:
        reader = Reader(data, *found[b"pitm"])
        primary = reader.take(4 if reader.take(4) >> 24 else 2)
    return primary, items


def _read_kinds(data: bytes, begin: int, end: int, items: dict[int, Item]) -> None:
    reader = Reader(data, begin, end)
    reader.take(4 if reader.take(4) >> 24 else 2)
    for kind, start, stop in boxes(data, reader.at, end):
        entry = Reader(data, start, stop)
        version = entry.take(4) >> 24
        if kind != b"infe" or version < 2:
            continue
        item = items.setdefault(entry.take(4 if version > 2 else 2), Item())
        entry.take(2)
        item.kind = entry.take(4).to_bytes(4, "big")
        if item.kind == b"mime":
            entry.text(), entry.text()  # name, type of the content
            item.has_compressed_text = entry.at < stop and bool(entry.text())


def _read_places(data: bytes, begin: int, end: int, inside: int, items: dict[int, Item]) -> None:
    reader = Reader(data, begin, end)
    version, sizes = reader.take(4) >> 24, reader.take(2)
    offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_bytes = sizes & 15 if version else 0
    wide = 4 if version == 2 else 2
    for _ in range(reader.take(wide)):
        item = items.get(reader.take(wide))
        method = reader.take(2) & 15 if version else 0
        reader.take(2)
        base = reader.take(base_bytes)
        num_pieces = reader.take(2)
        if num_pieces > 1 and not index_bytes + offset_bytes + length_bytes:  # no bytes would bound the loop
            raise ValueError("the pieces of an item have no places")
        for _ in range(num_pieces):
            reader.take(index_bytes)
            start = base + reader.take(offset_bytes) + (inside if method == 1 else 0)
            length = reader.take(length_bytes)
            if item is not None and method < 2:
                item.pieces.append((start, start + length if length else len(data)))


def _read_references(data: bytes, begin: int, end: int, items: dict[int, Item]) -> None:
    wide = 4 if Reader(data, begin, end).take(4) >> 24 else 2
    for kind, start, stop in boxes(data, begin + 4, end):
        reader = Reader(data, start, stop)
        item = items.get(reader.take(wide))
        others = [reader.take(wide) for _ in range(reader.take(2))]
        if item is not None:
            item.made_of += others if kind == b"dimg" else []
            item.auxiliary_of += others if kind == b"auxl" else []


def _read_properties(data: bytes, begin: int, end: int, items: dict[int, Item]) -> None:
    properties: list[tuple[bytes, int, int]] = []
    for kind, start, stop in boxes(data, begin, end):
        if kind == b"ipco":
            properties += boxes(data, start, stop)
        elif kind == b"ipma":
            reader = Reader(data, start, stop)
            flags = reader.take(4)
            for _ in range(reader.take(4)):
                item = items.get(reader.take(4 if flags >> 24 else 2))
                for _ in range(reader.take(1)):
                    index = reader.take(2) & 0x7FFF if flags & 1 else reader.take(1) & 0x7F
                    if item is not None and 1 <= index <= len(properties):
                        item.properties.append(properties[index - 1])


def coded_pictures(data: bytes, item: Item) -> Iterator[int]:
    """Pixels of each picture that an HEVC item announces, in its configuration and in its own bytes; 0 for all else.

    A decoder allocates what these parameter sets say, whatever the boxes say of the size. ValueError if there is no
    configuration.
    """
    places = [(begin, end) for kind, begin, end in item.properties if kind == b"hvcC"]
    if len(places) != 1:
        raise ValueError("a coded picture has no configuration, or several")
    reader = Reader(data, places[0][0] + 21, places[0][1])
    length_bytes, number = (reader.take(1) & 3) + 1, 0
    for _ in range(reader.take(1)):
        reader.take(1)
        for _ in range(reader.take(2)):
            number += 1
            if number > _MOST_UNITS_AHEAD:
                raise ValueError("a configuration has too many units")
            length = reader.take(2)
            yield _pixels_of_unit(data, reader.at, reader.at + length)
            reader.take(length)
    for at, end in item.pieces:
        while at + length_bytes <= end:
            start = at + length_bytes
            at = start + int.from_bytes(data[at:start], "big")
            yield _pixels_of_unit(data, start, min(at, end))


def canvas_pixels(data: bytes, item: Item) -> int:
    """Width x height of the image that a `grid` or `iovl` puts together. ISO 23008-12, 6.6.2."""
    begin, end = item.pieces[0]
    reader = Reader(data, begin, end)
    is_wide = reader.take(2) & 1
    reader.take(2 if item.kind == b"grid" else 8)  # rows and columns; colour of the background
    return reader.take(4 if is_wide else 2) * reader.take(4 if is_wide else 2)


def _pixels_of_unit(data: bytes, begin: int, end: int) -> int:
    """Width x height if the unit is a sequence parameter set of the base layer; else 0. H.265, 7.3.2.2."""
    unit = data[begin : min(end, begin + _MOST_SPS_BYTES)]
    if len(unit) < 2 or unit[0] >> 1 & 63 != _PARAMETER_SETS or (unit[0] & 1) << 5 | unit[1] >> 3:
        return 0
    bits = _Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    sub_layers = bits.take(3)
    bits.take(1 + 88 + 8)  # profile and level
    present = [(bits.take(1), bits.take(1)) for _ in range(sub_layers)]
    if sub_layers:
        bits.take(2 * (8 - sub_layers))
    for has_profile, has_level in present:
        bits.take(88 * has_profile + 8 * has_level)
    bits.exponential()
    if bits.exponential() == 3:
        bits.take(1)
    return bits.exponential() * bits.exponential()


class _Bits:
    """Numbers of some bits each. ValueError behind the end."""

    def __init__(self, data: bytes):
        self.value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, number: int) -> int:
        self.left -= number
        if self.left < 0:
            raise ValueError("a parameter set ends early")
        return self.value >> self.left & ((1 << number) - 1)

    def exponential(self) -> int:
        """A number by Exp-Golomb, H.265, 9.2."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)
