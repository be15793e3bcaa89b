"""The product against a second decoder: odd files and generated ones, equal within rounding or refused, none silently.

`tests.support.second_decoder` says by which rules its pixels become RGB. The two lists below name every file for which
it is no oracle, with the reason. They can only shrink: a file that no longer needs its entry fails the test.
"""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pipeline.decoding.decode import decode_image
from pipeline.errors import ErrorCode, ImageError
from tests.support.image_files import (
    MODES_OF_CODEC,
    PLANES,
    avif,
    colour_image,
    jp2_with_channels,
    jpeg,
    photograph,
    tiff_of_pillow,
    tiffs,
)
from tests.support.places import SHARED_DATA
from tests.support.second_decoder import CannotDecodeError, has_reader, second_decoder

MAX_PIXELS = 64_000_000
LEVELS = 3
ODD_IMAGES = SHARED_DATA / "odd_images"
FILES = sorted(path for path in ODD_IMAGES.rglob("*") if path.is_file())

_NO_PNM = "imagecodecs has no reader for PNM; test_decode_matrix holds PNM against arrays"
_NO_RLE = "imagecodecs reads no run-length BMP"
# Files that the product decodes and the second decoder does not, or otherwise.
NO_ORACLE = {
    "avif__hopper.heif": "the wheels of imagecodecs have no reader of HEIC",
    "bmp__b__badbitssize.bmp": "imagecodecs insists on the field size_image, which is wrong and which nobody needs",
    "bmp__g__pal8rle.bmp": _NO_RLE,
    "bmp__q__rgb24largepal.bmp": "imagecodecs refuses a palette of 300 colours, which 24 bits do not use",
    "first_frame_transparency.gif": "a third of the image lies outside of the first frame: imagecodecs takes colour 0 "
    "there, Pillow the transparent colour; the file defines none",
    "hopper_16bit.pgm": _NO_PNM,
    "hopper_1bit_plain.pbm": _NO_PNM,
    "hopper_8bit.pgm": _NO_PNM,
    "hopper_8bit_plain.pgm": _NO_PNM,
    "hopper_rle8.bmp": _NO_RLE,
    "hopper_rle8_row_overflow.bmp": _NO_RLE,
    "hopper_webp_bits.ppm": _NO_PNM,
    "hopper_zero_comment_subblocks.gif": "giflib refuses a comment without blocks, after which the image is whole",
    "issue_2811.gif": "giflib reads all frames at once, and the last one is cut off",
    "mmap_error.bmp": "imagecodecs insists on the field file_size, which is one byte too high",
    "no_palette.gif": "a GIF without a palette, which Pillow shows as shades of gray",
    "tiff_strip_cmyk_16l_jpeg.tif": "libtiff does not convert CMYK of 16 bits",
}
# Files whose colours differ by more than LEVELS for a reason that is not a wrong pixel.
MORE_LEVELS = {
    "tiff_strip_ycbcr_jpeg_2x2_sampling.tif": 4,  # 3 of 518,400 values: two builds of libjpeg round YCbCr differently
}
_CUT = "the file is cut: the second decoder fills the rest with gray"
_LAYOUT = "a layout that Pillow does not read"
# Files that the product refuses and the second decoder decodes.
REFUSED_ALONE = {
    "bitflips_160.jpg": _CUT,
    "progressive_truncated_60pct.jpg": _CUT,
    **{f"truncated_{percent}pct.jpg": _CUT for percent in (10, 50, 90, 99)},
    "truncated_jpeg.jpg": _CUT,
    "ultrahdr.jpg": _CUT,
    "bmp__b__badheadersize.bmp": "its header has a length that no BMP has",
    "bmp__q__pal8os2v2-16.bmp": _LAYOUT,
    "bmp__q__rgb16-231.bmp": _LAYOUT,
    "bmp__q__rgb24png.bmp": _LAYOUT,
    "bmp__q__rgb32-111110.bmp": _LAYOUT,
    "bmp__q__rgba16-4444.bmp": _LAYOUT,
    "invalid_header_length.jp2": "the length of its header is wrong",
    "tiff_strip_planar_16bit_RGB.tiff": "tifffile alone does not decode LZW",
    "tiff_tiled_planar_16bit_RGB.tiff": "tifffile alone does not decode LZW",
}

# Warnings that pipeline.decoding.decode hides come back under pytest.
pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:PIL\.")


def of_product(data: bytes) -> np.ndarray | ErrorCode:
    try:
        return np.asarray(decode_image(data, max_pixels=MAX_PIXELS, apply_exif=True))
    except ImageError as error:
        return error.code


def of_second(data: bytes) -> np.ndarray | str:
    try:
        return second_decoder(data)
    except CannotDecodeError as error:
        return str(error)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    return np.inf if found.shape != expected.shape else np.abs(found.astype(int) - expected.astype(int)).max()


def assert_equal(data: bytes, what: object, levels: int = LEVELS) -> None:
    found, expected = of_product(data), second_decoder(data)
    assert isinstance(found, np.ndarray), (what, found)
    assert largest_difference(found, expected) <= levels, what


@pytest.mark.skipif(not FILES, reason=f"test images are not in {ODD_IMAGES.name}/ beside the checkout")
def test_every_odd_image_is_as_the_second_decoder_shows_it_or_refused_by_the_right_code() -> None:
    num_equal = 0
    for path in FILES:
        data, name = path.read_bytes(), path.name
        found = of_product(data)
        if found is ErrorCode.TOO_LARGE:
            assert name not in NO_ORACLE and name not in REFUSED_ALONE, name
            continue  # so says the header, which test_decode checks; the second decoder has no limit
        expected = of_second(data)
        if isinstance(found, ErrorCode):
            assert (name in REFUSED_ALONE) == isinstance(expected, np.ndarray), (name, found, expected)
            assert found == right_code(path, expected), (name, found, expected)
            continue
        difference = np.inf if isinstance(expected, str) else largest_difference(found, expected)
        if name in NO_ORACLE:
            assert difference > LEVELS, f"{name} needs no entry in NO_ORACLE"
        else:
            assert difference <= MORE_LEVELS.get(name, LEVELS), (name, difference, expected)
            assert difference > LEVELS or name not in MORE_LEVELS, f"{name} needs no entry in MORE_LEVELS"
            num_equal += 1
    named = NO_ORACLE.keys() | MORE_LEVELS.keys() | REFUSED_ALONE.keys()
    assert named <= {path.name for path in FILES}
    assert num_equal >= 270


def right_code(path: Path, expected: np.ndarray | str) -> ErrorCode:
    """By what the second decoder says of a refused file, and by whether it is an image at all."""
    no_range = isinstance(expected, str) and "no range" in expected
    compressed = path.name in REFUSED_ALONE and "LZW" in REFUSED_ALONE[path.name]
    if no_range or compressed or not has_reader(path.read_bytes()):
        return ErrorCode.UNSUPPORTED
    return ErrorCode.DECODE_FAILED


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize(("colours", "planar"), PLANES)
def test_tiffs(colours: str, planar: str, dtype: str) -> None:
    for what, data, _ in tiffs(colours, dtype, planar, big=False):
        assert_equal(data, what)


@pytest.mark.parametrize(
    ("codec", "mode"), [(codec, mode) for codec, modes in MODES_OF_CODEC.items() for mode in modes]
)
def test_tiffs_of_pillow(codec: str, mode: str) -> None:
    for options in ({}, {"tiffinfo": {317: 2}}):
        assert_equal(tiff_of_pillow(codec, mode, options)[0], options)


def test_jpegs() -> None:
    for mode, subsampling, progressive in itertools.product(("RGB", "L", "CMYK"), (0, 1, 2), (False, True)):
        data = jpeg(photograph().convert(mode), quality=85, subsampling=subsampling, progressive=progressive)
        assert_equal(data, (mode, subsampling, progressive))


def test_jp2s() -> None:
    for order in itertools.permutations(range(3)):
        assert_equal(jp2_with_channels(order)[0], order)


def test_avifs() -> None:
    for subsampling, span, mode in itertools.product(("4:4:4", "4:2:0", "4:0:0"), ("full", "limited"), ("RGB", "L")):
        assert_equal(avif(colour_image().convert(mode), subsampling=subsampling, range=span), (subsampling, span, mode))
