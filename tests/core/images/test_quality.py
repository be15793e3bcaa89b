"""The figures of a picture against CleanVision's definitions, computed from all pixels by Pillow and numpy."""

from functools import cache

import duckdb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageEnhance, ImageFilter, ImageStat
from scipy.fft import dct
from skimage import data

from m2f_core.images.quality import KINDS, Quality, measure_quality
from pipeline.schema import QUALITY

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "camera", "rocket")


@cache
def photograph(name: str) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).convert("RGB")


def by_cleanvision(image: Image.Image) -> Quality:
    """github.com/cleanlab/cleanvision, issue_managers/image_property.py; the hash as imagehash.phash."""
    rgb = np.asarray(image).astype(float)
    brightness = np.sqrt(rgb**2 @ (0.241, 0.691, 0.068)) / 255
    p05, p99 = np.percentile(brightness, (5, 99))
    ratio = max(image.size) / 64
    small = image.resize(tuple(max(1, int(side // ratio)) for side in image.size)) if ratio > 1 else image
    grey = small.convert("L")
    sharpness = np.sqrt(ImageStat.Stat(grey.filter(ImageFilter.FIND_EDGES)).var[0])
    cells = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), float)
    low = dct(dct(cells, axis=0), axis=1)[:8, :8].ravel()
    phash = int(np.packbits(low > np.median(low)).view(">i8")[0])
    spread = float(np.std(grey.histogram()))
    is_grey = bool((np.ptp(np.asarray(image), axis=2) == 0).all())
    return Quality(float(p05), float(p99), image.entropy(), float(sharpness), spread, is_grey, phash)


def differing_bits(one: int, other: int) -> int:
    return ((one ^ other) & (2**64 - 1)).bit_count()


def kinds(quality: Quality) -> set[str]:
    columns = ", ".join(f"({condition}) AS {name}" for name, condition in KINDS.items())
    fields = ", ".join(f"{name} := {value}" for name, value in quality._asdict().items())
    [found] = duckdb.sql(f"SELECT {columns} FROM (SELECT struct_pack({fields}) AS quality)").fetchall()
    return {name for name, is_so in zip(KINDS, found, strict=True) if is_so}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_the_figures_of_a_sample_are_those_of_all_pixels(name):
    image = photograph(name)
    for shown in (image, image.resize((1600, 1200)), image.resize((60, 47)), image.rotate(90, expand=True)):
        found, expected = measure_quality(shown), by_cleanvision(shown)
        assert found[:2] == pytest.approx(expected[:2], abs=0.06)
        assert found.entropy == pytest.approx(expected.entropy, abs=0.1)
        assert found.sharpness == pytest.approx(expected.sharpness, rel=0.25)
        assert found.grey_spread == pytest.approx(expected.grey_spread, rel=0.25)
        assert found.is_grey == expected.is_grey
        assert differing_bits(found.phash, expected.phash) <= 10


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_pictures_with_a_fault_are_told_apart(name):
    sound = photograph(name)
    is_grey = {"grey"} & kinds(measure_quality(sound))
    spoilt = {
        "dark": ImageEnhance.Brightness(sound).enhance(0.2),
        "light": Image.eval(sound, lambda level: 250 + level // 64),
        "blurry": sound.filter(ImageFilter.GaussianBlur(max(sound.size) / 12)),
        "grey": sound.convert("L").convert("RGB"),
    }
    assert kinds(measure_quality(sound)) == is_grey
    for kind, image in spoilt.items():
        assert kinds(measure_quality(image)) == kinds(by_cleanvision(image)), kind
        # CleanVision finds no blur where few grey levels hold most pixels, or the borders of the picture are bright.
        assert kind in kinds(measure_quality(image)) or (kind == "blurry" and name in ("chelsea", "camera")), kind
    assert "low_information" in kinds(measure_quality(Image.new("RGB", (300, 200), (90, 120, 60))))


def test_the_hash_of_a_copy_is_near_and_of_another_picture_far():
    hashes = {name: measure_quality(photograph(name)).phash for name in PHOTOGRAPHS}
    for name, phash in hashes.items():
        small = photograph(name).resize((320, 213))
        assert differing_bits(phash, measure_quality(small).phash) <= 6
        assert all(differing_bits(phash, other) > 12 for one, other in hashes.items() if one != name)


@given(arrays(np.uint8, st.tuples(st.integers(1, 300), st.integers(1, 300), st.just(3)), elements=st.integers(0, 255)))
def test_pictures_of_any_size_have_figures(pixels):
    quality = measure_quality(Image.fromarray(pixels))
    assert 0 <= quality.brightness_p05 <= quality.brightness_p99 <= 1
    assert 0 <= quality.entropy <= np.log2(768)
    assert np.isfinite(quality[:5]).all() and -(2**63) <= quality.phash < 2**63


def test_the_tables_have_these_fields():
    assert tuple(field.name for field in QUALITY) == Quality._fields
