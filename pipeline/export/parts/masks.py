"""The masks of an image, decoded for a format. All raise RunError, of one line, for a damaged mask.

Legend: H, W pixels of the image; h, w of a box; `_WH` transposed, column-major.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from m2f_core.masks.box import Box
from m2f_core.masks.paint import decode_in_box, paint_counts, painted_runs
from m2f_core.masks.rle import LabelRuns, decode
from pipeline.export.format import ExportImage, Segment


def whole_mask(image: ExportImage, segment: Segment) -> NDArray[np.bool_]:
    """The mask, [H, W]."""
    with _decoding(image, segment):
        return decode(segment.counts, image.height, image.width)


def mask_in_box(image: ExportImage, segment: Segment) -> tuple[Box, NDArray[np.bool_]]:
    """The box of the mask, and the mask in it, [h, w]."""
    with _decoding(image, segment):
        return decode_in_box(segment.counts, image.height, image.width)


def painted(image: ExportImage, value_of: Callable[[Segment], int], background: int = 0) -> LabelRuns:
    """The runs of the map in which each segment has its value. RunError also if two segments share a pixel."""
    masks = [(segment.counts, value_of(segment)) for segment in image.segments]
    try:
        return painted_runs(masks, image.height, image.width, background)
    except ValueError:
        overlap = first_overlap(image)
    assert overlap is not None, "no mask is damaged"
    segment, taken = overlap
    raise image.damaged(segment, f"{taken} of its pixels belong to other segments of its image") from None


def first_overlap(image: ExportImage) -> tuple[Segment, int] | None:
    """The first segment that shares pixels with segments before it, and how many; None if there is none."""
    try:
        painted_runs([(segment.counts, 1) for segment in image.segments], image.height, image.width)
    except ValueError:  # which one, and why, the map shows
        map_WH = np.zeros((image.width, image.height), np.uint8)
        for segment in image.segments:
            with _decoding(image, segment):
                if taken := paint_counts(map_WH, segment.counts, 1):
                    return segment, taken
    return None


@contextmanager
def _decoding(image: ExportImage, segment: Segment) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise image.damaged(segment, error) from None
