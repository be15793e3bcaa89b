"""What a job loads before it has work: no PyTorch in any driver, and no Ray in a night that finds nothing new."""

import json
import os
import subprocess
import sys

import pytest

from jobs import plan_bucket
from pipeline.config import Settings
from pipeline.runs.check import check
from pipeline.store.filesystem import local_etag
from tests.support.last_line import last_line
from tests.support.places import ROOT
from tests.support.published_tables import image_row, publish_run, segment_row

SCRIPT = """
import importlib, json, sys
job = importlib.import_module("jobs." + sys.argv[1])
code = job.main(sys.argv[2:])
print(json.dumps([code, sorted({"torch", "ray", "numba"} & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def night(photographs, tiny_checkpoint, tmp_path_factory):
    """Flags of a job whose input an earlier run has processed."""
    output = str(tmp_path_factory.mktemp("nothing") / "out")
    flags = ["--input", str(photographs), "--output", output, "--model", str(tiny_checkpoint)]
    checked = check(Settings((str(photographs),), output, model=str(tiny_checkpoint)))  # leaves the mark of the check
    rows = [
        image_row(
            f"file://{path}",
            "before",
            0,
            etag=local_etag(path.stat()),
            size_bytes=path.stat().st_size,
            fingerprint=checked.fingerprint,
        )
        for path in sorted(photographs.iterdir())
    ]
    publish_run(output, "before", rows, [segment_row(row["image_key"], "before") for row in rows])
    return flags


def loaded_by(job, *flags):
    """The exit code of a job, and which of the heavy modules it has loaded."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, job, *flags], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip(), done.stderr
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    return code, loaded, done


def test_a_night_that_finds_nothing_new_loads_neither_pytorch_nor_ray(night):
    code, loaded, done = loaded_by("segment_bucket", *night)
    assert (code, loaded) == (0, [])
    assert "11 unchanged" in done.stderr


def test_a_checkpoint_that_never_was_checked_is(night, tmp_path, monkeypatch):
    """The check builds the model, for which PyTorch is loaded, and leaves a mark in the cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "torch" in loaded_by("plan_bucket", *night)[1]
    code, loaded, done = loaded_by("plan_bucket", *night)
    assert (code, loaded) == (0, []) and "unchanged" in done.stdout


def test_a_checkpoint_that_fails_its_check_fails_it_each_night(night, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    broken = tmp_path / "model"
    broken.mkdir()
    for path in tiny_checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "hidden_dim": 2 * config["hidden_dim"]}))
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            plan_bucket.main([*night[:4], "--model", str(broken)])
        assert stop.value.code == 2 and "--model" in last_line(capsys.readouterr().err)


IMPORTS = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({"torch", "ray"} & set(sys.modules))))
"""
WORKS = (
    "pipeline.segment_bucket",
    "pipeline.recut.check",
    "pipeline.runs.preview",
    "pipeline.export.export",
    "pipeline.verify.verify",
    "pipeline.evaluate.evaluate",
    "pipeline.page.make",
    "pipeline.gate.publish_held",
    "pipeline.runs.roll_back",
    "pipeline.tidy.tidy",
    "pipeline.nights.seen",
    "pipeline.store_check.check",
    "pipeline.report.summary",
)


def test_no_driver_loads_pytorch_or_ray_for_its_own_work():
    done = subprocess.run([sys.executable, "-c", IMPORTS, *WORKS], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == []


def test_the_driver_of_a_run_loads_no_pytorch():
    done = subprocess.run([sys.executable, "-c", IMPORTS, "pipeline.run"], capture_output=True, text=True, cwd=ROOT)
    assert json.loads(done.stdout) == ["ray"], done.stderr
