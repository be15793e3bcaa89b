"""Thumbnails of failed images: of what is left of their pixels, and whatever their bytes do to a decoder."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.guard import planted_faults
from pipeline.page.images.thumbnails import _MOST, _chosen, _thumbnail
from pipeline.page.publish import publish_page
from pipeline.page.settings import ReportSettings
from tests.support.evaluation_runs import MadeImage
from tests.support.page_runs import page_run


def jpeg(height: int, width: int, **options) -> bytes:
    """Red above, blue below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, :, 0] = pixels[height // 2 :, :, 2] = 220
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def float_tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(-3, 40, 100 * 50, dtype=np.float32).reshape(50, 100)).save(buffer, "TIFF")
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 3
    return jpeg(40, 60, exif=exif.tobytes())


@pytest.fixture
def page(tmp_path, monkeypatch) -> dict[str, Image.Image]:
    """The thumbnails of the page of a run in which each of these images has failed, by name."""
    monkeypatch.setenv(planted_faults.VARIABLE, "1")
    whole = jpeg(400, 300)
    images = {
        "aborts.jpg": (whole + planted_faults.marker("abort"), "crashed_worker"),
        "allocates.jpg": (whole + planted_faults.marker("allocate"), "crashed_worker"),
        "cut.jpg": (whole[: len(whole) * 2 // 3], "decode_failed"),
        "large.jpg": (jpeg(6000, 9000), "too_large"),
        "no-image.jpg": (b"GIF89a no image", "unsupported"),
        "float.tif": (float_tiff(), "unsupported"),
        "turned.jpg": (turned(), "inference_failed"),
        "gone.jpg": (None, "not_found"),
        "small.jpg": (jpeg(40, 60), "timed_out"),
    }
    folder = tmp_path / "images"
    folder.mkdir()
    for name, (data, _) in images.items():
        if data is not None:
            (folder / name).write_bytes(data)
    made = [MadeImage(name, (4, 4), (), None, code=code) for name, (_, code) in images.items()]
    page_run(tmp_path, folder, made, "night", 28)
    html = Path(publish_page(ReportSettings(f"{tmp_path}/tables")).address)
    assert len(json.loads((html.parent / "report.json").read_text())["failures"]["examples"]) == len(images)
    found = {}
    for row in html.read_text().split('<th scope="row" title="')[1:]:
        name = Path(row.split('"')[0]).name
        if name in images and '<img src="data:' in row.split("</tr>")[0]:
            found[name] = Image.open(io.BytesIO(base64.b64decode(row.split("base64,")[1].split('"')[0]))).convert("RGB")
    return found


def test_what_is_left_of_an_image_is_shown_and_no_image_ends_the_page(page):
    assert sorted(page) == ["cut.jpg", "float.tif", "large.jpg", "small.jpg", "turned.jpg"]
    assert all(max(one.size) <= 160 for one in page.values())
    assert page["small.jpg"].size == (60, 40) and page["large.jpg"].size == (160, 107)
    for name in ("cut.jpg", "large.jpg", "small.jpg"):  # red above
        red, _, blue = page[name].getpixel((20, 5))
        assert red > 150 > 60 > blue, name
    red, _, blue = page["turned.jpg"].getpixel((20, 5))  # EXIF turns it upside down
    assert blue > 150 > 60 > red
    grey = np.asarray(page["float.tif"])[:, :, 0].astype(int)
    assert grey[0].mean() < 30 and grey[-1].mean() > 220


def test_each_code_has_some_of_the_thumbnails():
    code = {"shard": 0, "etag": "e", "size_bytes": 1}
    failed = [{**code, "image_key": f"a{n}", "code": "decode_failed"} for n in range(100)]
    failed += [{**code, "image_key": "b", "code": "too_large"}, {**code, "image_key": "c", "code": "read_failed"}]
    failed += [{**code, "image_key": "d", "code": "too_large", "size_bytes": 2**30}]
    chosen = [one.image_key for one in _chosen(failed)]
    assert len(chosen) == _MOST and chosen[:3] == ["a0", "b", "a1"] and not {"c", "d"} & set(chosen)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"II*\0" + bytes(40)])
def test_bytes_of_nothing_have_no_thumbnail(data, monkeypatch):
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)  # not of this process
    assert _thumbnail(data) == ("", b"")
