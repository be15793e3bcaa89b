"""How large a shard may be: toward the end of a plan, shards become smaller, so that all model actors end together.

A model actor holds four shards: two that it works on and two that wait for it. With shards of one size, some actors
still have four large ones when the others have none, and a shard is the unit of commit, so none can be taken from them.
So the plan's last shards are small. This is guided self-scheduling (Polychronopoulos and Kuck, 1987): a shard takes the
same part of what is left, at most the full size. `python tests/benchmarks/bench_taper.py` shows the effect.
"""

from dataclasses import dataclass

# A shard takes at most 1/8 of an actor's part of what is left, half of what the four shards that it holds could take.
_PARTS_OF_AN_ACTOR = 8
# Below this, parts on the store and receipts cost more than a waiting actor.
LEAST_IMAGES = 64


@dataclass(frozen=True)
class ShardSize:
    """At most `max_images`, with at most `max_bytes` to read, in a plan of `num_images` images for `model_actors`.

    Without `num_images`, or for one actor, all shards may be full.
    """

    max_images: int
    max_bytes: int
    num_images: int | None = None
    model_actors: int = 1

    def at(self, place: int) -> tuple[int, int]:
        """Most images and bytes of a shard that begins with the image of this number."""
        if self.num_images is None or self.model_actors == 1 or self.max_images <= LEAST_IMAGES:
            return self.max_images, self.max_bytes
        part = (self.num_images - place) // (_PARTS_OF_AN_ACTOR * self.model_actors)
        images = max(LEAST_IMAGES, min(part, self.max_images))
        return images, self.max_bytes * images // self.max_images
