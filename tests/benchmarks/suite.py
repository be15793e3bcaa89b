"""All benchmarks that say a ratio, compared with the ratios of the last release: `make bench`.

    python tests/benchmarks/suite.py [--only NAME ...] [--write-baseline]

Each ratio compares two ways of doing one thing in one run on one machine, and higher is better. A ratio that is more
than 5 % below the one in docs/benchmarks/baseline.json is measured again; if the better of both is below, too, the
suite fails. It takes about 20 minutes on two quiet cores. The ratios are printed as the table of docs/benchmarks.md.
`--write-baseline` writes what was measured, before a release.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.scripts import ROOT, run_script

BASELINE = ROOT / "docs" / "benchmarks" / "baseline.json"
MOST_LOST = 0.05  # of a ratio
Document = Mapping[str, Any]
Ratios = dict[str, float]


@dataclass(frozen=True)
class Benchmark:
    """A script, the flags that bound its time, and the ratios in the document that it prints last."""

    name: str
    script: str
    flags: tuple[str, ...]
    ratios: Callable[[Document], Ratios]

    def run(self) -> Ratios:
        printed = run_script(f"tests/benchmarks/{self.script}", *self.flags)
        found = self.ratios(json.loads(printed.splitlines()[-1]))
        return {f"{self.name}: {what}": ratio for what, ratio in found.items()}


def of_model(document: Document) -> Ratios:
    rows = [row for row in document["rows"] if "model" in row]
    return {f"{row['model']} against transformers": row["fp32_ratio"] for row in rows} | {
        f"{row['model']} against matrix products": row["fp32_share_of_peak"] for row in rows
    }


def of_postprocess(document: Document) -> Ratios:
    return {f"{row['mode']} {row['size']}": row["ratio"] for row in document["rows"]} | {
        f"RLE {row['size']}": row["ratio"] for row in document["rle"]
    }


def of_tasks(document: Document) -> Ratios:
    return {row["task"]: row["ratio"] for row in document["rows"]}


def of_input(document: Document) -> Ratios:
    return {f"{row['size']} {mode}": row[key] for row in document["rows"] for mode, key in _OF_INPUT}


_OF_INPUT = (("reference", "ratio"), ("hf", "ratio_hf"))


def of_augment(document: Document) -> Ratios:
    return {name: row["ratio"] for name, row in document["rows"].items()}


def of_training(document: Document) -> Ratios:
    row = document["row"]
    memory = row["transformers_peak_mib"] / row["recomputed_peak_mib"]
    return {"against transformers": row["ratio"], "memory with --recompute-activations": memory}


def of_job(document: Document) -> Ratios:
    ratios = {}
    for row in document["rows"]:
        rate, size = row["images_per_second"], row["image_size"]
        ratios[f"{size} against Ray Data by hand"] = rate["job fp32"] / rate["by hand"]
        ratios[f"{size} against its model"] = rate["job fp32"] / rate["model fp32"]
    return ratios


def of_devices(document: Document) -> Ratios:
    busy = {f"a fast device is busy, {row['store']}": row["device_busy"] for row in document["feeding"]}
    return busy | {f"{row['devices']} devices against one": row["of_linear"] for row in document["scaling"][1:]}


def of_inputs(document: Document) -> Ratios:
    return {f"{kind} against loose": row["ratio"] for kind, row in document["rows"].items() if kind != "loose"}


def of_card(document: Document) -> Ratios:
    """The share of the time that is the model's."""
    return {f"{b['GPU']} batch {b['batch']}": 1 / b["all over model"] for b in document["bounds"]}


SUITE = (
    Benchmark("model, 1 thread", "bench_model.py", ("--sizes", "512x704"), of_model),
    Benchmark("model, 2 threads", "bench_model.py", ("--sizes", "800x1088", "--threads", "2"), of_model),
    Benchmark("panoptic post-processing", "bench_postprocess.py", (), of_postprocess),
    Benchmark("tasks", "bench_tasks.py", (), of_tasks),
    Benchmark("JPEG to input", "bench_input.py", (), of_input),
    Benchmark("training sample", "bench_augment.py", (), of_augment),
    Benchmark("training step", "bench_training.py", (), of_training),
    Benchmark("card of a GPU, by counting", "device_card.py", ("--batches", "1", "8"), of_card),
    Benchmark("inputs", "bench_inputs.py", ("--images", "1024", "--rounds", "1"), of_inputs),
    Benchmark(
        "devices, simulated",
        "bench_devices.py",
        ("--images", "1024", "--store", "s3", "--devices", "1", "4"),
        of_devices,
    ),
    Benchmark("job", "bench_job.py", ("--image-sizes", "512:800", "--copies", "1"), of_job),
)


def fallen(found: Ratios, baseline: Mapping[str, float]) -> list[str]:
    """The ratios that are lower than they were by more than `MOST_LOST`, and those that are gone."""
    return [name for name, before in baseline.items() if found.get(name, 0.0) < before * (1 - MOST_LOST)]


def measure(benchmark: Benchmark, baseline: Mapping[str, float]) -> Ratios:
    """Its ratios; the better of two runs where the first is below the baseline."""
    found = benchmark.run()
    known = {name: ratio for name, ratio in baseline.items() if name.startswith(f"{benchmark.name}: ")}
    if fallen(found, known):
        again = benchmark.run()
        found = {name: max(ratio, again.get(name, 0.0)) for name, ratio in found.items()}
    return found


def table(found: Ratios, baseline: Mapping[str, float]) -> str:
    lines = ["| ratio | now | at the last release |", "|---|---|---|"]
    for name in [*found, *(name for name in baseline if name not in found)]:
        now, before = (f"{ratio:.2f}" if ratio is not None else "" for ratio in (found.get(name), baseline.get(name)))
        lines.append(f"| {name} | {now} | {before} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[benchmark.name for benchmark in SUITE], help="run these alone")
    parser.add_argument("--write-baseline", action="store_true", help=f"write {BASELINE.relative_to(ROOT)}")
    args = parser.parse_args()
    chosen = [benchmark for benchmark in SUITE if not args.only or benchmark.name in args.only]
    recorded = json.loads(BASELINE.read_text())["ratios"] if BASELINE.is_file() else {}
    names = tuple(f"{benchmark.name}: " for benchmark in chosen)
    baseline = {} if args.write_baseline else {n: r for n, r in recorded.items() if n.startswith(names)}
    found: Ratios = {}
    for benchmark in chosen:
        began = time.monotonic()
        found |= measure(benchmark, baseline)
        print(f"{benchmark.name}: {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    print(table(found, baseline))
    if args.write_baseline:
        document = {"machine": platform.machine(), "cpus": os.cpu_count(), "ratios": {**recorded, **_rounded(found)}}
        BASELINE.parent.mkdir(exist_ok=True)
        BASELINE.write_text(json.dumps(document, indent=1) + "\n")
    elif lost := fallen(found, baseline):
        sys.exit(f"more than {MOST_LOST:.0%} below the last release: {'; '.join(lost)}")


def _rounded(ratios: Ratios) -> Ratios:
    return {name: round(ratio, 3) for name, ratio in ratios.items()}


if __name__ == "__main__":
    main()
