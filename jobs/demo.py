"""Draw synthetic scenes, segment them with the embedded checkpoint, score and picture the results, query the tables.

All files are written below .demo/. The scenes are of a series that the checkpoint was not trained on.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from jobs import evaluate, make_scenes, segment_bucket
from jobs.common.command_line import parse, program
from jobs.common.ends import leave_with

PROG = program("demo.py")
FOLDER = Path(".demo")
HELD_OUT_SEED = 2026  # the checkpoint has seen scenes of seed 1 only
NUM_SCENES = 48
NUM_PICTURES = 12

QUERY = """
SELECT parse_filename(image_key) AS image, category_name, round(score, 2) AS score, area, bbox,
       segmentation.counts[:20] AS rle
FROM read_parquet('{segments}') ORDER BY area DESC LIMIT 5
"""


@dataclass(frozen=True)
class DemoSettings:
    """Draw synthetic scenes, segment them with the checkpoint of the package, score and picture the results, and query
    the tables. All files are written below .demo/ in the current folder, which is emptied first."""


def main(args: Sequence[str] | None = None) -> int:
    parse(DemoSettings, sys.argv[1:] if args is None else args, prog=PROG)
    shutil.rmtree(FOLDER, ignore_errors=True)
    scenes, output = FOLDER / "scenes", FOLDER / "output"
    steps = (
        (make_scenes.main, ["--output", str(scenes), "--number", str(NUM_SCENES), "--seed", str(HELD_OUT_SEED)]),
        (
            segment_bucket.main,
            ["--input", str(scenes / "images"), "--output", str(output), "--progress-seconds", "5"],
        ),
        (evaluate.main, ["--tables", str(output), "--panoptic-gt", str(scenes / "panoptic.json")]),
    )
    for step, flags in steps:
        code = step(flags)
        if code:
            return code
    [run] = (output / "segments").glob("run=*")
    picture = FOLDER / "pictures.png"
    draw_pictures(output, run.name, picture)
    print(f"\nPictures of {NUM_PICTURES} scenes: {picture} (below each scene, its segments)")
    query = QUERY.format(segments=run / "*.parquet").strip()
    print(f"\nAn example query (needs: python -m pip install duckdb):\n\n{query}\n")
    import duckdb

    print(duckdb.sql(query))
    return 0


def draw_pictures(output: Path, run: str, picture: Path) -> None:
    """Draw a sheet of the first scenes and, below each scene, its segments from the tables."""
    import numpy as np
    import pyarrow.dataset as ds
    from PIL import Image

    from m2f_core.masks.overlay import draw_segments
    from m2f_core.masks.rle import decode

    images = ds.dataset(output / "images" / run).to_table().sort_by("image_key").to_pylist()[:NUM_PICTURES]
    segments = ds.dataset(output / "segments" / run).to_table().to_pylist()
    columns = []
    for image in images:
        with Image.open(image["image_key"].removeprefix("file://")) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        masks = [
            decode(row["segmentation"]["counts"].encode(), image["height"], image["width"])
            for row in segments
            if row["image_key"] == image["image_key"]
        ]
        columns.append(np.concatenate([pixels, draw_segments(pixels, masks)]))
    half = len(columns) // 2
    sheet = np.concatenate([np.concatenate(columns[:half], axis=1), np.concatenate(columns[half:], axis=1)])
    Image.fromarray(sheet).save(picture)


def command() -> NoReturn:
    # Without this, DuckDB would end the demo with a page about its objects that Ray has not freed.
    leave_with(main)


if __name__ == "__main__":
    command()
