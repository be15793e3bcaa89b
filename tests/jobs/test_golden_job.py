"""Golden images of --gate on whole runs: a model that finds what is expected begins, another one does not."""

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jobs import publish, segment_bucket
from jobs.export import main as export
from pipeline.guard.kill_points import VARIABLE
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from pipeline.scenes.settings import ScenesSettings
from pipeline.scenes.write import write_scenes
from pipeline.segment.checkpoint import stage_model
from tests.support.tables import read_report

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Scenes, golden scenes, and three models: sound, with a broken head, with a turned label map."""
    folder = tmp_path_factory.mktemp("golden")
    for name, seed, number in (("scenes", 3, 8), ("golden", 4, 6)):
        write_scenes(ScenesSettings(output=str(folder / name), number=number, height=96, width=128, seed=seed))
    sound = stage_model("synthetic-scenes").path
    for name, harm in (("broken", break_head), ("turned", turn_labels)):
        harm(Path(shutil.copytree(sound, folder / name)))
    return folder


def break_head(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in [name for name in weights if name.startswith("class_predictor.")]:
        weights[name] = rng.normal(0, 0.02, weights[name].shape).astype(weights[name].dtype)
    save_file(weights, model / "model.safetensors")


def turn_labels(model: Path) -> None:
    """Every class has the id and the name of the next, as with the label map of another checkpoint."""
    config = json.loads((model / "config.json").read_text())
    one = config["categories"]
    config["categories"] = [
        {**a, "id": b["id"], "name": b["name"]} for a, b in zip(one, [*one[1:], one[0]], strict=True)
    ]
    (model / "config.json").write_text(json.dumps(config))


def night(place: Path, output: str, *flags: object) -> list[str]:
    words = ("--input", place / "scenes/images", "--output", place / output, "--gate", place / "gate.yaml", *flags)
    return [str(word) for word in ("--images-per-shard", 4, *words)]


def write_gate(place: Path, least: float = 0.5) -> None:
    (place / "gate.yaml").write_text(f"golden: {place}/golden\ngolden_least: {least}\n")


def record(place: Path, output: str, run_id: str) -> dict:
    return json.loads((place / output / "_runs" / run_id / "gate.json").read_text())


def rows(place: Path, output: str) -> list[str]:
    return sorted(path.name for path in (place / output).glob("images/run=*/*.parquet"))


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_a_model_that_finds_what_is_expected_begins(ray_session, place, capfd, task):
    write_gate(place, 0.3)
    output = f"sound-{task}"
    assert segment_bucket.main(night(place, output, "--run-id", "first", "--task", task)) == 0
    metric = {"panoptic": "PQ", "semantic": "mIoU", "instance": "AP"}[task]
    golden = record(place, output, "first")["golden"]
    assert golden["metric"] == metric and golden["score"] >= 0.3
    assert f"{metric} of the golden images is {golden['score']:.3f}" in capfd.readouterr().err
    assert len(golden["images"]) == (6 if task == "panoptic" else 0)
    assert not (place / output / "_runs/first/golden").exists()
    assert read_report(place / output, "first")["num_images"] == 8
    [last] = seen_nights(Output.open(str(place / output)))
    assert last.record.counts["images"] == 8, "the counts of the night are those of its run"


@pytest.mark.parametrize("model", ["broken", "turned"])
def test_a_model_that_finds_something_else_does_not_begin(ray_session, place, capfd, model):
    write_gate(place)
    flags = night(place, model, "--model", place / model, "--run-id", "r")
    assert segment_bucket.main(flags) == 3
    last = capfd.readouterr().err.splitlines()[-1]
    assert "run r is held back by --gate before its first image: PQ of the golden images is 0." in last
    assert "and must be at least 0.500; worst: 000000" in last and "repeat the command" in last
    seen = record(place, model, "r")
    assert seen["report"] is None and seen["violations"] and next(iter(seen["golden"]["images"].values())) < 0.5
    assert rows(place, model) == [] and not (place / model / "_runs/r/golden").exists()
    with pytest.raises(SystemExit) as stop:
        publish.main(["--tables", str(place / model), "--run-id", "r"])
    assert stop.value.code == 2 and "before its first image, so there is nothing to publish" in capfd.readouterr().err
    write_gate(place, 0.0)
    assert segment_bucket.main(flags) == 0, "with another gate file, the same command goes on"
    assert record(place, model, "r")["report"]["num_images"] == 8


def test_an_export_of_an_earlier_run_is_what_golden_images_expect(ray_session, place, tmp_path):
    write_gate(place, 0.0)
    folder = tmp_path / "golden"
    shutil.copytree(place / "golden/images", folder / "images")
    words = ("--input", folder / "images", "--output", tmp_path / "looked-at")
    assert segment_bucket.main([str(word) for word in words]) == 0
    assert (
        export(["--tables", str(tmp_path / "looked-at"), "--format", "coco-panoptic", "--to", str(tmp_path / "e")]) == 0
    )
    shutil.move(tmp_path / "e/panoptic.json", folder)
    shutil.move(tmp_path / "e/panoptic", folder)
    (place / "gate.yaml").write_text(f"golden: {folder}\ngolden_least: 0.999\n")
    assert segment_bucket.main(night(place, "like-before", "--run-id", "r")) == 0
    assert record(place, "like-before", "r")["golden"]["score"] == pytest.approx(1.0)


def test_a_driver_killed_at_the_golden_images_or_later_continues_and_segments_them_once(place, drivers):
    write_gate(place)
    flags = night(place, "killed", "--run-id", "r")
    first = drivers.start(*flags, **{VARIABLE: "before journal"})
    log = first.finish()
    assert first.returncode == -signal.SIGKILL, log
    left = place / "killed/_runs/r/golden"
    assert left.exists() and not (place / "killed/_runs/r/gate.json").exists()
    second = drivers.start(*flags, **{VARIABLE: "before journal:2"})  # of the run itself
    log = second.finish()
    assert second.returncode == -signal.SIGKILL and "PQ of the golden images is" in log, log
    assert not left.exists()
    third = drivers.start(*flags)
    log = third.finish()
    assert third.returncode == 0 and "of the golden images is" not in log, log
    assert read_report(place / "killed", "r")["num_images"] == 8


def test_golden_images_and_tables_in_a_bucket(drivers, s3, place):
    bucket = s3.bucket("golden-images")
    for path in (path for path in (place / "golden").rglob("*") if path.is_file()):
        key = f"golden/{path.relative_to(place / 'golden')}"
        s3.client.put_object(Bucket="golden-images", Key=key, Body=path.read_bytes())
    (place / "gate.yaml").write_text(f"golden: {bucket}/golden/\ngolden_least: 0.3\n")
    flags = ("--input", place / "scenes/images", "--output", f"{bucket}/out", "--gate", place / "gate.yaml")
    driver = drivers.start(*flags, "--run-id", "r")
    log = driver.finish()
    assert driver.returncode == 0 and "PQ of the golden images is 0." in log, log
    found = s3.client.list_objects_v2(Bucket="golden-images", Prefix="out/_runs/r/")["Contents"]
    keys = {one["Key"].removeprefix("out/_runs/r/") for one in found}
    assert {"gate.json", "report.json"} <= keys and not [key for key in keys if key.startswith("golden/")]
    seen = json.loads(s3.client.get_object(Bucket="golden-images", Key="out/_runs/r/gate.json")["Body"].read())
    assert sorted(seen["golden"]["images"]) == sorted(path.name for path in (place / "golden/images").iterdir())
