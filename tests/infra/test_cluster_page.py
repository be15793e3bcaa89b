"""docs/cluster.md: the commands that need no cluster, run as they stand there, and what the page lists."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.check_manifests import faults, main
from tests.support.manifests import COMPONENTS, KUBERNETES, OVERLAYS, build, built_text, find
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "cluster.md").read_text()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of infra/ in which the commands of step 1 have been run."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "infra", folder / "infra", ignore=shutil.ignore_patterns("__pycache__"))
    [commands] = re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    done = subprocess.run(["bash", "-euc", commands], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return folder


def test_the_folder_of_step_1_is_yours_and_has_no_fault(checkout):
    objects = build(checkout / "my-cluster")
    assert faults(objects) == []
    assert "s3://our-photographs/" in find(objects, "ConfigMap", "m2f-night-settings")["data"]["night.yaml"]
    assert find(objects, "CronJob")["spec"]["timeZone"] == "Europe/Berlin"
    text = built_text(checkout / "my-cluster")
    assert "arn:aws:iam::123456789012" in text and "000000000000" not in text
    images = set(re.findall(r"image: (\S+)", text))
    assert len(images) == 1 and re.fullmatch(r"123456789012\.dkr\.\S+@sha256:[0-9a-f]{64}", images.pop())


def test_every_overlay_takes_the_image_and_the_settings_of_that_folder(checkout):
    original = (checkout / "my-cluster" / "kustomization.yaml").read_text()
    for name in OVERLAYS:
        folder = checkout / f"cluster-{name}"
        shutil.copytree(checkout / "my-cluster", folder)
        text = original.replace("overlays/gpu-spot", f"overlays/{name}")
        if name == "raycronjob":  # its schedule is in another object
            text = re.sub(r"  - target: \{ kind: CronJob.*", "", text, flags=re.DOTALL)
        if name == "local":  # which has no roles, and no GPUs
            text = re.sub(r"  - target: \{ kind: ServiceAccount.*?\n(?=  - target)", "", text, flags=re.DOTALL)
            settings = (folder / "night.yaml").read_text()
            (folder / "night.yaml").write_text(re.sub(r"(?m)^gpu_actors.*\n|^device.*\n", "", settings))
        (folder / "kustomization.yaml").write_text(text)
        assert faults(build(folder)) == [], name


def test_make_builds_and_checks_it_as_the_page_says():
    recipe = (ROOT / "Makefile").read_text()
    assert "make check-cluster CLUSTER=my-cluster" in PAGE
    assert "/kubectl kustomize $(CLUSTER)" in recipe and "infra/check_manifests.py" in recipe


def test_what_make_installs_for_the_check_is_all_that_it_needs():
    """Packages that these bring along count too; PyTorch, Ray and numpy would take minutes and gigabytes."""
    [listed] = re.findall(r"^CHECK_WITH := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = "import sys; before = set(sys.modules); import infra.check_manifests as c; c.main(sys.argv[1:]); "
    code += "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}), sep='\\n')"
    text = built_text(KUBERNETES / "overlays" / "gpu-spot")
    command = [sys.executable, "-c", code, "-", "--allow-placeholders"]
    done = subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True, check=True)
    first, *modules = done.stdout.splitlines()
    assert first.endswith("no faults")
    roots = set(modules) - set(sys.stdlib_module_names) - {"infra", "jobs", "pipeline", "m2f_core"}
    names = {"PyYAML": {"yaml", "_yaml"}, "tyro": {"tyro", "docstring_parser", "typing_extensions", "typeguard"}}
    allowed = set().union(*(names.get(each, {each.replace("-", "_")}) for each in listed.split()))
    of_python = ("__editable__", "_cython", "cython_runtime", "_sysconfigdata")  # modules that belong to no package
    assert {root for root in roots if not root.startswith(of_python)} <= allowed


def test_the_page_lists_every_overlay_and_component():
    for name in OVERLAYS:
        assert re.search(rf"^\| `{name}` \|", PAGE, re.MULTILINE), name
    for name in COMPONENTS:
        assert f"| `../infra/kubernetes/components/{name}` |" in PAGE


def test_a_fault_is_a_line_and_exit_code_2(checkout, tmp_path, capsys):
    text = built_text(checkout / "my-cluster")
    (tmp_path / "good.yaml").write_text(text)
    assert main([str(tmp_path / "good.yaml")]) == 0 and main([str(tmp_path)]) == 0
    capsys.readouterr()
    (tmp_path / "good.yaml").write_text(
        text.replace("terminationGracePeriodSeconds: 90", "terminationGracePeriodSeconds: 300")
    )
    assert main([str(tmp_path / "good.yaml")]) == 2
    [line] = capsys.readouterr().out.splitlines()
    assert line in PAGE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no Kubernetes object"),
        ("a: [", "while parsing a flow node"),
        ("- 1\n", "is no Kubernetes object with kind and metadata"),
        ("kind: Pod\nmetadata: x\n", "is no Kubernetes object with kind and metadata"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_manifest_is_one_line(tmp_path, capsys, content, said):
    file = tmp_path / "x.yaml"
    if content is not None:
        file.write_text(content)
    assert main([str(file)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_folder_that_is_to_be_built_first_is_refused(checkout, capsys):
    assert main([str(checkout / "my-cluster")]) == 2
    assert "build it: kubectl kustomize" in capsys.readouterr().err
