"""Published tables of a million synthetic segments, for benchmarks of what reads finished runs.

    python tests/benchmarks/large_tables.py --output /tmp/large [--images 100000] [--segments 1000000] [--seed 0]

An image has the segments of one of a few hundred scenes of pipeline/scenes at 640x480, so its masks are disjoint and as
long as masks are; scores are drawn anew for each image. The output is what a finished run leaves: parts of 512 images,
a journal with receipts, run.json, report.json and both Delta tables. The same arguments give the same rows.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import pyarrow as pa

from pipeline.commit.journal import Journal
from pipeline.commit.receipt import Receipt
from pipeline.commit.write import ShardWriter
from pipeline.layout import Output
from pipeline.scenes.draw import CATEGORIES, draw_scene
from pipeline.scenes.write import scene_annotations
from pipeline.schema import SCHEMA_VERSION, SEGMENTS, TABLES
from pipeline.store.filesystem import put_object
from pipeline.tables.publish import Publisher
from tests.support.run_records import report, run_json

RUN_ID = "large"
CREATED = datetime(2026, 11, 23, 9, tzinfo=UTC)
HEIGHT, WIDTH = 480, 640
SCENES = 200
UNIT = 320  # pixels; scenes of 640x480 with things as in 320x320 have ten segments on average
IMAGES_PER_SHARD = 512
_CATEGORY = {category["id"]: category for category in CATEGORIES}
CATEGORY_RECORDS = [{name: category[name] for name in ("id", "name", "isthing")} for category in CATEGORIES]


def image_key(number: int) -> str:
    return f"s3://photographs/{number // 1000:04d}/{number:08d}.jpg"


@dataclass(frozen=True)
class Pool:
    """The segments of all scenes, one after the other; scene i has the rows `firsts[i]` to `firsts[i + 1]`."""

    rows: pa.Table  # the columns of schema.SEGMENTS that do not depend on image and run
    firsts: np.ndarray


def _scene_rows(index: int, seed: int) -> list[dict[str, Any]]:
    return [
        {
            "segment_id": annotation["id"],
            "category_id": annotation["category_id"],
            "category_name": _CATEGORY[annotation["category_id"]]["name"],
            "isthing": bool(_CATEGORY[annotation["category_id"]]["isthing"]),
            "area": annotation["area"],
            "bbox": annotation["bbox"],
            "segmentation": annotation["segmentation"],
        }
        for annotation in scene_annotations(draw_scene(seed, index, HEIGHT, WIDTH, unit=UNIT))
    ]


def draw_pool(scenes: int, seed: int) -> Pool:
    with ProcessPoolExecutor() as processes:
        drawn = list(processes.map(partial(_scene_rows, seed=seed), range(scenes), chunksize=4))
    names = [field for field in SEGMENTS if field.name not in ("image_key", "score", "run_id", "shard")]
    rows = pa.Table.from_pylist([row for scene in drawn for row in scene], schema=pa.schema(names))
    return Pool(rows.combine_chunks(), np.cumsum([0, *map(len, drawn)]))


def choose_scenes(pool: Pool, images: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """A scene for each image, so that the images have `segments` together. ValueError if no choice has so many."""
    sizes = np.diff(pool.firsts)
    if not images * sizes.min() <= segments <= images * sizes.max():
        raise ValueError(f"{images} images have {images * sizes.min()} to {images * sizes.max()} segments")
    chosen = rng.integers(0, len(sizes), images)
    missing = segments - int(sizes[chosen].sum())
    while missing:  # change images one by one, each in the right direction and not too far
        image = rng.integers(images)
        steps = sizes - sizes[chosen[image]]
        better = np.flatnonzero((np.sign(steps) == np.sign(missing)) & (np.abs(steps) <= abs(missing)))
        if better.size:
            scene = rng.choice(better)
            missing -= int(steps[scene])
            chosen[image] = scene
    return chosen


def shard_tables(
    pool: Pool, shard: int, first: int, scenes: np.ndarray, rng: np.random.Generator
) -> dict[str, pa.Table]:
    """Both tables of the images `first`, `first` + 1, ..., each with the segments of its scene."""
    numbers = np.arange(first, first + len(scenes))
    keys = pa.array(map(image_key, numbers.tolist()), pa.string())
    counts = np.diff(pool.firsts)[scenes]
    of_image = np.repeat(np.arange(len(scenes)), counts)
    rows = np.concatenate([np.arange(pool.firsts[scene], pool.firsts[scene + 1]) for scene in scenes])
    segments = {
        **dict(zip(pool.rows.column_names, pool.rows.take(rows).columns, strict=True)),
        "image_key": keys.take(of_image),
        "score": rng.beta(5, 2, len(rows)).astype(np.float32),
    }
    images = {
        "image_key": keys,
        "status": "ok",
        "error_code": None,
        "error_message": None,
        "height": HEIGHT,
        "width": WIDTH,
        "etag": "e1",
        "size_bytes": rng.integers(50_000, 150_000, len(scenes)),
        "num_segments": counts,
        "run_created": CREATED,
        "fingerprint": "0123456789abcdef",
        "attempt": 1,
        "reason": "new",
        "attributes": None,
    }
    return {
        name: pa.table([_column(values.get(field.name), field, n) for field in TABLES[name]], schema=TABLES[name])
        for name, values, n in (
            ("images", {**images, "run_id": RUN_ID, "shard": shard}, len(scenes)),
            ("segments", {**segments, "run_id": RUN_ID, "shard": shard}, len(rows)),
        )
    }


def _column(values: Any, field: pa.Field, count: int) -> pa.ChunkedArray | pa.Array:
    if isinstance(values, pa.ChunkedArray | pa.Array):
        return values
    if isinstance(values, np.ndarray):
        return pa.array(values, field.type)
    return pa.repeat(pa.scalar(values, field.type), count)


def write_large_tables(output: str, images: int = 100_000, segments: int = 1_000_000, seed: int = 0) -> None:
    """Write a finished run of so many images and segments below the folder or URI `output`."""
    rng = np.random.default_rng(seed)
    pool = draw_pool(min(SCENES, images), seed)
    scenes = choose_scenes(pool, images, segments, rng)
    place = Output.open(output)
    writer = ShardWriter(place, RUN_ID)
    receipts: list[Receipt] = []
    for shard, first in enumerate(range(0, images, IMAGES_PER_SHARD)):
        tables = shard_tables(pool, shard, first, scenes[first : first + IMAGES_PER_SHARD], rng)
        receipts.append(writer.write(shard, tables, started=time.time()))
    journal = Journal(place.run(RUN_ID), attempt=1)
    journal.append(receipts)
    counts = {"num_images": images, "num_shards": len(receipts)}
    plan = {"files": [{"path": "000000.parquet", "first_shard": 0, "num_shards": len(receipts)}], "size_bytes": 0}
    run = run_json(
        RUN_ID, categories=CATEGORY_RECORDS, created=CREATED.isoformat(timespec="microseconds"), plan={**plan, **counts}
    )
    put_object(place.filesystem, place.format_json, json.dumps({"schema_version": SCHEMA_VERSION}).encode())
    put_object(place.filesystem, place.run(RUN_ID).run_json, run.encode())
    versions = Publisher(place, RUN_ID, lambda: len(receipts), journal).publish()
    finished = {"num_ok": images, "num_segments": segments, "table_versions": versions, "counts": {"new": images}}
    report(RUN_ID, **counts, **finished).write(place.run(RUN_ID))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--segments", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    write_large_tables(**vars(args))
    print(f"{args.segments:,} segments of {args.images:,} images in {time.monotonic() - began:.0f} s: {args.output}")


if __name__ == "__main__":
    main()
