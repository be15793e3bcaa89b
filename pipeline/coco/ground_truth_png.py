"""Pixels of the ground truth: panoptic PNGs, whose colours are segment ids, and label PNGs, whose values are classes.

Legend: H, W pixels of the image.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2f_core.masks.panoptic_png import PANOPTIC_VOID, panoptic_ids
from m2f_core.masks.rle import LabelRuns, encode_counts, encode_runs, label_runs, runs_to_label_map
from pipeline.coco.ground_truth import GtImage
from pipeline.errors import RunError
from pipeline.store.filesystem import one_line
from pipeline.store.objects import read_uri

IGNORED = -1  # class of a pixel that is not scored
IGNORED_LABEL = 255  # value of such a pixel in a label PNG


def read_panoptic_pixels(image: GtImage) -> NDArray[np.uint8]:
    """Read the PNG of segment ids, uint8 [H, W, 3]. RunError if its size differs from the JSON's."""
    pixels_HW3 = _read_png(image, ("RGB",), "an RGB image of segment ids")
    if pixels_HW3.shape[:2] != image.size:
        raise RunError(f"{image.png} is {pixels_HW3.shape[:2]} (height, width), but the JSON says {image.size}")
    return pixels_HW3


def read_panoptic_png(image: GtImage) -> LabelRuns:
    """Read the runs of segment ids. RunError if ids or size differ from the JSON's."""
    runs = label_runs(panoptic_ids(read_panoptic_pixels(image)))
    unknown = set(np.unique(runs.values).tolist()) - {segment["id"] for segment in image.annotations} - {PANOPTIC_VOID}
    if unknown:
        raise RunError(f"{image.png} holds segment {min(unknown)}, which is not in the image's segments_info")
    return runs


def panoptic_records(image: GtImage, runs: LabelRuns) -> Iterator[dict[str, Any]]:
    """The segments as COCO annotations: category_id, iscrowd, segmentation (empty for a segment without pixels)."""
    assert image.size is not None
    height, width = image.size
    counts = {rle.label: rle.counts for rle in encode_runs(runs, height, width)}
    empty = encode_counts(np.array([height * width]))
    for segment in image.annotations:
        rle = {"size": [height, width], "counts": counts.get(segment["id"], empty)}
        yield {"category_id": segment["category_id"], "iscrowd": segment["iscrowd"], "segmentation": rle}


def panoptic_classes(image: GtImage, runs: LabelRuns, class_of: dict[int, int]) -> NDArray[np.int32]:
    """[H, W] class of each pixel's segment, crowds included; void is IGNORED. `class_of`: category_id -> class."""
    assert image.size is not None
    of_segment = {PANOPTIC_VOID: IGNORED, **{s["id"]: class_of[s["category_id"]] for s in image.annotations}}
    ids, place = np.unique(runs.values, return_inverse=True)
    classes = np.array([of_segment[segment_id] for segment_id in ids.tolist()], np.int32)[place]
    return runs_to_label_map(LabelRuns(classes, runs.lengths), *image.size)


def read_label_png(
    image: GtImage, num_classes: int, reduce_zero_label: bool, ignored_label: int = IGNORED_LABEL
) -> NDArray[np.int32]:
    """Read classes [H, W]; `ignored_label`, and with `reduce_zero_label` also 0, is IGNORED.

    RunError for an unknown class.
    """
    needed = "an image of one channel, or of three equal ones, its values class numbers"
    labels_HW = _read_png(image, ("1", "L", "P", "I", "I;16", "RGB"), needed)
    if labels_HW.ndim == 3:
        if (labels_HW != labels_HW[..., :1]).any():
            raise RunError(f"{image.png} is in colour; it must be {needed}")
        labels_HW = labels_HW[..., 0]
    return _classes(image, labels_HW, num_classes, reduce_zero_label, ignored_label)


def read_instance_map(
    image: GtImage, num_classes: int, reduce_zero_label: bool, ignored_label: int = IGNORED_LABEL
) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Read a map [H, W] of object ids, IGNORED where no object is, and the class of each object.

    The PNG's red channel is the class, as in `read_label_png`, and green tells the objects of a class apart.
    """
    pixels_HW3 = _read_png(image, ("RGB",), "an RGB image, its red the class and its green the object")
    classes_HW = _classes(image, pixels_HW3[..., 0], num_classes, reduce_zero_label, ignored_label)
    ids_HW = classes_HW * 256 + pixels_HW3[..., 1]
    ids_HW[classes_HW == IGNORED] = IGNORED
    ids = np.unique(ids_HW).tolist()
    return ids_HW, {number: number // 256 for number in ids if number != IGNORED}


def instance_map_records(
    ids_HW: NDArray[np.int32], class_of: dict[int, int], categories: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The objects of an instance map as COCO annotations without ids."""
    height, width = ids_HW.shape
    for rle in encode_runs(label_runs(ids_HW + 1), height, width):  # label 0 is no object there
        yield {
            "category_id": categories[class_of[rle.label - 1]]["id"],
            "iscrowd": 0,
            "area": rle.area,
            "bbox": list(rle.bbox_xywh),
            "segmentation": {"size": [height, width], "counts": rle.counts.decode("ascii")},
        }


def png_size(image: GtImage) -> tuple[int, int]:
    """(height, width) of the PNG, by its header."""
    with _opened(image) as opened:
        return opened.height, opened.width


def _classes(
    image: GtImage, labels_HW: NDArray[Any], num_classes: int, reduce_zero_label: bool, ignored_label: int
) -> NDArray[np.int32]:
    ignored_HW = labels_HW == ignored_label
    classes_HW = labels_HW.astype(np.int32) - int(reduce_zero_label)
    classes_HW[ignored_HW] = IGNORED
    if classes_HW.max() >= num_classes:
        value, first = labels_HW[classes_HW >= num_classes].min(), int(reduce_zero_label)
        raise RunError(
            f"{image.png} holds the value {value}, but the {num_classes} classes are numbered from {first}, and "
            f"{ignored_label} is ignored"
        )
    return classes_HW


def _read_png(image: GtImage, modes: tuple[str, ...], needed: str) -> NDArray[Any]:
    with _opened(image) as opened:
        if opened.mode not in modes:
            raise RunError(f"{image.png} is a {opened.mode} image; it must be {needed}")
        return np.asarray(opened)


@contextlib.contextmanager
def _opened(image: GtImage) -> Iterator[Image.Image]:
    assert image.png is not None
    data = read_uri(image.png, f"the ground truth of {image.name}:")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            yield opened
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RunError(f"{image.png} cannot be decoded: {one_line(error)}") from None
