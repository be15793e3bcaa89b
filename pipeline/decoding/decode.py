"""Decode the bytes of one object to an RGB image, or raise an `ImageError` that gives the reason.

Formats: AVIF, BMP, GIF, JPEG (and MPO), JPEG 2000, PNG, PPM/PGM/PBM, TIFF and WebP; HEIC with an extra (`heif`). The
signature in the bytes decides the format, never the object's name, and only the Pillow plugin of that format sees the
bytes, or tifffile where Pillow refuses a sound TIFF or reads noise (`tiff`). `repair` mends what Pillow does not: large
metadata of PNGs, channels of JP2s in another order, slow PNM, and JPEGs whose pixels end early, which are errors here.
Left out on purpose: EPS, PDF and WMF (they run other programs or draw), TGA and PCX (their signature is so short that
other files match it), ICO, ICNS and PSD (containers whose real size is known only while decoding), FITS, HDF5 and the
like (they define no pixel range).

Pixels: the result equals `convert("RGB")`, as detectron2 feeds the model. Alpha is dropped without blending (colours
that a TIFF has multiplied with alpha are divided again, by their high bytes), palettes and CMYK are expanded, ICC
profiles are ignored, and the first of several frames or pages is used. 16-bit images keep their high byte (Pillow's own
conversion would clip them to white). 32-bit integers, floats and Lab are refused, because these formats do not define
which value is white.

Orientation: the EXIF (or XMP) orientation of any format is applied on request; a broken EXIF block is ignored. A TIFF's
Orientation tag is part of the format: Pillow always applies it.

Safety: the size in the header is compared with `max_pixels` before a pixel is decoded, and other costs that headers
announce with the limits of `costs`. Truncated files are errors, because half an image would give wrong masks that look
right. Pillow's warnings and log lines are silenced, since the ImageError carries the reason; libtiff writes its lines
to standard error in C, and those cannot be silenced.
"""

import io
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
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

from pipeline.decoding import costs, geotiff, heif, tiff
from pipeline.decoding.boxes import brands
from pipeline.decoding.image_errors import as_image_error
from pipeline.decoding.orientation import read_orientation, upright, upright_hw
from pipeline.decoding.regions import Regions, WholeImage
from pipeline.decoding.repair import (
    jp2_channel_order,
    jpeg_is_cut,
    jpeg_lacks_scans,
    jpeg_without_zeros_at_its_end,
    netpbm_pixels,
    png_without_metadata,
)
from pipeline.decoding.tiff_windows import open_windows
from pipeline.errors import ErrorCode, ImageError

# Importing a plugin registers the plugin. All are imported here; otherwise Image.open would import every plugin on
# first use, and so change global state while threads decode.
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

# Pillow's settings are global, so they are set once, at import, for the whole process.
Image.MAX_IMAGE_PIXELS = None  # max_pixels decides; Pillow's own limit would refuse images above 179 million pixels
ImageFile.LOAD_TRUNCATED_IMAGES = False
warnings.filterwarnings("ignore", module=r"PIL\.")  # here, because catch_warnings is not thread-safe
logging.getLogger("PIL").setLevel(logging.CRITICAL)

_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # formats that a build of Pillow may lack
if heif.IS_INSTALLED:
    heif.register()
FORMATS = tuple(
    name
    for name in ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    if name not in _OPTIONAL or features.check(_OPTIONAL[name])
) + (("HEIF",) if heif.IS_INSTALLED else ())

_SIGNATURES = {
    "BMP": (b"BM",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "JPEG": (b"\xff\xd8\xff",),
    "JPEG2000": (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  \r\n\x87\n"),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "PPM": tuple(b"P%d%c" % (kind, end) for kind in range(1, 7) for end in b" \t\n\r#"),
    "TIFF": (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"),  # "+" is BigTIFF
}

_AVIF_BRANDS = {b"avif", b"avis"}

_RGB_COMPATIBLE = frozenset(("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"))

_TIFF_TAGS = {
    "BitsPerSample": 258,
    "PhotometricInterpretation": 262,
    "PlanarConfiguration": 284,
    "TileWidth": 322,
    "TileLength": 323,
    "SampleFormat": 339,
    "StripOffsets": 273,
    "TileOffsets": 324,
}


def decode_image(
    data: bytes, *, max_pixels: int, apply_exif: bool, at_least_hw: tuple[int, int] | None = None
) -> Image.Image:
    """Decode to RGB. Raises only ImageError, with code UNSUPPORTED, DECODE_FAILED or TOO_LARGE.

    `max_pixels` bounds height x width as the header states them. A JPEG is decoded at a half, a quarter or an eighth of
    its size if the result is still at least `at_least_hw` (of the upright image). Safe to call from several threads.
    """
    format_name = _format_of(data)
    with as_image_error(format_name):
        data = _repaired(data, format_name)
        image = _open(data, format_name, max_pixels)
        if isinstance(image, tiff.OtherTiff):
            return image.decode(max_pixels)
        costs.check_before_decoding(data, format_name, image.height, image.width, max_pixels)
        orientation = read_orientation(image, data) if apply_exif else 1
        if at_least_hw is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
            image = _drafted(image, data, *upright_hw(at_least_hw, orientation))
        loaded, to_rgb = _loaded(image, data)
        return upright(to_rgb(loaded), orientation)


def read_georeference(data: bytes) -> dict[str, Any] | None:
    """Reference system and transform of a GeoTIFF, as `geotiff.georeference`; None for all other images.

    Raises only ImageError.
    """
    if not data.startswith(_SIGNATURES["TIFF"]):
        return None
    with as_image_error("GeoTIFF"):
        costs.check_before_opening(data, "TIFF")
        return geotiff.georeference(data)


def open_image(data: bytes, *, max_pixels: int, apply_exif: bool) -> Regions:
    """Like `decode_image`, for an image that is too large to be converted and turned as a whole."""
    format_name = _format_of(data)
    with as_image_error(format_name):
        data = _repaired(data, format_name)
        image = _open(data, format_name, max_pixels)
        if format_name == "TIFF" and (windows := open_windows(data)) is not None:
            return windows
        if isinstance(image, tiff.OtherTiff):
            return WholeImage(image.decode(max_pixels), _as_it_is, orientation=1)
        costs.check_before_decoding(data, format_name, image.height, image.width, max_pixels)
        orientation = read_orientation(image, data) if apply_exif else 1
        return WholeImage(*_loaded(image, data), orientation)


def measure_image(data: bytes, *, max_pixels: int, apply_exif: bool) -> tuple[int, int]:
    """The (height, width) that `decode_image` would give, read from the header; raises the header's ImageErrors."""
    format_name = _format_of(data)
    with as_image_error(format_name):
        data = _repaired(data, format_name)
        image = _open(data, format_name, max_pixels)
        stored_hw = (image.size[1], image.size[0])
        if isinstance(image, tiff.OtherTiff) or not apply_exif:
            return stored_hw
        return upright_hw(stored_hw, read_orientation(image, data))


def _format_of(data: bytes) -> str:
    """Pillow's name of the format whose signature the bytes have."""
    if not data:
        raise ImageError(ErrorCode.UNSUPPORTED, "not an image: 0 bytes")
    for name, signatures in _SIGNATURES.items():
        if name in FORMATS and data.startswith(signatures):
            return name
    if "WEBP" in FORMATS and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if "AVIF" in FORMATS and not _AVIF_BRANDS.isdisjoint(brands(data)):
        return "AVIF"
    if heif.is_heif(data):
        if "HEIF" in FORMATS:
            return "HEIF"
        raise heif.missing()
    raise ImageError(
        ErrorCode.UNSUPPORTED,
        f"not an image of a supported format ({', '.join(FORMATS)}): it starts with {data[:16]!a}",
    )


def _open(data: bytes, format_name: str, max_pixels: int) -> ImageFile.ImageFile | tiff.OtherTiff:
    """Read the header, once, and refuse an image that is too large."""
    image = _with_header(data, format_name)
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(ErrorCode.DECODE_FAILED, f"{format_name}: the image has no pixels ({height} x {width})")
    costs.check_size(height, width, max_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Loading would also apply an XMP orientation, which the size from the header does not include.
        image.info.pop("xmp", None)
        tags: Any = image.tag_v2
        tiff.check_tile(_tiff_tag(image, "TileWidth", 0) * _tiff_tag(image, "TileLength", 0), max_pixels)
        tiff.check_offsets(tags.get(_TIFF_TAGS["StripOffsets"], ()))
        tiff.check_offsets(tags.get(_TIFF_TAGS["TileOffsets"], ()))
    return image


def _with_header(data: bytes, format_name: str) -> ImageFile.ImageFile | tiff.OtherTiff:
    """The image by Pillow, or by tifffile a TIFF that Pillow cannot open or would read wrongly."""
    try:
        image = Image.open(io.BytesIO(data), formats=(format_name,))
    except UnidentifiedImageError:
        if format_name == "TIFF":
            return tiff.OtherTiff(data)
        # Image.open drops the plugin's error message, so ask the plugin again.
        factory = Image.OPEN[format_name][0]
        factory(io.BytesIO(data), "")
        raise
    if format_name == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        planar, bits, formats = (
            tags.get(_TIFF_TAGS[name], default)
            for name, default in (("PlanarConfiguration", 1), ("BitsPerSample", (1,)), ("SampleFormat", (1,)))
        )
        if tiff.pillow_reads_wrongly(planar, bits, formats):
            return tiff.OtherTiff(data)
    return image


def _repaired(data: bytes, format_name: str) -> bytes:
    """The bytes that Pillow shall see. ImageError if reading the header would cost too much."""
    costs.check_before_opening(data, format_name)
    if format_name == "PNG":
        return png_without_metadata(data)
    return jpeg_without_zeros_at_its_end(data) if format_name == "JPEG" else data


def _tiff_tag(image: ImageFile.ImageFile, name: str, default: int) -> int:
    """The first value of an integer tag of a TIFF's first page; `default` for other formats and absent tags."""
    tags: Any = getattr(image, "tag_v2", {})
    value = tags.get(_TIFF_TAGS[name], default)
    return int(value[0] if isinstance(value, tuple) else value)


def _drafted(
    image: JpegImagePlugin.JpegImageFile, data: bytes, height: int, width: int
) -> JpegImagePlugin.JpegImageFile:
    """`image`, decoded at a fraction of its size where possible; a lossless JPEG can only be decoded in full."""
    _draft(image, height, width)
    try:
        image.load()
    except OSError:
        again = Image.open(io.BytesIO(data), formats=("JPEG",))
        assert isinstance(again, JpegImagePlugin.JpegImageFile)
        return again
    return image


def _draft(image: JpegImagePlugin.JpegImageFile, height: int, width: int) -> None:
    """Let libjpeg decode a smaller image by leaving out high frequencies; at least height x width pixels remain.

    The divisor must divide both sides. Otherwise the last cells would cover pixels outside the image, and the pixel
    grids of the smaller and the full image would not align.
    """
    for scale in (8, 4, 2):
        if image.width % scale == image.height % scale == 0 and (
            image.width >= scale * width and image.height >= scale * height
        ):
            image.draft(None, (image.width // scale, image.height // scale))
            return


def _loaded(image: ImageFile.ImageFile, data: bytes) -> tuple[Image.Image, Callable[[Image.Image], Image.Image]]:
    """The pixels of an open image, and a function that makes any part of them RGB."""
    if image.format == "PPM" and (pixels := netpbm_pixels(image, data)) is not None:
        return Image.fromarray(pixels), _convert
    size = image.size
    image.load()
    if image.format == "HEIF":
        heif.check_size_of_pixels(image.size, size)
    if image.format == "JPEG" and (jpeg_is_cut(data, image) or jpeg_lacks_scans(data)):
        raise ImageError(ErrorCode.DECODE_FAILED, "JPEG: the pixels end before the image does")
    if image.format == "JPEG2000" and image.mode in ("RGB", "RGBA") and (order := jp2_channel_order(data)) is not None:
        return image, lambda part: Image.fromarray(np.asarray(part)[..., list(order)])
    if image.mode == "RGB":
        return image, _as_it_is
    if image.mode == "La":  # Pillow converts RGBa to RGB, but La not to L
        return image, lambda part: part.convert("LA").convert("RGB")
    if image.mode in _RGB_COMPATIBLE:
        return image, _convert
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        # Pillow stretches a PGM's values of more than 8 bits to 0..65535; a 12-bit TIFF keeps its 0..4095.
        num_bits = _tiff_tag(image, "BitsPerSample", 16)
        # WhiteIsZero; Pillow inverts it up to 8 bits only
        inverted = _tiff_tag(image, "PhotometricInterpretation", 1) == 0
        return image, lambda part: _high_byte(part, num_bits, inverted)
    raise ImageError(
        ErrorCode.UNSUPPORTED, f"{image.format}: pixel values of Pillow mode {image.mode} have no defined range for RGB"
    )


def _as_it_is(part: Image.Image) -> Image.Image:
    return part


def _convert(part: Image.Image) -> Image.Image:
    return part.convert("RGB")


def _high_byte(part: Image.Image, num_bits: int, inverted: bool) -> Image.Image:
    gray_hw = (np.asarray(part) >> (num_bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - gray_hw if inverted else gray_hw).convert("RGB")
