"""Shards of no work through the whole graph: what one costs the driver in time and memory.

    python tests/benchmarks/bench_graph.py [--shards 5000]

Each shard is one image that is gone from the input, so nothing is fetched, decoded or segmented; the row and the
receipt are written. The driver runs in this process, whose CPU seconds and resident memory are measured from a tenth of
the shards to the end, so that the start of the program does not count. The last line is one JSON document.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
sys.path.insert(0, str(Path(__file__).parents[2]))

import psutil
from PIL import Image

from jobs import segment_bucket
from tests.support.inputs import make_model
from tests.support.published_tables import image_row, publish
from tests.support.tables import read_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=5000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="m2f-bench-graph-") as name:
        folder = Path(name)
        (folder / "in").mkdir()
        Image.new("RGB", (64, 48)).save(folder / "in" / "there.jpg")
        make_model(folder / "model")
        gone = [image_row(f"file://{folder}/in/{number:06d}.jpg", "run0", 0) for number in range(args.shards - 1)]
        publish(str(folder / "out"), "images", "run0", [gone])
        samples: list[Sample] = []
        ended = threading.Event()
        thread = threading.Thread(target=watch, args=(folder / "out", samples, ended), daemon=True)
        thread.start()
        flags = ["--input", folder / "in", "--output", folder / "out", "--model", folder / "model"]
        more = [
            "--images-per-shard",
            1,
            "--tombstone-removed",
            "--progress-seconds",
            30,
            "--image-size",
            "64:86",
            "--no-page",
        ]
        code = segment_bucket.main([str(flag) for flag in [*flags, *more, "--no-page"]])
        ended.set()
        thread.join()
        report = read_report(folder / "out")
    assert code == 0 and report["num_shards"] == args.shards, report
    early = next(sample for sample in samples if sample.shards >= args.shards // 10)
    late = next(sample for sample in samples if sample.shards >= args.shards * 9 // 10)
    print(
        json.dumps(
            {
                "shards": args.shards,
                "seconds": report["seconds"],
                "driver_cpu_ms_a_shard": round(1e3 * (late.cpu - early.cpu) / (late.shards - early.shards), 2),
                "driver_mib": round(samples[-1].mib),
                "driver_growth_mib": round(max(sample.mib for sample in samples) - early.mib),
            }
        )
    )


@dataclass
class Sample:
    """The driver, once so many shards were in the journal."""

    shards: int
    cpu: float  # seconds so far
    mib: float  # resident


def watch(output: Path, samples: list[Sample], ended: threading.Event) -> None:
    process, seen, shards = psutil.Process(), set[Path](), 0
    while not ended.wait(1.0):
        for path in set(output.glob("_runs/*/journal/*.jsonl")) - seen:
            seen.add(path)
            shards += len(path.read_bytes().splitlines())
        used = process.cpu_times()
        samples.append(Sample(shards, used.user + used.system, process.memory_info().rss / 2**20))


if __name__ == "__main__":
    main()
