"""Finished runs made from given masks, published in the Delta tables as a run publishes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.commit.journal import Journal
from pipeline.layout import Output
from pipeline.tables.publish import Publisher
from tests.support.evaluation_runs import CATEGORIES, MadeImage, Place, Segment, write_run


def write_published(place: Place, images: Sequence[MadeImage], *, run_id: str = "night", **options: Any) -> str:
    """Write and publish a run; the folder of its tables."""
    write_run(place, images, run_id=run_id, **options)
    output = Output.open(place.tables)
    record = json.loads(Path(output.run(run_id).run_json).read_text())
    Publisher(output, run_id, lambda: record["plan"]["num_shards"], Journal(output.run(run_id), attempt=1)).publish()
    return place.tables


def scattered(rng: np.random.Generator, size: tuple[int, int], count: int, *, disjoint: bool = True) -> list[Segment]:
    """Segments with holes and several parts, and single pixels; with `disjoint`, no two share a pixel."""
    height, width = size
    free = np.ones(size, bool)
    segments = []
    for _ in range(count):
        mask = np.zeros(size, bool)
        for _ in range(rng.integers(1, 4)):
            y, x = rng.integers(height), rng.integers(width)
            h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
            mask[y : y + h, x : x + w] ^= True
        mask &= rng.random(size) < rng.choice([1.0, 0.97])
        if disjoint:
            mask &= free
            free &= ~mask
        if mask.any():
            category = int(rng.choice([category["id"] for category in CATEGORIES]))
            segments.append(Segment(mask, category, float(np.float32(rng.random()))))
    return segments


def made_images(seed: int = 0, count: int = 9, *, disjoint: bool = True) -> list[MadeImage]:
    """Images of several folders and sizes; one failed, one is without segments."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        size = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
        name = f"{'ab'[number % 2]}/{number:03d}.jpg"
        images.append(MadeImage(name, size, found=scattered(rng, size, int(rng.integers(1, 7)), disjoint=disjoint)))
    images.append(MadeImage("b/empty.png", (7, 5)))
    images.append(MadeImage("b/failed.png", (7, 5), found=None))
    return images
