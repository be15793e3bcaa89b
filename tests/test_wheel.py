"""The built wheel holds the whole program: every module imports from it, package data is there, jobs answer.

The environment is new and holds the wheel alone. The libraries come from the environment of the tests, by a path, so
that nothing of the checkout can stand in for what the wheel lacks.
"""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.places import ROOT

pytestmark = pytest.mark.thorough

IMPORT_ALL = """
import importlib, pathlib, sys
from tests_modules import MODULES
for name in MODULES:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), f"{name} comes from {module.__file__}"
"""


def modules() -> list[str]:
    """Every module of the product, from the checkout's files."""
    files = [file for package in ("m2f_core", "pipeline", "jobs") for file in (ROOT / package).rglob("*.py")]
    names = [file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in files]
    return sorted(name.removesuffix(".__init__") for name in names)


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of a new environment that holds the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # From a copy: setuptools leaves a build folder beside what it builds, and takes stale files from one.
    left_out = shutil.ignore_patterns(".git", ".venv*", ".demo", ".overfit", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(folder / "source")], check=True)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "tests_modules.py").write_text(f"MODULES = {modules()}\n")
    return python


def run(python: Path, *args: str) -> str:
    """What a command prints, in a folder that is not the checkout, with no path of the checkout."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(python.parents[2]), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [python, *args], cwd=python.parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_from_the_wheel(python):
    assert len(modules()) > 150
    run(python, "-c", IMPORT_ALL)


@pytest.mark.parametrize(
    "job", ["segment_bucket", "selfcheck", "plan_bucket", "evaluate", "finetune", "make_scenes", "drill", "roll_back"]
)
def test_jobs_answer(python, job):
    assert "--output" in run(python, "-m", f"jobs.{job}", "--help") or job == "evaluate"


def test_the_checkpoint_and_the_label_maps_are_in_the_wheel(python):
    code = "from pipeline.segment.checkpoint import stage_model; from m2f_core.config.labels import LabelMap;"
    code += "c = stage_model('synthetic-scenes'); c.check();"
    code += "print(c.path, len(LabelMap.of_dataset('coco-panoptic').categories))"
    path, number = run(python, "-c", code).split()
    assert Path(path).is_relative_to(python.parents[1]) and number == "133"
