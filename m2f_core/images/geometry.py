"""The three sizes of an image on its way through the network, and the windows that it may be cut into.

Legend: sizes are (height, width) in pixels, named `*_hw`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageGeometry:
    """Sizes of one image: as decoded, after resizing, after padding.

    `original_hw` is the frame of every mask, box and area in the tables: the decoded image, with EXIF orientation
    applied unless the caller turned that off. Padding is on the right and at the bottom only, so the resized image is
    `padded[:resized_h, :resized_w]`.

    `windows`: the first rows and columns (top, left) of the windows that the network sees of the resized image, one
    after the other, each of `padded_hw`; they may overlap. Without windows it sees the whole image at once.
    """

    original_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    padded_hw: tuple[int, int]
    windows: tuple[tuple[int, int], ...] = ()

    @property
    def num_inputs(self) -> int:
        """How many images of `padded_hw` the network sees."""
        return max(1, len(self.windows))
