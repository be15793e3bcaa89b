"""What leaves the checkout: the upload of `ray job submit --working-dir .` and the build context of the image."""

import shutil
import zipfile
from pathlib import Path

import pytest
from docker.utils.build import exclude_paths

from tests.support.places import ROOT

PRODUCT = ("jobs", "pipeline", "m2f_core")
MAX_UPLOAD_BYTES = 3 * 2**20
# What a checkout gathers while people work in it, and must stay at home.
LITTER = (
    *(".venv/lib/torch.so", ".venv-3.13/bin/python", ".demo/output/part.parquet", ".overfit/model.safetensors"),
    *(".git/objects/pack/pack.pack", ".mypy_cache/3.11/cache.db", ".env", "photographs/0.jpg", "dist/m2f.whl", "core"),
    *("build/lib/jobs/demo.py", "m2f_pipeline.egg-info/PKG-INFO", "jobs/__pycache__/demo.cpython-311.pyc"),
    *("m2f_core/layers/__pycache__/linear.cpython-312.pyc", "tests/test_readme.py", "docs/README.md", "weights.pkl"),
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A checkout in which somebody has worked."""
    folder = tmp_path_factory.mktemp("checkout") / "m2f-pipeline"
    left_out = shutil.ignore_patterns(".git", ".venv*", "tests", "docs", ".demo", ".overfit", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=left_out)
    for name in LITTER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(100_000))
    (folder / "night.yaml").write_text("input: s3://bucket/photographs\n")
    return folder


def sources() -> set[str]:
    """Every module of the product, as a path below the checkout."""
    return {file.relative_to(ROOT).as_posix() for package in PRODUCT for file in (ROOT / package).rglob("*.py")}


@pytest.mark.parametrize("reads_gitignore", [True, False])
def test_a_submission_uploads_the_code_and_settings_and_nothing_else(checkout, tmp_path, reads_gitignore):
    packaging = pytest.importorskip("ray._private.runtime_env.packaging")
    archive = tmp_path / "upload.zip"
    packaging.create_package(str(checkout), archive, include_gitignore=reads_gitignore)
    with zipfile.ZipFile(archive) as opened:
        names = set(opened.namelist())
    assert archive.stat().st_size < MAX_UPLOAD_BYTES
    assert names >= sources() | {"night.yaml", "m2f_core/datasets/coco.json"}
    template = {file.relative_to(ROOT).as_posix() for file in (ROOT / "pipeline" / "page" / "template").iterdir()}
    others = {name for name in names if not name.endswith((".py", ".json"))} - template
    assert names >= template and others == {"night.yaml", "m2f_core/datasets/README.md", "pipeline/budget/prices.yaml"}
    assert {name.split("/")[0] for name in names} == {*PRODUCT, "night.yaml"}


def test_the_build_context_of_the_image_is_what_the_wheel_is_made_of(checkout):
    """docker-py reads .dockerignore as the Docker daemon does."""
    patterns = (checkout / ".dockerignore").read_text().splitlines()
    patterns = [line for line in patterns if line and not line.startswith("#")]
    names = {name for name in exclude_paths(str(checkout), patterns) if (checkout / name).is_file()}
    data = {"pipeline/models/synthetic-scenes/model.safetensors", "pipeline/budget/prices.yaml"}
    assert names >= sources() | data | {"pyproject.toml"}
    assert not names & set(LITTER)
    tops = {name for name in names if name.split("/")[0] not in PRODUCT}
    image = {"infra/image/prebuild_triton.py", "infra/image/prebuilt_cc.sh", "infra/image/Dockerfile"}
    assert tops - image == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE"} | {".dockerignore"} & tops
