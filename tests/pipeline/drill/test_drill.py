"""The drill itself: that it finds what is wrong. The program is played by one that errs on demand and is quick."""

import dataclasses
import io
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline.drill.drill
from pipeline.decoding.decode import measure_image
from pipeline.drill.drill import drill
from pipeline.drill.sample import copy_sample, harmful_images, plant
from pipeline.drill.settings import DrillSettings
from pipeline.errors import ErrorCode, ImageError, RunError
from pipeline.guard.kill_points import POINTS
from pipeline.guard.planted_faults import marker
from pipeline.input_spec import InputSpec

# Writes a right row for every file of the input, once; then does what its third argument says.
PLAYED = """
import os, sys, time
from pathlib import Path
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from pipeline.schema import TABLES
source, output, fault = sys.argv[1:]
name = Path(output).name
codes = {"cut": "decode_failed", "noise": "unsupported", "empty": "unsupported", "bomb": "too_large",
         "abort": "crashed_worker", "allocate": "crashed_worker", "hang": "timed_out"}
files = sorted(Path(source).iterdir())
rows = []
for file in files:
    code = codes.get(file.name.rpartition("-drill-")[2])
    rows.append({"image_key": f"file://{file}", "status": "failed" if code else "ok", "error_code": code,
                 "num_segments": 0 if code else 1})
segments = [{"image_key": row["image_key"], "segment_id": 1, "area": 5} for row in rows if row["num_segments"]]
if fault == name + " loses":
    rows.pop(0), segments.pop(0)
if fault == name + " duplicates":
    rows.append(rows[0])
if fault == name + " differs":
    segments[0]["area"] = 6
if fault == name + " takes poison for an image":
    bad = next(row for row in rows if row["error_code"] == "crashed_worker")
    bad.update(status="ok", error_code=None)
if fault == name + " hangs":
    time.sleep(600)
if fault == name + " never ends well":
    print("disk full")
    sys.exit(1)
if not DeltaTable.is_deltatable(output + "/images"):
    for table, content in (("segments", segments), ("images", rows)):
        schema = pa.schema([field.with_nullable(True) for field in TABLES[table]])
        write_deltalake(f"{output}/{table}", pa.Table.from_pylist(content, schema=schema))
sys.exit(1 if fault == name + " ends with 1" else 0)
"""


@pytest.fixture(autouse=True)
def logs_elsewhere(tmp_path_factory, monkeypatch):
    """Kept logs are for people; those of these tests go with the tests' own folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("logs")))


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(np.full((8, 9, 3), number, np.uint8)).save(folder / f"{number} ü.png")
    return folder


def findings_of(source: Path, fault: str = "", **changes):
    settings = DrillSettings(str(source), str(source.parent / "out"), "model", sample=4, **changes)
    said = []
    found = drill(settings, lambda run: [sys.executable, "-c", PLAYED, run.input[0], run.output, fault], said.append)
    assert said == found
    return found


def test_a_program_without_faults_passes_and_nothing_is_left(source):
    findings = findings_of(source)
    assert [finding for finding in findings if not finding.is_good] == []
    steps = [finding.step for finding in findings]
    assert {"undisturbed", "workers die", "driver dies", "driver dies in its commit"} <= set(steps)
    assert steps.count("harmful image") == 7 and steps.count("counts and rows") == 2
    assert [path.name for path in source.parent.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("undisturbed loses", "1 images have no row"),
        pytest.param("undisturbed never ends well", "exit code 1: disk full", marks=pytest.mark.thorough),
        ("killed loses", "1 lost"),
        pytest.param("killed duplicates", "1 duplicated", marks=pytest.mark.thorough),
        pytest.param("killed differs", "1 differing", marks=pytest.mark.thorough),
        ("killed ends with 1", "exit codes 1, 1, 1"),
        pytest.param("harmful takes poison for an image", "ok; expected crashed_worker", marks=pytest.mark.thorough),
    ],
)
def test_what_is_wrong_is_found(source, fault, words, monkeypatch):
    monkeypatch.setattr(pipeline.drill.drill, "_MOST_DRIVERS", 3)
    wrong = [finding for finding in findings_of(source, fault) if not finding.is_good]
    assert wrong and words in " ".join(finding.found for finding in wrong), wrong


def test_a_driver_that_does_not_end_is_ended_and_found(source, monkeypatch):
    monkeypatch.setattr(pipeline.drill.drill, "_LONGEST_SECONDS", 3.0)
    findings = findings_of(source, "undisturbed hangs")
    assert [finding.is_good for finding in findings] == [True, False, True]
    assert "exit code None" in findings[1].found
    assert findings[-1].step == "logs" and list(Path(findings[-1].found).iterdir()), "logs are kept where it failed"


def test_a_drill_that_is_stopped_leaves_no_driver_and_no_folder(source, monkeypatch):
    drivers = []

    class Noted(pipeline.drill.drill.Driver):
        def __init__(self, *args):
            super().__init__(*args)
            drivers.append(self)

        def wait(self, seconds):
            raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.drill.drill, "Driver", Noted)
    with pytest.raises(KeyboardInterrupt):
        findings_of(source, "undisturbed hangs")
    assert [driver.process.poll() for driver in drivers] == [-9]
    assert [path.name for path in source.parent.iterdir()] == ["photos"]


def test_keep_keeps_and_scratch_is_where_it_is_told(source, tmp_path):
    findings_of(source, "undisturbed loses", keep=True, scratch=str(tmp_path / "elsewhere"))
    [place] = (tmp_path / "elsewhere").iterdir()
    assert place.name.startswith("m2f-drill-") and len(list((place / "input").iterdir())) == 4


def test_places_where_it_cannot_work_are_refused(source):
    with pytest.raises(RunError, match="is inside --input"):
        findings_of(source, scratch=str(source / "sub"))
    settings = DrillSettings(str(source), "s3://bucket", "model")
    with pytest.raises(RunError, match="no folder beside it for the drill; name one with --scratch"):
        drill(settings, lambda run: [], print)
    with pytest.raises(RunError, match="does not exist"):
        findings_of(source / "missing")


def test_the_point_in_the_commit_exists():
    assert pipeline.drill.drill._WORST_POINT in POINTS


def test_a_run_has_the_users_settings_but_for_what_makes_it_a_drill():
    settings = DrillSettings(
        "in", "out", "m", sample=64, task="instance", limit=3, images_per_shard=500, batch_size=8, run_id="mine"
    )
    settings = dataclasses.replace(settings, deadline="06:00", max_cost=5.0, forecast="forecast.json")
    run = settings.of_run("a", "b", max_failure_rate=1.0)
    assert type(run) is not DrillSettings
    assert (run.input, run.output, run.model, run.task) == (("a",), "b", "m", "instance")
    assert (run.deadline, run.max_cost, run.forecast) == (None, None, None), "a limit would end the drill"
    assert (run.images_per_shard, run.batch_size, run.limit, run.run_id, run.max_failure_rate) == (
        4,
        1,
        None,
        "drill",
        1,
    )
    assert dataclasses.replace(settings, images_per_shard=2).of_run("a", "b").images_per_shard == 2


@pytest.mark.parametrize(("name", "value"), [("sample", 0), ("sample", 10_001), ("scratch", " ")])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(RunError, match=f"--{name}"):
        DrillSettings("in", "out", **{name: value})


# --- the sample -------------------------------------------------------------------------------------------------------


def test_a_sample_is_a_copy_chosen_by_seed(source, tmp_path):
    def copied(name: str, seed: int) -> list[bytes]:
        keys = copy_sample(InputSpec.of(str(source)), 4, str(tmp_path / name), random.Random(seed))
        assert len(keys) == 4 and keys == sorted(keys)
        return [Path(key.removeprefix("file://")).read_bytes() for key in keys]

    originals = {path.read_bytes() for path in source.iterdir()}
    assert copied("one", 1) == copied("same", 1) and set(copied("one", 1)) <= originals
    assert len({tuple(copied(f"seed {seed}", seed)) for seed in range(5)}) > 1
    assert len(copy_sample(InputSpec.of(str(source)), 100, str(tmp_path / "all"), random.Random(0))) == 6


def test_harmful_images_are_what_they_are_called(source):
    model = next(source.iterdir()).read_bytes()
    images = {image.name: image for image in harmful_images(model, deadly=True)}
    with pytest.raises(ImageError) as error:
        measure_image(images["bomb"].data, max_pixels=64_000_000, apply_exif=True)
    assert error.value.code == ErrorCode.TOO_LARGE and len(images["bomb"].data) < 1000
    for name in ("abort", "allocate", "hang"):
        assert images[name].data.endswith(marker(name))
        with Image.open(io.BytesIO(images[name].data)) as opened:
            opened.load()  # an image like any other to those who do not look for the mark
    assert {image.name for image in harmful_images(model, deadly=False)} == {"cut", "noise", "empty", "bomb"}


def test_planted_images_stand_among_the_others(source, tmp_path):
    folder = tmp_path / "copies"
    sample = copy_sample(InputSpec.of(str(source)), 6, str(folder), random.Random(0))
    planted = plant(str(folder), sample, random.Random(0), deadly=True)
    listed = sorted(f"file://{path}" for path in folder.iterdir())
    assert sorted([*sample, *planted]) == listed
    assert any(key in planted for key in listed[1:-1])
