"""The gallery: pictures of the sample with their segments, within the bytes that the page may have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from m2f_core.masks.rle import decode
from pipeline.page.figures.runs import ShownRun
from pipeline.page.figures.sample import SampledImage
from pipeline.page.images.pictures import (
    LARGE,
    NOT_WANTED,
    SMALL,
    Picture,
    SampleReader,
    open_reader,
    pictures,
    segments_of,
    small_masks,
)
from pipeline.page.settings import ReportSettings

# A browser opens 20 MB in a moment, and more bytes than this are no more use to people who look.
MOST_BYTES = 17_000_000
_AT_A_TIME = 64  # images whose masks are in memory


@dataclass
class Shown:
    """An image of the gallery. `segments`, `before`: as `small_masks`; `before` is None without another run."""

    image: SampledImage
    picture: Picture
    segments: list[dict[str, Any]]
    num_drawn: int
    before: list[dict[str, Any]] | None = None
    differing: float | None = None  # share of the pixels whose category differs between the runs


@dataclass
class Gallery:
    """The images that fit, in the order of the sample, and how many did not fit."""

    images: list[Shown] = field(default_factory=list)
    left_out: int = 0

    def described(self) -> list[dict[str, Any]]:
        """The figures of each image, for report.json."""
        return [
            {
                "image_key": one.image.image_key,
                "height": one.image.height,
                "width": one.image.width,
                "segments": one.image.segments,
                "min_score": one.image.min_score,
                "change": one.image.change,
                "differing": one.differing,
                "why": one.image.why,
                "missing": one.picture.missing or None,
                "drawn": [{name: s[name] for name in ("id", "c", "s", "a")} for s in one.segments],
            }
            for one in self.images
        ]


def make_gallery(
    settings: ReportSettings, run: ShownRun, other: ShownRun | None, sample: Sequence[SampledImage]
) -> Gallery:
    """Read, shrink and encode the images of the sample until the page is full."""
    gallery = Gallery()
    in_page = settings.images != "folder"
    used = 0
    reader = NOT_WANTED if settings.images == "none" else open_reader(run, sample)
    for one in _each(reader, run, other, sample, SMALL if in_page else LARGE):
        masks = sum(len(s["m"]) + 60 for s in [*one.segments, *(one.before or ())])
        size = masks + 400 + (len(one.picture.data) * 4 // 3 if in_page else 0)
        if used + size > MOST_BYTES:
            gallery.left_out += 1
            continue
        used += size
        gallery.images.append(one)
    return gallery


def _each(
    reader: SampleReader | str, run: ShownRun, other: ShownRun | None, sample: Sequence[SampledImage], longest: int
) -> Iterator[Shown]:
    for start in range(0, len(sample), _AT_A_TIME):
        images = sample[start : start + _AT_A_TIME]
        now = segments_of(run, {image.image_key: image.shard for image in images})
        shards = {image.image_key: image.shard_before for image in images if image.shard_before is not None}
        before = {} if other is None or not shards else segments_of(other, shards)
        for image, picture in zip(images, pictures(reader, images, longest), strict=True):
            rows = now[image.image_key]
            shown = Shown(image, picture, small_masks(rows, picture), len(rows))
            if image.image_key in before:
                shown.before = small_masks(before[image.image_key], picture)
                shown.differing = _differing(shown.segments, shown.before, picture)
            yield shown


def _differing(now: list[dict[str, Any]], before: list[dict[str, Any]], picture: Picture) -> float:
    """The share of the pixels of the picture that show another category; where masks overlap, the best score shows."""
    maps = []
    for segments in (now, before):
        classes_HW = np.full((picture.height, picture.width), -1, np.int64)
        for segment in segments:
            classes_HW[decode(segment["m"].encode(), picture.height, picture.width)] = segment["c"]
        maps.append(classes_HW)
    return float((maps[0] != maps[1]).mean())
