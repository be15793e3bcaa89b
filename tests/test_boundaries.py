"""Imports go one way: between packages, and between the rooms of a package as the table of ARCHITECTURE.md has them."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple

import pytest

from jobs.common.command_line import COMMANDS
from m2f_core.families.registry import FAMILIES
from tests.support.places import ROOT

# Triton comes with torch; huggingface_hub is wanted only for a checkpoint of the hub.
THIRD_PARTY_OF_CORE = {"torch", "triton", "numpy", "scipy", "numba", "PIL", "safetensors", "huggingface_hub"}
MAY_IMPORT = {
    "m2f_core": set(),
    "pipeline": {"m2f_core"},
    "jobs": {"m2f_core", "pipeline"},
    "infra": {"m2f_core", "pipeline", "jobs"},
}
MAX_FILES = 12  # of a folder, so that a newcomer reads its names at one glance
OF_COMMANDS = "jobs"  # has a file for each command, which docs/command-line.md lists


class Room(NamedTuple):
    """A row of the table. `ray`: stems of the files that may import Ray."""

    level: int
    ray: frozenset[str]


def read_rooms(page: str) -> dict[tuple[str, str], Room]:
    """(package, room) -> its row."""
    rows = re.findall(r"^\| (\w+) \| (\d+) \| `(\w+)` \|[^|]*\|([^|]*)\|$", page, flags=re.MULTILINE)
    return {
        (package, room): Room(int(level), frozenset(re.findall(r"`(\w+)`", ray))) for package, level, room, ray in rows
    }


ROOMS = read_rooms((ROOT / "ARCHITECTURE.md").read_text())


def imported_modules(source: str) -> Iterator[str]:
    """Dotted names that `source` imports absolutely, also inside functions; `from a import b` gives `a` and `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> tuple[str, str] | None:
    """(package, room) of a dotted name or a path; None for what the table does not divide."""
    parts = module.removesuffix(".py").replace("/", ".").split(".")
    return (parts[0], parts[1]) if len(parts) > 1 and parts[0] in ("pipeline", "m2f_core") else None


def violations(path: str, source: str) -> list[str]:
    """What the file at `path` imports and may not, each as a sentence."""
    package, here = path.split("/")[0], room_of(path)
    modules = sorted(set(imported_modules(source)))
    roots = {module.split(".")[0] for module in modules}
    bad = (roots & set(MAY_IMPORT)) - MAY_IMPORT[package] - {package}
    bad |= roots & {"transformers", "pycocotools", "detectron2", "tests"}
    if package == "m2f_core":
        bad |= roots - set(sys.stdlib_module_names) - THIRD_PARTY_OF_CORE - {"m2f_core"}
    found = [f"{path} imports {name}, which {package}/ may not" for name in sorted(bad)]
    if here is None or path.endswith("/__init__.py"):
        return found
    if here not in ROOMS:
        return [*found, f"{path}: ARCHITECTURE.md has no room {here[1]} in {package}"]
    if "ray" in roots and path.split("/")[-1].removesuffix(".py") not in ROOMS[here].ray:
        found.append(f"{path} imports ray; in {here[1]} only {sorted(ROOMS[here].ray) or 'no file'} may")
    for there in sorted({room for module in modules if (room := room_of(module)) and room[0] == package}):
        # `from pipeline import run` gives pipeline.run; a name that is no room is a name inside a file.
        if there != here and there in ROOMS and ROOMS[there].level >= ROOMS[here].level:
            allowed = sorted(
                name for (of, name), room in ROOMS.items() if of == package and room.level < ROOMS[here].level
            )
            found.append(f"{path} imports {there[1]}; {here[1]} may import {', '.join(allowed)}")
    return found


def sources() -> dict[str, str]:
    """Path -> content of each file of the product."""
    return {
        file.relative_to(ROOT).as_posix(): file.read_text()
        for package in MAY_IMPORT
        for file in sorted((ROOT / package).rglob("*.py"))
    }


def find_circle(files: dict[str, str]) -> list[str] | None:
    """Files that import each other in a circle, if there are any."""
    name_of = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in files}
    graph = {
        path: {name_of[m] for m in imported_modules(source) if m in name_of} - {path} for path, source in files.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package):
    files = {path: source for path, source in sources().items() if path.startswith(f"{package}/")}
    assert files
    assert not [line for path, source in files.items() for line in violations(path, source)]


def test_every_room_of_the_table_is_there():
    missing = [
        room for room in ROOMS if not (ROOT / "/".join(room)).is_dir() and not (ROOT / f"{'/'.join(room)}.py").is_file()
    ]
    assert ROOMS and not missing
    files = set(sources())
    for (package, name), room in ROOMS.items():
        for stem in room.ray:
            assert {f"{package}/{name}/{stem}.py", f"{package}/{name}.py"} & files, (
                f"{name}/{stem} may import Ray, and is gone"
            )


def test_no_files_import_each_other_in_a_circle():
    assert find_circle(sources()) is None


def test_no_folder_is_crowded():
    counts: dict[str, int] = {}
    for path in sources():
        if not path.endswith("__init__.py"):
            folder = path.rpartition("/")[0]
            counts[folder] = counts.get(folder, 0) + 1
    assert counts.pop(OF_COMMANDS) == len(COMMANDS)
    assert not {folder: number for folder, number in counts.items() if number > MAX_FILES}


@pytest.mark.parametrize(
    ("path", "source", "said"),
    [
        ("m2f_core/layers/linear.py", "import ray", "imports ray, which m2f_core/ may not"),
        ("m2f_core/model/swin.py", "def f():\n    from pipeline.run import execute", "imports pipeline, which"),
        ("m2f_core/images/resize.py", "import fsspec", "imports fsspec"),
        ("m2f_core/images/resize.py", "from m2f_core.masks import rle", "images may import config, jit, losses"),
        ("pipeline/runs/find.py", "from jobs import segment_bucket", "imports jobs"),
        ("pipeline/plan/changes.py", "import ray.data", "in plan only ['source'] may"),
        ("pipeline/store/objects.py", "import ray.data", "in store only no file may"),
        (
            "pipeline/store/objects.py",
            "import pipeline.tables.publish",
            "imports tables; store may import budget, errors, input_spec, look_ahead, node_labels, schema",
        ),
        (
            "pipeline/inputs/fetch.py",
            "from pipeline.commit.write import x",
            "imports commit; inputs may import budget, cluster",
        ),
        ("pipeline/runs/check.py", "from pipeline import run", "imports run; runs may import"),
        ("pipeline/novelty/thing.py", "", "has no room novelty"),
        ("pipeline/coco/ground_truth.py", "import pycocotools.mask", "imports pycocotools"),
        ("jobs/demo.py", "import transformers", "imports transformers"),
    ],
)
def test_the_check_can_fail_and_says_which_room_may_import_what(path, source, said):
    assert said in "\n".join(violations(path, source))


def test_the_check_for_circles_can_fail():
    files = {"jobs/a.py": "import jobs.b", "jobs/b.py": "from jobs import c", "jobs/c.py": "from jobs.a import x"}
    assert set(find_circle(files) or ()) == set(files)


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
    loaded = modules_after("import jobs.segment_bucket, pipeline.config, jobs.common.command_line")
    assert not loaded & {"torch", "ray", "numpy", "pyarrow"}
    assert "pipeline.config" in loaded


def test_the_model_room_runs_without_ray_and_storage_and_opens_a_checkpoint_without_sympy(tiny_checkpoint):
    """PyTorch loads SymPy for some operations on the meta device, which takes every process a second."""
    code = "import m2f_core.model.mask2former, m2f_core.images.image_processor, m2f_core.inference.panoptic"
    opens = f"from m2f_core.checkpoints.checkpoint import Checkpoint; Checkpoint({str(tiny_checkpoint)!r}).load()"
    loaded = modules_after(f"{code}; {opens}")
    assert not loaded & {"ray", "fsspec", "pyarrow", "pipeline", "sympy"}
    assert "torch" in loaded


def test_stages_beside_the_model_do_not_load_torch():
    """It would cost each of their processes 2 s and 300 MB. What Ray starts imports the module of the class."""
    stages = {"pipeline.inputs.fetch", "pipeline.plan.source", "pipeline.commit.write"}
    loaded = modules_after(f"import {', '.join(sorted(stages))}")
    assert stages < loaded and not loaded & {"torch", "pipeline.run"}


def test_no_line_of_the_pipeline_names_a_family() -> None:
    names = [name for family in FAMILIES for name in (family.name, *family.model_types)]
    pattern = re.compile("|".join(map(re.escape, names)), re.IGNORECASE)
    files = sorted((ROOT / "pipeline").rglob("*.py"))
    found = [f"{file}:{line}" for file in files for line in file.read_text().splitlines() if pattern.search(line)]

    assert files and pattern.search("from m2f_core.model.mask2former import Mask2Former")
    assert found == []
