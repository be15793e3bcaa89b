"""Draw images of a plan at random while the plan streams by."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.plan.shards import PLANNED_IMAGES


def is_segmented(images: pa.Table) -> pa.ChunkedArray:
    """Which of these images of a plan a run segments: those that are not removed from the input."""
    return pc.not_equal(images["reason"], "removed")


class Sample:
    """`size` of the `num_images` images that a run segments, in the order of the plan.

    Each image has the same chance. The images are spread evenly: one comes from each of `size` stretches of the plan.
    Neighbours in a bucket are alike, so an even sample has nearly as many images of each kind as it should.
    """

    def __init__(self, size: int, seed: int, num_images: int):
        chance = np.random.default_rng(seed)
        size = min(size, num_images)
        ends = np.arange(size + 1) * num_images // max(1, size)
        within = (chance.random(size) * np.diff(ends)).astype(np.int64)
        # Where the first stretch begins is drawn, too: stretches differ by an image, and so would the chances.
        first = chance.integers(max(1, num_images))
        self._places = np.sort((first + ends[:-1] + within) % max(1, num_images))
        self._drawn: list[pa.Table] = []
        self.num_images = self.num_shards = 0  # that have passed

    def draw(self, shards: Iterable[pa.Table]) -> None:
        """Draw from these shards, tables of PLANNED_IMAGES; all shards of the plan have to pass."""
        for shard in shards:
            self.num_shards += 1
            images = shard.filter(is_segmented(shard))
            begin, end = np.searchsorted(self._places, (self.num_images, self.num_images + images.num_rows))
            if begin < end:
                self._drawn.append(images.take(pa.array(self._places[begin:end] - self.num_images)))
            self.num_images += images.num_rows

    def images(self) -> pa.Table:
        """The sample of the images that have passed."""
        return pa.concat_tables([PLANNED_IMAGES.empty_table(), *self._drawn]).combine_chunks()
