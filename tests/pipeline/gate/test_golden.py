"""Golden images that cannot serve are refused before a run begins; tests/jobs/test_golden_job.py segments some."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import Settings
from pipeline.errors import BrokenRunError, RunError
from pipeline.gate.bounds_file import GateBounds
from pipeline.gate.figures import Figures
from pipeline.gate.golden import below, check_golden, pass_golden
from pipeline.gate.publish_held import publish_held
from pipeline.gate.record import GateRecord, GoldenRecord, read_gate_record
from pipeline.layout import Output
from pipeline.runs.check import Checked, check
from pipeline.runs.settings import PublishSettings
from pipeline.tidy.old_runs import _list_runs
from tests.pipeline.gate.test_gate import images, run

SEEN = GoldenRecord("a1", "PQ", 0.25, 0.9, {"b.jpg": 0.0, "a.jpg": 0.5})


@pytest.fixture
def golden(tmp_path) -> Path:
    folder = tmp_path / "golden"
    (folder / "images").mkdir(parents=True)
    (folder / "images/a.jpg").write_bytes(b"x")
    (folder / "panoptic.json").write_text("{}")
    return folder


def test_golden_images_must_have_images_and_what_the_task_expects(golden):
    bounds = GateBounds(golden=str(golden))
    check_golden(GateBounds(), "panoptic")
    for task in ("panoptic", "semantic"):
        check_golden(bounds, task)
    with pytest.raises(RunError) as refused:
        check_golden(bounds, "instance")
    said = str(refused.value)
    assert said == f"--gate: golden {golden} must hold the folder images and the file instances.json"
    (golden / "images/a.jpg").unlink()
    with pytest.raises(RunError, match="must hold the folder images"):
        check_golden(bounds, "panoptic")
    with pytest.raises(RunError, match="must hold the folder images"):
        check_golden(replace(bounds, golden=f"{golden}/nowhere"), "panoptic")


@pytest.mark.parametrize("place", ["s3://bucket/golden", "s3://bucket/golden/"])
def test_the_place_of_golden_images_may_end_in_a_slash(place):
    assert below(place, "images") == "s3://bucket/golden/images"


def test_golden_images_are_passed_once_unless_they_or_the_bound_change():
    assert SEEN.passed("a1", 0.25) and not SEEN.passed("a1", 0.3) and not SEEN.passed("b2", 0.25)
    assert str(SEEN) == "PQ of the golden images is 0.250, and must be at least 0.900"


def test_what_breaks_golden_images_is_named_and_nothing_of_them_is_left(golden, tmp_path):
    checked = check(Settings(input=(str(golden / "images"),), output=str(tmp_path / "out")))
    folder = checked.output.run("r")
    facts = {name: getattr(checked, name) for name in ("settings", "output", "model", "fingerprint")}
    left = tmp_path / "out/_runs/r/golden/images/left-by-a-killed-driver.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")

    def segment(of_golden: Checked) -> str:
        assert not left.exists()
        assert of_golden.fingerprint == checked.fingerprint and of_golden.settings.gate is None
        left.parent.mkdir(parents=True)
        raise BrokenRunError("run 2026 broke: the device is gone")

    run_of_night: Any = SimpleNamespace(run_id="r", folder=folder, **facts)
    with pytest.raises(BrokenRunError) as broke:
        pass_golden(GateBounds(golden=str(golden)), run_of_night, segment)
    said = "cannot be segmented: run 2026 broke: the device is gone"
    assert str(broke.value) == f"--gate: golden images {golden} {said}"
    assert not (tmp_path / "out/_runs/r/golden").exists()


def test_a_run_that_was_held_before_its_first_image_is_not_published(tmp_path):
    run(str(tmp_path), "tonight", images(0), 1, finished=False)
    output = Output.open(str(tmp_path))
    record = GateRecord([str(SEEN)], Figures([], [], {}), None, SEEN)
    record.write(output.run("tonight"))
    assert read_gate_record(output, output.run("tonight")) == record
    with pytest.raises(RunError) as refused:
        publish_held(PublishSettings(str(tmp_path), "tonight", allow_unsafe_store=True))
    said = str(refused.value)
    assert "held back before its first image, so there is nothing to publish: PQ of the golden images is 0.250" in said
    assert len(said.splitlines()) == 1


def test_what_a_killed_driver_has_left_of_golden_images_goes_with_the_plan_of_its_run(tmp_path):
    run(str(tmp_path), "tonight", images(0), 1, finished=False)
    left = tmp_path / "_runs/tonight/golden/_runs/20261130-020011-33cc/plan/000000.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x")
    [listed] = _list_runs(Output.open(str(tmp_path)))
    assert str(left) in [found.path for found in listed.work()]
