"""The set-up of `make`: which Pythons are found, and what is printed while a long step runs or when it fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT

FIND, STEP = ROOT / "tools" / "find_python.sh", ROOT / "tools" / "step.sh"
OWN = "%d.%d.%d" % sys.version_info[:3]  # noqa: UP031 - a format for a tuple


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def pretended(path: Path, minor: int, gil: bool = True) -> Path:
    """This interpreter, which takes itself for a CPython 3.`minor`."""
    before = f"import ensurepip, sys, sysconfig, venv; sys.version_info = (3, {minor}, 5); sys.executable = '{path}'"
    before += f"; sysconfig.get_config_var = lambda name: {int(not gil)}"
    return program(
        path,
        f'if [ "$1" = - ]; then shift; {{ echo "{before}"; cat; }} | {sys.executable} - "$@"\n'
        f'else {sys.executable} -c "{before}; exec(sys.argv[1])" "$2"; fi',
    )


@pytest.fixture
def find(tmp_path):
    """find_python.sh on a machine with the Pythons of tmp_path alone."""

    def call(*args: object) -> subprocess.CompletedProcess:
        home = {"HOME": str(tmp_path / "home"), "PATH": f"{tmp_path}/first:{tmp_path}/second:{tmp_path}/system"}
        return subprocess.run([FIND, *map(str, args)], env=home, capture_output=True, text=True)

    (tmp_path / "system").mkdir()
    for name in ("sh", "sed", "tr", "awk", "head", "tail", "cut", "sort", "uniq", "dirname", "cat"):
        [tool, *_] = (found for place in ("/bin", "/usr/bin") if (found := Path(place, name)).exists())
        (tmp_path / "system" / name).symlink_to(tool)
    return call


def test_what_runs_and_is_in_range_is_found_on_path_of_pyenv_and_of_uv(find, tmp_path):
    program(tmp_path / "first" / "python3", "echo command not found >&2; exit 127")
    default = pretended(tmp_path / "second" / "python3", 12)
    pretended(tmp_path / "first" / "python3.14", 10)
    pretended(tmp_path / "first" / "python3.13", 13, gil=False)
    oldest = pretended(tmp_path / "home/.pyenv/versions/3.11.5/bin/python3", 11)
    newest = pretended(tmp_path / "home/.local/share/uv/python/cpython-3.14/bin/python3", 14)
    pretended(tmp_path / "home/.local/share/uv/python/cpython-3.15/bin/python3", 15)
    assert find().stdout == f"3.12.5 {default}\n3.11.5 {oldest}\n3.14.5 {newest}\n"
    assert find("default").stdout == f"{default}\n"
    assert find("others", default).stdout == f"3.11.5 {oldest}\n3.14.5 {newest}\n"
    assert find("others", oldest).stdout == f"3.14.5 {newest}\n"


def test_one_python_alone_has_no_others(find, tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "python3").symlink_to(sys.executable)
    assert find().stdout.split()[0] == OWN
    assert (find("others", sys.executable).stdout, find("others", sys.executable).returncode) == ("", 0)


def test_a_machine_without_a_usable_python_gets_one_line(find, tmp_path):
    pretended(tmp_path / "first" / "python3", 10)
    done = find("default")
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "no Python 3.11 to 3.14" in line and "PYTHON=/path/to/python3" in line


def test_a_long_step_shows_the_last_line_of_its_command_while_it_runs(tmp_path):
    """The command ends when the line has been seen, not before."""
    seen = tmp_path / "seen"
    command = f"echo Collecting torch; until [ -e {seen} ]; do sleep 0.1; done; echo all installed"
    with subprocess.Popen([STEP, "installing", "sh", "-c", command], stdout=subprocess.PIPE, text=True) as step:
        assert step.stdout is not None
        assert step.stdout.readline() == "== installing\n"
        assert any(line.endswith(" s: Collecting torch\n") for line in iter(step.stdout.readline, ""))
        seen.touch()
        rest = step.stdout.read().splitlines()
    assert step.returncode == 0 and rest[-1] == "   all installed"


def test_a_step_that_fails_shows_all_and_keeps_the_exit_code():
    command = "echo first; echo second; echo ERROR: no such package >&2; exit 3"
    done = subprocess.run([STEP, "installing", "sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stdout == "== installing\nfirst\nsecond\n"
    assert done.stderr == "ERROR: no such package\n== failed (exit code 3): installing\n"


def test_make_fails_with_the_step_and_tries_again(tmp_path):
    """No venv counts as ready whose pip has failed."""
    pip = program(tmp_path / "venv" / "bin" / "pip", "echo ERROR: no index >&2; exit 1")
    program(tmp_path / "venv" / "bin" / "python", "echo Python 3.12.1")
    command = ["make", "demo", f"VENV={tmp_path}/venv"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and "ERROR: no index" in done.stderr
    program(pip, "echo Successfully installed")
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).returncode == 0
