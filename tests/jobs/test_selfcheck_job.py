"""The self-check as people start it: it says what it compared and how fast the device is, and writes nothing."""

import re
import subprocess
import sys
from functools import partial

import pytest

from jobs import segment_bucket
from jobs import selfcheck as job
from jobs.common.command_line import parse
from pipeline.config import SelfCheckSettings
from pipeline.runs import selfcheck
from tests.support.places import ROOT


def flags(source, output, model, *more) -> list[str]:
    places = ["--input", source, "--output", output, "--model", model, "--image-size", "64:128"]
    return [str(flag) for flag in (*places, *more)]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("where", ["here", pytest.param("on a worker", marks=pytest.mark.thorough)])
def test_it_compares_and_times_and_writes_nothing(photographs, tiny_checkpoint, tmp_path, capsys, monkeypatch, where):
    """`run_on_worker` has a test of its own. Here the work of the worker is done in this process, and for a moment."""
    if where == "here":
        monkeypatch.setattr(selfcheck, "run_on_worker", lambda allotment, work, *arguments: work(*arguments))
        monkeypatch.setattr(selfcheck, "start_watchdog", lambda *_: None)
        monkeypatch.setattr(selfcheck, "time_actor", partial(selfcheck.time_actor, seconds=0.1))
    output = tmp_path / "output"
    more = ("--limit", "3", "--batch-size", "2", "--cpus-per-actor", "1")
    assert job.main(flags(photographs, output, tiny_checkpoint, *more)) == 0
    said = capsys.readouterr().out
    assert "CPU, " in said and "fp32, against plain PyTorch" in said
    rows = {line.split("│")[1].strip(): line.split("│")[2].strip() for line in said.splitlines() if "│" in line}
    assert rows["images compared"] == "3"
    assert rows["verdict"] == "rounding"
    assert float(rows["images/s"].split()[0].replace(",", "")) > 0
    assert rows["batches"] == "at most 2 images"
    assert not output.exists()


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_differences_that_rounding_does_not_explain_are_exit_code_1(
    photographs, tiny_checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(selfcheck._MOST_FLIPPED, "fp32", -1.0)
    assert job.main(flags(photographs, tmp_path / "output", tiny_checkpoint, "--limit", "1")) == 1
    assert "MORE THAN ROUNDING" in capsys.readouterr().out


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_input_that_holds_no_image_is_one_line(tiny_checkpoint, tmp_path, capsys):
    folder = tmp_path / "input"
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    with pytest.raises(SystemExit) as stop:
        job.main(flags(folder, tmp_path / "output", tiny_checkpoint))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("selfcheck.py: error: none of the first 1 images can be decoded; the last error: ")


def test_it_takes_the_flags_and_files_of_the_main_job(tmp_path):
    """A file for both jobs may say that there is no limit; here that means the few images of the default."""
    file = tmp_path / "night.yaml"
    file.write_text("input: in\noutput: out\nbatch_size: 4\nlimit: null\n")
    settings = parse(SelfCheckSettings, ["--config", str(file)], prog=job.PROG)
    assert settings == SelfCheckSettings("in", "out", batch_size=4, limit=8)


@pytest.mark.parametrize("limit", ["0", "10001", "None"])
def test_the_number_of_images_has_bounds(limit, capsys):
    with pytest.raises(SystemExit) as stop:
        job.main(["--input", "in", "--output", "out", "--limit", limit])
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("selfcheck.py: error: ") and "--limit" in line


def test_the_main_job_has_no_such_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        segment_bucket.main(["--input", "in", "--output", "out", "--selfcheck"])
    assert stop.value.code == 2
    assert "Unrecognized options: --selfcheck" in capsys.readouterr().err


def test_help_says_what_it_does_and_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "jobs/selfcheck.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    shown = " ".join(re.sub("[╭╮╰╯│─]", " ", done.stdout).split())
    assert shown.index("Compare what the device computes") < shown.index("--input [STR ...]")
    assert "(default: 8; 1 .. 10,000)" in shown
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tyro" in loaded and not loaded & {"torch", "ray", "numpy", "pyarrow"}
