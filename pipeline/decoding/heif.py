"""HEIC, the photographs of phones, through pillow-heif (the extra `heic`: libheif with libde265).

The primary image is decoded, as its boxes turn, mirror and crop it; they are part of the format. The EXIF orientation
repeats them and is ignored (ISO 23008-12, 6.5.10 and A.1). Images of more than 8 bits keep their high bits; alpha is
dropped like that of every format.

Safety: a decoder allocates what parameter sets inside of coded pictures say, and decodes the pictures of a grid or an
overlay as often as they are named. So before libheif sees a byte, the items are read here: only HEVC pictures and what
is made of them are decoded, each within `max_pixels`, all together within MAX_HEIF_PICTURES times that.
"""

import importlib.util

from pipeline.decoding.boxes import brands
from pipeline.decoding.heif_items import Item, canvas_pixels, coded_pictures, read_items
from pipeline.errors import ErrorCode, ImageError

# Pixels that are decoded for one image, in images of `max_pixels`: its pictures, or the tiles of a grid, whose last row
# and column reach beyond the image; alpha as much again.
MAX_HEIF_PICTURES = 3
MAX_HEIF_ITEMS = 1_000  # libheif's limit; 48 million pixels in tiles of 512 x 512 are 200
MAX_HEIF_UNITS = 100_000  # read one by one in Python: 0.1 s; a picture or tile has a few
MAX_HEIF_TURNS = 8  # of an item, each of which copies its pixels; usual items have one
_MOST_NESTED = 8  # items made of items made of items
_TURNS = (b"irot", b"imir", b"clap")
_HEVC = (b"hvc1", b"hev1")
_MADE_OF_OTHERS = (b"grid", b"iovl", b"iden")
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

IS_INSTALLED = importlib.util.find_spec("pillow_heif") is not None


def register() -> None:
    """Make pillow-heif Pillow's plugin of the format HEIF, without what this program does not read."""
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


def is_heif(data: bytes) -> bool:
    """Whether the first box names a brand of HEIF. AVIF files may name one, too."""
    return not _BRANDS.isdisjoint(brands(data))


def check_before_opening(data: bytes) -> None:
    """ImageError if opening the file would cost too much, or if there is nothing to decode."""
    primary, items = read_items(data)
    if len(items) > MAX_HEIF_ITEMS:
        raise _too_large("items of a HEIF", len(items), MAX_HEIF_ITEMS)
    if primary not in items:
        raise ImageError(ErrorCode.UNSUPPORTED, "HEIF: the file has no still image, only a sequence or nothing")
    if any(item.has_compressed_text for item in items.values()):
        raise ImageError(ErrorCode.UNSUPPORTED, "HEIF: its metadata are compressed")


def check_before_decoding(data: bytes, max_pixels: int) -> None:
    """ImageError if a picture is too large, all are too many, bytes are missing or a codec is none of ours."""
    primary, items = read_items(data)
    assert primary is not None
    together = _Costs(data, items, max_pixels).of(primary)
    limit = MAX_HEIF_PICTURES * max_pixels
    if together > limit:
        raise _too_large("pixels of a HEIF's pictures together", together, limit)


class _Costs:
    """Pixels that are decoded for an item."""

    def __init__(self, data: bytes, items: dict[int, Item], max_pixels: int):
        self.data, self.items, self.max_pixels = data, items, max_pixels
        self.known: dict[int, int] = {}
        self.num_units = 0
        self.alphas: dict[int, list[int]] = {}
        for number, item in items.items():
            for master in item.auxiliary_of if _is_alpha(data, item) else ():
                self.alphas.setdefault(master, []).append(number)

    def of(self, number: int, depth: int = 0) -> int:
        if number not in self.known:
            item = self.items.get(number)
            if item is None or depth > _MOST_NESTED:
                raise ImageError(ErrorCode.DECODE_FAILED, "HEIF: an image is made of items that are not there")
            self._check(item)
            own = self._coded(item) if item.kind in _HEVC else 0
            others = [*(item.made_of if item.kind in _MADE_OF_OTHERS else ()), *self.alphas.get(number, ())]
            self.known[number] = own + sum(self.of(other, depth + 1) for other in others)
        return self.known[number]

    def _check(self, item: Item) -> None:
        if item.kind not in (*_HEVC, *_MADE_OF_OTHERS):
            raise ImageError(
                ErrorCode.UNSUPPORTED, f"HEIF: pictures of the codec {item.kind!a} are not read, only HEVC (HEIC)"
            )
        if any(end > len(self.data) for _, end in item.pieces) or (not item.pieces and item.kind != b"iden"):
            raise ImageError(ErrorCode.DECODE_FAILED, "HEIF: the file ends before its pictures do")
        num_turns = sum(kind in _TURNS for kind, _, _ in item.properties)
        if num_turns > MAX_HEIF_TURNS:
            raise _too_large("rotations, mirrorings and crops of a HEIF", num_turns, MAX_HEIF_TURNS)
        if item.kind in (b"grid", b"iovl"):
            self._check_picture(canvas_pixels(self.data, item))

    def _coded(self, item: Item) -> int:
        largest = 0
        for pixels in coded_pictures(self.data, item):
            self.num_units += 1
            if self.num_units > MAX_HEIF_UNITS:
                raise _too_large("units of a HEIF's pictures", self.num_units, MAX_HEIF_UNITS)
            self._check_picture(pixels)
            largest = max(largest, pixels)
        if not largest:
            raise ImageError(ErrorCode.DECODE_FAILED, "HEIF: a coded picture has no size")
        return largest

    def _check_picture(self, pixels: int) -> None:
        if pixels > self.max_pixels:
            raise _too_large("pixels of a picture of a HEIF", pixels, self.max_pixels)


def _is_alpha(data: bytes, item: Item) -> bool:
    """Whether an auxiliary picture is alpha, which is decoded, too; maps of depth or brightness are not."""
    kinds = [data[begin:end] for kind, begin, end in item.properties if kind == b"auxC"]
    return any(b"alpha" in kind or b"auxid:1" in kind for kind in kinds)


def _too_large(what: str, number: int, limit: int) -> ImageError:
    return ImageError(ErrorCode.TOO_LARGE, f"{what}: {number:,} are more than the limit of {limit:,}")


def missing() -> ImageError:
    """The error of a HEIC where the extra is not installed."""
    return ImageError(
        ErrorCode.UNSUPPORTED,
        "a HEIC (HEIF) image needs the extra `heic` on every node: pip install 'm2f-pipeline[heic]'; then --mode "
        "retry-failed",
    )


def check_size_of_pixels(found: tuple[int, int], announced: tuple[int, int]) -> None:
    """ImageError if decoding gave another size (width, height) than the header."""
    if found != announced:
        raise ImageError(ErrorCode.DECODE_FAILED, f"HEIF: the pixels are {found}, but the header says {announced}")
