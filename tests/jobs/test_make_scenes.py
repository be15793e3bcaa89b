"""jobs/make_scenes.py as people start it: a folder, a bucket, its help, and bad input."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from jobs.common.command_line import parse
from jobs.make_scenes import PROG, main
from pipeline.scenes.settings import ScenesSettings
from pipeline.setting_fields import help_texts
from tests.support.command_line_page import PAGE, page
from tests.support.places import ROOT

FLAGS = ("--first-index", "--height", "--number", "--output", "--seed", "--width")


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refusal(capsys, *args: object) -> str:
    """The one line of a command that must not write."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith(f"{PROG}: error: ")
    return line


def test_the_flags_are_those_that_people_know():
    assert tuple(sorted("--" + field.name.replace("_", "-") for field in fields(ScenesSettings))) == FLAGS


@pytest.mark.parametrize("name", [field.name for field in fields(ScenesSettings)])
def test_every_setting_has_a_help_text_and_a_place_in_the_docs(name):
    text = help_texts(ScenesSettings)[name]
    assert len(text) > 10 and text.endswith(".")
    assert text in PAGE.read_text() and f"`--{name.replace('_', '-')}`" in PAGE.read_text()


def test_the_page_is_the_one_that_the_settings_make():
    assert PAGE.read_text() == page(), "write it again: python -m tests.support.command_line_page"


def test_help_shows_all_and_loads_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "jobs/make_scenes.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = " ".join(re.sub("[╭╮╰╯│─]", " ", done.stdout).split())
    assert all(flag in shown for flag in FLAGS)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "ray", "numpy", "pyarrow", "numba", "fsspec", "PIL"}


def test_a_yaml_file_and_flags_mean_the_same(tmp_path):
    file = tmp_path / "scenes.yaml"
    file.write_text("output: scenes\nnumber: 7\nfirst_index: 3\n")
    flags = ["--output", "scenes", "--number", "7", "--first-index", "3"]
    assert parse(ScenesSettings, ["--config", str(file)], prog=PROG) == parse(ScenesSettings, flags, prog=PROG)


def test_a_folder_and_a_bucket_get_the_same_data_set(s3, tmp_path, capsys):
    """The bucket by the script, the folder by its function."""
    flags = ["--number", "3", "--height", "40", "--width", "60"]
    assert main(["--output", f"{tmp_path}/scenes", *flags]) == 0
    assert capsys.readouterr().out == f"3 scenes: {tmp_path}/scenes/images, panoptic.json, instances.json\n"
    place = s3.bucket("m2f-scenes") + "/train/small"
    done = subprocess.run(
        [sys.executable, "jobs/make_scenes.py", "--output", f"{place}/", *flags],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    keys = [entry["Key"] for entry in s3.client.list_objects_v2(Bucket="m2f-scenes")["Contents"]]
    stored = {
        key.removeprefix("train/small/"): s3.client.get_object(Bucket="m2f-scenes", Key=key)["Body"].read()
        for key in keys
    }
    assert stored == files(tmp_path / "scenes") and len(stored) == 8


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "--output"),
        (["--output", "scenes", "--number", "x"], "--number"),
        (["--output", "scenes", "--number", "0"], "--number is 0"),
        (["--output", "scenes", "--height", "32", "--width", "500"], "got 32 x 500"),
        (["--output", "nonsense://scenes"], "cannot open nonsense://scenes"),
    ],
)
def test_what_makes_no_sense_is_named(capsys, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, *args)
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert f"--output {tmp_path}/file/scenes cannot be" in refusal(capsys, "--output", tmp_path / "file" / "scenes")


def test_a_bucket_that_is_not_there_is_named(s3, capsys):
    assert "m2f-no-such-bucket" in refusal(capsys, "--output", "s3://m2f-no-such-bucket/scenes", "--number", "1")


def test_a_data_set_that_is_there_is_named_and_kept(capsys, tmp_path):
    assert main(["--output", str(tmp_path), "--number", "1"]) == 0
    before = files(tmp_path)
    capsys.readouterr()
    assert "already holds a panoptic.json" in refusal(capsys, "--output", tmp_path, "--number", "2")
    assert files(tmp_path) == before
