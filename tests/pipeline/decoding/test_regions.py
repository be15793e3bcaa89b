"""Images read box by box: each box has the pixels that the whole image has there, in any format and orientation."""

import io
import random
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_core.masks.box import Box
from pipeline.decoding import geotiff, tiff_windows
from pipeline.decoding.decode import decode_image, measure_image, open_image
from pipeline.decoding.orientation import UPRIGHT, stored_box, upright_hw
from pipeline.decoding.regions import WholeImage
from pipeline.decoding.tiff_windows import TiffWindows
from pipeline.errors import ErrorCode, ImageError
from tests.support.geotiffs import gdal_file

LIMITS = {"max_pixels": 1_000_000, "apply_exif": True}
HEIGHT, WIDTH = 45, 70


def values(channels: int, dtype: type = np.uint8) -> np.ndarray:
    shape = (HEIGHT, WIDTH) if channels == 1 else (HEIGHT, WIDTH, channels)
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def boxes() -> list[Box]:
    """All rows of windows from the top, then windows in any order."""
    tiles = [Box(top, left, top + 16, left + 24) for top in (0, 13, 29) for left in (0, 20, 46)]
    return [*tiles, *random.Random(0).sample(tiles, len(tiles)), Box(44, 69, 45, 70), Box(0, 0, HEIGHT, WIDTH)]


def assert_boxes_are_of_the_whole(data: bytes) -> None:
    whole = np.asarray(decode_image(data, **LIMITS))
    regions = open_image(data, **LIMITS)
    assert regions.size_hw == whole.shape[:2] == measure_image(data, **LIMITS)
    for box in boxes():
        if box.bottom <= whole.shape[0] and box.right <= whole.shape[1]:
            part = regions.read(box)
            assert part.dtype == np.uint8
            assert np.array_equal(part, whole[box.top : box.bottom, box.left : box.right])


RGB = Image.fromarray(values(3))
FILES = {
    "jpeg": saved(RGB, "JPEG"),
    "gray jpeg": saved(RGB.convert("L"), "JPEG"),
    "cmyk jpeg": saved(RGB.convert("CMYK"), "JPEG"),
    "png": saved(RGB, "PNG"),
    "palette png": saved(RGB.quantize(17), "PNG", transparency=3),
    "bilevel png": saved(RGB.convert("1"), "PNG"),
    "rgba png": saved(Image.fromarray(values(4)), "PNG"),
    "16-bit gray png": saved(Image.fromarray(values(1, np.uint16)), "PNG"),
    "webp": saved(RGB, "WEBP"),
    "jpeg 2000": saved(RGB, "JPEG2000"),
    "gif": saved(RGB.quantize(200), "GIF"),
    "bmp": saved(RGB, "BMP"),
    "ppm": saved(RGB, "PPM"),
    "16-bit pgm": b"P5 %d %d 1000\n" % (WIDTH, HEIGHT) + (values(1, np.uint16) % 1001).astype(">u2").tobytes(),
    "turned tiff": saved(RGB, "TIFF", tiffinfo={274: 6}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_box_has_the_pixels_of_the_whole_image(name):
    assert_boxes_are_of_the_whole(FILES[name])


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
def test_a_box_of_a_turned_image_is_turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_boxes_are_of_the_whole(saved(RGB, "PNG", exif=exif.tobytes()))


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 9), st.data())
def test_boxes_are_found_in_the_stored_image(orientation, height, width, data):
    stored = Image.fromarray(np.arange(height * width, dtype=np.uint8).reshape(height, width))
    turned = np.asarray(stored.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else stored)
    assert turned.shape == upright_hw((height, width), orientation)
    top, left = data.draw(st.integers(0, turned.shape[0] - 1)), data.draw(st.integers(0, turned.shape[1] - 1))
    box = Box(
        top, left, data.draw(st.integers(top + 1, turned.shape[0])), data.draw(st.integers(left + 1, turned.shape[1]))
    )
    found = stored_box(box, (height, width), orientation)
    wanted = sorted(turned[box.top : box.bottom, box.left : box.right].flatten())
    assert wanted == sorted(np.asarray(stored)[found.top : found.bottom, found.left : found.right].flatten())


# --------------------------------------------------------------------------------------------------- TIFFs by windows


LAYOUTS = {
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 32)},
    "strips, deflated": {"rowsperstrip": 7, "compression": "zlib"},
    "tiles, deflated, with predictor": {"tile": (16, 32), "compression": "zlib", "predictor": True},
    "strips, big-endian": {"rowsperstrip": 16, "byteorder": ">"},
    "tiles, BigTIFF": {"tile": (32, 16), "bigtiff": True},
    "one strip": {},
}
CONTENTS = {
    "gray": ("minisblack", 1, {}),
    "white is zero": ("miniswhite", 1, {}),
    "rgb": ("rgb", 3, {}),
    "rgb, planes": ("rgb", 3, {"planarconfig": "separate"}),
    "rgba": ("rgb", 4, {"extrasamples": ["unassalpha"]}),
    "premultiplied rgba": ("rgb", 4, {"extrasamples": ["assocalpha"]}),
    "rgba, planes": ("rgb", 4, {"planarconfig": "separate", "extrasamples": ["unassalpha"]}),
}


def tiff_file(content: str, dtype: type, layout: str) -> bytes:
    photometric, channels, options = CONTENTS[content]
    array = values(channels, dtype)
    if options.get("planarconfig") == "separate":
        array = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    layout_options = dict(LAYOUTS[layout])
    with tifffile.TiffWriter(
        buffer := io.BytesIO(),
        bigtiff=layout_options.pop("bigtiff", False),
        byteorder=layout_options.pop("byteorder", "<"),
    ) as file:
        file.write(array, photometric=photometric, metadata=None, **options, **layout_options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_windows_of_a_tiff_have_the_pixels_of_the_whole_image(layout, content, dtype):
    data = tiff_file(content, dtype, layout)
    by_windows = "premultiplied" not in content
    assert isinstance(open_image(data, **LIMITS), TiffWindows if by_windows else WholeImage)
    assert_boxes_are_of_the_whole(data)


def test_a_packbits_tiff_by_windows():
    data = saved(Image.fromarray(values(3)), "TIFF", compression="packbits")
    assert isinstance(open_image(data, **LIMITS), TiffWindows)
    assert_boxes_are_of_the_whole(data)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
@pytest.mark.parametrize("is_installed", [True, False])
def test_other_compressions_need_the_extra_and_are_else_decoded_as_a_whole(monkeypatch, compression, is_installed):
    if is_installed:
        pytest.importorskip("rasterio")
    monkeypatch.setattr(geotiff, "is_installed", lambda: is_installed)
    data = saved(RGB, "TIFF", compression=compression)
    assert isinstance(open_image(data, **LIMITS), TiffWindows if is_installed else WholeImage)
    assert_boxes_are_of_the_whole(data)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "lzw", "predictor": 2}, np.uint16),
        ({"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "zstd"}, np.uint8),
        ({"interleave": "band", "compress": "lzw"}, np.uint8),
    ],
)
def test_files_of_gdal_by_windows(options, dtype):
    pytest.importorskip("rasterio")
    data = gdal_file(values(3, dtype), **options)
    assert isinstance(regions := open_image(data, **LIMITS), TiffWindows)
    wanted = (values(3, dtype) >> (8 * np.dtype(dtype).itemsize - 8)).astype(np.uint8)
    for box in boxes():
        assert np.array_equal(regions.read(box), wanted[box.top : box.bottom, box.left : box.right])


def test_of_a_file_in_strips_each_row_of_windows_is_decoded_once(monkeypatch):
    regions = open_image(tiff_file("rgb", np.uint8, "strips, deflated"), **LIMITS)
    decoded, decode = [], tiff_windows._Segments._decoded
    monkeypatch.setattr(
        tiff_windows._Segments, "_decoded", lambda segments, index: decoded.append(index) or decode(segments, index)
    )
    for left in (0, 20, 46):
        regions.read(Box(0, left, 16, left + 24))
    assert decoded == [0, 1, 2]
    regions.read(Box(13, 0, 29, 24))
    assert decoded == [0, 1, 2, 1, 2, 3, 4]


def test_a_strip_that_is_large_by_itself_is_left_to_the_whole_image(monkeypatch):
    data = tiff_file("rgb", np.uint8, "one strip")
    monkeypatch.setattr(tiff_windows, "_MAX_SEGMENT_BYTES", HEIGHT * WIDTH * 3 - 1)
    assert isinstance(open_image(data, **LIMITS), WholeImage)
    assert_boxes_are_of_the_whole(data)


@pytest.mark.parametrize("layout", ["strips", "tiles", "strips, deflated", "tiles, deflated, with predictor"])
def test_a_tiff_that_is_cut_off_or_damaged_is_an_error_of_the_window(layout):
    data = tiff_file("rgb", np.uint8, layout)
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    offset, length = page.dataoffsets[-1], page.databytecounts[-1]
    damaged = bytearray(data)
    if "deflated" in layout:
        damaged[offset : offset + length] = b"\xff" * length
    else:  # the last strip or tile lies behind the end of the file
        entry = data.index(int(offset).to_bytes(4, "little"))
        damaged[entry : entry + 4] = (len(data) + 1).to_bytes(4, "little")
    regions = open_image(bytes(damaged), **LIMITS)
    regions.read(Box(0, 0, 8, 8))
    with pytest.raises(ImageError) as caught:
        regions.read(Box(40, 60, 45, 70))
    assert caught.value.code is ErrorCode.DECODE_FAILED


def test_a_strip_that_inflates_to_more_than_it_should_is_too_large():
    bomb = zlib.compress(bytes(1_000_000))
    with tifffile.TiffWriter(buffer := io.BytesIO()) as file:
        strips = iter([bomb] * 7)
        file.write(strips, shape=(HEIGHT, WIDTH), dtype=np.uint8, compression="zlib", rowsperstrip=7, metadata=None)
    with pytest.raises(ImageError) as caught:
        open_image(buffer.getvalue(), **LIMITS).read(Box(0, 0, 8, 8))
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_the_limits_of_an_image_hold_before_a_pixel_is_decoded():
    for data in (FILES["png"], tiff_file("rgb", np.uint8, "tiles")):
        with pytest.raises(ImageError) as caught:
            open_image(data, max_pixels=HEIGHT * WIDTH - 1, apply_exif=True)
        assert caught.value.code is ErrorCode.TOO_LARGE
