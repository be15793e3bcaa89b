"""The size images are brought to before the network, and its two written forms.

Apart from `image_processor.py` so that a command line can parse a size without importing torch.
"""

import re
from dataclasses import dataclass

_WRITTEN = re.compile(r"([0-9]{1,6})([:x])([0-9]{1,6})")


MAX_PIXELS_A_SIDE = 16_384  # a slip of the finger, not a wish: one image would be 3 GB


@dataclass(frozen=True)
class ImageSize:
    """A target size in pixels: either `edges` or `fixed_hw` is set.

    `edges` = (shortest, longest) keeps the aspect ratio: the shorter edge gets `shortest` unless that made the longer
    one exceed `longest`. `fixed_hw` = (height, width) is the same for every image, whatever its aspect ratio.
    """

    edges: tuple[int, int] | None = None
    fixed_hw: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.edges is None) == (self.fixed_hw is None):
            raise ValueError("an image size has either edges or a fixed height and width")
        if min(self.edges or self.fixed_hw or ()) < 1:
            raise ValueError(f"image size {self}: every length must be at least 1 pixel")
        if max(self.fixed_hw or (self.edges or ())[:1]) > MAX_PIXELS_A_SIDE:
            raise ValueError(
                f"image size {self}: no network of this kind takes more than {MAX_PIXELS_A_SIDE} pixels a side"
            )
        if self.edges is not None and self.edges[0] > self.edges[1]:
            raise ValueError(f"image size {self}: the shortest edge, written first, is longer than the longest edge")

    @classmethod
    def parse(cls, text: str) -> "ImageSize":
        """Read "800:1333" (shortest:longest edge) or "384x384" (height x width); `str` is the inverse."""
        match = _WRITTEN.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"image size {text!r} is neither shortest:longest edge, such as 800:1333, "
                "nor height x width, such as 384x384"
            )
        lengths = (int(match[1]), int(match[3]))
        return cls(edges=lengths) if match[2] == ":" else cls(fixed_hw=lengths)

    def __str__(self) -> str:
        if self.edges is not None:
            return f"{self.edges[0]}:{self.edges[1]}"
        return "x".join(map(str, self.fixed_hw or ()))


PAPER_EDGES = (800, 1333)  # detectron2's default and the paper's COCO setting
PAPER_SIZE = ImageSize(edges=PAPER_EDGES)
