"""The images of a drill: copies of some of the user's images, and images that do harm on purpose."""

import posixpath
import random
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import ErrorCode, ImageError, RunError
from pipeline.guard.planted_faults import marker
from pipeline.input_spec import InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import first_images
from pipeline.inputs.reads import ListedImage
from pipeline.store.filesystem import full_uri, store_errors_as, write_uri
from pipeline.store.objects import read_uri

_LISTED = 10_000  # objects of the input; listing all of them could take hours

# Planted faults (pipeline.guard.planted_faults), and the error codes that their images may get.
_DEADLY = {
    "abort": (ErrorCode.CRASHED_WORKER,),
    "allocate": (ErrorCode.CRASHED_WORKER, ErrorCode.TOO_LARGE, ErrorCode.TIMED_OUT),
    "hang": (ErrorCode.TIMED_OUT, ErrorCode.CRASHED_WORKER),
}
_UNREADABLE = (ErrorCode.DECODE_FAILED, ErrorCode.UNSUPPORTED)


@dataclass(frozen=True)
class HarmfulImage:
    """An image that must get a row `failed` with one of these codes, and must not affect other images."""

    name: str
    data: bytes
    codes: tuple[ErrorCode, ...]


def copy_sample(inputs: InputSpec, number: int, folder: str, chance: random.Random) -> list[str]:
    """Copy random images of the inputs into `folder`, each as an object. Returns the sorted keys of the copies.

    Raises RunError if an image cannot be read or written.
    """
    listed = [ListedImage(**row) for row in first_images(inputs, _LISTED).to_pylist()]
    if not listed:
        raise RunError(f"{inputs.name} holds no objects")
    chosen = sorted(chance.sample(listed, min(number, len(listed))), key=lambda image: image.image_key)
    copies = []
    for place, (image, read) in enumerate(zip(chosen, FetchImages(inputs).fetch_all(chosen), strict=True)):
        if isinstance(read, ImageError):
            raise RunError(f"{image.image_key} cannot be copied to {folder}: {read}")
        name = re.sub(r"[^\w.-]", "_", posixpath.basename(image.image_key.rstrip("/")))[-80:]
        copied = f"{folder}/{place:05d}-{name}"
        with store_errors_as(RunError, f"{image.image_key} cannot be copied to {folder}"):
            write_uri(copied, read.data)
        copies.append(full_uri(copied))
    return sorted(copies)


def plant(folder: str, sample: list[str], chance: random.Random, *, deadly: bool) -> dict[str, HarmfulImage]:
    """Put harmful images among the copies in `folder`, so that they share shards. Returns the harmful ones by key."""
    model = read_uri(chance.choice(sample), "the sample:")
    planted = {}
    for image in harmful_images(model, deadly=deadly):
        # The copies' names begin with a number; a name with the same number sorts beside that copy.
        path = f"{folder}/{chance.randrange(len(sample)):05d}-drill-{image.name}"
        write_uri(path, image.data)
        planted[full_uri(path)] = image
    return planted


def harmful_images(model: bytes, *, deadly: bool) -> Iterator[HarmfulImage]:
    """One image of each harmful kind, made from `model`, the bytes of an image."""
    yield HarmfulImage("cut", model[: len(model) // 2], _UNREADABLE)
    yield HarmfulImage("noise", random.Random(0).randbytes(5000), _UNREADABLE)
    yield HarmfulImage("empty", b"", _UNREADABLE)
    yield HarmfulImage("bomb", _png_header(60_000, 60_000), (ErrorCode.TOO_LARGE,))
    if deadly:
        for name, codes in _DEADLY.items():
            yield HarmfulImage(name, model + marker(name), codes)


def _png_header(height: int, width: int) -> bytes:
    """A PNG whose header declares this size, with almost no pixel data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
