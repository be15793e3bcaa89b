"""Training batches of images and their segmentation maps, as transformers' image processor makes them.

Legend: N targets of one image; B images; H W pixels of the batch after padding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.training.targets import checked_map, map_targets, pad_masks


def encode_inputs(
    processor: ImageProcessor,
    images: Sequence[Image.Image],
    segmentation_maps: Sequence[ArrayLike] | None = None,
    instance_id_to_semantic_id: Mapping[int, int] | Sequence[Mapping[int, int]] | None = None,
    ignore_index: int | None = None,
    do_reduce_labels: bool = False,
) -> dict[str, Any]:
    """A training batch of RGB images and their segmentation maps, as `map_targets` takes them.

    Images and maps are resized to the processor's size, maps by Pillow's nearest neighbour, and padded to the batch's
    maximum. Returns `pixel_values` float32 [B, 3, H, W], `pixel_mask` bool [B, H, W] (true inside the image) and, with
    maps, the lists `mask_labels` of bool [N, H, W] and `class_labels` of int64 [N]. In mode `hf` all values except the
    padding of the masks equal transformers' `Mask2FormerImageProcessorPil`. A mapping may be given for each image.
    Raises ValueError.
    """
    if not images:
        raise ValueError("there are no images to encode")
    geometries = [processor.geometry(image.height, image.width) for image in images]
    padded_hw = (max(g.padded_hw[0] for g in geometries), max(g.padded_hw[1] for g in geometries))
    pixels_B3HW = processor.to_batch([processor.resize(image) for image in images], padded_hw)
    pixel_mask_BHW = torch.zeros((len(images), *padded_hw), dtype=torch.bool)
    for mask_HW, geometry in zip(pixel_mask_BHW, geometries, strict=True):
        mask_HW[: geometry.resized_hw[0], : geometry.resized_hw[1]] = True
    inputs: dict[str, Any] = {"pixel_values": pixels_B3HW, "pixel_mask": pixel_mask_BHW}
    if segmentation_maps is not None:
        mappings = _one_for_each(instance_id_to_semantic_id, len(images))
        if not len(images) == len(segmentation_maps) == len(mappings):
            counts = f"{len(images)} images, {len(segmentation_maps)} maps and {len(mappings)} mappings"
            raise ValueError(
                f"every image needs a segmentation map, and a mapping if mappings are a list; got {counts}"
            )
        inputs |= {"mask_labels": [], "class_labels": []}
        for index, (map_, geometry, mapping) in enumerate(zip(segmentation_maps, geometries, mappings, strict=True)):
            try:
                resized_map = _resize_map(checked_map(map_), geometry)
                targets = map_targets(resized_map, mapping, ignore_index, do_reduce_labels)
            except ValueError as error:
                raise ValueError(f"segmentation map {index}: {error}") from None
            inputs["mask_labels"].append(pad_masks(targets.mask_labels, padded_hw))
            inputs["class_labels"].append(targets.class_labels)
    return inputs


def _one_for_each(
    mapping: Mapping[int, int] | Sequence[Mapping[int, int]] | None, num_images: int
) -> Sequence[Mapping[int, int] | None]:
    return [mapping] * num_images if mapping is None or isinstance(mapping, Mapping) else mapping


def _resize_map(map_HW: NDArray[np.integer], geometry: ImageGeometry) -> NDArray[np.integer]:
    if map_HW.shape != geometry.original_hw:
        raise ValueError(f"the map has {map_HW.shape} pixels (height, width), but its image {geometry.original_hw}")
    pixels = Image.fromarray(map_HW.astype(np.int32))
    height, width = geometry.resized_hw
    return np.asarray(pixels.resize((width, height), Image.Resampling.NEAREST))
