"""Small files that would cost seconds or gigabytes are refused by their headers; files at the limits are not."""

import io
import re
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipeline.decoding import costs
from pipeline.decoding.decode import decode_image, measure_image
from pipeline.errors import ErrorCode, ImageError
from tests.support import costly_images as costly
from tests.support.image_files import avif, colour_image
from tests.support.places import ROOT

MAX_PIXELS = 64_000_000
LONG = 63_900_000  # pixels of one side

# What each costs without the limit, on one core, measured in a process of its own.
COSTLY: dict[str, tuple[str, Callable[[], bytes]]] = {
    "scans of a JPEG": ("JPEG scans", lambda: costly.jpeg_with_scans(7990, 300)),  # 5 s; 22 s of three colours
    "scans of a small JPEG": ("JPEG scans", lambda: costly.jpeg_with_scans(8, 50_000)),
    "comments of a JPEG": ("JPEG segments", lambda: costly.jpeg_with_segments(200_000)),  # 5 s with ten times as many
    "chunks of a PNG": (  # 11 s with ten times as many
        "PNG chunks",
        lambda: costly.png(8, 8, bytes(72), costly.png_chunk(b"abCd", b"") * 200_000),
    ),
    **{
        f"{shape} {name}": ("pixels of a side", lambda name=name, size=size: costly.thin(name, *size))
        for name, shape, size in (  # 0.3 to 1.3 GiB
            ("PNG", "tall", (1, LONG)),
            ("TIFF", "wide", (LONG, 1)),
            ("JPEG2000", "tall", (1, LONG)),
            ("JPEG2000", "wide", (LONG, 1)),
        )
    },
    "wide PPM": ("pixels of a side", lambda: costly.thin("PPM", LONG, 1)),  # 23 s
    "tall BMP": ("pixels of a side", lambda: costly.thin("BMP", 1, LONG // 8)),
    "wide BMP": ("pixels of a side", lambda: costly.thin("BMP", LONG // 8, 1)),  # of 64 M pixels, more than 120 s
    "header of a PNM": ("header of a PNM", lambda: b"P5 #" + bytes(50_000_000) + b"\n8 8 255 " + bytes(64)),  # 19 s
    "plain PNM": ("numbers of a plain PNM", lambda: b"P3 2500 2500 255 " + b"1 " * 18_750_000),  # 10 s
    "plain bitmap": ("numbers of a plain PNM", lambda: b"P1 8000 7900 " + b"1" * 63_200_000),
    "run-length BMP": ("run-length BMP", lambda: costly.bmp_run_lengths(8000, 7990)),  # 10 s, from 32 kB
    "precincts of a JPEG 2000": ("JPEG 2000", lambda: costly.jpeg_2000(7900, 7900, precinct=1)),  # 17 s, 8.3 GiB
    "small precincts by level": ("JPEG 2000", lambda: costly.jpeg_2000(2000, 2000, precinct=1, levels=5)),  # 2.1 GiB
    "blocks of a JPEG 2000": ("JPEG 2000", lambda: costly.jpeg_2000(7900, 7900, code_block=(2, 2))),  # 1.5 GiB
    "tiles of a JPEG 2000": ("JPEG 2000", lambda: costly.jpeg_2000(7900, 7900, tile=(31, 31))),  # 0.6 GiB
    "blocks of a GIF": (
        "GIF blocks",
        lambda: costly.gif_with_blocks(b"!\xfe" + b"\x01a" * 200_000 + b"\0"),
    ),  # 1 s for 7 MB
    "no blocks of a GIF": ("GIF blocks", lambda: costly.gif_with_blocks(b"\1" * 200_000)),  # 1 s for 9 MB
    "strips of a TIFF": ("strips or tiles", lambda: costly.tiff_of_strips(1_000_001)),  # more than 120 s for 40 MB
    "tags of a BigTIFF": ("tags of a TIFF", lambda: costly.bigtiff_with_tags(200_000)),  # 1 s for 20 MB
    "boxes of a JP2": ("boxes", lambda: costly.jp2_with_boxes(200_000)),  # 1 s for 6 MB
    "comments of a JPEG 2000": ("segments of a JPEG 2000", lambda: costly.jpeg_2000_with_comments(200_000)),
    "items of an AVIF": ("items of an AVIF", lambda: costly.avif_with_items(100_000)),
    "layers of a JPEG 2000": ("JPEG 2000", lambda: costly.jpeg_2000_with_layers(2000, 65_535)),
}


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    return decode_image(data, max_pixels=max_pixels, apply_exif=True)


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels)
    assert caught.value.code == ErrorCode.TOO_LARGE, caught.value
    return caught.value.message


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_file_is_refused_with_the_number_and_the_limit(name: str) -> None:
    what, make = COSTLY[name]
    message = refusal(make())
    found = re.search(r"([\d,]+)(?: or more)? are more than the limit of ([\d,]+)$", message)
    assert what in message and found is not None, message
    number, limit = (int(text.replace(",", "")) for text in found.groups())
    assert number > limit > 0


def test_refusing_takes_next_to_no_memory() -> None:
    """Each of these takes 0.2 to 8 GiB if it is decoded."""
    program = (
        "import resource, sys\n"
        "from pipeline.errors import ImageError\n"
        "from pipeline.decoding.decode import decode_image\n"
        "from tests.pipeline.decoding.test_costs import COSTLY\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in sys.argv[1:]:\n"
        "    data, before = COSTLY[name][1](), peak()\n"
        "    try:\n"
        "        decode_image(data, max_pixels=64_000_000, apply_exif=True)\n"
        "    except ImageError:\n"
        "        print((peak() - before) // 1024)\n"
    )
    # The smallest first, because a peak hides later, lower ones.
    names = ["precincts of a JPEG 2000", "blocks of a JPEG 2000", "tiles of a JPEG 2000", "scans of a JPEG"]
    command = [sys.executable, "-c", program, *names]
    grown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    assert len(grown) == len(names) and max(map(int, grown)) < 20, grown


def test_the_number_of_scans_is_exact() -> None:
    assert decode(costly.jpeg_with_scans(64, costs.MAX_JPEG_SCANS)).size == (64, 64)
    assert "51 or more" in refusal(costly.jpeg_with_scans(64, costs.MAX_JPEG_SCANS + 1))


def test_scans_in_a_tiff_are_bounded_too() -> None:
    """By libtiff, at 100."""
    assert decode(costly.tiff_of_jpeg(64, 20)).size == (64, 64)
    with pytest.raises(ImageError) as caught:
        decode(costly.tiff_of_jpeg(64, 300))
    assert caught.value.code == ErrorCode.DECODE_FAILED


@pytest.mark.parametrize("name", ["PNG", "BMP", "PPM", "TIFF"])
def test_the_longest_side_is_exact(name: str) -> None:
    for turn in (1, -1):
        width, height = (costs.MAX_SIDE, 2)[::turn]
        assert decode(costly.thin(name, width, height)).size == (width, height)
        width, height = (costs.MAX_SIDE + 1, 2)[::turn]
        data = costly.thin(name, width, height)
        assert "65,536" in refusal(data)
        with pytest.raises(ImageError, match="pixels of a side"):
            measure_image(data, max_pixels=MAX_PIXELS, apply_exif=True)


def test_usual_jpeg_2000s_are_far_from_the_limit() -> None:
    """Also with the smallest blocks, tiles and precincts that encoders offer."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8))
    for options in (
        {},
        {"tile_size": (64, 64)},
        {"codeblock_size": (4, 4)},
        {"precinct_size": (64, 64), "codeblock_size": (32, 32)},
        {"num_resolutions": 1},
        {"quality_layers": [60, 40, 20, 10, 5, 2, 0]},
        {"progression": "RPCL", "precinct_size": (128, 128)},
    ):
        file = io.BytesIO()
        image.save(file, "JPEG2000", **options)
        assert decode(file.getvalue()).size == (130, 100), options


def test_a_coding_segment_of_a_later_tile_counts() -> None:
    """openjpeg obeys a COD in the header of any tile part."""
    data = costly.jpeg_2000(4000, 4000, tile=(2000, 2000))
    coding = costly.jpeg_2000(2000, 2000, precinct=1)
    start = coding.index(b"\xff\x52")
    coding = coding[start : coding.index(b"\xff\x5c")]
    at = data.rindex(b"\xff\x93")
    part = data.rindex(b"\xff\x90")
    changed = data[: part + 6] + (14 + len(coding)).to_bytes(4, "big") + data[part + 10 : at] + coding + data[at:]
    assert "JPEG 2000" in refusal(changed)


def test_pictures_of_an_avif_are_measured_by_their_own_headers() -> None:
    image = colour_image().convert("RGBA")
    image.putalpha(100)
    still = avif(image)
    pictures = list(costs._avif_pictures(still))
    assert sorted(pictures)[-2:] == [image.width * image.height] * 2
    file = io.BytesIO()
    image.save(file, "AVIF", save_all=True, append_images=[image.rotate(90)])
    assert image.width * image.height in list(costs._avif_pictures(file.getvalue()))
    decode(still), decode(file.getvalue())
    assert "coded picture" in refusal(costly.avif_that_lies((200, 100), (16, 16)), max_pixels=19_999)
    assert decode(costly.avif_that_lies((200, 100), (16, 16)), max_pixels=20_000)


@pytest.mark.parametrize("make", [lambda exif: costly.jpeg_with_exif(exif), lambda exif: exif], ids=["JPEG", "TIFF"])
def test_many_tags_with_the_same_value_do_not_multiply_it(make: Callable[[bytes], bytes]) -> None:
    """Pillow adds up what tags ask for: 1,000 of 1 MB would be 1 GB."""
    data = make(costly.tiff_of_one_block(1000, 1_000_000))
    program = (
        "import resource, sys\n"
        "from pipeline.errors import ImageError\n"
        "from pipeline.decoding.decode import decode_image\n"
        "data = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    decode_image(data, max_pixels=64_000_000, apply_exif=True)\n"
        "except ImageError:\n"
        "    pass\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, input=data, check=True, capture_output=True)
    assert int(done.stdout) < 100


def test_a_png_is_inflated_no_further_than_its_pixels() -> None:
    data = costly.png(8, 8, bytes(72 + 50_000_000))
    assert len(data) < 60_000 and decode(data).size == (8, 8)
    compressed = zlib.compress(bytes(2_000_000))
    text = costly.png_chunk(b"zTXt", b"Comment\0\0" + compressed) + costly.png_chunk(b"iCCP", b"x\0\0" + compressed)
    assert decode(costly.png(8, 8, bytes(72), text)).size == (8, 8)


def test_short_headers_and_comments_of_a_pnm_stay() -> None:
    pixels = bytes(range(256)) * 400
    for header in (b"P5 256 400 255 ", b"P5\n# one\n# two\n256 400\n# three\n255\n", b"P4\n2048 400\n"):
        assert decode(header + pixels).height == 400
    assert decode(b"P4 2048 400\n" + b"#" * len(pixels)).size == (2048, 400)


def test_every_limit_stands_in_the_docs() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    limits = {name: value for name, value in vars(costs).items() if name.startswith("MAX_")}
    assert len(limits) >= 9
    for name, value in limits.items():
        written = f"{value >> 20} MiB" if name == "MAX_JPEG_2000_BYTES" else f"{value:,}"
        assert re.search(rf"(?<![\d,]){re.escape(written)}(?![\d,])", page), (name, written)
