"""Mode `hf` against transformers' Mask2FormerImageProcessorPil, mode `reference` against detectron2's constants.

Legend: h w resized pixels, H W padded pixels.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_core.images.image_processor import ImageProcessor
from pipeline.decoding.decode import decode_image
from tests.support.places import SHARED_DATA

transformers = pytest.importorskip("transformers", reason="parity needs the oracle, transformers")

from transformers.image_transforms import get_size_with_aspect_ratio  # noqa: E402
from transformers.models.mask2former.image_processing_pil_mask2former import (  # noqa: E402
    Mask2FormerImageProcessorPil,
)

torch.set_num_threads(1)

PHOTOS = SHARED_DATA / "photos"
PHOTO_FILES = sorted(PHOTOS.glob("*.*"))

CONFIGS = {
    "class defaults": {},
    "published": {
        "size": {"height": 384, "width": 384},
        "image_mean": [0.48500001430511475, 0.4560000002384186, 0.4059999883174896],
        "image_std": [0.2290000021457672, 0.2240000069141388, 0.22499999403953552],
    },
    "edges": {"size": {"shortest_edge": 200, "longest_edge": 333}},
    "legacy": {"size": 200, "max_size": 333},
    "not a multiple of 32": {"size": {"height": 100, "width": 150}},
    "bicubic": {"size": {"shortest_edge": 100, "longest_edge": 160}, "resample": 3},
    "coarser": {"size": {"shortest_edge": 100, "longest_edge": 160}, "size_divisor": 64},
    "finer": {"size": {"shortest_edge": 100, "longest_edge": 160}, "size_divisor": 8},
    "as it comes": {"size": {"shortest_edge": 50, "longest_edge": 90}, "size_divisor": 0},
    "other numbers": {"size": [96, 96], "image_mean": 0.5, "image_std": [0.5, 0.25, 0.1], "rescale_factor": 1 / 256},
    "no normalising": {"size": [96, 96], "do_normalize": False},
    "no rescaling": {"size": [96, 96], "do_rescale": False, "image_mean": [100, 110, 120], "image_std": [50, 60, 70]},
}
SIZES_HW = [(48, 64), (64, 48), (48, 48), (200, 333), (333, 200), (201, 333), (1, 1), (3, 2), (10, 400), (400, 10)]


def hf_pixels(config: dict[str, object], image: Image.Image) -> np.ndarray:
    """float32 [3, H, W] as transformers makes it."""
    processor = Mask2FormerImageProcessorPil(**config)
    return processor(images=[image], do_convert_rgb=True, return_tensors="np")["pixel_values"][0]


def our_pixels(config: dict[str, object], mode: str, image: Image.Image) -> np.ndarray:
    processor = ImageProcessor.from_preprocessor_config(config, mode, None)
    geometry = processor.geometry(image.height, image.width)
    return processor.to_batch([processor.resize(image)], geometry.padded_hw)[0].numpy()


def noise_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("hw", SIZES_HW, ids=str)
def test_hf_equals_transformers_bitwise(name: str, hw: tuple[int, int]) -> None:
    if name == "class defaults" and hw not in SIZES_HW[:2]:
        pytest.skip("large; two sizes suffice")
    image = noise_image(*hw)
    np.testing.assert_array_equal(our_pixels(CONFIGS[name], "hf", image), hf_pixels(CONFIGS[name], image))


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1500), st.integers(0, 1500))
def test_hf_sizes_equal_transformers(height: int, width: int, shortest: int, extra: int) -> None:
    size = {"shortest_edge": shortest, "longest_edge": shortest + extra}
    theirs = get_size_with_aspect_ratio((height, width), shortest, shortest + extra)
    ours = ImageProcessor.from_preprocessor_config({"size": size}, "hf", None).geometry(height, width).resized_hw
    assert ours == tuple(max(1, -(-length // 32)) * 32 for length in theirs)  # theirs may be 0, which then fails


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"test photographs are not at {PHOTOS}")
@pytest.mark.parametrize("path", PHOTO_FILES, ids=lambda path: path.name)
def test_photographs(path: Path) -> None:
    image = decode_image(path.read_bytes(), max_pixels=64_000_000, apply_exif=True)
    for name in ("published", "edges"):
        np.testing.assert_array_equal(our_pixels(CONFIGS[name], "hf", image), hf_pixels(CONFIGS[name], image))

    # detectron2, from its constants. The published file has them divided by 255 and rounded to float32, which costs the
    # last bit (2.4e-7); with 0.485, ... the two are equal.
    reference_3HW = our_pixels(CONFIGS["published"], "reference", image)
    pixels_hw3 = np.asarray(image.resize((384, 384), Image.Resampling.BILINEAR)).astype(np.float32)
    expected_hw3 = (pixels_hw3 - np.float32([123.675, 116.28, 103.53])) / np.float32([58.395, 57.12, 57.375])
    np.testing.assert_allclose(reference_3HW, expected_hw3.transpose(2, 0, 1), rtol=0, atol=5e-7)
    exact_config = {"size": CONFIGS["published"]["size"]}
    np.testing.assert_array_equal(our_pixels(exact_config, "reference", image), expected_hw3.transpose(2, 0, 1))
