"""From the bytes of one object to an RGB image, or to an `ImageError` that says why not.

Formats: AVIF, BMP, GIF, JPEG (and MPO), JPEG 2000, PNG, PPM/PGM/PBM, TIFF and WebP. The bytes' signature decides which
one, never the object's name, and only that one Pillow plugin sees the bytes. Left out on purpose: EPS, PDF and WMF
(they run other programs or draw), TGA and PCX (hardly a signature: other files pass for one), ICO, ICNS and PSD
(containers whose real size is known only while decoding), FITS, HDF5 and the like (no defined pixel range).

Pixels: as `convert("RGB")`, which is what detectron2 feeds the model. Alpha is dropped without blending, palettes and
CMYK are expanded, ICC profiles are ignored, of several frames or pages the first is taken. 16-bit images keep their
high byte (Pillow's own conversion would clip them to white). 32-bit integers, floats and Lab are refused: nothing says
which value is white.

Orientation: EXIF (or XMP) orientation in any format, if asked for; a broken EXIF block counts as none. A TIFF's
Orientation tag is part of the format: Pillow always applies it.

Safety: the header's size is compared with `max_pixels` before a pixel is decoded. Truncated files are errors: half an
image would give wrong masks that look right. Pillow's warnings and log lines are silenced, since what matters is in the
ImageError; libtiff's own lines on standard error, written in C, cannot be.
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from pipeline.errors import ErrorCode, ImageError

# Importing a plugin registers it. They are all imported here, so that Image.open, which would otherwise import every
# plugin on first use, changes no global state when threads decode.
_PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Pillow's state is global, so it is set once, at import, for the whole process.
Image.MAX_IMAGE_PIXELS = None  # max_pixels is the rule; Pillow's own would refuse above 179 million
ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.filterwarnings("ignore", module=r"PIL\.")  # here, because catch_warnings is not thread-safe
logging.getLogger("PIL").setLevel(logging.CRITICAL)

_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # what a Pillow may be built without
FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    if name not in _OPTIONAL or features.check(_OPTIONAL[name])
)

_SIGNATURES = {
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "JPEG": (b"\xff\xd8\xff",),
    "JPEG2000": (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n"),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "PPM": tuple(b"P%d%c" % (kind, end) for kind in range(1, 7) for end in b" \t\n\r#"),
    "TIFF": (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"),  # "+" is BigTIFF
}

_RGB_COMPATIBLE = frozenset(("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"))

# EXIF orientation -> what turns the stored image upright. 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset((5, 6, 7, 8))
_PNG_ORIENTATION_KEYWORDS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")

_TIFF_TAGS = {"BitsPerSample": 258, "PhotometricInterpretation": 262, "TileWidth": 322, "TileLength": 323}


def decode_image(
    data: bytes, *, max_pixels: int, apply_exif: bool, at_least_hw: tuple[int, int] | None = None
) -> Image.Image:
    """Decode to RGB; raises ImageError with UNSUPPORTED, DECODE_FAILED or TOO_LARGE and nothing else.

    `max_pixels` bounds height x width as the header states them. Where `at_least_hw` (of the upright image) allows it,
    a JPEG comes at a half, a quarter or an eighth of its size. Safe to call from several threads.
    """
    format_name = _format_of(data)
    with _as_image_error(format_name):
        image = _open(data, format_name, max_pixels)
        orientation = _orientation(image, data) if apply_exif else 1
        if at_least_hw is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
            height, width = at_least_hw[::-1] if orientation in _SWAPS_SIDES else at_least_hw
            _draft(image, height, width)
        image.load()
        rgb_image = _to_rgb(image)
        return rgb_image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb_image


def measure_image(data: bytes, *, max_pixels: int, apply_exif: bool) -> tuple[int, int]:
    """(height, width) that `decode_image` would give, from the header; raises the ImageErrors a header can show."""
    format_name = _format_of(data)
    with _as_image_error(format_name):
        image = _open(data, format_name, max_pixels)
        turned = apply_exif and _orientation(image, data) in _SWAPS_SIDES
        return (image.width, image.height) if turned else (image.height, image.width)


@contextmanager
def _as_image_error(format_name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # only if someone set Pillow's own limit again
        raise ImageError(ErrorCode.TOO_LARGE, f"{format_name}: {error}") from error
    except MemoryError:  # the header promised at most `max_pixels`, so this says more of the machine than of the file
        raise ImageError(ErrorCode.TOO_LARGE, f"{format_name}: no memory to decode it") from None
    except Exception as error:  # Pillow's plugins raise some fifteen types on broken files
        raise ImageError(ErrorCode.DECODE_FAILED, f"{format_name}: {_reason(error)}") from error


def _format_of(data: bytes) -> str:
    """The Pillow name of the format that the signature shows."""
    if not data:
        raise ImageError(ErrorCode.UNSUPPORTED, "not an image: 0 bytes")
    for name, signatures in _SIGNATURES.items():
        if name in FORMATS and data.startswith(signatures):
            return name
    if "WEBP" in FORMATS and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if "AVIF" in FORMATS and _is_avif(data):
        return "AVIF"
    raise ImageError(
        ErrorCode.UNSUPPORTED,
        f"not an image of a supported format ({', '.join(FORMATS)}): it starts with {data[:16]!a}",
    )


def _is_avif(data: bytes) -> bool:
    """Whether the first box names an AVIF brand. HEIC and MP4 files have the same box with other brands."""
    if data[4:8] != b"ftyp":
        return False
    box = data[: int.from_bytes(data[:4], "big")]
    brands = {box[8:12]} | {box[at : at + 4] for at in range(16, len(box), 4)}
    return not brands.isdisjoint((b"avif", b"avis"))


def _open(data: bytes, format_name: str, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header and refuse an image that is too large."""
    try:
        image = Image.open(io.BytesIO(data), formats=(format_name,))
    except UnidentifiedImageError:
        # Image.open drops the plugin's reason, so ask the plugin again.
        factory = Image.OPEN[format_name][0]
        factory(io.BytesIO(data), "")
        raise
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(ErrorCode.DECODE_FAILED, f"{format_name}: the image has no pixels ({height} x {width})")
    if width * height > max_pixels:
        raise ImageError(
            ErrorCode.TOO_LARGE,
            f"{width * height:,} pixels (height {height}, width {width}), more than the limit of {max_pixels:,}",
        )
    # A small tiled TIFF may declare huge tiles, and the decoder allocates a whole one. Usual tiles always pass.
    tile_pixels = _tiff_tag(image, "TileWidth", 0) * _tiff_tag(image, "TileLength", 0)
    if tile_pixels > max(max_pixels, 1024 * 1024):
        raise ImageError(ErrorCode.TOO_LARGE, f"TIFF tiles of {tile_pixels:,} pixels, more than {max_pixels:,}")
    if format_name == "TIFF":
        # Loading would apply an XMP orientation too, which the size read from the header does not have.
        image.info.pop("xmp", None)
    return image


def _tiff_tag(image: ImageFile.ImageFile, name: str, default: int) -> int:
    """A whole-number tag of a TIFF's first page (its first value); `default` for other formats and absent tags."""
    tags: Any = getattr(image, "tag_v2", {})
    value = tags.get(_TIFF_TAGS[name], default)
    return int(value[0] if isinstance(value, tuple) else value)


def _orientation(image: ImageFile.ImageFile, data: bytes) -> int:
    """EXIF orientation 1..8 of an image that is open and not loaded yet; 1 where there is none or it cannot be read."""
    if image.format == "TIFF":
        return 1  # Pillow applies a TIFF's own orientation: to the size when opening, to the pixels when loading
    if image.format == "PNG":
        # Its EXIF may follow the pixels, which are therefore decoded first: only if there is something to find.
        if not any(keyword in data for keyword in _PNG_ORIENTATION_KEYWORDS):
            return 1
        image.load()  # outside of `try`, so that broken pixels are an error
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in _UPRIGHT else 1
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _draft(image: JpegImagePlugin.JpegImageFile, height: int, width: int) -> None:
    """Have libjpeg leave out the high frequencies, and thereby pixels, as long as height x width are left.

    Only by a number that divides both sides: else its last cells stand for pixels that are not there, and the grid of
    the smaller image lies beside that of the larger one.
    """
    for scale in (8, 4, 2):
        if image.width % scale == image.height % scale == 0 and (
            image.width >= scale * width and image.height >= scale * height
        ):
            image.draft(None, (image.width // scale, image.height // scale))
            return


def _to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _RGB_COMPATIBLE:
        return image.convert("RGB")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # Pillow stretches a PGM's values of more than 8 bits to 0..65535; a 12-bit TIFF keeps its 0..4095.
        num_bits = _tiff_tag(image, "BitsPerSample", 16)
        gray_hw = (np.asarray(image) >> (num_bits - 8)).astype(np.uint8)
        if _tiff_tag(image, "PhotometricInterpretation", 1) == 0:  # WhiteIsZero, which Pillow inverts up to 8 bits only
            gray_hw = 255 - gray_hw
        return Image.fromarray(gray_hw).convert("RGB")
    raise ImageError(
        ErrorCode.UNSUPPORTED, f"{image.format}: pixel values of Pillow mode {image.mode} have no defined range for RGB"
    )


def _reason(error: Exception) -> str:
    """What the error says, on one short line."""
    text = " ".join(str(error).split())[:200]
    if text == "not identified by this driver":  # ImageFile's words for a plugin that ran to the end of the file
        return "its header has no image size"
    # Plugins raise SyntaxError and OSError to say what is wrong; the text of other types needs the type to be read.
    if text and isinstance(error, (SyntaxError, OSError)):
        return text
    return f"{type(error).__name__}: {text}".rstrip(": ")
