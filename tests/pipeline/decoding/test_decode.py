"""`decode_image`: every file becomes an RGB image or an ImageError with the right code, and nothing else happens."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, TiffImagePlugin

from m2f_core.images.image_processor import ImageProcessor
from pipeline.decoding.decode import FORMATS, decode_image, measure_image
from pipeline.errors import ErrorCode, ImageError
from pipeline.segment.preparation import least_decoded
from tests.support.image_files import tiffs
from tests.support.places import ROOT

ODD_IMAGES = ROOT.parent / "shared" / "data" / "odd_images"
MADE_HERE = ODD_IMAGES / "made_here"
MAX_PIXELS = 64_000_000

# pytest shows warnings that the filter of pipeline.decoding.decode hides; a leak is tested in a process of its own.
pytestmark = pytest.mark.filterwarnings(r"ignore::Warning:PIL\.")

needs_odd_images = pytest.mark.skipif(not ODD_IMAGES.is_dir(), reason=f"test images are not at {ODD_IMAGES}")
ODD_FILES = sorted(path for path in ODD_IMAGES.rglob("*") if path.is_file())


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, apply_exif: bool = True) -> Image.Image:
    return decode_image(data, max_pixels=max_pixels, apply_exif=apply_exif)


def outcome(data: bytes, *, max_pixels: int = MAX_PIXELS) -> str:
    """ "rgb" or the code of the error. Any other exception fails the test."""
    try:
        image = decode(data, max_pixels=max_pixels)
    except ImageError as error:
        assert error.message and "\n" not in error.message
        return error.code.value
    assert image.mode == "RGB" and min(image.size) > 0
    assert np.asarray(image).shape == (image.height, image.width, 3)
    assert measure_image(data, max_pixels=max_pixels, apply_exif=True) == (image.height, image.width)
    return "rgb"


def fails_with(code: ErrorCode, data: bytes, *, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels=max_pixels)
    assert caught.value.code == code
    return caught.value.message


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def photo_hw3(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture without any symmetry, uint8."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 200], axis=2).astype(np.uint8)


def photo(height: int = 48, width: int = 64) -> Image.Image:
    return Image.fromarray(photo_hw3(height, width))


def largest_difference(left: Image.Image, right: Image.Image) -> int:
    assert left.size == right.size
    return int(np.abs(np.asarray(left).astype(int) - np.asarray(right).astype(int)).max())


def mean_difference(left: Image.Image, right: Image.Image) -> float:
    assert left.size == right.size
    return float(np.abs(np.asarray(left).astype(int) - np.asarray(right).astype(int)).mean())


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# Real files


def expected_outcomes() -> dict[str, set[str]]:
    rgb, broken, large, unsupported = {"rgb"}, {"decode_failed"}, {"too_large"}, {"unsupported"}
    expected = {
        # A damaged file may decode or not; that depends on the version of libjpeg and zlib inside Pillow.
        **{f"bitflips_{count:03}.jpg": rgb | broken for count in (5, 10, 20, 40, 80, 160)},
        "badcrc.png": rgb | broken,
        **{f"truncated_{percent:02}pct.jpg": broken for percent in (1, 10, 50, 90, 99)},
        "truncated_50pct.png": broken,
        "progressive_truncated_60pct.jpg": broken,
        "only_header.jpg": broken,
        "lies_0x0.jpg": broken,
        "lies_65500x65500.jpg": large,
        "header_lies_2e31.png": large,
        "bomb_12000x12000_rgb.png": large,
        "bomb_20000x20000_1bit.png": large,
        "empty.jpg": unsupported,
        "text.png": unsupported,
        "html_error_page.jpg": unsupported,
        "s3_xml_error.jpg": unsupported,
        "float32.tiff": unsupported,
    }
    intact = [
        "1x1.png",
        "1x4000.png",
        "4000x1.jpg",
        "8000x40.jpg",
        "animated.gif",
        "animated.webp",
        "baseline.jpg",
        "broken_icc.jpg",
        "cmyk.jpg",
        "exif_garbage.jpg",
        "gray.jpg",
        "gray16.png",
        "jpeg_named.png",
        "la.png",
        "lossless.webp",
        "multipage.tiff",
        "palette_transparent.png",
        "photo.png",
        "png_named.jpg",
        "progressive.jpg",
        "rgba.png",
        "srgb_icc.jpg",
        "subsampling_420.jpg",
        "subsampling_422.jpg",
        "subsampling_444.jpg",
        "trailing_garbage.jpg",
    ]
    return expected | dict.fromkeys(intact, rgb) | {f"orient_{number}.jpg": rgb for number in range(1, 9)}


@needs_odd_images
@pytest.mark.parametrize("path", ODD_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_odd_file_gives_an_image_or_an_image_error(path: Path) -> None:
    result = outcome(path.read_bytes())
    if path.parent == MADE_HERE:
        assert result in expected_outcomes()[path.name]
    if path.parent.name == "pngsuite":
        assert result == "rgb"


@needs_odd_images
def test_every_made_here_file_has_an_expected_outcome() -> None:
    assert {path.name for path in MADE_HERE.iterdir()} == set(expected_outcomes())


@needs_odd_images
@pytest.mark.parametrize("number", range(2, 9))
def test_oriented_photos_equal_the_upright_one(number: int) -> None:
    upright = decode((MADE_HERE / "orient_1.jpg").read_bytes())
    oriented = decode((MADE_HERE / f"orient_{number}.jpg").read_bytes())
    # Each file was compressed in its own orientation: they differ by the error of JPEG, a wrong turn by far more.
    assert mean_difference(oriented, upright) < 2
    assert mean_difference(oriented.transpose(Image.Transpose.ROTATE_180), upright) > 20


@needs_odd_images
@pytest.mark.parametrize("name", ["g4_orientation_3.tif", "g4_orientation_5.tif", "g4_orientation_7.tif"])
def test_tiff_orientation_is_applied_with_and_without_exif(name: str) -> None:
    upright = decode((ODD_IMAGES / "pillow" / "g4_orientation_1.tif").read_bytes())
    data = (ODD_IMAGES / "pillow" / name).read_bytes()
    for apply_exif in (True, False):
        image = decode(data, apply_exif=apply_exif)
        assert mean_difference(image, upright) < 0.7  # separate scans of one page
        assert mean_difference(image.transpose(Image.Transpose.ROTATE_180), upright) > 10
        assert measure_image(data, max_pixels=MAX_PIXELS, apply_exif=apply_exif) == (image.height, image.width)


@needs_odd_images
def test_a_bomb_is_refused_without_the_memory_to_decode_it() -> None:
    program = (
        "import pathlib, resource, sys\n"
        "from pipeline.decoding.decode import decode_image\n"
        "from pipeline.errors import ImageError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        decode_image(pathlib.Path(name).read_bytes(), max_pixels=64_000_000, apply_exif=True)\n"
        "    except ImageError as error:\n"
        "        print(error.code.value, (peak() - before) // 1024)\n"
    )
    names = ["bomb_12000x12000_rgb.png", "bomb_20000x20000_1bit.png", "header_lies_2e31.png", "lies_65500x65500.jpg"]
    command = [sys.executable, "-c", program, *(str(MADE_HERE / name) for name in names)]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == len(names)
    for line in lines:
        code, grown_mib = line.split()
        assert code == "too_large" and int(grown_mib) < 20  # the first takes 564 MiB when decoded


# Formats and pixel values


@pytest.mark.parametrize("name", ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF"])
def test_every_allowed_format_decodes(name: str) -> None:
    if name not in FORMATS:
        pytest.skip(f"this Pillow is built without {name}")
    image = decode(encoded(photo(), name))
    assert image.mode == "RGB" and image.size == (64, 48)
    assert mean_difference(image, photo()) < (25 if name == "GIF" else 12)  # GIF has a palette; some others are lossy


@pytest.mark.parametrize("name", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI"])
def test_other_formats_are_unsupported_and_the_message_names_the_allowed(name: str) -> None:
    message = fails_with(ErrorCode.UNSUPPORTED, encoded(photo(), name))
    assert all(allowed in message for allowed in FORMATS)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"hello",
        b"<html><body>503</body></html>",
        b"\0\0\0\x1cftypmp42\0\0\0\0isommp41mp42",
        b"RIFF\0\0\0\0WAVE",
    ],
    ids=["empty", "zero", "text", "html", "mp4", "wav"],
)
def test_what_is_not_an_image_is_unsupported(data: bytes) -> None:
    assert "not an image" in fails_with(ErrorCode.UNSUPPORTED, data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes_equal_pillows_conversion(mode: str) -> None:
    source = photo().convert(mode)
    assert largest_difference(decode(encoded(source, "PNG")), source.convert("RGB")) == 0


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LA", "PA", "RGBX"])
def test_tiff_modes_equal_pillows_conversion(mode: str) -> None:
    source = photo().convert("P").convert(mode) if mode == "PA" else photo().convert(mode)
    data = encoded(source, "TIFF")
    assert largest_difference(decode(data), Image.open(io.BytesIO(data)).convert("RGB")) == 0


def test_alpha_is_dropped_not_blended() -> None:
    source = Image.new("RGBA", (4, 4), (200, 100, 50, 0))
    assert decode(encoded(source, "PNG")).getpixel((0, 0)) == (200, 100, 50)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    assert decode(encoded(palette, "PNG", transparency=1)).getpixel((0, 0)) == (200, 100, 50)


def gray16() -> np.ndarray:
    return np.linspace(0, 65535, 48 * 64).astype(np.uint16).reshape(48, 64)


@pytest.mark.parametrize("name", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_gray_keeps_its_high_byte(name: str) -> None:
    source_hw = gray16()
    image = decode(encoded(Image.fromarray(source_hw), name))
    assert np.array_equal(np.asarray(image), np.repeat((source_hw >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_16_bit_colour_keeps_its_high_byte() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 0x1234, 0x80FF, 0xFFFF) * 2 for _ in range(2))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert decode(data).getpixel((1, 1)) == (0x12, 0x80, 0xFF)


def test_a_pgm_is_scaled_by_its_own_maximum() -> None:
    assert decode(b"P5 2 1 1023 " + struct.pack(">2H", 1023, 512)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(b"P2 2 1 1023 0 512 ").getpixel((1, 0)) == (128, 128, 128)


def gray_tiff(value: bytes, num_bits: int, photometric: int) -> bytes:
    """An uncompressed TIFF of one row of 2 pixels, little-endian."""
    tags = [(256, 2), (257, 1), (258, num_bits), (259, 1), (262, photometric), (273, 134), (277, 1), (278, 1)]
    tags += [(279, len(value)), (339, 1)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, number, 0) for tag, number in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + value


def test_tiff_depth_and_polarity() -> None:
    assert decode(gray_tiff(bytes([0xFF, 0xF8, 0x00]), 12, 1)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(gray_tiff(bytes([0xFF, 0xF8, 0x00]), 12, 1)).getpixel((1, 0)) == (128, 128, 128)
    assert decode(gray_tiff(struct.pack("<2H", 0x1234, 0xFFFF), 16, 1)).getpixel((0, 0)) == (0x12, 0x12, 0x12)
    assert decode(gray_tiff(struct.pack("<2H", 0x1234, 0xFFFF), 16, 0)).getpixel((1, 0)) == (0, 0, 0)  # WhiteIsZero


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_the_header_of_a_tiff_is_read_once(planar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By each library: of separate planes with 16 bits, tifffile reads what Pillow has found that it cannot."""
    opened = []
    for owner, name in ((TiffImagePlugin.TiffImageFile, "_open"), (tifffile.TiffFile, "__init__")):
        original = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, of=original, **options: opened.append(of) or of(*args, **options)
        )
    data = next(data for _, data, _ in tiffs("RGB", "u2" if planar == "separate" else "u1", planar, big=False))
    decode(data)
    assert len(opened) == len(set(opened)) == (2 if planar == "separate" else 1)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_without_a_range_are_unsupported(mode: str) -> None:
    assert f"mode {mode} " in fails_with(ErrorCode.UNSUPPORTED, encoded(photo().convert("L").convert(mode), "TIFF"))


@pytest.mark.parametrize("name", ["GIF", "PNG", "TIFF", "WEBP"])
def test_the_first_of_several_frames_is_taken(name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if name == "WEBP" else {}
    image = decode(encoded(frames[0], name, save_all=True, append_images=frames[1:], **options))
    assert image.getpixel((8, 8)) == (255, 0, 0)


# Orientation


ORIENT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    # What a camera stores for an upright picture, from the table of the EXIF standard (first row, first column).
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "WEBP", "JPEG", "AVIF", "TIFF"])
def test_orientation_in_every_format_that_has_one(name: str, orientation: int) -> None:
    if name not in FORMATS:
        pytest.skip(f"this Pillow is built without {name}")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(ORIENT[orientation](photo_hw3())))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}, "AVIF": {"quality": 95}}.get(name, {})
    data = encoded(stored, name, exif=exif, **options)
    for apply_exif in (True, False):
        image = decode(data, apply_exif=apply_exif)
        expected = photo() if apply_exif or name == "TIFF" else stored
        assert image.size == expected.size
        assert measure_image(data, max_pixels=MAX_PIXELS, apply_exif=apply_exif) == (image.height, image.width)
        if name in ("PNG", "WEBP", "TIFF"):
            assert largest_difference(image, expected) == 0
        else:
            assert mean_difference(image, expected) < 6


def png_with(chunk_after_pixels: bytes) -> bytes:
    data = encoded(photo(), "PNG")
    assert data.endswith(png_chunk(b"IEND", b""))
    return data[:-12] + chunk_after_pixels + data[-12:]


def test_png_orientation_after_the_pixels_is_found() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png_with(png_chunk(b"eXIf", exif.tobytes()[6:]))
    assert decode(data).size == (48, 64)
    assert measure_image(data, max_pixels=MAX_PIXELS, apply_exif=True) == (64, 48)
    assert largest_difference(decode(data), photo().transpose(Image.Transpose.ROTATE_270)) == 0


def test_a_truncated_png_with_exif_is_an_error() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(), "PNG", exif=exif)
    assert "truncated" in fails_with(ErrorCode.DECODE_FAILED, data[: len(data) * 3 // 4])


def test_tiff_ignores_an_xmp_orientation() -> None:
    """Pillow would apply it on loading but not to the size, so that measuring and decoding would disagree."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[700] = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    directory.tagtype[700] = 1
    data = encoded(photo(), "TIFF", tiffinfo=directory)
    assert ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size == (48, 64)
    assert decode(data).size == (64, 48)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40, b"Exif"]
)
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_fail_the_image(name: str, exif: bytes) -> None:
    assert decode(encoded(photo(), name, exif=exif)).size == (64, 48)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_undefined_orientation_counts_as_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert largest_difference(decode(encoded(photo(), "PNG", exif=exif)), photo()) == 0


# Limits and damage


@pytest.mark.parametrize("name", ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF"])
def test_the_limit_is_exact_and_in_every_format(name: str) -> None:
    if name not in FORMATS:
        pytest.skip(f"this Pillow is built without {name}")
    data = encoded(photo(), name)
    assert decode(data, max_pixels=48 * 64).size == (64, 48)
    message = fails_with(ErrorCode.TOO_LARGE, data, max_pixels=48 * 64 - 1)
    assert "3,072 pixels" in message and "3,071" in message
    with pytest.raises(ImageError, match="too_large"):
        measure_image(data, max_pixels=48 * 64 - 1, apply_exif=True)


def test_our_limit_and_not_pillows_is_the_rule() -> None:
    """200 million pixels are beyond the size at which Pillow itself refuses an image."""
    data = encoded(Image.new("1", (20_000, 10_000)), "TIFF", compression="group4")
    assert measure_image(data, max_pixels=200_000_000, apply_exif=True) == (10_000, 20_000)
    fails_with(ErrorCode.TOO_LARGE, data, max_pixels=199_999_999)


def test_a_small_tiff_with_huge_tiles_is_refused() -> None:
    tags = [(256, 16), (257, 16), (258, 8), (259, 8), (262, 1), (277, 1), (322, 30_000), (323, 30_000), (324, 146)]
    tags += [(325, 64), (339, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + bytes(64)
    assert "tiles have 900,000,000 pixels" in fails_with(ErrorCode.TOO_LARGE, data)


@pytest.mark.parametrize("name", ["BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_truncated_file_is_an_error(name: str, kept: float) -> None:
    if name not in FORMATS:
        pytest.skip(f"this Pillow is built without {name}")
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), name)
    message = fails_with(ErrorCode.DECODE_FAILED, data[: int(len(data) * kept)])
    assert message.startswith(f"{name}: ") and len(message) < 250


def test_zero_sized_images_are_decode_failures() -> None:
    for data in (b"P6 0 4 255 ", b"P5 4 0 255 ", encoded(photo(), "GIF")[:6] + bytes(20)):
        fails_with(ErrorCode.DECODE_FAILED, data)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 2, 8, 2, 0, 0, 0))
    fails_with(ErrorCode.DECODE_FAILED, b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IEND", b""))


def test_a_machine_without_memory_says_nothing_about_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert "too little memory" in fails_with(ErrorCode.TOO_LARGE, encoded(photo(), "PNG"))


@pytest.mark.parametrize("raised", [OSError(), zlib.error("x"), struct.error("x"), AttributeError("x"), EOFError()])
def test_whatever_pillow_raises_becomes_an_image_error(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise raised

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    assert type(raised).__name__ in fails_with(ErrorCode.DECODE_FAILED, encoded(photo(), "PNG"))


def test_pillows_own_bomb_error_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # another library in the process may do this
    fails_with(ErrorCode.TOO_LARGE, encoded(photo(), "PNG"))


def test_pillows_warnings_and_logs_stay_off_standard_error() -> None:
    program = (
        "import io, sys, warnings\n"
        "warnings.simplefilter('always')\n"
        "from pipeline.decoding.decode import decode_image\n"
        "from pipeline.errors import ImageError\n"
        "try:\n"
        "    decode_image(sys.stdin.buffer.read(), max_pixels=10**9, apply_exif=True)\n"
        "except ImageError as error:\n"
        "    print(error.code.value)\n"
    )
    tags = [(256, 16), (257, 16), (258, 8), (277, 65535), (270, 0x7FFFFFFF)]  # too many samples: Pillow logs an error
    entries = b"".join(
        struct.pack("<HHII", tag, 2 if tag == 270 else 4, 1 + tag % 2 * 99, value) for tag, value in tags
    )
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=ROOT, input=data, check=True, capture_output=True)
    assert (result.stdout.strip(), result.stderr) == (b"decode_failed", b"")


def test_threads_decode_alike() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = [encoded(photo(40 + i, 60), name, exif=exif) for i in range(8) for name in ("JPEG", "PNG", "WEBP")]
    alone = [decode(d).tobytes() for d in data]
    with ThreadPoolExecutor(4) as pool:
        assert [image.tobytes() for image in pool.map(decode, data)] == alone


# Properties


@settings(max_examples=3 * settings.default.max_examples, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    assert outcome(data, max_pixels=1_000_000) in {"rgb", "unsupported", "decode_failed", "too_large"}


VALID = [encoded(photo(), name) for name in FORMATS] + [
    encoded(Image.fromarray(gray16()), name) for name in ("PNG", "TIFF")
]


@settings(max_examples=7 * settings.default.max_examples, deadline=None)
@given(st.data())
def test_damaged_files_never_raise_anything_else(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 6))):
        # Headers are where damage matters, and they are at the start.
        end = data.draw(st.sampled_from([40, 200, len(damaged)]))
        damaged[data.draw(st.integers(0, min(end, len(damaged)) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(damaged)), st.integers(0, len(damaged))))
    assert outcome(bytes(damaged[:cut]), max_pixels=1_000_000) in {"rgb", "unsupported", "decode_failed", "too_large"}


# --- JPEGs at a fraction of their size --------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([1, 2, 4, 6, 8, 16]),
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.sampled_from([1, 3, 6, 8]),
)
def test_a_jpeg_may_come_smaller_where_the_number_divides_its_sides_and_enough_is_left(
    units_hw, factor, at_least_hw, orientation
):
    height, width = (side * factor for side in units_hw)
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(Image.new("RGB", (width, height), (200, 30, 90)), "JPEG", exif=exif)
    upright_hw = (width, height) if orientation >= 5 else (height, width)
    image = decode_image(data, max_pixels=MAX_PIXELS, apply_exif=True, at_least_hw=at_least_hw)
    allowed = [
        scale
        for scale in (1, 2, 4, 8)
        if scale == 1
        or all(side % scale == 0 and side >= scale * least for side, least in zip(upright_hw, at_least_hw, strict=True))
    ]
    assert (image.height, image.width) == tuple(side // max(allowed) for side in upright_hw)
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 90)).max() <= 3


@pytest.mark.parametrize("format_name", sorted(set(FORMATS) - {"JPEG"}))
def test_other_formats_come_whole(format_name):
    data = encoded(Image.new("RGB", (64, 64)), format_name)
    assert decode_image(data, max_pixels=MAX_PIXELS, apply_exif=True, at_least_hw=(8, 8)).size == (64, 64)


def test_broken_jpegs_are_errors_at_any_size():
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)), "JPEG")
    for bad in (data[: len(data) // 2], data[:200]):
        with pytest.raises(ImageError):
            decode_image(bad, max_pixels=MAX_PIXELS, apply_exif=True, at_least_hw=(32, 32))


def test_what_the_network_sees_of_a_smaller_photograph_is_within_the_documented_bound(photographs):
    """docs/operations.md: one level of 255 on the mean, 16 at most."""
    processor, rng = ImageProcessor("reference"), np.random.default_rng(0)
    worst = []
    for path in sorted(photographs.iterdir())[:4]:
        large = Image.open(path).convert("RGB").resize((2600, 2000), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 6, (2000, 2600, 1))
        data = encoded(Image.fromarray((np.asarray(large) + grain).clip(0, 255).astype(np.uint8)), "JPEG", quality=90)
        geometry = processor.geometry(2000, 2600)
        whole, small = (
            decode_image(data, max_pixels=MAX_PIXELS, apply_exif=True, at_least_hw=least)
            for least in (None, least_decoded(geometry))
        )
        assert small.size == (1300, 1000), "the closest case that there is"
        seen = processor.resize(whole).astype(int), processor.resize(small, geometry.resized_hw).astype(int)
        difference = np.abs(seen[0] - seen[1])
        worst.append((difference.mean(), difference.max()))
    assert max(mean for mean, _ in worst) <= 1.0
    assert 0 < max(most for _, most in worst) <= 16
