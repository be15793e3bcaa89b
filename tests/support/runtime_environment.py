"""A virtual environment that holds a wheel and what it needs, and nothing that only tests need.

The libraries are links into the environment of the tests, because installing them again would fetch gigabytes.
"""

import re
import subprocess
import sys
import sysconfig
import venv
from collections import defaultdict
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement


def make_environment(folder: Path, wheel: Path, extras: frozenset[str] = frozenset()) -> Path:
    """The interpreter of a new environment in `folder`, with the wheel, its extras and what these need."""
    venv.create(folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    site = Path(query(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
    [own] = distributions(path=[str(site)], name="m2f-pipeline")
    link(needed_by(own, extras), site)
    subprocess.run([*pip, "check"], check=True)
    return python


def query(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed_by(own: Distribution, extras: frozenset[str]) -> set[str]:
    """Names of all distributions that `own` needs, directly or not; RuntimeError if one is not installed here."""
    here = {canonical(one.name): one for one in distributions(path=[sysconfig.get_path("purelib")])}
    seen: set[tuple[str, str]] = set()
    waiting = [(own, extra) for extra in ("", *extras)]
    while waiting:
        distribution, extra = waiting.pop()
        for line in distribution.requires or ():
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            name = canonical(requirement.name)
            if name not in here:
                raise RuntimeError(f"{distribution.name} needs {line}, which is not installed")
            for wanted in ("", *requirement.extras):
                if (name, wanted) not in seen:
                    seen.add((name, wanted))
                    waiting.append((here[name], wanted))
    return {name for name, _ in seen}


def link(names: set[str], site: Path) -> None:
    """Link the files of these distributions below `site`: whole folders, where no other distribution has a part."""
    owners: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for distribution in distributions(path=[sysconfig.get_path("purelib")]):
        name = canonical(distribution.name)
        for parts in {file.parts for file in distribution.files or ()}:
            for depth in range(1, len(parts) + 1):
                owners[parts[:depth]].add(name)
    linked: set[tuple[str, ...]] = set()
    for parts in sorted(owners):
        inside = any(parts[:depth] in linked for depth in range(1, len(parts)))
        is_ours = owners[parts] <= names
        if parts[0] == ".." or inside or not is_ours or "__pycache__" in parts:
            continue
        (site / Path(*parts)).parent.mkdir(parents=True, exist_ok=True)
        (site / Path(*parts)).symlink_to(Path(sysconfig.get_path("purelib"), *parts))
        linked.add(parts)
