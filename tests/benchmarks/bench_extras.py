"""What the figures of quality and --embeddings cost the job, in images a second with a simulated device; and the page.

    python tests/benchmarks/bench_extras.py [--images 48000] [--window 4]

One job runs on one simulated device (tests/benchmarks/simulated_device.py) and two CPUs over copies of scenes of
480x640. With the device of bench_devices.py, two CPUs are the bound, so extras cost what they cost of CPU time; with
`--seconds 0.3`, the device is the bound. By the clock, all processes of the job switch together: for `--window` seconds
without quality figures and embeddings, for as long with both, in the order ABBA, so that what drifts on the machine
meets both alike. The first second of a window does not count: images are still under way then that the window before
has prepared. Each pair of windows gives two ratios, with extras against without: of images a second, and of the CPU
time of all processes of the job for an image, which tells more where others work on the machine. Printed are their
means with standard errors, and all ratios. Then the page of the run is written, in a process of its own as after a
night. The last line is one JSON document.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median, stdev

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import psutil
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

WINDOW, NOTED, LIKE = "EXTRAS_WINDOW", "EXTRAS_NOTED", "EXTRAS_LIKE"
PASSED, CPU = "passed", "cpu"  # files of what the job notes
DRAWN = 16  # scenes; the rest are copies
QUERIES, WIDTH = 100, 256  # of the paper's models
SETTLING = 1.0  # seconds at the start of a window that do not count
SAMPLING = 0.25  # seconds between two looks at the CPU time


def window_at(moment: float) -> int:
    return int(moment / float(os.environ[WINDOW]))


def has_extras(window: int) -> bool:
    """ABBA: the order turns round from pair to pair."""
    if os.environ[LIKE] == "same":
        return False
    return _is_b(window)


def _is_b(window: int) -> bool:
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
        note(PASSED, now, len(images))
        return _inferred(results, self.queries_BQD[: len(images)] if has_extras(window_at(now)) else None)


class SegmentImagesWithExtras(simulated_device.SimulatedSegmentImages):
    """The model actor, which measures quality in every second window."""

    network = ExtrasNetwork

    def __init__(self, *args: object):
        measure_quality(Image.new("RGB", (8, 8)))  # compiles
        preparation.measure_quality = lambda image: (
            measure_quality(image) if has_extras(window_at(time.time())) else None
        )
        super().__init__(*args)


class Grown:
    """A number that grew during the job, known at some moments, and a straight line between these."""

    def __init__(self, lines: Iterable[tuple[float, float]]):
        self.moments, self.values = map(np.array, zip(*sorted(lines), strict=True))

    def within(self, since: float, until: float) -> float:
        return float(np.diff(np.interp([since, until], self.moments, self.values))[0])


def ratios(images: Grown, cpu: Grown, window: float) -> list[tuple[float, float]]:
    """(images a second, CPU time of an image) with extras against without, of each pair of windows with images."""
    # At the ends of the job, the device has no work all the time.
    first, last = math.ceil(images.moments[0] / window) + 2, int(images.moments[-1] / window) - 1
    found = []
    for pair in range(math.ceil(first / 2), (last + 1) // 2):
        rates, costs = {}, {}
        for number in (2 * pair, 2 * pair + 1):
            span = (number * window + SETTLING, (number + 1) * window)
            passed = images.within(*span)
            rates[_is_b(number)], costs[_is_b(number)] = passed, cpu.within(*span) / max(passed, 1)
        if min(rates.values()) >= 1:
            found.append((rates[True] / rates[False], costs[True] / costs[False]))
    return found


def measure(images: Path, output: Path, window: float, seconds: float, like: str) -> tuple[Grown, Grown]:
    """How many images have passed the device, and how much CPU time the job has used."""
    with tempfile.TemporaryDirectory() as noted:
        os.environ.update({WINDOW: str(window), NOTED: noted, LIKE: like})
        job = {"input": images, "output": output, "devices": 1, "cpus": 2, "seconds": seconds}
        run_script("tests/benchmarks/bench_extras.py", "--job", **job)
        passed, cpu = (sorted(_lines(Path(noted) / kind)) for kind in (PASSED, CPU))
    total = 0.0
    return Grown((moment, total := total + number) for moment, number in passed), Grown(cpu)


def _lines(path: Path) -> Iterator[tuple[float, float]]:
    for line in path.read_text().splitlines():
        moment, value = line.split()
        yield float(moment), float(value)


def note(kind: str, moment: float, value: float) -> None:
    with (Path(os.environ[NOTED]) / kind).open("a") as file:
        file.write(f"{moment} {value}\n")


def note_cpu_time() -> None:
    """Of this process and all that were ever below it, for ever."""
    used: dict[int, float] = {}
    while True:
        time.sleep(SAMPLING)
        with contextlib.suppress(psutil.Error):
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                    times = process.cpu_times()
                    used[process.pid] = max(used.get(process.pid, 0.0), times.user + times.system)
        note(CPU, time.time(), sum(used.values()))


def run_job() -> None:
    """In a process of its own: simulated_device.py with the actor above."""
    sys.argv.remove("--job")
    threading.Thread(target=note_cpu_time, daemon=True).start()
    simulated_device.main(SegmentImagesWithExtras)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=48_000)
    parser.add_argument("--window", type=float, default=4.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=FAST, help="that the device takes for 32 images")
    parser.add_argument("--same", action="store_true", help="without extras in all windows: what the noise is")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = copies(draw(folder, DRAWN), folder / "copies", args.images)
        passed, cpu = measure(images, folder / "output", args.window, args.seconds, "same" if args.same else "extras")
        began = time.monotonic()
        run_script("jobs/report.py", tables=folder / "output")
        page_seconds = time.monotonic() - began
    found = ratios(passed, cpu, args.window)
    if len(found) < 2:
        sys.exit(f"{len(found)} pairs of windows are too few: pass more --images or a smaller --window")
    rate = passed.within(-math.inf, math.inf) / (passed.moments[-1] - passed.moments[0])
    document = {"benchmark": "extras", **vars(args), "images_per_second": round(rate, 1)}
    for name, values in zip(("images a second", "CPU time of an image"), zip(*found, strict=True), strict=True):
        logs = [math.log(value) for value in values]
        ratio, error = math.exp(mean(logs)), stdev(logs) / math.sqrt(len(logs))
        print(f"{name}, with extras against without: {ratio:.4f} +- {error:.4f}, median {median(values):.4f}")
        print(f"    of {len(values)} pairs: {'  '.join(f'{value:.3f}' for value in sorted(values))}")
        document[name.replace(" ", "_")] = {"ratio": ratio, "error": error, "ratios": values}
    print(f"{rate:.0f} images/s on the whole; the page afterwards: {page_seconds:.1f} s")
    document |= {
        "page_seconds": round(page_seconds, 1),
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "versions": {name: version(name) for name in ("ray", "pyarrow", "numpy")},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    run_job() if "--job" in sys.argv else main()
