"""Memory of every process of a run over many images: it must not grow with their number.

    python -m tests.reliability.memory --images 50000 --shards 500 --plot docs/memory.svg

Small scenes of the embedded checkpoint's kind, linked under many names, and a tiny seeded model, so that what grows
with the number of images is not hidden behind what one image takes. Once a second the memory of the driver and of each
process below it is noted: what is resident and its own, without the pages of Ray's object store that it has touched,
which all processes share and which have a bound of their own. The last line is JSON: by role the MiB after a tenth of
the images, at nine tenths, the most, and the slope from half to nine tenths in MiB per 10,000 images; after that
processes end one by one.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from pipeline.drill.processes import processes_below
from tests.support.inputs import make_model
from tests.support.places import ROOT

SCENES = 50
# Ray writes in the title of a worker what it is there for.
ROLES = {
    "reads": re.compile(r"FetchImages"),
    "segments": re.compile(r"SegmentImages"),
    "encodes, writes": re.compile(r"EncodeAndWrite"),
    "raylet": re.compile(r"raylet/raylet"),
    "gcs": re.compile(r"gcs_server"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--plot", type=Path, help="file for a plot, .svg or .png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder / "in", args.images)
        make_model(folder / "model")
        samples = watch(folder, args.images // args.shards)
        [report] = [json.loads(path.read_text()) for path in (folder / "out" / "_runs").glob("*/report.json")]
    assert report["num_ok"] == args.images and report["num_shards"] == args.shards, report
    if args.plot:
        draw(samples, args)
    summary = {role: summarize(points, args.images) for role, points in samples.items()}
    print(json.dumps({"images": args.images, "shards": args.shards, "seconds": report["seconds"], "MiB": summary}))


def make_images(folder: Path, count: int) -> None:
    from jobs import make_scenes

    scenes = folder.parent / "scenes"
    make_scenes.main(["--output", str(scenes), "--number", str(SCENES), "--seed", "7"])
    originals = sorted((scenes / "images").iterdir())
    folder.mkdir()
    for number in range(count):
        original = originals[number % SCENES]
        os.link(original, folder / f"{number:06d}{original.suffix}")


def watch(folder: Path, per_shard: int) -> dict[str, list[tuple[float, float]]]:
    """Run the job; by role (images done, MiB of its largest process), once a second."""
    flags = {
        "input": folder / "in",
        "output": folder / "out",
        "model": folder / "model",
        "image-size": "32x32",
        "images-per-shard": per_shard,
        "progress-seconds": 1,
    }
    command = [sys.executable, str(ROOT / "jobs" / "segment_bucket.py")]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    command.append("--no-page")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder)
    done = [0]

    def read() -> None:
        for line in process.stderr or ():
            if match := re.match(r"(\d+)/\d+ images", line):
                done[0] = int(match[1])
                if done[0] % 1000 < 100:
                    print(line, end="", file=sys.stderr)

    threading.Thread(target=read, daemon=True).start()
    samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
    while process.poll() is None:
        for role, mib in memory_by_role(process.pid).items():
            samples[role].append((done[0], mib))
        time.sleep(1)
    assert process.returncode == 0, f"the job ended with {process.returncode}"
    return samples


def memory_by_role(driver: int) -> dict[str, float]:
    """MiB of the driver and, by role, of the largest process below it."""
    largest: dict[str, float] = {"driver": own_mib(driver)}
    for process in processes_below([driver]):
        for role, pattern in ROLES.items():
            if pattern.search(process.command):
                largest[role] = max(largest.get(role, 0.0), own_mib(process.pid))
    return {role: mib for role, mib in largest.items() if mib}


def own_mib(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # the process has ended
        return 0.0
    sizes = dict(re.findall(r"(VmRSS|RssShmem):\s+(\d+) kB", status))
    return (int(sizes["VmRSS"]) - int(sizes["RssShmem"])) / 1024 if sizes else 0.0


def summarize(points: list[tuple[float, float]], images: int) -> dict[str, float]:
    done, mib = np.array(points).T
    late = (done >= images / 2) & (done <= 0.9 * images)
    slope = np.polyfit(done[late], mib[late], 1)[0] if late.any() and np.ptp(done[late]) > 0 else 0.0
    return {
        # Of one that ended before, what it had last.
        "after_a_tenth": round(float(mib[min(np.searchsorted(done, images / 10), len(mib) - 1)]), 1),
        "after_nine_tenths": round(float(mib[max(np.searchsorted(done, 0.9 * images, side="right") - 1, 0)]), 1),
        "most": round(float(mib.max()), 1),
        "per_10000_images": round(float(slope) * 10_000, 2),
    }


def draw(samples: dict[str, list[tuple[float, float]]], args: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), constrained_layout=True)
    for role, points in sorted(samples.items(), key=lambda item: -item[1][-1][1]):
        done, mib = zip(*points, strict=True)
        axes.plot(done, mib, label=role, linewidth=1.2)
    axes.set(xlabel=f"images done, of {args.images:,} in {args.shards} shards", ylabel="own memory, MiB", ylim=0)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.grid(alpha=0.3)
    figure.savefig(args.plot)


if __name__ == "__main__":
    main()
