"""Scripts of this checkout as processes of their own, for benchmarks that time whole jobs."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_script(path: str, *args: str, **flags: object) -> str:
    """What `path`, from the root of the checkout, prints. Where it fails, this process ends with its error."""
    given = [text for name, value in flags.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    done = subprocess.run(
        [sys.executable, str(ROOT / path), *args, *given], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{path} ended with {done.returncode}: {done.stderr}")
    return done.stdout
