"""The files of a release. The wheel holds the whole program: every module imports from it, package data is there, jobs
answer, and the main job runs as in the image. The sdist gives the same wheel.

The environment is new and holds the wheel and what it needs: nothing of the checkout, and no library that only tests
need, can stand in for what the wheel lacks.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import m2f_core
from jobs.common.command_line import COMMANDS
from tests.support.places import ROOT
from tests.support.runtime_environment import make_environment
from tests.support.tables import read_table

pytestmark = pytest.mark.thorough

PRODUCT = ("m2f_core", "pipeline", "jobs")
READ_ONLY = ROOT / "tests" / "support" / "read_only.sh"

IMPORT_ALL = """
import importlib, pathlib, sys
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:  # PyTorch for CPUs comes without Triton; two stores need extras
        assert (error.name.partition(".")[0], name) in (
            ("triton", "m2f_core.layers.deformable_attention_triton"),
            ("gcsfs", "pipeline.store.other.google"),
            ("adlfs", "pipeline.store.other.azure"),
        ), error
        continue
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), f"{name} comes from {module.__file__}"
"""


def modules() -> list[str]:
    """Every module of the product, from the checkout's files."""
    files = [file for package in PRODUCT for file in (ROOT / package).rglob("*.py")]
    names = [file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in files]
    return sorted(name.removesuffix(".__init__") for name in names)


@pytest.fixture(scope="module")
def source() -> Iterator[Path]:
    """A copy of the checkout, on the day of a release, with dist/ as `make release` fills it first."""
    folder = Path(tempfile.mkdtemp(prefix="m2f-"))
    left_out = shutil.ignore_patterns(
        ".git", ".venv*", ".demo", ".overfit", "build", "dist", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    changelog = folder / "source" / "CHANGELOG.md"
    release = f"## Unreleased\n\n## {m2f_core.__version__} - 2026-11-30"
    changelog.write_text(changelog.read_text().replace("## Unreleased", release, 1))
    try:
        tools = folder / "venv-tools"
        make = ["make", "--silent", tools / ".ready", f"VENV={folder / 'venv'}", f"PYTHON={sys.executable}"]
        made = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
        assert made.returncode == 0, made.stdout + made.stderr
        built = step(folder / "source", tools / "bin", "build")
        assert built.returncode == 0, built.stdout + built.stderr
        yield folder / "source"
    finally:
        shutil.rmtree(folder)


def step(source: Path, tools: Path, name: str, *args: object) -> "subprocess.CompletedProcess[str]":
    """A step of tools/release.sh with the programs in `tools`."""
    command = [source / "tools" / "release.sh", name, tools, *args]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1796000000", "NO_COLOR": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def python(source) -> Path:
    """The interpreter of a new environment that holds the wheel and what it needs."""
    [wheel] = source.glob("dist/*.whl")
    return make_environment(source.parent / "venv", wheel, frozenset({"hub", "train"}))


def run(python: Path, *args: str) -> str:
    """What a command prints, in a folder that is not the checkout, with no path of the checkout."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(python.parents[2]), "TRITON_INTERPRET": "1"}
    done = subprocess.run([python, *args], cwd=python.parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_from_the_wheel(python):
    assert len(modules()) > 150
    run(python, "-c", IMPORT_ALL, *modules())


@pytest.mark.parametrize(
    "job",
    [
        "segment_bucket",
        "selfcheck",
        "plan_bucket",
        "evaluate",
        "export_model",
        "finetune",
        "make_scenes",
        "drill",
        "roll_back",
        "tidy",
        "verify",
        "publish",
        "nights",
    ],
)
def test_jobs_answer(python, job):
    assert "--output" in run(python, "-m", f"jobs.{job}", "--help") or job in ("evaluate", "verify", "publish")


def test_the_checkpoint_and_the_label_maps_are_in_the_wheel(python):
    code = "from pipeline.segment.checkpoint import stage_model; from m2f_core.config.labels import LabelMap;"
    code += "c = stage_model('synthetic-scenes'); c.check();"
    code += "print(c.path, len(LabelMap.of_dataset('coco-panoptic').categories))"
    path, number = run(python, "-c", code).split()
    assert Path(path).is_relative_to(python.parents[1]) and number == "133"


@pytest.mark.parametrize(("file", "command"), COMMANDS.items())
def test_pip_gives_each_job_a_command_that_knows_its_name(python, file, command):
    done = subprocess.run([python.parent / command, "--version"], env={}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{command} {m2f_core.__version__}\n"), done.stderr
    done = subprocess.run([python.parent / command, "--no-such-flag"], env={}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(f"{command}: error: "), done.stderr


@pytest.fixture
def in_the_image(python) -> Iterator[Callable[..., str]]:
    """Runs commands of the environment as the image runs them: no name, no home, only TMPDIR can be written to."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    tried = subprocess.run([*alone, "mount", "--bind", "/tmp", "/tmp"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"needs user namespaces, to be another user with read-only folders: {tried.stderr.strip()}")
    writable = Path(tempfile.mkdtemp(prefix="m2f-"))

    def call(*command: object) -> str:
        done = subprocess.run(
            [*alone, READ_ONLY, writable, *map(str, command)],
            cwd=python.parents[2],
            env={"PATH": f"{python.parent}:/usr/bin:/bin", "TMPDIR": str(writable), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    try:
        yield call
    finally:
        shutil.rmtree(writable)


def test_the_main_job_runs_in_the_image_as_a_nameless_user(in_the_image, python):
    user, place = in_the_image("sh", "-c", "echo $(id -u)$HOME $TMPDIR").split()
    assert user == "12345"
    writable = Path(place)
    for closed in (".", "/", "/tmp", "/var/tmp", python.parent):
        in_the_image("sh", "-c", f"! touch {closed}/written 2>/dev/null")
    scenes, output = writable / "scenes", writable / "output"
    in_the_image("m2f-scenes", "--output", scenes, "--number", 3)
    said = in_the_image("m2f-segment", "--input", scenes / "images", "--output", output)
    assert "Delta table, version 1" in said
    assert [row["status"] for row in read_table(output, "images")] == ["ok"] * 3
    assert len(read_table(output, "segments")) > 3
    assert "3 images, 3 with a result" in in_the_image(
        "m2f-evaluate", "--tables", output, "--panoptic-gt", scenes / "panoptic.json"
    )
    # Ray, and the machine code of the kernels, lie in the folder of this user.
    assert {path.name for path in writable.iterdir()} == {"scenes", "output", "m2f-12345"}
    assert {path.name for path in (writable / "m2f-12345").iterdir()} == {"ray", ".cache"}


def content(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def test_the_sdist_and_the_wheel_hold_the_program_and_nothing_else(source):
    version = m2f_core.__version__
    wheel = content(source / "dist" / f"m2f_pipeline-{version}-py3-none-any.whl")
    files = [file for package in PRODUCT for file in (source / package).rglob("*") if file.is_file()]
    program = {file.relative_to(source).as_posix() for file in files if file.suffix != ".pyc"}
    about = {name for name in wheel if name.startswith(f"m2f_pipeline-{version}.dist-info/")}
    assert set(wheel) - about == program
    assert {"pipeline/models/synthetic-scenes/config.json", "pipeline/budget/prices.yaml"} < program

    with tarfile.open(source / "dist" / f"m2f_pipeline-{version}.tar.gz") as opened:
        names = {member.name.partition("/")[2] for member in opened.getmembers() if member.isfile()}
    others = {name for name in names if name.split("/")[0] not in PRODUCT}
    made = {"PKG-INFO", "setup.cfg", *(name for name in others if name.startswith("m2f_pipeline.egg-info/"))}
    pages = {"README.md", "LICENSE", "CHANGELOG.md"}
    assert others - made == pages | {"pyproject.toml", "MANIFEST.in", "constraints.txt"}
    assert names - others == program


def test_the_checkout_and_the_sdist_give_the_same_wheel(source, tmp_path):
    """The wheel in dist/ is built from the sdist."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source], check=True)
    [ours], [released] = tmp_path.glob("*.whl"), source.glob("dist/*.whl")
    assert content(ours) == content(released)


def test_a_release_lists_what_it_needs_and_its_checksums(source, python):
    done = step(source, source.parent / "venv-tools" / "bin", "finish", python)
    assert done.returncode == 0, done.stderr
    bill = json.loads((source / "dist" / f"m2f_pipeline-{m2f_core.__version__}.cdx.json").read_text())
    about = bill["metadata"]["component"]
    assert (bill["bomFormat"], about["name"], about["version"]) == ("CycloneDX", "m2f-pipeline", m2f_core.__version__)
    versions = {component["name"].lower(): component["version"] for component in bill["components"]}
    assert versions.keys() >= {"torch", "ray", "numpy", "numba", "aiobotocore", "aiohttp"}
    assert not versions.keys() & {"pytest", "mypy", "pycocotools", "transformers"}
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=source / "dist", capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count(": OK") == 3, checked.stdout


def test_nothing_is_released_that_the_changelog_does_not_date(source, tmp_path):
    shutil.copytree(source / "tools", tmp_path / "tools")
    for name in ("m2f_core/__init__.py", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "m2f_core/__init__.py").write_text('__version__ = "77.1.2"  # the next one\n')
    done = step(tmp_path, source.parent / "venv-tools" / "bin", "build")
    assert done.returncode == 2 and "CHANGELOG.md has no line '## 77.1.2 - " in done.stderr
    assert not (tmp_path / "dist").exists()
