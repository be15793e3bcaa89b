"""What metrics cost: the calls of one shard, and the job with and without them.

    python tests/benchmarks/bench_metrics.py [--images 1536] [--rounds 3]

First the calls alone, in a process of a Ray: all that the three stages record for a shard of 512 images in batches of
32, and for a shard of 16 images in batches of one, as microseconds of CPU for each image. Then the whole job with a
simulated device that is as fast as an H100 (tests/benchmarks/simulated_device.py), with and without metrics in turns;
beside it, two runs without metrics against each other show what the machine's noise is. The last line is one JSON
document.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
sys.path.insert(0, str(Path(__file__).parents[2]))

import ray

from pipeline.telemetry.costs import STEPS
from pipeline.telemetry.device_time import DeviceTime
from pipeline.telemetry.metrics import BATCH_FILL, BATCH_IMAGES, READ_BYTES, WRITTEN_BYTES, count_shard
from tests.benchmarks.bench_devices import DRAWN, FAST, copies
from tests.benchmarks.bench_steps import draw
from tests.benchmarks.scripts import run_script

STEPS_OF = {"reading": STEPS[:1], "segmenting": STEPS[1:-1], "writing": STEPS[-2:]}
ON, OFF, OFF_AGAIN = "on", "off", "off again"


def record_a_shard(images: int, per_batch: int, device: DeviceTime) -> None:
    """Every value that the three stages record for one shard."""
    for stage, steps in STEPS_OF.items():
        count_shard(stage, {"ok": images - 1, "decode_failed": 1}, 12.3, dict.fromkeys(steps, 1.2))
    READ_BYTES.add(images * 100_000)
    for table in ("images", "segments"):
        WRITTEN_BYTES.add(100_000, table=table)
    for _ in range(images // per_batch):
        BATCH_IMAGES.observe(per_batch)
        BATCH_FILL.observe(1.0)
        device.busy(0.07)


def microseconds_an_image(images: int, per_batch: int, shards: int = 300) -> float:
    """CPU time of this process, of all its threads."""
    device = DeviceTime("cuda")
    record_a_shard(images, per_batch, device)  # makes the objects of Ray
    began = time.process_time()
    for _ in range(shards):
        record_a_shard(images, per_batch, device)
    return 1e6 * (time.process_time() - began) / (shards * images)


def calls_alone() -> dict[str, float]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        return {
            "gpu_shard": round(microseconds_an_image(512, 32), 3),
            "cpu_shard": round(microseconds_an_image(16, 1), 3),
        }
    finally:
        ray.shutdown()


def whole_jobs(images: int, rounds: int) -> dict[str, list[float]]:
    """Steady images a second of each side, round after round."""
    rates: dict[str, list[float]] = {side: [] for side in (ON, OFF, OFF_AGAIN)}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "drawn").mkdir()
        source = copies(draw(Path(folder) / "drawn", DRAWN), Path(folder) / "images", images)
        for number in range(rounds):
            sides = list(rates)
            for side in sides[number % 3 :] + sides[: number % 3]:  # whoever comes first meets another machine
                said = run_script(
                    "tests/benchmarks/simulated_device.py",
                    input=source,
                    output=f"{folder}/out-{number}-{side.replace(' ', '-')}",
                    devices=1,
                    cpus=2,
                    seconds=FAST,
                    metrics=ON if side == ON else OFF,
                )
                rates[side].append(json.loads(said.splitlines()[-1])["steady_images_per_second"])
                print(f"round {number}, metrics {side:10} {rates[side][-1]:7.2f} images/s", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1536)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    alone = calls_alone()
    print(
        f"calls alone: {alone['gpu_shard']} us an image in a GPU's shard, {alone['cpu_shard']} us in a CPU's",
        flush=True,
    )
    rates = whole_jobs(args.images, args.rounds)
    without = statistics.median(rates[OFF])
    ratios = [on / off for on, off in zip(rates[ON], rates[OFF], strict=True)]
    noise = [again / off for again, off in zip(rates[OFF_AGAIN], rates[OFF], strict=True)]
    share = alone["gpu_shard"] * 1e-6 * without
    print(f"with metrics / without: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")
    print(f"without / without:      median {statistics.median(noise):.3f}, {min(noise):.3f} to {max(noise):.3f}")
    print(f"the calls alone take {100 * share:.3f} % of one CPU at {without:.0f} images/s")
    document = {
        "benchmark": "metrics",
        "microseconds_an_image": alone,
        "images_per_second": rates,
        "on_by_off": ratios,
        "off_by_off": noise,
        "share_of_one_cpu": share,
        "images": args.images,
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "versions": {name: version(name) for name in ("ray", "torch")},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
