"""How long one model actor takes for an image, from the receipts of shards, and how sure that is.

The device of an actor works on one batch at a time, and a receipt says for how many seconds the device worked on the
shard. The time of an actor for one image is the time of the device for one image, divided by the share of the actor's
time in which the device was busy. So reading, decoding and writing count as far as the device waits for them.
"""

import math
from dataclasses import dataclass, field

from pipeline.commit.receipt import Receipt
from pipeline.forecast.ratio import Ratio
from pipeline.telemetry.metrics import on_device

# An actor works on two shards at a time. Its first two pay for what happens once: kernels compile, caches fill.
WARM_UP_SHARDS = 2


@dataclass(frozen=True)
class Speed:
    """Of one model actor, among as many as worked beside it."""

    image_seconds: float  # of the actor for one image
    standard_error: float | None  # of image_seconds, as far as it comes from the choice of images; None: unknown
    warm_up_seconds: float  # by which the first shards of an actor took longer than later ones


@dataclass
class _Actor:
    started: float = math.inf
    ended: float = 0.0
    first: list[tuple[int, float]] = field(default_factory=list)  # images and device seconds of the first shards


class SpeedMeter:
    """Adds up receipts of one attempt, in little memory for any number of shards."""

    def __init__(self) -> None:
        self.actors: dict[str, _Actor] = {}
        self.all, self.later = Ratio(), Ratio()  # device seconds; `later` without the first shards of each actor

    def add(self, receipt: Receipt) -> None:
        num_images, seconds = receipt.num_images - receipt.num_removed, on_device(receipt.seconds)
        actor = self.actors.setdefault(receipt.model_actor, _Actor())
        actor.started, actor.ended = min(actor.started, receipt.started), max(actor.ended, receipt.model_ended)
        self.all.add(num_images, seconds)
        if len(actor.first) < WARM_UP_SHARDS:
            actor.first.append((num_images, seconds))
        else:
            self.later.add(num_images, seconds)

    def speed(self) -> Speed | None:
        """None as long as no image has been measured."""
        worked = sum(actor.ended - actor.started for actor in self.actors.values())
        if not self.all.images or worked <= 0:
            return None
        if not self.all.total:  # no image reached a device; failures take time all the same
            return Speed(worked / self.all.images, None, 0.0)
        waits = max(1.0, worked / self.all.total)  # seconds of an actor for one of its device
        if not self.later.images:
            return Speed(waits * self.all.per_image, _times(waits, self.all.standard_error), 0.0)
        steady = self.later.per_image
        extra = sum(seconds - number * steady for actor in self.actors.values() for number, seconds in actor.first)
        return Speed(
            waits * steady, _times(waits, self.later.standard_error), max(0.0, waits * extra / len(self.actors))
        )


def _times(factor: float, error: float | None) -> float | None:
    return None if error is None else factor * error
