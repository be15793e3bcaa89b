"""The three sizes of an image on its way through the network.

Legend: sizes are (height, width) in pixels, named `*_hw`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageGeometry:
    """Sizes of one image: as decoded, after resizing, after padding.

    `original_hw` is the frame of every mask, box and area in the tables: the decoded image, with EXIF orientation
    applied unless the caller turned that off. Padding is on the right and at the bottom only, so the resized image is
    `padded[:resized_h, :resized_w]`.
    """

    original_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    padded_hw: tuple[int, int]
