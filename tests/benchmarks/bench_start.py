"""From the command to the first image on a model actor, and to the prompt: a run over the eleven photographs.

    python tests/benchmarks/bench_start.py [--rounds R] [--model CHECKPOINT]

A first run, which does not count, warms the disk and leaves the mark that the checkpoint was checked. Each round is
`jobs/segment_bucket.py` with a Ray of its own and a new output, on a folder of photographs. Printed are medians of
seconds since the command: when a phase began, as the log says, when a model actor took the first image, and when the
command ended. The last line is one JSON document.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.scripts import ROOT
from tests.support.inputs import gather_photographs

FIRST_IMAGE, END = "first image", "end"


def one_start(photographs: Path, output: Path, model: str) -> dict[str, float]:
    """Seconds from the command to each line of the log without a figure, to the first image and to the end."""
    flags = ("--input", photographs, "--output", output, "--model", model, "--no-page")
    began, moments = time.time(), {}
    command = [sys.executable, ROOT / "jobs" / "segment_bucket.py", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as job:
        assert job.stderr is not None
        for line in job.stderr:
            if found := re.fullmatch(r"\S+Z INFO: ([A-Za-z ,]+)", line.strip()):
                moments.setdefault(found[1], time.time() - began)
    moments[END] = time.time() - began
    assert job.returncode == 0, f"the job ended with {job.returncode}"
    receipts = [json.loads(line) for file in output.glob("_runs/*/journal/*") for line in file.open()]
    moments[FIRST_IMAGE] = min(receipt["started"] for receipt in receipts) - began
    return moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="synthetic-scenes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        photographs = Path(scratch, "photographs")
        gather_photographs(photographs)
        rounds = [one_start(photographs, Path(scratch, str(n)), options.model) for n in range(options.rounds + 1)][1:]
    seconds = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for name, moment in sorted(seconds.items(), key=lambda item: item[1]):
        print(f"{moment:6.1f} s  {name}")
    spread = [min(one[FIRST_IMAGE] for one in rounds), max(one[FIRST_IMAGE] for one in rounds)]
    document = {"cpus": os.cpu_count(), "python": platform.python_version(), "seconds": seconds, FIRST_IMAGE: spread}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
