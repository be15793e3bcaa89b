"""Fuzz one target, or each in turn: python -m tests.fuzz.drive [TARGET ...] --executions N --seed S [--corpus FOLDER]

libFuzzer makes the inputs (through atheris, of the extra `fuzz`) and learns from the lines of ours that they reach. It
ends at the first finding with the input in `crash-*`, and with its own report at 5 seconds or too much memory.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

MOST_MEMORY_MIB = 3072  # of the process: 1 GiB for a reader, beside PyTorch and what libFuzzer keeps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--executions", type=int, default=20_000, help="of each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"), help="inputs that reached new lines")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        fuzz(args.one, args.executions, args.seed, args.corpus)
    from tests.fuzz.targets import TARGETS

    failed = 0
    for name in args.targets or TARGETS:
        started = time.monotonic()
        options = ["--one", name, "--executions", str(args.executions), "--seed", str(args.seed)]
        command = [sys.executable, "-m", "tests.fuzz.drive", *options, "--corpus", str(args.corpus)]
        code = subprocess.run(command, check=False).returncode
        minutes = (time.monotonic() - started) / 60
        print(f"== {name}: {args.executions:,} executions, {minutes:.1f} min, exit code {code}", flush=True)
        failed += code != 0
    return 1 if failed else 0


def fuzz(name: str, executions: int, seed: int, corpus: Path) -> None:
    """Never returns: libFuzzer ends the process."""
    os.environ.update(OMP_NUM_THREADS="1", RAYON_NUM_THREADS="1")
    import atheris

    # Kernels of numba are compiled from their bytecode, which must stay as it is.
    with atheris.instrument_imports(include=["pipeline", "jobs", "m2f_core"], exclude=["m2f_core.masks.rle"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    kept = corpus / name
    (kept / "seeds").mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (kept / "seeds" / f"{number:03d}").write_bytes(data)
        target(data)  # what it loads only once takes seconds
    (kept / "found").mkdir(exist_ok=True)
    options = [
        f"-runs={executions}",
        f"-seed={seed}",
        f"-max_len={target.longest}",
        "-timeout=5",
        f"-rss_limit_mb={MOST_MEMORY_MIB}",
        f"-artifact_prefix={kept}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]

    def run_one(data: bytes) -> None:
        target(data)

    atheris.Setup([sys.argv[0], *options, str(kept / "found"), str(kept / "seeds")], run_one)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
