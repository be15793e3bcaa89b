"""Where the pixels of a GeoTIFF lie, and what happens if the file does not say so clearly."""

import json

import numpy as np
import pytest

from pipeline.decoding import geotiff
from pipeline.decoding.decode import decode_image, read_georeference
from pipeline.errors import ErrorCode, ImageError
from pipeline.segment.actor import segmented_table
from pipeline.segment.segmenter import Segmenter
from tests.pipeline.segment.test_actor import fetched
from tests.support.geotiffs import gdal_file
from tests.support.segmenting import encoded, small_spec

rasterio = pytest.importorskip("rasterio")

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)
TRANSFORM = [0.5, 0.0, 500000.0, 0.0, -0.5, 5000000.0]
UTM_33 = 32633


def located(**options) -> bytes:
    return gdal_file(PIXELS, **{"crs": f"EPSG:{UTM_33}", "transform": rasterio.Affine(*TRANSFORM), **options})


def with_crs(data: bytes, code: int) -> bytes:
    """Another code in the place of the only one."""
    old = UTM_33.to_bytes(2, "little")
    assert data.count(old) == 1
    return data.replace(old, code.to_bytes(2, "little"))


def turned(data: bytes) -> bytes:
    """The file with an Orientation tag, in the place of the tag SampleFormat."""
    entry = (339).to_bytes(2, "little") + (3).to_bytes(2, "little")
    at = data.index(entry)
    return data[:at] + orientation_entry(6) + data[at + 12 :]


def orientation_entry(value: int) -> bytes:
    numbers = ((274, 2), (3, 2), (1, 4), (value, 4))
    return b"".join(number.to_bytes(size, "little") for number, size in numbers)


def test_reference_system_and_transform_are_read():
    assert read_georeference(located()) == {"crs": "EPSG:32633", "transform": TRANSFORM}
    assert read_georeference(located(crs="EPSG:4326"))["crs"] == "EPSG:4326"
    assert read_georeference(located(crs=None)) == {"crs": None, "transform": TRANSFORM}
    assert read_georeference(located(transform=rasterio.Affine.identity()))["transform"] is None


def test_a_system_without_a_code_is_wkt():
    place = read_georeference(located(crs="+proj=laea +lat_0=52 +lon_0=10 +datum=WGS84"))
    assert place["crs"].startswith("PROJCS[") and "Lambert_Azimuthal_Equal_Area" in place["crs"]


@pytest.mark.parametrize("data", [gdal_file(PIXELS), encoded(), b"no image"], ids=range(3))
def test_other_images_have_none(data):
    assert read_georeference(data) is None


def test_without_the_extra_a_geotiff_is_a_tiff_like_any_other(monkeypatch):
    monkeypatch.setattr(geotiff, "is_installed", lambda: False)
    broken = with_crs(located(), 12345)
    assert read_georeference(broken) is None
    assert np.array_equal(np.asarray(decode_image(broken, max_pixels=10_000, apply_exif=True)), PIXELS)


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (with_crs(located(), 12345), ErrorCode.DECODE_FAILED, "coordinate reference system cannot be read"),
        (turned(located()), ErrorCode.UNSUPPORTED, "orientation 6 turns the pixels, but not their places"),
    ],
    ids=["no such code", "turned"],
)
def test_a_place_that_cannot_be_read_is_an_error_of_the_image(data, code, message):
    with pytest.raises(ImageError) as caught:
        read_georeference(data)
    assert caught.value.code is code and message in caught.value.message


def test_the_place_goes_to_the_attributes_of_the_image_and_a_wrong_one_is_a_row(tiny_checkpoint):
    images = [located(), encoded(), with_crs(located(), 12345), gdal_file(PIXELS)]
    results = Segmenter(small_spec(tiny_checkpoint)).segment(images)
    table = segmented_table(fetched(*((data, None, "new") for data in images)).drop_columns(["data"]), results)
    place = {"geotiff": {"crs": "EPSG:32633", "transform": TRANSFORM}}
    assert [text and json.loads(text) for text in table.column("attributes").to_pylist()] == [place, None, None, None]
    assert table.column("error_code").to_pylist() == [None, None, "decode_failed", None]
    given = fetched((images[0], None, "new")).drop_columns(["data"])
    given = given.set_column(given.column_names.index("attributes"), "attributes", [['{"caption": "a field"}']])
    [text] = segmented_table(given, results[:1]).column("attributes").to_pylist()
    assert json.loads(text) == {"caption": "a field", **place}
