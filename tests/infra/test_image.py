"""The Dockerfiles: linted, every source that they copy is in the build context, and what the image needs is in it.

No test builds an image. `test_wheel.py` runs a job from the wheel as the image does.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

from tests.support.places import ROOT

IMAGE = ROOT / "infra" / "image"
DOCKERFILES = sorted(IMAGE.glob("*Dockerfile"))
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"


def instructions(path: Path) -> list[str]:
    """The instructions of a Dockerfile, each on one line, without comments."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def stages(path: Path) -> dict[str, list[str]]:
    """The instructions of each stage, by its name."""
    found: dict[str, list[str]] = {}
    for line in instructions(path):
        if line.startswith("FROM "):
            found[line.split(" AS ")[-1].removeprefix("FROM ")] = []
        if found:
            list(found.values())[-1].append(line)
    return found


def lint(path: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_linter_finds_nothing_that_no_comment_explains(dockerfile):
    done = lint(dockerfile)
    assert (done.returncode, done.stdout) == (0, "")
    lines = dockerfile.read_text().splitlines()
    ignored = [number for number, line in enumerate(lines) if line.startswith("# hadolint ignore=")]
    assert all(re.match(r"# \w", lines[number - 1]) for number in ignored)
    assert all(re.fullmatch(r"# hadolint ignore=DL\d+", lines[number]) for number in ignored)


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("FROM ${PYTHON}@${PYTHON_DIGEST} AS image", "FROM debian AS image", "DL3006"),
        ("WORKDIR /app", "WORKDIR app", "DL3000"),
    ],
)
def test_the_linter_can_fail(tmp_path, before, after, rule):
    good = (IMAGE / "Dockerfile").read_text()
    assert before in good
    (tmp_path / "Dockerfile").write_text(good.replace(before, after))
    done = lint(tmp_path / "Dockerfile")
    assert done.returncode == 1 and rule in done.stdout


def test_every_source_that_is_copied_exists_and_is_in_the_build_context():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    context = exclude_paths(str(ROOT), patterns)
    sources = [
        source
        for line in instructions(IMAGE / "Dockerfile")
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    ]
    assert len(sources) >= 8
    assert not [source for source in sources if not (ROOT / source).exists()]
    assert not [source for source in sources if source not in context]


def test_images_of_others_are_pinned_by_a_digest_that_has_no_default():
    own = stages(IMAGE / "Dockerfile")
    bases = [line.split()[1] for lines in own.values() for line in lines if line.startswith("FROM ")]
    others = {base for base in bases if base not in own and base != "torch-${VARIANT}"}
    assert others == {"${PYTHON}@${PYTHON_DIGEST}"}
    assert "ARG PYTHON_DIGEST" in instructions(IMAGE / "Dockerfile")


def test_the_page_lists_the_build_arguments():
    arguments = {
        line.split()[1].split("=")[0] for line in instructions(IMAGE / "Dockerfile") if line.startswith("ARG ")
    }
    page = (IMAGE / "README.md").read_text().split("| build argument |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == arguments


def test_the_image_has_no_compiler_and_runs_as_nobody_special():
    [*_, (name, last)] = stages(IMAGE / "Dockerfile").items()
    assert name == "image"
    assert not [line for line in last if "apt-get" in line or "gcc" in line]
    assert [line for line in last if line.startswith("USER ")] == ["USER 1000:1000"]
    assert last.index("USER 1000:1000") > max(number for number, line in enumerate(last) if line.startswith("RUN "))
    assert {"WORKDIR /app", "COPY jobs /app/jobs"} <= set(last)


def test_every_cache_of_the_image_lies_below_tmp():
    [environment] = [line for line in stages(IMAGE / "Dockerfile")["image"] if line.startswith("ENV ")]
    places = dict(re.findall(r"(\w+)=(\S+)", environment))
    written = {name for name in places if name.endswith(("HOME", "DIR", "TMPDIR", "CACHE_PATH"))}
    assert written >= {"HOME", "TMPDIR", "RAY_TMPDIR", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "MPLCONFIGDIR"}
    assert not [name for name in written if not places[name].startswith("/tmp")]


def test_the_image_has_the_dependencies_that_pyproject_names(tmp_path):
    """The program in the RUN that lists them runs as it stands there."""
    [default] = re.findall(r'^ARG EXTRAS="(.*)"$', (IMAGE / "Dockerfile").read_text(), flags=re.MULTILINE)
    [line] = [line for line in instructions(IMAGE / "Dockerfile") if line.startswith("RUN python -c")]
    [program] = re.findall(r'python -c "(.*?)" > requirements.txt', line)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def names(extras: str) -> set[str]:
        command, environment = [sys.executable, "-c", program], {**os.environ, "EXTRAS": extras}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return {re.split(r"[^\w-]", line)[0] for line in done.stdout.splitlines()}

    assert names(default) >= {"torch", "ray", "huggingface_hub", "matplotlib", "gcsfs", "adlfs"}
    assert "rasterio" in names("geo") and not {"pytest", "gcsfs"} & names("geo")
    with pytest.raises(subprocess.CalledProcessError):
        names("goe")


PREBUILD = """
import sys
from pathlib import Path
from prebuild_triton import names_of_cuda, prebuild, write_libcuda
folder, libcuda = map(Path, sys.argv[1:])
prebuild(folder)
write_libcuda(libcuda, names_of_cuda(folder / "cuda_utils.so"))
"""
LAUNCHER = """
from triton.backends.nvidia.driver import CudaUtils
utils = CudaUtils()
print(callable(utils.launch))
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs the compiler of the image's builder")
def test_tritons_launcher_needs_no_compiler_where_it_was_prebuilt(tmp_path):
    pytest.importorskip("triton")
    folder = tmp_path / "triton"
    libcuda = tmp_path / "driver"
    libcuda.mkdir()
    subprocess.run([sys.executable, "-c", PREBUILD, folder, libcuda], cwd=IMAGE, check=True)
    (tmp_path / "bin").mkdir()
    for name in ("sh", "cmp", "cp", "dirname"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    environment = {
        "PATH": str(tmp_path / "bin"),  # without a compiler
        "CC": str(folder / "prebuilt_cc.sh"),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "TRITON_LIBCUDA_PATH": str(libcuda),
        "LD_LIBRARY_PATH": str(libcuda),  # in place of a device's driver
    }
    done = subprocess.run([sys.executable, "-c", LAUNCHER], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr

    (folder / "cuda_utils.c").write_text("that of another version\n")
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "another")
    done = subprocess.run([sys.executable, "-c", LAUNCHER], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "this image has no C compiler" in done.stderr
