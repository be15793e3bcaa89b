"""What verifying tables costs, against merely reading them with as many processes.

    python tests/benchmarks/bench_verify.py [--images 100000] [--workers 2] [--rounds 3]

Writes a finished run with all its books: the masks of 200 drawn scenes of 640x480 with 10 segments each, given to as
many images as are asked for, in shards of 512. Then in turns, each in processes of its own: every column of every file
of both tables is read, and jobs/verify.py checks everything. Prints medians of the time, of the CPU time, and of the
peak memory of the largest process and of all processes together. The last line is one JSON document.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import pyarrow.parquet as pq

NUM_SCENES, HEIGHT, WIDTH, SEGMENTS, PER_SHARD = 200, 480, 640, 10, 512
UNIT = 280  # pixels: so that most scenes have 10 segments or more


def write(place: str, num_images: int) -> None:
    import numpy as np
    import pyarrow as pa

    from pipeline.scenes.draw import draw_scene
    from tests.support.run_books import CATEGORIES, Found, Shard, created_at, encoded, spec_of, write_run

    drawn: list[Found] = []
    index = 0
    while len(drawn) < NUM_SCENES:
        labels_HW = draw_scene(7, index, HEIGHT, WIDTH, unit=UNIT).ids_HW
        index += 1
        if labels_HW.max() >= SEGMENTS:  # more segments become parts of the last one
            classes = [n % len(CATEGORIES) for n in range(SEGMENTS)]
            drawn.append(Found(f"{len(drawn)}", np.minimum(labels_HW, SEGMENTS), classes))
    pattern = encoded(drawn, 0, spec_of("night", "panoptic", created_at()))
    images, segments = pattern.tables["images"], pattern.tables["segments"]

    def column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)

    def shards() -> Iterator[Shard]:
        for number, first in enumerate(range(0, num_images, PER_SHARD)):
            places = np.arange(first, min(first + PER_SHARD, num_images))
            keys = [f"s3://my-bucket/photographs/2026/11/{place:09d}.jpg" for place in places]
            rows = (places[:, None] % NUM_SCENES * SEGMENTS + np.arange(SEGMENTS)).reshape(-1)
            of_shard = {
                "images": column(images.take(places % NUM_SCENES), "image_key", pa.array(keys)),
                "segments": column(segments.take(rows), "image_key", pa.array(np.repeat(keys, SEGMENTS))),
            }
            numbered = {
                name: column(table, "shard", pa.array([number] * len(table), pa.int32()))
                for name, table in of_shard.items()
            }
            planned = column(pattern.planned.take(places % NUM_SCENES), "image_key", pa.array(keys))
            yield Shard(planned, numbered)

    write_run(place, "night", shards())


def read(path: str) -> int:
    return int(pq.read_table(path, partitioning=None, use_threads=False).num_rows)


def read_all(place: str, workers: int) -> int:
    """Every column of every part, one part at a time in each of so many processes."""
    paths = sorted(str(path) for table in ("images", "segments") for path in Path(place, table).rglob("*.parquet"))
    paths = [path for path in paths if "_delta_log" not in path]
    with ProcessPoolExecutor(workers, get_context("spawn")) as executor:
        return sum(executor.map(read, paths))


def measured(command: list[str]) -> tuple[float, float, float, float]:
    """Seconds, seconds of CPU of all processes, and the peak MiB of the largest process and of all together."""
    import psutil

    began, largest, together, before = time.monotonic(), 0.0, 0.0, cpu_seconds()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        sizes = []
        try:
            for one in (watched, *watched.children(recursive=True)):
                sizes.append(one.memory_info().rss / 2**20)
        except psutil.NoSuchProcess:
            pass
        largest, together = max([largest, *sizes]), max(together, sum(sizes))
        time.sleep(0.05)
    seconds = time.monotonic() - began
    if process.returncode != 0:
        raise SystemExit(f"{command} ended with {process.returncode}")
    return seconds, cpu_seconds() - before, largest, together


def cpu_seconds() -> float:
    """Of all child processes that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", help="only read the tables in this folder: a side of the comparison")
    args = parser.parse_args()
    if args.read is not None:
        print(read_all(args.read, args.workers))
        return
    with tempfile.TemporaryDirectory() as folder:
        place = f"{folder}/out"
        write(place, args.images)
        size = sum(path.stat().st_size for path in Path(place).rglob("*.parquet")) / 2**20
        print(f"{args.images:,} images, {SEGMENTS * args.images:,} segments, {size:,.0f} MiB of Parquet", flush=True)
        workers = ["--workers", str(args.workers)]
        jobs = Path(__file__).parents[2] / "jobs"
        sides = {
            "read": [sys.executable, __file__, "--read", place, *workers],
            "verify": [sys.executable, str(jobs / "verify.py"), "--tables", place, *workers],
        }
        found: dict[str, list[tuple[float, ...]]] = {side: [] for side in sides}
        for number in range(args.rounds + 1):
            for side, command in sides.items():
                result = measured(command)
                if number:  # the first round fills caches: of the disk, and of compiled kernels
                    found[side].append(result)
                    seconds, cpu, largest, together = result
                    print(
                        f"{side:7} {seconds:6.2f} s, {cpu:6.2f} s of CPU, {largest:,.0f} MiB, "
                        f"together {together:,.0f} MiB",
                        flush=True,
                    )
    medians = {
        side: [statistics.median(values) for values in zip(*rounds, strict=True)] for side, rounds in found.items()
    }
    ratio = medians["verify"][0] / medians["read"][0]
    of_cpu = medians["verify"][1] / medians["read"][1]
    print(f"verify takes {ratio:.2f} times as long as reading, and {of_cpu:.2f} times as much CPU")
    about = {"platform": platform.platform(), "cpus": os.cpu_count(), "pyarrow": version("pyarrow")}
    print(
        json.dumps(
            {
                "images": args.images,
                "workers": args.workers,
                "ratio": ratio,
                "of_cpu": of_cpu,
                "medians": medians,
                **about,
            }
        )
    )


if __name__ == "__main__":
    main()
