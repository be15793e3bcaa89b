"""Training targets: turn annotations into the masks and classes that the loss compares predictions with.

There are three kinds of ground truth: a segmentation map whose values are classes or instances (as for transformers'
image processor), COCO panoptic (a PNG of segment ids and `segments_info`) and COCO instances (polygons or RLE, which
may overlap). In all kinds, a pixel without annotation (void, ignored, crowd) belongs to no mask, and an object without
a pixel is not a target.

Masks are bool, one byte per pixel: N * H * W bytes per image, a quarter of transformers' float32; the loss casts them.

Legend: N targets of one image; B images; H W pixels of the map or, after padding, of the batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from m2f_core.masks import rle
from m2f_core.masks.panoptic_png import PANOPTIC_VOID, panoptic_ids
from m2f_core.masks.polygons import fill_polygons


class Targets(NamedTuple):
    """The targets of one image."""

    mask_labels: torch.Tensor  # bool [N, H, W]
    class_labels: torch.Tensor  # int64 [N], the model's class ids


def map_targets(
    segmentation_map: ArrayLike,
    instance_id_to_semantic_id: Mapping[int, int] | None = None,
    ignore_index: int | None = None,
    do_reduce_labels: bool = False,
) -> Targets:
    """One mask for each value of an integer map [H, W] (or [1, H, W]) except `ignore_index`, in ascending order.

    A value is the class itself, or an instance whose class the mapping gives; so two instances of one class stay two
    masks. `do_reduce_labels` is for maps with 0 as background and classes from 1: 0 becomes `ignore_index`, which must
    be given, and every other value and class is reduced by one; the mapping has the values and classes before this
    reduction. All this equals transformers' `convert_segmentation_map_to_binary_masks`. Raises ValueError.
    """
    map_HW = checked_map(segmentation_map)
    if do_reduce_labels:
        if ignore_index is None:
            raise ValueError("do_reduce_labels needs an ignore_index as the new value of the background (0)")
        map_HW = np.where(map_HW == 0, np.int64(ignore_index), map_HW.astype(np.int64) - 1)
    values_N = np.unique(map_HW)
    if ignore_index is not None:
        values_N = values_N[values_N != ignore_index]
    offset = int(do_reduce_labels)
    class_ids = [_class_of(int(value) + offset, instance_id_to_semantic_id) - offset for value in values_N]
    if class_ids and min(class_ids) < 0:
        raise ValueError(
            f"the segmentation map holds class {min(class_ids)}, but classes count from 0; "
            "pass the value of pixels without a class as ignore_index"
        )
    return _targets(map_HW[None] == values_N[:, None, None], class_ids)


def panoptic_map(
    png_HW3: ArrayLike, segments_info: Sequence[Mapping[str, Any]], class_id_of_category: Mapping[int, int]
) -> tuple[NDArray[np.int32], dict[int, int]]:
    """A COCO panoptic annotation as a map of segment ids [H, W] and the class of each segment.

    Pixels of crowds become void, so that `map_targets` and `encode_inputs` accept map and classes with ignore_index =
    PANOPTIC_VOID. The PNG may be a crop. Raises ValueError if PNG, segments and categories do not fit together.
    """
    ids_HW = panoptic_ids(png_HW3)
    segments = {int(_field(segment, "id", "a segment")): segment for segment in segments_info}
    if len(segments) != len(segments_info) or PANOPTIC_VOID in segments:
        raise ValueError(f"the ids in segments_info must differ, and none may be {PANOPTIC_VOID}, which means void")
    if unknown := sorted(set(np.unique(ids_HW).tolist()) - segments.keys() - {PANOPTIC_VOID}):
        raise ValueError(f"the panoptic PNG has pixels of segment {unknown[0]}, which is not in segments_info")
    crowds = [segment_id for segment_id, segment in segments.items() if segment.get("iscrowd", 0)]
    ids_HW[np.isin(ids_HW, crowds)] = PANOPTIC_VOID
    class_ids = {
        segment_id: _class_of_category(segment, class_id_of_category, f"segment {segment_id}")
        for segment_id, segment in segments.items()
        if segment_id not in crowds
    }
    return ids_HW, class_ids


def panoptic_targets(
    png_HW3: ArrayLike, segments_info: Sequence[Mapping[str, Any]], class_id_of_category: Mapping[int, int]
) -> Targets:
    """The segments of a COCO panoptic annotation that have pixels, without crowds, in ascending order of id."""
    return map_targets(*panoptic_map(png_HW3, segments_info, class_id_of_category), ignore_index=PANOPTIC_VOID)


def instance_targets(
    annotations: Sequence[Mapping[str, Any]], height: int, width: int, class_id_of_category: Mapping[int, int]
) -> Targets:
    """The objects of one image of a COCO instance file in the order of `annotations`, without crowds; may overlap.

    Raises a ValueError that names the annotation.
    """
    masks, class_ids = [], []
    for mask_HW, class_id in instance_masks(annotations, height, width, class_id_of_category):
        masks.append(mask_HW)
        class_ids.append(class_id)
    return _targets(np.stack(masks) if masks else np.zeros((0, height, width), np.bool_), class_ids)


def instance_masks(
    annotations: Sequence[Mapping[str, Any]], height: int, width: int, class_id_of_category: Mapping[int, int]
) -> Iterator[tuple[NDArray[np.bool_], int]]:
    """Like `instance_targets`, but yields mask [H, W] and class id one after the other. Raises ValueError."""
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            continue
        name = f"annotation {annotation.get('id', '(without id)')}"
        class_id = _class_of_category(annotation, class_id_of_category, name)
        try:
            mask_HW = annotation_mask(_field(annotation, "segmentation", name), height, width)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        if mask_HW.any():
            yield mask_HW, class_id


def annotation_mask(segmentation: object, height: int, width: int) -> NDArray[np.bool_]:
    """Boolean mask [H, W] of a COCO `segmentation`: polygons, RLE as a list of run lengths, or compressed RLE."""
    if isinstance(segmentation, (list, tuple)) and segmentation:
        return fill_polygons(segmentation, height, width)
    if not isinstance(segmentation, Mapping) or "counts" not in segmentation or "size" not in segmentation:
        raise ValueError(
            f"a segmentation must be a list of polygons or an object with size and counts, not {segmentation!r:.80}"
        )
    size, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(f"the RLE has size {size!r:.80}, but the image has [{height}, {width}] (height, width)")
    if isinstance(counts, (list, tuple)):
        if not all(isinstance(length, int) for length in counts):
            raise ValueError("the counts of an uncompressed RLE must be whole numbers")
        try:
            counts = rle.encode_counts(np.array(counts, np.int64))
        except OverflowError:
            raise ValueError(f"run lengths must be numbers from 0 to {rle.MAX_PIXELS}") from None
    if not isinstance(counts, (str, bytes)):
        raise ValueError(f"the counts of an RLE must be a list, a string or bytes, not a {type(counts).__name__}")
    return rle.decode(counts.encode() if isinstance(counts, str) else counts, height, width)


def pad_masks(masks_NHW: torch.Tensor, padded_hw: tuple[int, int]) -> torch.Tensor:
    """Pad masks at the right and at the bottom with pixels that belong to no target.

    transformers pads with `ignore_index` instead, which puts 255 into the masks of 0 and 1 that its loss compares with.
    """
    height, width = masks_NHW.shape[1:]
    assert height <= padded_hw[0] and width <= padded_hw[1]
    return F.pad(masks_NHW, (0, padded_hw[1] - width, 0, padded_hw[0] - height))


def _targets(masks_NHW: NDArray[np.bool_], class_ids: Sequence[int]) -> Targets:
    return Targets(torch.from_numpy(masks_NHW), torch.tensor(class_ids, dtype=torch.int64))


def checked_map(segmentation_map: ArrayLike) -> NDArray[np.integer]:
    """A map of whole numbers [H, W] (or [1, H, W]), also in a floating-point type, as integers [H, W]. ValueError."""
    map_HW = np.asarray(segmentation_map)
    if map_HW.ndim == 3 and map_HW.shape[0] == 1:
        map_HW = map_HW[0]
    if map_HW.dtype.kind == "b":
        map_HW = map_HW.astype(np.uint8)
    if map_HW.dtype.kind == "f" and np.isfinite(map_HW).all() and (map_HW == np.rint(map_HW)).all():
        map_HW = map_HW.astype(np.int64)  # tools for augmentation return floating-point maps
    if map_HW.ndim != 2 or map_HW.size == 0 or map_HW.dtype.kind not in "iu":
        raise ValueError(
            f"a segmentation map must hold whole numbers and have shape [H, W], got {map_HW.dtype} of shape "
            f"{map_HW.shape}; use panoptic_ids to convert a COCO panoptic PNG"
        )
    info = np.iinfo(np.int32)
    if map_HW.dtype.itemsize >= 4 and (map_HW.min() < info.min or map_HW.max() > info.max):
        raise ValueError("the values of a segmentation map must fit into int32")
    return map_HW


def _class_of(value: int, instance_id_to_semantic_id: Mapping[int, int] | None) -> int:
    if instance_id_to_semantic_id is None:
        return value
    if value not in instance_id_to_semantic_id:
        raise ValueError(
            f"instance {value} is not in instance_id_to_semantic_id; "
            "pass the value of pixels without an instance as ignore_index"
        )
    return int(instance_id_to_semantic_id[value])


def _class_of_category(entry: Mapping[str, Any], class_id_of_category: Mapping[int, int], name: str) -> int:
    category_id = _field(entry, "category_id", name)
    if category_id not in class_id_of_category:
        raise ValueError(f"{name} has category {category_id}, which the model does not have")
    return class_id_of_category[category_id]


def _field(entry: Mapping[str, Any], field: str, name: str) -> Any:
    if field not in entry:
        raise ValueError(f"{name} has no {field}")
    return entry[field]
