"""Imports go one way: jobs -> pipeline -> m2f_core -> torch (triton), numpy, scipy, numba, pillow, safetensors."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
THIRD_PARTY_OF_CORE = {"torch", "triton", "numpy", "scipy", "numba", "PIL", "safetensors"}  # Triton comes with torch
MAY_IMPORT = {"m2f_core": set(), "pipeline": {"m2f_core"}, "jobs": {"m2f_core", "pipeline"}}
_IMPORT_RAY = ("run", "shard_source", "board", "cluster", "finetune", "training_worker")
RAY_FILES = {f"pipeline/{name}.py" for name in _IMPORT_RAY}


def imported_roots(source: str) -> set[str]:
    """Top-level names of every absolute import in `source`, also those inside functions."""
    roots = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            roots.add(node.module.split(".")[0])
    return roots


def violations(room: str, path: str, source: str) -> set[str]:
    """What `path` of `room` imports and may not."""
    roots = imported_roots(source)
    bad = (roots & set(MAY_IMPORT)) - MAY_IMPORT[room] - {room}
    bad |= roots & {"transformers", "pycocotools", "detectron2", "tests"}
    if room == "m2f_core":
        bad |= roots - set(sys.stdlib_module_names) - THIRD_PARTY_OF_CORE - {"m2f_core"}
    elif path not in RAY_FILES:
        bad |= roots & {"ray"}
    return bad


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = {}
    for file in files:
        path = file.relative_to(ROOT).as_posix()
        if bad := violations(room, path, file.read_text()):
            found[path] = bad
    assert not found


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("m2f_core", "import ray"),
        ("m2f_core", "def f():\n    from pipeline.run import execute"),
        ("m2f_core", "import fsspec"),
        ("pipeline", "from jobs import segment_bucket"),
        ("pipeline", "import ray.data"),
        ("pipeline", "import pycocotools.mask"),
        ("jobs", "import transformers"),
    ],
)
def test_the_check_can_fail(room, source):
    assert violations(room, f"{room}/example.py", source)


def modules_after(code: str) -> set[str]:
    """Names in sys.modules of a clean process that ran `code`."""
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    return set(out.split())


def test_settings_and_command_line_load_neither_torch_nor_ray():
    loaded = modules_after("import jobs.segment_bucket, pipeline.config, jobs.command_line")
    assert not loaded & {"torch", "ray", "numpy", "pyarrow"}
    assert "pipeline.config" in loaded


def test_the_model_room_runs_without_ray_and_storage():
    loaded = modules_after("import m2f_core.model, m2f_core.segments, m2f_core.checkpoint, m2f_core.image_processor")
    assert not loaded & {"ray", "fsspec", "pyarrow", "pipeline"}
    assert "torch" in loaded


@pytest.mark.parametrize("stage", ["pipeline.read", "pipeline.shard_source", "pipeline.write"])
def test_stages_beside_the_model_do_not_load_torch(stage):
    """It would cost each of their processes 2 s and 300 MB. What Ray starts imports the module of the class."""
    code = f"import sys, {stage}; assert not {{'torch', 'pipeline.run'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
