"""The documented image processor: batches, refusals, files. Values are held against transformers in tests/parity."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2f_core import Mask2FormerImageProcessor
from m2f_core.config.labels import LabelMap
from m2f_core.masks.panoptic_png import PANOPTIC_VOID
from m2f_core.training.targets import panoptic_map

EDGES = {"size": {"shortest_edge": 50, "longest_edge": 90}}


def noise_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


def bands(height: int, width: int, values: list[int]) -> np.ndarray:
    """A map of horizontal bands."""
    return np.array(values)[np.arange(height) * len(values) // height][:, None].repeat(width, 1)


def test_images_of_several_sizes_are_padded_to_the_largest() -> None:
    processor = Mask2FormerImageProcessor(**EDGES)
    sizes_hw = [(40, 60), (60, 40), (33, 33)]
    images = [noise_image(*hw) for hw in sizes_hw]
    maps = [bands(*hw, [3, 255, 70_000]) for hw in sizes_hw]
    batch = processor(images, maps, {3: 1, 70_000: 2}, ignore_index=255, return_tensors="pt")
    assert batch.pixel_values.shape == (3, 3, 96, 96) and batch.pixel_mask.shape == (3, 96, 96)
    for i, image in enumerate(images):
        alone = processor(image, return_tensors="pt").pixel_values[0]
        height, width = alone.shape[1:]
        assert torch.equal(batch.pixel_values[i, :, :height, :width], alone)
        inside = batch.pixel_mask[i].bool()
        assert inside.sum() == height * width and inside[:height, :width].all()
        assert not batch.pixel_values[i][:, ~inside].any() and not batch.mask_labels[i][:, ~inside].any()
        assert batch.class_labels[i].tolist() == [1, 2]
        # The nearest of the source's rows, by the centres of the target's.
        source_rows = ((np.arange(height) + 0.5) * image.height / height).astype(int)
        expected = bands(image.height, 1, [3, 255, 70_000])[source_rows, 0]
        np.testing.assert_array_equal(batch.mask_labels[i][0, :height, 0].numpy(), expected == 3)
        np.testing.assert_array_equal(batch.mask_labels[i][1, :height, width - 1].numpy(), expected == 70_000)


def test_memory_order_and_type_of_a_map_do_not_matter() -> None:
    map_HW = np.random.default_rng(0).integers(0, 5, (30, 41))
    variants = [map_HW, np.asfortranarray(map_HW), map_HW.astype(np.uint8), map_HW.astype(np.int16)[::-1][::-1]]
    variants += [map_HW.astype(np.float64), torch.from_numpy(map_HW), Image.fromarray(map_HW.astype(np.uint8))]
    processor = Mask2FormerImageProcessor(**EDGES)
    masks = [processor(noise_image(30, 41), variant, return_tensors="pt").mask_labels[0] for variant in variants]
    assert all(torch.equal(m, masks[0]) for m in masks)


def test_a_panoptic_map_goes_through_the_processor(shared_data: Path) -> None:
    """Crowds are void in the batch too, and segments that vanish in resizing are no targets."""
    coco_things = shared_data / "coco_things"
    content = json.loads((coco_things / "panoptic.json").read_text(encoding="utf-8"))
    annotation = content["annotations"][0]
    png = Image.open(coco_things / "panoptic" / annotation["file_name"])
    image = Image.open(coco_things / "images" / annotation["file_name"].replace(".png", ".jpg")).convert("RGB")
    first, *others = annotation["segments_info"]
    class_ids = LabelMap.of_dataset("coco-panoptic").class_id_of_category
    map_HW, mapping = panoptic_map(png, [{**first, "iscrowd": 1}, *others], class_ids)
    assert first["id"] not in mapping and first["id"] not in map_HW
    processor = Mask2FormerImageProcessor(size={"height": 64, "width": 96})
    batch = processor(image, map_HW, mapping, ignore_index=PANOPTIC_VOID)
    small_HW = np.asarray(Image.fromarray(map_HW).resize((96, 64), Image.Resampling.NEAREST))
    ids = [i for i in np.unique(small_HW).tolist() if i != PANOPTIC_VOID]
    assert 0 < len(ids) < len(others)
    assert batch["class_labels"][0].tolist() == [mapping[i] for i in ids]
    assert batch["mask_labels"][0].sum((1, 2)).tolist() == [(small_HW == i).sum() for i in ids]


def test_encode_inputs_takes_what_is_processed_already() -> None:
    """As in version 4 of transformers: no pixel is resized or normalised, images are padded, maps become masks."""
    pixels = [
        np.random.default_rng(i).normal(size=(3, *hw)).astype(np.float32) for i, hw in enumerate([(8, 9), (5, 12)])
    ]
    maps = [bands(8, 9, [1, 2]), bands(5, 12, [2, 0])]
    processor = Mask2FormerImageProcessor()
    batch = processor.encode_inputs(pixels, maps, ignore_index=0, return_tensors="pt")
    assert batch.pixel_values.shape == (2, 3, 8, 12)
    for i, image in enumerate(pixels):
        np.testing.assert_array_equal(batch.pixel_values[i, :, : image.shape[1], : image.shape[2]].numpy(), image)
    assert [classes.tolist() for classes in batch.class_labels] == [[1, 2], [2]]
    assert batch.mask_labels[1].sum() == 3 * 12
    with pytest.raises(ValueError, match=r"segmentation map 1: .*whole numbers"):
        processor.encode_inputs(pixels, [maps[0], maps[1] + 0.5])


@pytest.mark.parametrize(
    ("images", "maps", "mapping", "message"),
    [
        ([], None, None, "images is empty"),
        ("photo.jpg", None, None, "not str; open files first"),
        ([noise_image(8, 8)] * 2, [bands(8, 8, [1])], None, "2 images, 1 segmentation maps"),
        (noise_image(8, 8), [bands(8, 8, [1])] * 2, None, "1 images, 2 segmentation maps"),
        ([noise_image(8, 8)] * 2, [bands(8, 8, [1])] * 2, [{1: 1}], "1 mappings"),
        (noise_image(8, 8), bands(8, 8, [1]), {2: 0}, "segmentation map 0: instance 1"),
        (noise_image(8, 8), np.full((8, 8), 0.5), None, "whole numbers"),
        (noise_image(8, 8), np.zeros((8, 8, 3), np.uint8), None, "1 images, 8 segmentation maps"),
        (noise_image(8, 8), noise_image(8, 8), None, r"segmentation map 0: .* \[H, W\]"),
        (noise_image(8, 8).convert("L"), None, None, "image_mean has 3 numbers, but an image has 1 channels"),
        (np.full((8, 8, 3), 300), None, None, "not from 300 to 300"),
        (np.full((8, 8, 3), 1.5), None, None, "not from 1.5 to 1.5"),
        (np.zeros((8, 9, 10), np.uint8), None, None, "no axis of 1, 3 or 4 channels"),
        (np.zeros((2, 2, 2, 2, 3), np.uint8), None, None, "neither an image nor a stack"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_batches_are_refused(images: object, maps: object, mapping: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mask2FormerImageProcessor(size={"height": 32, "width": 32})(images, maps, mapping)


def test_unknown_and_wrong_parameters_are_refused_by_name() -> None:
    processor = Mask2FormerImageProcessor()
    with pytest.raises(TypeError, match="unknown parameter 'image_size'"):
        processor(noise_image(8, 8), image_size=384)
    with pytest.raises(ValueError, match="size = 'large'"):
        processor(noise_image(8, 8), size="large")
    with pytest.raises(ValueError, match="size = 'large'"):
        Mask2FormerImageProcessor(size="large")
    with pytest.raises(ValueError, match="return_tensors must be"):
        processor(noise_image(8, 8), return_tensors="tf")
    with pytest.raises(ValueError, match="input_data_format"):
        processor(np.asarray(noise_image(8, 8)), input_data_format="last")
    with pytest.raises(ValueError, match="needs an ignore_index"):
        processor(noise_image(8, 8), bands(8, 8, [1]), do_reduce_labels=True)
    with pytest.raises(ValueError, match="smaller than an image"):
        processor(noise_image(8, 8), size={"height": 64, "width": 64}, pad_size={"height": 32, "width": 64})


def test_files(tmp_path: Path) -> None:
    """Everything of a file is kept, also what has no effect; older names are read."""
    file = {**EDGES, "reduce_labels": True, "ignore_index": 0, "num_labels": 150, "note": "ours", "_max_size": 1333}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(file))
    processor = Mask2FormerImageProcessor.from_pretrained(tmp_path, resample=3)
    assert processor.do_reduce_labels is True and processor.ignore_index == 0 and processor.resample == 3
    processor.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert saved["note"] == "ours" and saved["do_reduce_labels"] is True and "_max_size" not in saved
    assert saved["image_processor_type"] == "Mask2FormerImageProcessor"
    assert Mask2FormerImageProcessor.from_pretrained(tmp_path / "saved") == processor
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text("{}")
    assert Mask2FormerImageProcessor.from_pretrained(tmp_path / "bare") == Mask2FormerImageProcessor()


def test_a_batch_moves_and_changes_its_type() -> None:
    batch = Mask2FormerImageProcessor(**EDGES)(noise_image(8, 8), bands(8, 8, [1]), return_tensors="pt")
    moved = batch.to("cpu", torch.float16)
    assert moved is batch
    assert batch.pixel_values.dtype == batch["mask_labels"][0].dtype == torch.float16
    assert batch.pixel_mask.dtype == batch.class_labels[0].dtype == torch.int64
    with pytest.raises(AttributeError, match="pixels"):
        _ = batch.pixels
