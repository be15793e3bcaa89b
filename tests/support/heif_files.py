"""HEIC files: as pillow-heif writes them, and put together box by box, as no program writes them."""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from pipeline.decoding.heif import register
from tests.support.costly_images import box


def heic(image: Image.Image, **options: object) -> bytes:
    """Without loss but for the conversion of colours."""
    register()
    file = io.BytesIO()
    image.save(file, "HEIF", **{"quality": -1, "chroma": 444, **options})
    return file.getvalue()


def full_box(kind: bytes, content: bytes, version: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24) + content)


@dataclass
class ItemOf:
    """An item of `heif_of`; its number is its place, from 1. `properties` are whole boxes."""

    kind: bytes
    data: bytes = b""
    properties: Sequence[bytes] = ()
    made_of: Sequence[int] = ()
    auxiliary_of: Sequence[int] = ()
    missing_bytes: int = 0  # that the file says it has, behind its end


def heif_of(items: Sequence[ItemOf], primary: int = 1) -> bytes:
    """The file; the data of all items lie in `mdat` behind the boxes, in order."""
    kinds = b"".join(
        full_box(b"infe", struct.pack(">HH", number, 0) + item.kind + b"\0", version=2)
        for number, item in enumerate(items, 1)
    )
    references = b"".join(
        box(kind, struct.pack(f">HH{len(others)}H", number, len(others), *others))
        for number, item in enumerate(items, 1)
        for kind, others in ((b"dimg", item.made_of), (b"auxl", item.auxiliary_of))
        if others
    )
    properties = [one for item in items for one in item.properties]
    of_items, index = b"", 1
    for number, item in enumerate(items, 1):
        indices = bytes(range(index, index + len(item.properties)))
        of_items += struct.pack(">HB", number, len(indices)) + indices
        index += len(indices)
    fixed = [
        full_box(b"hdlr", b"\0\0\0\0pict" + bytes(13)),
        full_box(b"pitm", struct.pack(">H", primary)),
        full_box(b"iinf", struct.pack(">H", len(items)) + kinds),
        *([full_box(b"iref", references)] if references else []),
        box(b"iprp", box(b"ipco", b"".join(properties)) + full_box(b"ipma", struct.pack(">I", len(items)) + of_items)),
    ]
    head = box(b"ftyp", b"heic\0\0\0\0mif1heic")
    length = len(head) + 12 + sum(map(len, fixed)) + 16 + 14 * len(items) + 8
    places, at = b"", length
    for number, item in enumerate(items, 1):
        places += struct.pack(">HHHII", number, 0, 1, at, len(item.data) + item.missing_bytes)
        at += len(item.data)
    iloc = full_box(b"iloc", struct.pack(">HH", 0x4400, len(items)) + places)
    data = head + full_box(b"meta", b"".join([*fixed, iloc])) + box(b"mdat", b"".join(item.data for item in items))
    assert data.index(b"mdat") + 4 == length
    return data
