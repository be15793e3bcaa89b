"""Forecasts of `plan_bucket.py --calibrate` against the runs that follow, for three different buckets.

    python tests/benchmarks/bench_forecast.py [--sample 200] [--folder FOLDER] [--buckets scenes mixed many]

`scenes`: scenes of one size. `mixed`: scenes of six sizes, from 0.02 to 3 megapixels, size by size. `many`: many tiny
scenes, of which one in twenty is cut off or is no image. Each bucket is planned with --calibrate and then segmented by
the checkpoint of the package, both as processes of their own. `command`: seconds from the start of the command to its
end. `models`: seconds from the start of the first shard to the end of the last one. A small calibration comes first and
does not count, so that the kernels are compiled and the libraries lie in memory for each command. Ten minutes on two
CPUs that do nothing else; while other programs work, the figures mean little. The last line is one JSON document.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
sys.path.insert(0, str(Path(__file__).parents[2]))

from PIL import Image

from pipeline.budget.prices import read_prices
from pipeline.forecast.forecast import Work, forecast
from pipeline.forecast.measured import read_measured
from pipeline.scenes.draw import draw_scene
from pipeline.schema import TABLES
from tests.benchmarks.scripts import run_script

# Height, width and number of the images of each size.
SIZES = ((128, 160, 260), (240, 320, 260), (480, 640, 200), (640, 480, 160), (768, 1024, 140), (1536, 2048, 64))
# Drawing takes as long as segmenting, so that each scene is there four times: as drawn, and turned over.
TURNED = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
)


def save(folder: Path, first: int, count: int, height: int, width: int) -> list[Path]:
    """`count` images of one size, numbered from `first` on."""
    paths = [folder / f"{first + number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        if number % len(TURNED) == 0:
            scene = Image.fromarray(draw_scene(0, first + number, height, width).pixels_HW3)
        turned = TURNED[number % len(TURNED)]
        (scene if turned is None else scene.transpose(turned)).save(path, quality=90)
    return paths


def make_scenes(folder: Path) -> None:
    save(folder, 0, 1000, 480, 640)


def make_mixed(folder: Path) -> None:
    """Images of one size side by side, as collections have them."""
    first = 0
    for height, width, count in SIZES:
        first += len(save(folder, first, count, height, width))


def make_many(folder: Path) -> None:
    chance = random.Random(0)
    for number, path in enumerate(save(folder, 0, 1400, 64, 96)):
        if number % 20 == 7:
            path.write_bytes(path.read_bytes()[: chance.randrange(20, 1000)] if number % 40 == 7 else b"no image")


BUCKETS = {"scenes": make_scenes, "mixed": make_mixed, "many": make_many}


def measure(name: str, folder: Path, sample: int) -> dict[str, Any]:
    bucket, output, file = folder / name, folder / f"{name}-out", folder / f"{name}.json"
    flags = ("--input", str(bucket), "--output", str(output), "--max-failure-rate", "1")
    load = os.getloadavg()[0]
    run_script("jobs/plan_bucket.py", *flags, "--calibrate", str(sample), "--forecast", str(file))
    began = time.time()
    run_script("jobs/segment_bucket.py", *flags, "--no-page")
    seconds = time.time() - began
    [report] = [json.loads(path.read_text()) for path in output.glob("_runs/*/report.json")]
    content = json.loads(file.read_text())
    measured = read_measured(file, content["fingerprint"])
    work = Work(report["num_images"], report["num_shards"])
    one = forecast(measured, work, 1, read_prices(None))
    around = measured.begin_seconds + measured.load_seconds + measured.end_seconds
    row: dict[str, Any] = {
        "bucket": name,
        "num_images": report["num_images"],
        "failed": report["num_failed"],
        "command": {"forecast": one.seconds.value, "low": one.seconds.low, "high": one.seconds.high, "run": seconds},
        "models": {"forecast": one.seconds.value - around, "run": report["seconds"]},
        "load": (load, os.getloadavg()[0]),
        "measured": content,
        "report": {"seconds": report["seconds"], "step_ms": report["step_ms"]},
    }
    for table in TABLES:
        written = sum(path.stat().st_size for path in output.glob(f"{table}/run=*/*.parquet"))
        row[f"bytes of {table}"] = {"forecast": one.bytes_of[table].value, "run": written}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="keep images and tables there")
    parser.add_argument("--buckets", nargs="+", choices=BUCKETS, default=list(BUCKETS))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for name in args.buckets:
            (folder / name).mkdir()
            BUCKETS[name](folder / name)
        some = ("--input", str(folder / args.buckets[0]), "--output", str(folder / "warm-up"))
        run_script("jobs/plan_bucket.py", *some, "--calibrate", "16")
        for name in args.buckets:
            row = measure(name, folder, args.sample)
            rows.append(row)
            for what in ("command", "models", *(f"bytes of {table}" for table in TABLES)):
                there, run = row[what]["forecast"], row[what]["run"]
                print(f"{name:8} {row['num_images']:6,} {what:18} {there:12,.1f}  run {run:12,.1f}", end="")
                print(f"  forecast/run {there / run:.3f}", flush=True)
    print(json.dumps({"benchmark": "forecast", "rows": rows, "platform": platform.platform()}))


if __name__ == "__main__":
    main()
