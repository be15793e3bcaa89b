"""jobs/export_model.py as people start it: what it prints, its exit codes, its help."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from jobs.common.command_line import parse
from jobs.export_model import PROG, main
from pipeline.export_model import export_model as flow
from pipeline.export_model.settings import ExportModelSettings
from tests.support.places import ROOT
from tests.support.seeded_eomt import make_eomt

FLAGS = ("--check", "--format", "--image-size", "--limit", "--model", "--opset", "--output", "--task")


@pytest.fixture(scope="module")
def eomt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "eomt"
    make_eomt(folder)
    return folder


def test_the_flags_are_those_that_people_know():
    assert tuple(sorted("--" + field.name.replace("_", "-") for field in fields(ExportModelSettings))) == FLAGS


def test_help_shows_all_and_loads_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "jobs/export_model.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = " ".join(re.sub("[╭╮╰╯│─]", " ", done.stdout).split())
    assert all(flag in shown for flag in FLAGS)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "ray", "numpy", "pyarrow", "numba", "fsspec", "onnx", "onnxruntime"}


def test_a_model_is_written_and_its_figures_are_printed(eomt, photographs, tmp_path, capsys):
    images = str(photographs / "ihc.png")
    assert main(["--format", "pt2", "--model", str(eomt), "--output", str(tmp_path / "out"), "--check", images]) == 0
    shown = " ".join(re.sub("[│─]", " ", capsys.readouterr().out).split())
    assert re.search(r"model\.pt2 \d\.\d MB", shown) and "licence unknown" in shown
    assert "input 64x64 pixels, any number of images" in shown and "aten.linear.default" in shown
    assert "compared 3 inputs of noise and 1 image," in shown and "mask bits 0.0e+00 of the bits differ" in shown
    assert "segments 1 of 1 match" in shown and re.search(r"one image \d+\.\d{3} s in PyTorch", shown)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.json", "model.pt2"]


def test_a_file_that_differs_by_more_than_rounding_gives_exit_code_1_and_one_line(eomt, tmp_path, monkeypatch, capsys):
    read = flow.read_pt2
    monkeypatch.setattr(flow, "read_pt2", lambda file: lambda images: read(file)(images.flip(-2)))
    assert main(["--format", "pt2", "--model", str(eomt), "--output", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    [line] = [line for line in captured.err.splitlines() if line.startswith(PROG)]
    assert line.startswith(f"{PROG}: error: model.pt2 does not compute what PyTorch computes: ")
    assert captured.out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "tflite"], "invalid choice"),
        (["--format", "pt2", "--opset", "20"], "--opset is for --format onnx"),
        (["--format", "pt2"], "give --image-size HEIGHTxWIDTH"),  # the embedded model takes many sizes
    ],
)
def test_bad_input_gives_exit_code_2_and_one_line(args, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*args, "--output", str(tmp_path / "out")])
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith(PROG)]
    assert stop.value.code == 2 and message in line and not list(tmp_path.iterdir())


def test_a_yaml_file_and_flags_mean_the_same(tmp_path):
    file = tmp_path / "export.yaml"
    file.write_text("output: out\nformat: onnx\nopset: 18\ncheck: [a, b]\n")
    flags = ["--output", "out", "--format", "onnx", "--opset", "18", "--check", "a", "b"]
    assert parse(ExportModelSettings, ["--config", str(file)], prog=PROG) == parse(
        ExportModelSettings, flags, prog=PROG
    )
