"""jobs/drill.py as people start it: flags, help, and the whole drill with the real program."""

import re
import subprocess
import sys
from dataclasses import fields

import pytest

from jobs import drill, segment_bucket
from jobs.common.command_line import flags_of, parse
from pipeline.config import Settings
from pipeline.drill.settings import DrillSettings
from tests.support.places import ROOT

OWN = [field.name for field in fields(DrillSettings) if field.name not in {field.name for field in fields(Settings)}]


def test_help_shows_the_flags_of_the_job_and_of_the_drill_and_loads_nothing_heavy():
    code = (
        "import sys; from jobs.drill import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for field in fields(DrillSettings):
        assert f"--{field.name.replace('_', '-')}" in shown.stdout
    assert not set(shown.stderr.split()) & {"torch", "ray", "numpy", "pyarrow", "aiohttp", "botocore"}


@pytest.mark.parametrize("name", OWN)
def test_every_flag_of_the_drill_is_documented(name):
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert re.search(rf"(?<![\w-])--(no-)?{name.replace('_', '-')}(?![\w-])", page)


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--task", "instance", "--top-k", "5", "--no-exif", "--gpu-actors", "1:8", "--image-size=80:133"],
        ["--label-ids-to-fuse", "5", "7", "--score-threshold", "0.25", "--limit", "3", "--compact"],
        ["--label-ids-to-fuse", "--run-id", "a.b", "--publish-every", "1.5", "--max-failure-rate", "0.001"],
    ],
)
def test_flags_of_settings_give_the_settings_again(args):
    settings = parse(Settings, ["--input", "a b", "--output=-x", *args], prog="x")
    assert parse(Settings, flags_of(settings), prog="x") == settings
    assert len(flags_of(settings)) <= 2 + len(args)


def test_what_cannot_be_drilled_is_one_line_and_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        drill.main(["--input", str(tmp_path / "missing"), "--output", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("drill.py: error: --input ")


@pytest.mark.slow
@pytest.mark.parametrize("store", ["folder", "bucket"])
def test_the_whole_drill_holds(store, request, tmp_path, photographs, tiny_checkpoint, capsys):
    """One to five minutes, with the number of CPUs."""
    if store == "folder":
        source, output = str(photographs), str(tmp_path / "tables")
    else:
        server = request.getfixturevalue("s3")
        source = f"{server.bucket('m2f-drill')}/photos"
        for path in photographs.iterdir():
            server.client.upload_file(str(path), "m2f-drill", f"photos/{path.name}")
        output = "s3://m2f-drill/tables"
    flags = ["--image-size", "96:160", "--cpus-per-actor", "1", "--gpu-actors", "1"]
    code = drill.main(["--input", source, "--output", output, "--model", str(tiny_checkpoint), *flags])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert "WRONG" not in shown and "0 lost, 0 duplicated" in " ".join(shown.replace("│", " ").split())
    if store == "folder":
        assert list(tmp_path.iterdir()) == []
    else:
        assert "lost_answer" in shown
        listed = server.client.list_objects_v2(Bucket="m2f-drill")["Contents"]
        assert all(entry["Key"].startswith("photos/") for entry in listed), "it leaves nothing behind"


def test_the_command_is_the_job_itself():
    command = drill._command(Settings("in", "out"))
    assert command[:2] == [sys.executable, segment_bucket.__file__]
