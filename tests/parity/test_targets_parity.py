"""Training inputs in mode `hf` against transformers' Mask2FormerImageProcessorPil, bit for bit but for the padding.

Legend: N targets; H W padded pixels; h w resized pixels.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from m2f_core import Mask2FormerImageProcessor
from m2f_core.training.targets import map_targets

transformers = pytest.importorskip("transformers", reason="parity needs the oracle, transformers")

from transformers.models.mask2former.image_processing_pil_mask2former import (  # noqa: E402
    Mask2FormerImageProcessorPil,
    convert_segmentation_map_to_binary_masks,
)

torch.set_num_threads(1)

CONFIGS = {
    "edges": {"size": {"shortest_edge": 64, "longest_edge": 100}},
    "fixed": {"size": {"height": 96, "width": 64}},
    "coarser": {"size": {"shortest_edge": 40, "longest_edge": 200}, "size_divisor": 64},
}
IGNORE = 255

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=60)
maps = st.sampled_from([np.uint8, np.int32, np.int64]).flatmap(
    lambda dtype: hnp.arrays(dtype, shapes, elements=st.sampled_from([0, 1, 2, 7, 200, IGNORE]))
)


def noise_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def blocks(seed: int, height: int, width: int, num_values: int) -> np.ndarray:
    """A map of rectangles over a background of 255."""
    rng = np.random.default_rng(seed)
    map_HW = np.full((height, width), IGNORE, np.uint8)
    for value in range(num_values):
        y, x = rng.integers(0, height), rng.integers(0, width)
        map_HW[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = value
    return map_HW


def assert_equal_targets(masks_NHW: torch.Tensor, class_ids_N: torch.Tensor, theirs: tuple) -> None:
    their_masks_NHW, their_class_ids_N = (torch.as_tensor(array) for array in theirs)
    assert their_masks_NHW.dtype == torch.float32
    assert torch.equal(masks_NHW.float(), their_masks_NHW)
    assert class_ids_N.dtype == their_class_ids_N.dtype == torch.int64
    assert torch.equal(class_ids_N, their_class_ids_N)


@given(maps, st.sampled_from([None, 0, IGNORE]), st.booleans(), st.booleans())
@settings(max_examples=3 * settings.default.max_examples)
def test_binary_masks_equal_transformers(
    map_HW: np.ndarray, ignore_index: int | None, reduce: bool, instances: bool
) -> None:
    mapping = {value: 1 + value % 3 for value in range(257)} if instances else None
    reduce = reduce and ignore_index is not None
    theirs = convert_segmentation_map_to_binary_masks(map_HW.copy(), mapping, ignore_index, reduce)
    assert_equal_targets(*map_targets(map_HW, mapping, ignore_index, reduce), theirs)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("task", ["semantic", "reduced", "instances", "a mapping each"])
def test_batches_equal_transformers(name: str, task: str) -> None:
    sizes_hw = [(48, 64), (64, 48), (30, 200), (61, 61)]
    images = [noise_image(*hw) for hw in sizes_hw]
    maps_ = [blocks(i, *hw, num_values=6) for i, hw in enumerate(sizes_hw)]
    mapping: object = None
    if task == "instances":
        mapping = {value: value // 2 for value in range(6)}
    elif task == "a mapping each":
        mapping = [{value: (value + i) % 4 for value in range(6)} for i in range(4)]
    options = {"ignore_index": IGNORE, "do_reduce_labels": task == "reduced"}

    processor = Mask2FormerImageProcessorPil(**CONFIGS[name])
    theirs = processor(images, maps_, mapping, return_tensors="pt", **options)
    ours = Mask2FormerImageProcessor(**CONFIGS[name])(images, maps_, mapping, return_tensors="pt", **options)
    assert ours.keys() == set(theirs.keys())
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(ours["pixel_mask"], theirs["pixel_mask"])
    for i in range(len(images)):
        height, width = (int(ours["pixel_mask"][i].any(axis).sum()) for axis in (1, 0))
        masks_NHW, their_masks_NHW = ours["mask_labels"][i], theirs["mask_labels"][i]
        assert masks_NHW.shape == their_masks_NHW.shape
        assert_equal_targets(
            masks_NHW[:, :height, :width],
            ours["class_labels"][i],
            (their_masks_NHW[:, :height, :width], theirs["class_labels"][i]),
        )
        assert not masks_NHW[:, ours["pixel_mask"][i] == 0].any()


def test_transformers_pads_masks_with_the_ignore_index() -> None:
    """Why padding is compared with zero above. Once this fails, transformers is mended and padding can be compared."""
    sizes_hw = [(64, 64), (64, 96)]
    processor = Mask2FormerImageProcessorPil(**CONFIGS["edges"])
    batch = processor(
        [noise_image(*hw) for hw in sizes_hw], [np.zeros(hw, np.uint8) for hw in sizes_hw], ignore_index=7
    )
    assert np.unique(batch["mask_labels"][0]).tolist() == [1.0, 7.0]


def test_nothing_to_find_equals_transformers() -> None:
    images, maps_ = [noise_image(40, 50)], [np.full((40, 50), IGNORE, np.uint8)]
    theirs = Mask2FormerImageProcessorPil(**CONFIGS["edges"])(images, maps_, ignore_index=IGNORE, return_tensors="pt")
    ours = Mask2FormerImageProcessor(**CONFIGS["edges"])(images, maps_, ignore_index=IGNORE, return_tensors="pt")
    assert ours["mask_labels"][0].shape == theirs["mask_labels"][0].shape == (0, 64, 96)
    assert_equal_targets(
        ours["mask_labels"][0], ours["class_labels"][0], (theirs["mask_labels"][0], theirs["class_labels"][0])
    )


def test_a_real_batch_equals_transformers(shared_data) -> None:
    """COCO photographs with their panoptic segments, renumbered: transformers takes no value above 255."""
    folder = shared_data / "coco_things"
    names = sorted(path.stem for path in (folder / "panoptic").glob("*.png"))[:4]
    images = [Image.open(folder / "images" / f"{name}.jpg").convert("RGB") for name in names]
    maps_ = []
    for name in names:
        rgb = np.asarray(Image.open(folder / "panoptic" / f"{name}.png")).astype(np.int64)
        _, inverse = np.unique(rgb @ np.array([1, 256, 65536]), return_inverse=True)
        maps_.append(inverse.reshape(rgb.shape[:2]))
    theirs = Mask2FormerImageProcessorPil(**CONFIGS["edges"])(images, maps_, ignore_index=0, return_tensors="pt")
    ours = Mask2FormerImageProcessor(**CONFIGS["edges"])(images, maps_, ignore_index=0, return_tensors="pt")
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    for masks_NHW, their_masks_NHW in zip(ours["mask_labels"], theirs["mask_labels"], strict=True):
        assert torch.equal(masks_NHW, their_masks_NHW)  # padded with 0 by both, since 0 is ignored
    for class_ids_N, their_class_ids_N in zip(ours["class_labels"], theirs["class_labels"], strict=True):
        assert torch.equal(class_ids_N, their_class_ids_N)
