"""The masks of an image, decoded for a format. All raise RunError, of one line, for a damaged mask.

Legend: H, W pixels of the image; h, w of a box; `_WH` transposed, column-major.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from m2f_core.masks.box import Box
from m2f_core.masks.paint import decode_in_box, paint_counts
from m2f_core.masks.rle import decode
from pipeline.export.format import ExportImage, Segment


def whole_mask(image: ExportImage, segment: Segment) -> NDArray[np.bool_]:
    """The mask, [H, W]."""
    with _decoding(image, segment):
        return decode(segment.counts, image.height, image.width)


def mask_in_box(image: ExportImage, segment: Segment) -> tuple[Box, NDArray[np.bool_]]:
    """The box of the mask, and the mask in it, [h, w]."""
    with _decoding(image, segment):
        return decode_in_box(segment.counts, image.height, image.width)


def paint(image: ExportImage, segment: Segment, map_WH: NDArray[np.unsignedinteger], value: int) -> int:
    """Set the pixels of the mask to `value`; how many of them were not 0 before."""
    with _decoding(image, segment):
        return paint_counts(map_WH, segment.counts, value)


def paint_apart(image: ExportImage, map_WH: NDArray[np.unsignedinteger], value_of: Callable[[Segment], int]) -> None:
    """Set the pixels of each segment to its value. RunError also if two segments share a pixel."""
    for segment in image.segments:
        if taken := paint(image, segment, map_WH, value_of(segment)):
            raise image.damaged(segment, f"{taken} of its pixels belong to other segments of its image")


@contextmanager
def _decoding(image: ExportImage, segment: Segment) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise image.damaged(segment, error) from None
