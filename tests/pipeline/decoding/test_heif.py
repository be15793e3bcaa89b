"""HEIC: pixels against what was encoded, turned once; what a file may cost is known before libheif sees it."""

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from pipeline.decoding import decode, heif
from pipeline.decoding.decode import FORMATS, decode_image, measure_image, open_image
from pipeline.decoding.heif_items import canvas_pixels, coded_pictures, read_items
from pipeline.errors import ErrorCode, ImageError
from tests.support.costly_images import box
from tests.support.heif_files import ItemOf, full_box, heic, heif_of
from tests.support.image_files import avif, colour_image

pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra `heic`")

MAX_PIXELS = 1_000_000


def decoded(data: bytes, max_pixels: int = MAX_PIXELS, apply_exif: bool = True) -> Image.Image:
    image = decode_image(data, max_pixels=max_pixels, apply_exif=apply_exif)
    assert measure_image(data, max_pixels=max_pixels, apply_exif=apply_exif) == (image.height, image.width)
    assert open_image(data, max_pixels=max_pixels, apply_exif=apply_exif).size_hw == (image.height, image.width)
    return image


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(data, max_pixels=max_pixels, apply_exif=True)
    assert "\n" not in caught.value.message
    return caught.value


def assert_same(found: Image.Image, expected: Image.Image, levels: int = 2) -> None:
    assert found.mode == "RGB" and found.size == expected.size
    difference = np.asarray(found).astype(int) - np.asarray(expected.convert("RGB"))
    assert np.abs(difference).max() <= levels


# --- pixels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 48), (65, 49), (1, 1), (7, 300)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_of_any_size_are_those_that_were_encoded(size, mode):
    image = colour_image().resize(size).convert(mode)
    assert_same(decoded(heic(image)), image)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_and_not_blended(mode):
    image = colour_image().convert(mode)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    assert_same(decoded(heic(image)), image.convert("RGB") if mode == "RGBA" else image.convert("L"))


@pytest.mark.parametrize("bits", [10, 12])
def test_more_than_8_bits_keep_their_high_bits(bits, monkeypatch):
    monkeypatch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    image = colour_image()
    deep = pillow_heif.from_bytes("RGB;16", image.size, (np.asarray(image).astype(np.uint16) * 257).tobytes())
    file = io.BytesIO()
    deep.save(file, quality=-1, chroma=444)
    assert pillow_heif.open_heif(file, convert_hdr_to_8bit=False).info["bit_depth"] == bits
    assert_same(decoded(file.getvalue()), image)


def test_a_photograph_in_tiles_is_put_together():
    image = colour_image().resize((300, 200))
    data = heic(image, tile_size=128)
    assert [item.kind for item in read_items(data)[1].values()].count(b"hvc1") == 6
    assert_same(decoded(data), image)


def test_of_several_images_the_primary_one_is_decoded():
    images = [colour_image().rotate(90 * turns) for turns in range(3)]
    data = heic(images[0], save_all=True, append_images=images[1:], primary_index=1)
    assert len(read_items(data)[1]) == 3
    assert_same(decoded(data), images[1])


# --- orientation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_once_as_its_boxes_say(orientation):
    """The encoder writes the orientation of EXIF as the boxes irot and imir."""
    image, exif = colour_image(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = heic(image, exif=exif.tobytes())
    image.getexif()[ExifTags.Base.Orientation] = orientation
    expected = ImageOps.exif_transpose(image)
    for apply_exif in (True, False):
        assert_same(decoded(data, apply_exif=apply_exif), expected)


@pytest.mark.parametrize("in_boxes", [1, 6])
def test_an_orientation_of_exif_beside_the_boxes_turns_nothing(in_boxes):
    image, exif = colour_image(), Image.Exif()
    exif[ExifTags.Base.Orientation] = in_boxes
    data = heic(image, exif=exif.tobytes())
    entry = struct.pack(">HHIH", 0x0112, 3, 1, in_boxes)
    assert data.count(entry) == 1
    turned = data.replace(entry, struct.pack(">HHIH", 0x0112, 3, 1, 8))
    assert_same(decoded(turned), decoded(data), levels=0)


# --- files that are cut, empty, or of another codec -------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"tile_size": 64}])
def test_a_cut_file_is_refused_wherever_it_is_cut(options):
    data = heic(colour_image().resize((128, 96)), **options)
    assert decoded(data).size == (128, 96)
    for length in (*range(0, len(data), len(data) // 60), len(data) - 1):
        assert refusal(data[:length]).code in (ErrorCode.DECODE_FAILED, ErrorCode.UNSUPPORTED), length


def test_a_file_without_a_still_image_is_unsupported():
    error = refusal(box(b"ftyp", b"heic\0\0\0\0mif1heic"))
    assert error.code is ErrorCode.UNSUPPORTED and "no still image" in error.message


def test_another_codec_in_a_heif_is_unsupported_and_named():
    error = refusal(avif(colour_image()).replace(b"avif", b"mif1"))
    assert error.code is ErrorCode.UNSUPPORTED and "codec b'av01'" in error.message


def test_compressed_metadata_are_not_inflated():
    data = heic(colour_image(), xmp=b"<x/>")
    kind = b"application/rdf+xml\0"
    assert kind in data
    assert refusal(data.replace(kind, b"application/rdf+x\0x\0")).message == "HEIF: its metadata are compressed"


def test_without_the_extra_the_row_says_what_to_install(monkeypatch):
    data = heic(colour_image())
    monkeypatch.setattr(decode, "FORMATS", tuple(name for name in FORMATS if name != "HEIF"))
    error = refusal(data)
    assert error.code is ErrorCode.UNSUPPORTED
    assert "needs the extra `heic` on every node: pip install 'm2f-pipeline[heic]'" in error.message


def test_any_changed_byte_of_the_boxes_gives_an_image_or_one_line():
    data = heic(colour_image().resize((32, 32)), tile_size=16)
    end = data.index(b"mdat")
    random = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for place in random.integers(0, end, 2):
            changed[place] = random.integers(256)
        try:
            decode_image(bytes(changed), max_pixels=MAX_PIXELS, apply_exif=True)
        except ImageError as error:
            assert "\n" not in error.message


# --- costs ------------------------------------------------------------------------------------------------------------


def coded(width: int, height: int) -> ItemOf:
    """A coded picture as an item, with its own configuration and size."""
    data = heic(Image.new("RGB", (width, height)), matrix_coefficients=0)
    _, items = read_items(data)
    [item] = items.values()
    [(begin, end)] = item.pieces
    properties = [box(kind, data[start:stop]) for kind, start, stop in item.properties if kind in (b"hvcC", b"ispe")]
    return ItemOf(b"hvc1", data[begin:end], properties)


def grid(rows: int, columns: int, size: tuple[int, int], parts: list[int]) -> ItemOf:
    content = struct.pack(">BBBBII", 0, 1, rows - 1, columns - 1, *size)
    return ItemOf(b"grid", content, [full_box(b"ispe", struct.pack(">II", *size))], made_of=parts)


def test_files_put_together_here_are_files_that_libheif_reads():
    assert decoded(heif_of([coded(72, 64)])).size == (72, 64)
    assert decoded(heif_of([grid(1, 2, (128, 64), [2, 2]), coded(64, 64)])).size == (128, 64)


@pytest.mark.parametrize("size", [(64, 64), (65, 73), (1000, 70)])
def test_the_size_of_a_coded_picture_is_read_from_its_parameter_set(size):
    """HEVC codes blocks of 8 pixels at least; what lies beyond the image is cut off."""
    data = heif_of([coded(*size)])
    pictures = list(coded_pictures(data, read_items(data)[1][1]))
    assert max(pictures) == -(-size[0] // 8) * 8 * -(-size[1] // 8) * 8


def with_size(item: ItemOf, width: int, height: int) -> ItemOf:
    """The item whose boxes say another size than the parameter set."""
    return ItemOf(item.kind, item.data, [item.properties[0], full_box(b"ispe", struct.pack(">II", width, height))])


def with_turns(item: ItemOf, number: int) -> ItemOf:
    return ItemOf(item.kind, item.data, [*item.properties, *[box(b"irot", b"\1")] * number])


SIZE = full_box(b"ispe", struct.pack(">II", 64, 64))
ALPHA = full_box(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0")
COSTLY = {
    "picture": lambda: heif_of([coded(1008, 1000)]),
    "picture that says it is small": lambda: heif_of([with_size(coded(1008, 1000), 16, 16)]),
    "parameter set in the picture": lambda: heif_of([with_second_size(coded(64, 64), coded(1008, 1000))]),
    "canvas": lambda: heif_of([grid(1, 2, (2000, 2000), [2, 2]), coded(64, 64)]),
    "tiles": lambda: heif_of([grid(1, 4, (64, 64), [2, 2, 2, 2]), coded(1000, 1000)]),
    "alpha": lambda: heif_of(
        [
            grid(1, 1, (64, 64), [3]),
            ItemOf(b"grid", grid(1, 3, (64, 64), []).data, [SIZE, ALPHA], [3, 3, 3], auxiliary_of=[1]),
            coded(1000, 1000),
        ]
    ),
    "nested overlays": lambda: heif_of([*(grid(1, 9, (64, 64), [n + 1] * 9) for n in range(1, 7)), coded(64, 64)]),
    "items": lambda: heif_of([ItemOf(b"hvc1")] * 1001),
    "turns": lambda: heif_of([with_turns(coded(64, 64), 9)]),
}


def with_second_size(item: ItemOf, other: ItemOf) -> ItemOf:
    """The item with the parameter set of another one in front of its picture, as a decoder would take it."""
    configuration = other.properties[0]
    at = configuration.index(b"\x42\x01")  # the head of a sequence parameter set
    length = struct.unpack(">H", configuration[at - 2 : at])[0]
    unit = struct.pack(">I", length) + configuration[at : at + length]
    return ItemOf(item.kind, unit + item.data, item.properties)


@pytest.mark.parametrize("what", COSTLY)
def test_a_costly_file_is_refused_before_libheif_decodes(what, monkeypatch):
    data = COSTLY[what]()
    monkeypatch.setattr(decode, "_loaded", None)
    error = refusal(data)
    assert error.code is ErrorCode.TOO_LARGE and "more than the limit of" in error.message


def test_units_without_end_are_not_counted_one_by_one(monkeypatch):
    monkeypatch.setattr(heif, "MAX_HEIF_UNITS", 100)
    item = coded(64, 64)
    assert decoded(heif_of([item])).size == (64, 64)
    item.data += bytes(4 * 200)
    assert "units of a HEIF's pictures: 101" in refusal(heif_of([item])).message


def test_items_that_are_made_of_themselves_or_of_none_are_refused():
    for items in ([ItemOf(b"iden", made_of=[1])], [ItemOf(b"iden", made_of=[7])]):
        assert refusal(heif_of(items)).code in (ErrorCode.DECODE_FAILED, ErrorCode.TOO_LARGE)
    missing = coded(64, 64)
    missing.missing_bytes = 1
    assert "ends before its pictures" in refusal(heif_of([missing])).message


def test_the_canvas_of_a_grid_is_read_in_both_widths():
    for content, pixels in ((struct.pack(">BBBBII", 0, 1, 0, 0, 70_000, 3), 210_000), (b"\0\0\0\0\0\5\0\7", 35)):
        data = heif_of([ItemOf(b"grid", content)])
        assert canvas_pixels(data, read_items(data)[1][1]) == pixels
