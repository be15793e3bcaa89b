"""A rectangle of pixels."""

from typing import NamedTuple


class Box(NamedTuple):
    """A rectangle of pixels: rows `top` to `bottom` - 1, columns `left` to `right` - 1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    def common(self, other: "Box") -> "Box | None":
        """The pixels of both; None if there are none."""
        box = Box(
            max(self.top, other.top),
            max(self.left, other.left),
            min(self.bottom, other.bottom),
            min(self.right, other.right),
        )
        return box if box.top < box.bottom and box.left < box.right else None
