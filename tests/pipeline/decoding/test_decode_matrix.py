"""Generated files of every layout that a container allows: right pixels, or refused by name; never others as `ok`.

The oracle is the array from which a file was made. Legend: H W pixels, C channels.
"""

import io
import itertools
import zlib

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageOps

from pipeline.decoding.decode import decode_image, measure_image
from pipeline.errors import ErrorCode, ImageError
from tests.support.image_files import (
    CODECS,
    MODES_OF_CODEC,
    PLANES,
    VARIANTS_OF_A_TIFF,
    H,
    W,
    avif,
    colour_image,
    jp2_with_channels,
    jpeg,
    photograph,
    smooth,
    tiff_of_pillow,
    tiffs,
)

MAX_PIXELS = 10**7
REFUSED = (ErrorCode.UNSUPPORTED, ErrorCode.DECODE_FAILED)


def decoded(data: bytes) -> np.ndarray | ErrorCode:
    """The pixels [H, W, 3], or the code of the error. `measure_image` must give the size of these pixels."""
    try:
        image = decode_image(data, max_pixels=MAX_PIXELS, apply_exif=True)
    except ImageError as error:
        return error.code
    assert measure_image(data, max_pixels=MAX_PIXELS, apply_exif=True) == (image.height, image.width)
    return np.asarray(image)


def assert_right_or_refused(data: bytes, expected_HW3: np.ndarray, what: object, levels: int = 3) -> bool:
    found = decoded(data)
    if isinstance(found, ErrorCode):
        assert found in REFUSED, what
        return False
    assert found.shape == expected_HW3.shape, what
    assert np.abs(found.astype(int) - expected_HW3.astype(int)).max() <= levels, what
    return True


# --- TIFF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize(("colours", "planar"), PLANES)
def test_tiff(colours: str, dtype: str, planar: str, big: bool) -> None:
    files = tiffs(colours, dtype, planar, big)
    num_right = sum(assert_right_or_refused(data, expected_HW3, what) for what, data, expected_HW3 in files)
    assert num_right == VARIANTS_OF_A_TIFF, "too many are refused"


@pytest.mark.parametrize("dtype", ["i1", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_tiffs_without_a_range_are_refused(dtype: str) -> None:
    for num, planar in ((1, None), (3, "contig"), (3, "separate")):
        array = (smooth(num) * 100).astype(dtype)
        array = array[..., 0] if num == 1 else np.moveaxis(array, -1, 0) if planar == "separate" else array
        file = io.BytesIO()
        photometric = "minisblack" if num == 1 else "rgb"
        tifffile.imwrite(file, array, photometric=photometric, planarconfig=planar, metadata=None)
        found = decoded(file.getvalue())
        assert found == ErrorCode.UNSUPPORTED, (num, planar, found)


def test_tiffs_that_are_cut_are_refused() -> None:
    for planar, dtype in (("contig", "u1"), ("separate", "u2")):
        array = np.rint(smooth(3) * np.iinfo(dtype).max).astype(dtype)
        file = io.BytesIO()
        array = np.moveaxis(array, -1, 0) if planar == "separate" else array
        tifffile.imwrite(file, array, photometric="rgb", planarconfig=planar, metadata=None)
        for share in (0.3, 0.6, 0.95):
            data = file.getvalue()
            assert decoded(data[: int(len(data) * share)]) in REFUSED, (planar, share)


# --- JPEG -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("restart", [0, 2])
def test_a_jpeg_whose_pixels_end_early_is_refused(mode: str, subsampling: int, restart: int) -> None:
    """Cut anywhere, with an end marker, without one, or with zeros in place of the rest."""
    options = {"quality": 85, "subsampling": subsampling, **({"restart_marker_rows": restart} if restart else {})}
    data = jpeg(photograph().convert(mode), **options)
    whole = decoded(data)
    assert isinstance(whole, np.ndarray)
    start = data.rfind(b"\xff\xda") + 20
    for share in (0.1, 0.4, 0.7, 0.9, 0.97):
        cut = data[: start + int((len(data) - start) * share)]
        cut = cut[:-1] if cut.endswith(b"\xff") else cut
        for what, changed in (
            ("end marker", cut + b"\xff\xd9"),
            ("nothing", cut),
            ("zeros", cut + bytes(len(data) - len(cut))),
        ):
            assert decoded(changed) == ErrorCode.DECODE_FAILED, (share, what)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_progressive_jpeg_without_its_last_scans_is_refused(mode: str) -> None:
    """Such a file decodes, but coarsely. Within the last scan, what is missing is the last bit of some coefficients."""
    data = jpeg(photograph().convert(mode), quality=85, progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    assert len(starts) > 4 and isinstance(decoded(data), np.ndarray)
    for start in starts[1:]:
        for cut in (start, start + 30):
            if cut < starts[-1]:
                assert decoded(data[:cut] + b"\xff\xd9") == ErrorCode.DECODE_FAILED, (start, cut)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("image", ["photograph", "white", "white corner", "gray corner"])
def test_sound_jpegs_stay_as_they_are(image: str, progressive: bool) -> None:
    """Also where the last block has one colour, with bytes after the pixels, and with bytes after the end."""
    picture = photograph()
    if image == "white":
        picture = Image.new("RGB", (160, 120), "white")
    elif image != "photograph":
        picture.paste((255, 255, 255) if image == "white corner" else (128, 128, 128), (64, 48, 160, 120))
    for optimize in (False, True):
        data = jpeg(picture, progressive=progressive, optimize=optimize)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        for what, changed in (
            ("plain", data),
            ("bytes before the end", data[:-2] + b"\x12\x34\x56" + data[-2:]),
            ("zeros before the end", data[:-2] + bytes(40) + data[-2:]),
            ("zeros after the end", data + bytes(4096)),
            ("bytes after the end", data + b"another file"),
        ):
            found = decoded(changed)
            assert isinstance(found, np.ndarray), (what, optimize, found)
            np.testing.assert_array_equal(found, expected)


# --- PNM, PNG, JPEG 2000 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("highest", [1, 15, 100, 254, 255, 256, 1023, 4095, 65534, 65535])
@pytest.mark.parametrize("kind", [b"P5", b"P6"])
def test_binary_pnm(kind: bytes, highest: int) -> None:
    """The same as Pillow's own slow decoder, whose 16-bit gray keeps the high byte."""
    channels = 3 if kind == b"P6" else 1
    values = np.rint(smooth(channels) * highest).astype(">u2" if highest > 255 else "u1")
    data = b"%s\n# a comment\n%d %d\n%d\n" % (kind, W, H, highest) + values.tobytes()
    found = decoded(data)
    expected = Image.open(io.BytesIO(data))
    if expected.mode == "I":
        expected = Image.fromarray((np.asarray(expected) >> 8).astype(np.uint8))
    np.testing.assert_array_equal(found, np.asarray(expected.convert("RGB")))
    assert decoded(data[:-3]) in REFUSED


@pytest.mark.parametrize("size", [100, 900_000, 1_600_000])
@pytest.mark.parametrize("chunk", ["icc", "text"])
def test_metadata_of_a_png_costs_no_pixel(chunk: str, size: int) -> None:
    from PIL.PngImagePlugin import PngInfo

    content = np.random.default_rng(0).integers(32, 126, size, dtype=np.uint8).tobytes()
    image = Image.fromarray(np.rint(smooth(3) * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[274] = 6
    info = PngInfo()
    if chunk == "text":
        info.add_text("comment", content.decode(), zip=True)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info, exif=exif, **({"icc_profile": content} if chunk == "icc" else {}))
    np.testing.assert_array_equal(decoded(file.getvalue()), np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_channels_of_a_jp2_are_those_of_its_definition(order: tuple[int, ...]) -> None:
    data, expected_HW3 = jp2_with_channels(order)
    np.testing.assert_array_equal(decoded(data), expected_HW3)


@pytest.mark.parametrize(
    ("codec", "mode"), [(codec, mode) for codec, modes in MODES_OF_CODEC.items() for mode in modes]
)
@pytest.mark.parametrize("options", [{}, {"tiffinfo": {317: 2}}, {"strip_size": 500}, {"big_tiff": True}], ids=str)
def test_tiff_of_pillow(codec: str, mode: str, options: dict) -> None:
    """Codecs that tifffile writes only with other libraries; tag 317 is the predictor."""
    data, expected_HW3 = tiff_of_pillow(codec, mode, options)
    # Pillow leaves 0 as the offset of the pixels of such a file.
    broken = mode == "I;16B" and codec == "raw" and "big_tiff" in options
    levels = 5 if codec == "jpeg" else 3  # JPEG rounds the colours and their waves
    assert assert_right_or_refused(data, expected_HW3, (mode, codec, options), levels) == (not broken)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("offset", [0, 7])
def test_the_header_of_a_tiff_is_no_pixel(codec: str | None, planar: str, dtype: str, offset: int) -> None:
    array = np.rint(smooth(3) * 255).astype(dtype)
    file = io.BytesIO()
    given = np.moveaxis(array, -1, 0) if planar == "separate" else array
    tifffile.imwrite(file, given, photometric="rgb", planarconfig=planar, compression=codec, rowsperstrip=10)
    data = bytearray(file.getvalue())
    where = tifffile.TiffFile(io.BytesIO(data)).pages[0].tags["StripOffsets"].valueoffset
    assert isinstance(decoded(bytes(data)), np.ndarray)
    data[where + 4 : where + 8] = offset.to_bytes(4, "little")  # the second strip
    assert decoded(bytes(data)) == ErrorCode.DECODE_FAILED


def test_a_small_tiff_cannot_ask_for_much_memory() -> None:
    """Of 16 bits and separate planes, which tifffile reads."""

    def written(shape: tuple[int, ...], **options: object) -> bytes:
        file = io.BytesIO()
        zeros = np.zeros(shape, np.uint16)
        tifffile.imwrite(file, zeros, photometric="rgb", planarconfig="separate", compression="zlib", **options)
        return file.getvalue()

    assert isinstance(decoded(written((3, 16, 16), tile=(16, 16))), np.ndarray)
    # Readers allocate 200 samples a pixel, or a whole tile, or all that a strip inflates to.
    many = written((200, 500, 500))
    assert decoded(many) == ErrorCode.TOO_LARGE
    tiled = written((3, 16, 16), tile=(4096, 4096))
    assert decoded(tiled) == ErrorCode.TOO_LARGE
    bomb = zlib.compress(bytes(1024 * 1024 * 8 + 1))
    data = bytearray(written((3, H, W)))
    page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
    for name, number in (("StripOffsets", len(data)), ("StripByteCounts", len(bomb))):
        tag = page.tags[name]
        width = tag.valuebytecount // tag.count
        data[tag.valueoffset : tag.valueoffset + width] = number.to_bytes(width, "little")
    with pytest.raises(ImageError, match="a strip or tile has more than") as error:
        decode_image(bytes(data) + bomb, max_pixels=10_000, apply_exif=True)
    assert error.value.code == ErrorCode.TOO_LARGE


# --- AVIF -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:0:0"])
@pytest.mark.parametrize("span", ["full", "limited"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBa", "L", "LA"])
def test_avif(subsampling: str, span: str, mode: str) -> None:
    """8 bits of Y, Cb and Cr round the colours by 3 levels, and by 5 where 16..235 stand for 0..255."""
    image = colour_image().convert(mode.upper())
    premultiplied = mode == "RGBa"
    if image.mode in ("RGBA", "LA"):  # at least half opaque: what alpha 0 multiplied away does not come back
        image.putalpha(Image.fromarray(np.rint(128 + smooth(4)[..., 3] * 127).astype(np.uint8)))
    found = decoded(avif(image, subsampling=subsampling, range=span, alpha_premultiplied=premultiplied))
    assert isinstance(found, np.ndarray)
    levels = {"full": 3, "limited": 5}[span] * (2 if premultiplied else 1)
    expected = np.asarray(image.convert("RGB")).astype(int)
    if subsampling != "4:4:4":  # the encoder leaves colours out; the luma of each pixel is still there
        found, expected = (np.asarray(Image.fromarray(a.astype(np.uint8)).convert("L")) for a in (found, expected))
    assert np.abs(found.astype(int) - expected).max() <= levels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_as_its_boxes_say(orientation: int) -> None:
    """The encoder writes the orientation as the boxes irot and imir."""
    image, exif = colour_image(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    found = decoded(avif(image, subsampling="4:4:4", exif=exif))
    image.getexif()[ExifTags.Base.Orientation] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert isinstance(found, np.ndarray)
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_a_cut_avif_is_refused() -> None:
    data = avif(colour_image())
    assert isinstance(decoded(data), np.ndarray)
    for length in (*range(0, len(data), 97), len(data) - 1):
        assert decoded(data[:length]) in REFUSED, length


# --- kinds that people report -----------------------------------------------------------------------------------------


def test_public_cases(shared_data) -> None:
    folder = shared_data / "public_cases"

    def of(name: str) -> np.ndarray | ErrorCode:
        return decoded((folder / name).read_bytes())

    np.testing.assert_array_equal(of("tiff_planar_16bit/planar.tif"), of("tiff_planar_16bit/same.png"))
    for name in ("bgr_cdef.jp2", "bgra_cdef.jp2"):
        assert of(f"jp2_channel_definition/{name}")[3, 3].tolist() == [200, 60, 10]
    assert of("jpeg_cut_with_end_marker/cut.jpg") == ErrorCode.DECODE_FAILED
    for name, colour in (("assocalpha", 90), ("gray_alpha_u2", 90), ("gray_be_white_is_zero_u2", 55)):
        assert of(f"tiff_refused/{name}.tif")[3, 3].tolist() == [colour] * 3, name
    assert of("tiff_refused/be.tif")[3, 3].tolist() == [200, 60, 10]
    for name in ("rgb_f4", "rgb_i1"):
        assert of(f"tiff_refused/{name}.tif") == ErrorCode.UNSUPPORTED
    for name in ("icc_900k", "icc_1600k"):
        assert isinstance(of(f"png_icc_1600k/{name}.png"), np.ndarray)
