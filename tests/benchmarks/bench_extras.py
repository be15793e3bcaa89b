"""What the figures of quality and --embeddings cost the job, in images a second with a simulated device; and the page.

    python tests/benchmarks/bench_extras.py [--images 48000] [--window 4]

One job runs on one simulated device (tests/benchmarks/simulated_device.py) and two CPUs over copies of scenes of
480x640. By the clock, all its processes switch together: for `--window` seconds without quality figures and
embeddings, for as long with both, in the order ABBA, so that what drifts on the machine meets both alike. The rate of
a window is that of the images that pass the device in it, without the first second, in which images are still under
way that the window before has prepared. A pair of windows gives a ratio; printed are their mean with its standard
error, and the ratios. Then the page of the run is written, in a process of its own as after a night. The last line is
one JSON document.
"""

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from PIL import Image

from m2f_core.images.quality import measure_quality
from m2f_core.inference.panoptic import PanopticResult
from pipeline.segment import preparation
from pipeline.segment.device_model import PreparedImage, _inferred
from pipeline.segment.postprocess import Inferred
from pipeline.telemetry.costs import Costs
from tests.benchmarks import simulated_device
from tests.benchmarks.bench_devices import FAST, copies
from tests.benchmarks.bench_steps import draw
from tests.benchmarks.scripts import run_script
from tests.benchmarks.simulated_device import SimulatedNetwork

WINDOW, PASSED, LIKE = "EXTRAS_WINDOW", "EXTRAS_PASSED", "EXTRAS_LIKE"
DRAWN = 16  # scenes; the rest are copies
QUERIES, WIDTH = 100, 256  # of the paper's models
SETTLING = 1.0  # seconds at the start of a window that do not count
CLOCK = 2.0**31  # windows of all processes begin at whole multiples of the window since then


def window_at(moment: float) -> int:
    return int((moment + CLOCK) / float(os.environ[WINDOW]))


def has_extras(window: int) -> bool:
    """ABBA: the order turns round from pair to pair."""
    if os.environ[LIKE] == "same":
        return False
    pair, second = divmod(window, 2)
    return bool(second) != bool(pair % 2)


class ExtrasNetwork(SimulatedNetwork):
    """The device, which also gives the states of queries, and writes down how many images pass when."""

    def __init__(self, *args: object):
        super().__init__(*args)
        self.queries_BQD = torch.randn(simulated_device.BATCH, QUERIES, WIDTH)

    def run(self, images: Sequence[PreparedImage], costs: Costs) -> list[Inferred]:
        results: list[PanopticResult] = [one.result for one in super().run(images, costs)]
        now = time.time()
        with (Path(os.environ[PASSED]) / str(os.getpid())).open("a") as file:
            file.write(f"{now} {len(images)}\n")
        return _inferred(results, self.queries_BQD[: len(images)] if has_extras(window_at(now)) else None)


class SegmentImagesWithExtras(simulated_device.SimulatedSegmentImages):
    """The model actor, which measures quality in every second window."""

    def __init__(self, *args: object):
        simulated_device.SimulatedNetwork = ExtrasNetwork
        measure_quality(Image.new("RGB", (8, 8)))  # compiles
        preparation.measure_quality = lambda image: (
            measure_quality(image) if has_extras(window_at(time.time())) else None
        )
        super().__init__(*args)


def ratios(passed: Sequence[tuple[float, int]], window: float) -> list[float]:
    """The rate with extras against the rate without, of each pair of windows that the job filled."""
    images: Counter[int] = Counter()
    for moment, number in passed:
        if (moment + CLOCK) % window >= SETTLING:
            images[window_at(moment)] += number
    # The first and the last window are not whole, nor are those before the device has work all the time.
    first, last = min(images) + 2, max(images) - 1
    pairs = [pair for pair in range(math.ceil(first / 2), (last + 1) // 2) if images[2 * pair] and images[2 * pair + 1]]
    found = []
    for pair in pairs:
        without, with_extras = sorted((2 * pair, 2 * pair + 1), key=lambda one: bool(one % 2) != bool(pair % 2))
        found.append(images[with_extras] / images[without])
    return found


def measure(images: Path, output: Path, window: float, like: str) -> list[tuple[float, int]]:
    """(when, images) of each batch that passed the device."""
    with tempfile.TemporaryDirectory() as passed:
        os.environ.update({WINDOW: str(window), PASSED: passed, LIKE: like})
        run_script(
            "tests/benchmarks/bench_extras.py", "--job", input=images, output=output, devices=1, cpus=2, seconds=FAST
        )
        lines = [line.split() for path in Path(passed).iterdir() for line in path.read_text().splitlines()]
    return [(float(moment), int(number)) for moment, number in lines]


def run_job() -> None:
    """In a process of its own: simulated_device.py with the actor above."""
    sys.argv.remove("--job")
    simulated_device.SimulatedSegmentImages = SegmentImagesWithExtras
    simulated_device.main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48_000)
    parser.add_argument("--window", type=float, default=4.0, help="seconds")
    parser.add_argument("--same", action="store_true", help="without extras in all windows: what the noise is")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = copies(draw(folder, DRAWN), folder / "copies", args.images)
        passed = measure(images, folder / "output", args.window, "same" if args.same else "extras")
        began = time.monotonic()
        run_script("jobs/report.py", tables=folder / "output")
        page_seconds = time.monotonic() - began
    found = ratios(passed, args.window)
    if len(found) < 2:
        sys.exit(f"{len(found)} pairs of windows are too few: pass more --images or a smaller --window")
    logs = [math.log(ratio) for ratio in found]
    error = stdev(logs) / math.sqrt(len(logs))
    seconds = max(moment for moment, _ in passed) - min(moment for moment, _ in passed)
    rate = sum(number for _, number in passed) / seconds
    print(f"images/s with quality figures and embeddings against without: {math.exp(mean(logs)):.4f} +- {error:.4f}")
    print(f"of {len(found)} pairs: {'  '.join(f'{ratio:.3f}' for ratio in sorted(found))}")
    print(f"{rate:.0f} images/s on the whole; the page afterwards: {page_seconds:.1f} s")
    document = {
        "benchmark": "extras",
        **vars(args),
        "ratio": round(math.exp(mean(logs)), 4),
        "standard_error": round(error, 4),
        "ratios": [round(ratio, 4) for ratio in found],
        "images_per_second": round(rate, 1),
        "page_seconds": round(page_seconds, 1),
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "versions": {name: version(name) for name in ("ray", "pyarrow", "numpy")},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    run_job() if "--job" in sys.argv else main()
