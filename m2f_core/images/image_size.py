"""The size to which images are resized before the network, and its two written forms.

This is separate from `image_processor.py`, so that a command line can parse a size without importing torch.
"""

import re
from dataclasses import dataclass

_WRITTEN = re.compile(r"([0-9]{1,6})([:x])([0-9]{1,6})")


MAX_PIXELS_A_SIDE = 16_384  # a larger value must be a typing error: one image would take 3 GB

MAX_LONGEST_EDGE = 4 * MAX_PIXELS_A_SIDE  # a limit for long, thin images only; published: 1333 to 5120


@dataclass(frozen=True)
class ImageSize:
    """A target size in pixels. One of these is set, or none: then images keep their size.

    `edges` = (shortest, longest) keeps the aspect ratio: the shorter edge gets `shortest`, or less if otherwise the
    longer edge would exceed `longest`. `fixed_hw` = (height, width) is the same for all images, whatever their aspect
    ratio. `within_hw` = (height, width) keeps the aspect ratio and is the largest size within these limits.
    """

    edges: tuple[int, int] | None = None
    fixed_hw: tuple[int, int] | None = None
    within_hw: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        forms = [form for form in (self.edges, self.fixed_hw, self.within_hw) if form is not None]
        if not forms:
            return
        if len(forms) > 1:
            raise ValueError("an image size has edges, or a fixed height and width, or limits of height and width")
        if min(forms[0]) < 1:
            raise ValueError(f"image size {self}: every length must be at least 1 pixel")
        if max(self.fixed_hw or self.within_hw or (self.edges or ())[:1]) > MAX_PIXELS_A_SIDE:
            raise ValueError(f"image size {self}: a side may have at most {MAX_PIXELS_A_SIDE} pixels")
        if self.edges is not None and self.edges[1] > MAX_LONGEST_EDGE:
            raise ValueError(f"image size {self}: the longest edge may have at most {MAX_LONGEST_EDGE} pixels")
        if self.edges is not None and self.edges[0] > self.edges[1]:
            raise ValueError(f"image size {self}: the shortest edge, written first, is longer than the longest edge")

    @property
    def largest_hw(self) -> tuple[int, int] | None:
        """The size that no image exceeds, up to rounding; None if images keep their size."""
        return self.edges or self.fixed_hw or self.within_hw

    @classmethod
    def parse(cls, text: str) -> "ImageSize":
        """Read "800:1333" (shortest:longest edge) or "384x384" (height x width); `str` is the inverse for these two."""
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
        if self.within_hw is not None:
            return f"at most {self.within_hw[0]}x{self.within_hw[1]}"
        return "x".join(map(str, self.fixed_hw)) if self.fixed_hw is not None else "of each image"


PAPER_EDGES = (800, 1333)  # detectron2's default and the paper's COCO setting
PAPER_SIZE = ImageSize(edges=PAPER_EDGES)
