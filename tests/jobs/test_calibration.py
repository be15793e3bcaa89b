"""jobs/plan_bucket.py --calibrate: what it prints, writes and leaves, beside the run that it forecasts."""

import json
import re
import shutil

import pytest
import ray

from jobs import plan_bucket
from pipeline.calibration import calibrate as calibrate_module
from pipeline.commit.journal import Journal
from pipeline.forecast.limits import Limits
from pipeline.layout import Output
from pipeline.scenes.settings import ScenesSettings
from pipeline.scenes.write import write_scenes
from tests.jobs.test_increments import Nights
from tests.jobs.test_limits import IN_TIME, fill
from tests.support.tables import read_report

ONE_ACTOR = ("--gpu-actors", "1:1")


@pytest.fixture
def bucket(ray_session, photographs, tiny_checkpoint, tmp_path) -> Nights:
    nights = Nights(tmp_path / "in", tmp_path / "out", tiny_checkpoint)
    fill(nights.bucket, photographs, 3)
    (nights.bucket / "notes.jpg").write_text("no image")
    return nights


def calibrate(nights: Nights, number: int, *flags) -> int:
    return plan_bucket.main(nights.flags(*ONE_ACTOR, "--calibrate", number, *flags))


@pytest.mark.thorough
def test_a_sample_gives_a_forecast_and_leaves_nothing(bucket, tmp_path, capsys, monkeypatch):
    file, counting = tmp_path / "forecast.json", []
    monkeypatch.setattr(calibrate_module, "Limits", lambda *args: counting.append(Limits(*args)) or counting[0])
    limits = ("--deadline", IN_TIME, "--max-cost", 50)
    here = ("--model-nodes", f"ray.io/node-id={ray.nodes()[0]['NodeID']}")
    assert calibrate(bucket, 12, "--forecast", file, *limits, *here) == 0
    said = capsys.readouterr().out
    assert re.search(r"│ new +│ 34 ", said) and "sample of 12 images on cpu" in said
    assert "forecast of 34 images" in said and re.search(r"^segments: [0-9.]+ KiB \(", said, re.M)
    assert "with 1 model actor the run is done at 20" in said
    assert "with 1 model actor the run stays below --max-cost 50" in said
    measured = json.loads(file.read_text())
    assert (measured["num_images"], measured["device_name"], measured["num_actors"]) == (12, "cpu", 1)
    assert counting[0].units_per_actor == measured["units_per_actor"] > 1 and counting[0].cost > 0
    assert all(measured[name] > 0 for name in ("begin_seconds", "load_seconds", "image_seconds", "write_seconds"))
    assert {"read", "decode", "model", "reduce", "encode", "write"} <= measured["step_ms"].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forecast.json", "in"], "nothing of the sample is left"


@pytest.mark.thorough
def test_the_size_is_that_of_the_run_and_its_speed_is_taken_from_the_file(
    ray_session, tiny_checkpoint, tmp_path, capsys
):
    """A sample of all images has measured what the run then writes in larger parts. No image is there twice: equal rows
    in one part would take no room.
    """
    write_scenes(ScenesSettings(f"{tmp_path}/scenes", number=40))
    bucket = Nights(tmp_path / "scenes" / "images", tmp_path / "out", tiny_checkpoint)
    file = tmp_path / "forecast.json"
    assert calibrate(bucket, 100, "--forecast", file) == 0
    sizes = json.loads(file.read_text())["sizes"]
    bucket.run(*ONE_ACTOR, "--deadline", IN_TIME, "--forecast", file)
    report = read_report(bucket.output)
    for table, size in sizes.items():
        written = sum(path.stat().st_size for path in bucket.output.glob(f"{table}/run=*/*.parquet"))
        forecast = size["image_bytes"] * report["num_images"] + size["part_bytes"] * report["num_shards"]
        assert forecast == pytest.approx(written, rel=0.15), table
    assert "1 of at most 1 model actors: about 0:0" in capsys.readouterr().err


@pytest.mark.thorough
def test_of_a_run_that_is_not_finished_the_rest_is_forecast(bucket, capsys):
    assert calibrate(bucket, 5) == 0
    bucket.run(*ONE_ACTOR, "--run-id", "night")
    folder = bucket.output / "_runs" / "night"
    (folder / "report.json").unlink()
    receipts = list(Journal(Output.open(str(bucket.output)).run("night")).read())
    for path in (folder / "journal").iterdir():
        path.unlink()
    Journal(Output.open(str(bucket.output)).run("night"), 1).append(receipts[:4])
    left = sum(receipt.num_images for receipt in receipts[4:])
    capsys.readouterr()
    assert calibrate(bucket, 5, "--run-id", "night") == 0
    said = capsys.readouterr().out
    assert f"forecast of {left} images" in said and "the job would continue this run" in said


@pytest.mark.thorough
def test_nothing_new_needs_no_sample(bucket, capsys):
    bucket.run(*ONE_ACTOR)
    capsys.readouterr()
    assert calibrate(bucket, 5, "--max-failure-rate", 1) == 0
    said = capsys.readouterr().out
    assert "0 images would be segmented" in said and "forecast of" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prices", "none.yaml"], "--prices none.yaml: "),
        (["--deadline", "2020-01-01T00:00Z"], "--deadline 2020-01-01T00:00Z has passed"),
        (["--scratch", "IN/below"], "is inside --input"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(photographs, tiny_checkpoint, tmp_path, capsys, flags, said):
    nights = Nights(tmp_path / "in", tmp_path / "out", tiny_checkpoint)
    shutil.copytree(photographs, nights.bucket)
    flags = [flag.replace("IN", str(nights.bucket)) for flag in flags]
    with pytest.raises(SystemExit) as stop:
        calibrate(nights, 5, *flags)
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and said in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
