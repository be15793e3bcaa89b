"""How long model actors wait for the last one at the end of a run, with shards of one size and with a tapered plan.

    python tests/benchmarks/bench_taper.py [--images-per-shard 512] [--rounds 20]

A simulation: actors take shards in the order of the plan, each holds four (two that it works on
and two that wait), and an image takes a random time (log-normal, by shard, sigma 0.3). The plan is the program's own.
The last line is one JSON document.
"""

import argparse
import heapq
import json
import random
import sys
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline.plan.taper import ShardSize

HELD = 4  # shards of a model actor: max_tasks_in_flight_per_actor in pipeline/run.py
SIGMA = 0.3
CLUSTERS = {
    "8 GPUs, 30 images/s": [30.0] * 8,
    "64 GPUs, 30 images/s": [30.0] * 64,
    "4 GPUs of 60, 4 of 20 images/s": [60.0] * 4 + [20.0] * 4,
    "32 GPUs of 60, 32 of 20 images/s": [60.0] * 32 + [20.0] * 32,
}


def shard_lengths(size: ShardSize, num_images: int) -> list[int]:
    lengths, place = [], 0
    while place < num_images:
        lengths.append(min(size.at(place)[0], num_images - place))
        place += lengths[-1]
    return lengths


def seconds_over(lengths: list[int], speeds: list[float], chance: random.Random) -> tuple[float, float]:
    """Seconds of the whole run beyond those in which all actors are busy to the end, and these seconds."""
    work = [length * chance.lognormvariate(-SIGMA * SIGMA / 2, SIGMA) for length in lengths]
    waiting = work[::-1]
    held: list[list[float]] = [[] for _ in speeds]
    ends: list[tuple[float, int]] = []
    now = 0.0

    def hand_out() -> None:
        while waiting:
            actor = min(range(len(speeds)), key=lambda a: len(held[a]))
            if len(held[actor]) == HELD:
                return
            held[actor].append(waiting.pop())
            if len(held[actor]) == 1:
                heapq.heappush(ends, (now + held[actor][0] / speeds[actor], actor))

    hand_out()
    while ends:
        now, actor = heapq.heappop(ends)
        held[actor].pop(0)
        if held[actor]:
            heapq.heappush(ends, (now + held[actor][0] / speeds[actor], actor))
        hand_out()
    least = sum(work) / sum(speeds)
    return now - least, least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images-per-shard", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    rows = []
    for cluster, speeds in CLUSTERS.items():
        for shards_an_actor in (5, 50):
            num_images = shards_an_actor * len(speeds) * given.images_per_shard
            row: dict[str, object] = {"cluster": cluster, "images": num_images}
            for name, known in (("one size", None), ("tapered", num_images)):
                size = ShardSize(given.images_per_shard, 2**62, known, len(speeds))
                lengths = shard_lengths(size, num_images)
                over = [seconds_over(lengths, speeds, random.Random(seed)) for seed in range(given.rounds)]
                row |= {"seconds": round(fmean(least for _, least in over))}
                row |= {f"{name}: seconds over": round(fmean(s for s, _ in over), 1), f"{name}: shards": len(lengths)}
            rows.append(row)
            print(*(f"{key}={value}" for key, value in row.items()), sep="  ")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
