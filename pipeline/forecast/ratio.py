"""The mean of an image and how sure it is, from sums over shards, in memory that does not grow."""

import math
from dataclasses import dataclass


@dataclass
class Ratio:
    """The sum of a quantity over the images, divided by their number, where whole shards are observed.

    The standard error is computed as for a ratio of two sums (Cochran, Sampling Techniques, 6.3); shards are the units.
    """

    shards: int = 0
    images: int = 0
    total: float = 0.0
    _images_squared: float = 0.0
    _totals_squared: float = 0.0
    _products: float = 0.0

    def add(self, images: int, total: float) -> None:
        self.shards += 1
        self.images += images
        self.total += total
        self._images_squared += images * images
        self._totals_squared += total * total
        self._products += images * total

    @property
    def per_image(self) -> float:
        """At least one image must have been added."""
        return self.total / self.images

    @property
    def standard_error(self) -> float | None:
        """Of `per_image`; None for fewer than two shards."""
        if self.shards < 2:
            return None
        ratio = self.per_image
        squares = self._totals_squared - 2 * ratio * self._products + ratio * ratio * self._images_squared
        return math.sqrt(max(0.0, squares) * self.shards / (self.shards - 1)) / self.images
