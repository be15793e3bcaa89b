"""Pixels of an EoMT against transformers' EomtImageProcessorPil (`hf`) and against its authors' code (`reference`).

The authors' steps are written down here as they are in training/lightning_module.py of github.com/tue-mps/eomt.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_core.images.image_size import ImageSize
from m2f_core.images.square import MAX_WINDOWS, SquareProcessor

pytest.importorskip("transformers", reason="parity needs the oracle, transformers")

from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.models.eomt.image_processing_pil_eomt import EomtImageProcessorPil

SIDE = 64
PADDED = {"size": {"shortest_edge": SIDE, "longest_edge": SIDE}, "do_pad": True, "do_split_image": False}
CUT = {"size": {"shortest_edge": SIDE, "longest_edge": None}, "do_pad": False, "do_split_image": True}
OTHERS = [
    {},
    {"image_mean": 0.5, "image_std": [0.5, 0.25, 0.1], "rescale_factor": 1 / 256, "resample": 3},
    {"do_normalize": False},
]
SIZES_HW = [(48, 64), (64, 48), (64, 64), (200, 333), (333, 200), (201, 99), (3, 2), (17, 170), (170, 17), (640, 480)]


def noise_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def our_inputs(processor: SquareProcessor, image: Image.Image, on_device: bool = False) -> torch.Tensor:
    """What the network sees of an image, by the path of a CPU or by that of a device."""
    geometry = processor.geometry(image.height, image.width)
    if on_device:
        stored = [torch.from_numpy(np.array(image))]
        windows = [geometry.windows] if geometry.windows else None
        return processor.batch_by_torch(stored, [geometry.resized_hw], geometry.padded_hw, windows)
    small = processor.resize(image, geometry.resized_hw)
    parts = [small[top : top + SIDE, left : left + SIDE] for top, left in geometry.windows] or [small]
    return processor.to_batch([np.ascontiguousarray(part) for part in parts], geometry.padded_hw)


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("others", OTHERS, ids=str)
@pytest.mark.parametrize("cuts", [False, True], ids=["padded", "cut"])
@pytest.mark.parametrize("hw", SIZES_HW, ids=str)
def test_hf_equals_transformers_bitwise(hw: tuple[int, int], cuts: bool, others: dict, on_device: bool) -> None:
    config, image = {**(CUT if cuts else PADDED), **others}, noise_image(*hw)
    expected = EomtImageProcessorPil(**config)(images=[image], return_tensors="np")
    processor = SquareProcessor.read(config, "hf", None, SIDE, cuts)
    found = our_inputs(processor, image, on_device)
    np.testing.assert_array_equal(found.numpy(), np.stack(expected["pixel_values"]))
    if cuts:
        starts = [start for _, start, _ in np.stack(expected["patch_offsets"]).tolist()]
        assert [top + left for top, left in processor.geometry(*hw).windows] == starts


def authors_inputs(image: Image.Image, cuts: bool) -> torch.Tensor:
    """uint8 [n, 3, S, S]"""
    factor = (max if cuts else min)(SIDE / image.height, SIDE / image.width)
    height, width = round(image.height * factor), round(image.width * factor)
    resized = torch.from_numpy(np.array(image.resize((width, height), Image.BILINEAR))).permute(2, 0, 1)
    if not cuts:
        return torch.nn.functional.pad(resized, [0, SIDE - width, 0, SIDE - height])[None]
    num_crops = math.ceil(max(height, width) / SIDE)
    overlap = num_crops * SIDE - max(height, width)
    overlap_per_crop = (overlap / (num_crops - 1)) if overlap > 0 else 0
    starts = [int(j * (SIDE - overlap_per_crop)) for j in range(num_crops)]
    return torch.stack([resized[:, s : s + SIDE, :] if height > width else resized[:, :, s : s + SIDE] for s in starts])


@pytest.mark.parametrize("on_device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize("cuts", [False, True], ids=["padded", "cut"])
@pytest.mark.parametrize("hw", SIZES_HW, ids=str)
def test_reference_equals_its_authors_bitwise(hw: tuple[int, int], cuts: bool, on_device: bool) -> None:
    image = noise_image(*hw)
    mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = (authors_inputs(image, cuts) / 255.0 - mean) / std
    found = our_inputs(SquareProcessor.read(None, "reference", None, SIDE, cuts), image, on_device)
    assert torch.equal(found, expected)


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 512, 640]))
def test_sizes_are_theirs(height: int, width: int, side: int) -> None:
    padded = SquareProcessor.read(None, "hf", None, side, cuts=False).geometry(height, width)
    expected = get_size_with_aspect_ratio((height, width), side, side)
    assert padded.resized_hw == tuple(max(1, length) for length in expected)
    assert padded.padded_hw == (side, side) and padded.num_inputs == 1
    if max(height, width) <= 16 * min(height, width):
        cut = SquareProcessor.read(None, "hf", None, side, cuts=True).geometry(height, width)
        assert cut.resized_hw == get_size_with_aspect_ratio((height, width), side, None)


@given(st.integers(64, 64 * MAX_WINDOWS), st.booleans())
def test_windows_cover_an_image_and_stay_inside(longer: int, upright: bool) -> None:
    hw = (longer, 64) if upright else (64, longer)
    geometry = SquareProcessor.read(None, "reference", None, 64, cuts=True).geometry(*hw)
    starts = [max(window) for window in geometry.windows]
    assert starts[0] == 0 and starts[-1] == longer - 64 and geometry.num_inputs == math.ceil(longer / 64)
    assert all(0 < after - before <= 64 for before, after in pairwise(starts))
    assert all(min(window) == 0 for window in geometry.windows)


def test_an_image_of_too_many_windows_is_refused() -> None:
    for mode in ("reference", "hf"):
        processor = SquareProcessor.read(None, mode, None, 64, cuts=True)
        for hw in ((1, 1000), (100_000, 2)):
            with pytest.raises(ValueError, match="times as long as it is wide, but at most 32 windows"):
                processor.geometry(*hw)


@pytest.mark.parametrize("cuts", [False, True])
def test_a_written_file_is_read_by_transformers(cuts: bool) -> None:
    processor = SquareProcessor.read({"image_mean": [0.1, 0.2, 0.3]}, "hf", None, SIDE, cuts)
    written = processor.to_preprocessor_config()
    assert SquareProcessor.read(written, "hf", None, SIDE, cuts) == processor
    image = noise_image(70, 130)
    expected = EomtImageProcessorPil(**written)(images=[image], return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(our_inputs(processor, image).numpy(), np.stack(expected))


@pytest.mark.parametrize(
    ("config", "image_size", "said"),
    [
        ({"size": {"shortest_edge": 640, "longest_edge": 640}}, None, "preprocessor_config.json: size = "),
        ({"size": 32}, None, "preprocessor_config.json: size = 32"),
        ({"size": {"height": 64, "width": 96}}, None, "preprocessor_config.json: size = "),
        ({"do_resize": False}, None, "preprocessor_config.json: do_resize = false"),
        ({"image_std": 0}, None, "preprocessor_config.json: image_std"),
        (None, "800:1333", "image size 800:1333"),
        (None, "64:65", "image size 64:65"),
        (None, "128x128", "image size 128x128"),
    ],
    ids=str,
)
def test_another_size_is_refused_in_one_line(config: dict | None, image_size: str | None, said: str) -> None:
    size = None if image_size is None else ImageSize.parse(image_size)
    with pytest.raises(ValueError) as error:
        SquareProcessor.read(config, "reference", size, 64, cuts=False)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize("image_size", ["64:64", "64x64"])
def test_its_own_size_may_be_spelled_out(image_size: str) -> None:
    spelled = SquareProcessor.read(None, "reference", ImageSize.parse(image_size), 64, cuts=False)
    assert spelled == SquareProcessor.read(None, "reference", None, 64, cuts=False)
