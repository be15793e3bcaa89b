"""jobs/finetune.py as a user runs it: what it writes, that it goes on after `kill -9`, what it refuses."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from jobs import finetune
from m2f_core.checkpoints.checkpoint import load_checkpoint
from m2f_core.config.mask2former import Mask2FormerConfig
from pipeline.drill.processes import processes_below
from tests.support.coco_folders import CATEGORIES, CocoFolder, write_coco_folder
from tests.support.drivers import Driver
from tests.support.last_line import last_line

STEPS = 32
SAVE_EVERY = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> CocoFolder:
    return write_coco_folder(tmp_path_factory.mktemp("coco") / "set", [(64, 64), (64, 80), (48, 64), (64, 48)])


@pytest.fixture(scope="module")
def architecture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("architecture") / "tiny.json"
    path.write_text(json.dumps(Mask2FormerConfig.tiny(train_num_points=128).to_dict()))
    return path


def validation(folder: CocoFolder) -> dict:
    return {"val_images": folder.images, "val_gt": folder.panoptic_gt, "evaluate_every": STEPS}


def flags_of(folder: CocoFolder, output: Path, **others) -> list[str]:
    values = {
        "images": folder.images,
        "panoptic-gt": folder.panoptic_gt,
        "output": output,
        "iterations": STEPS,
        "batch-size": 2,
        "cpus-per-worker": 1,
        "crop-size": "64x64",
        "image-size": "64:96",
        "learning-rate": 1e-3,
        "log-every": SAVE_EVERY,
        "save-every": SAVE_EVERY,
        **{name.replace("_", "-"): value for name, value in others.items()},
    }
    return [f"--{name}={value}" for name, value in values.items()]


QUICK_REPORTS = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}  # else Ray Train takes 2 s for each


@pytest.fixture(scope="module")
def job(drivers) -> Callable[[list[str]], Driver]:
    return lambda flags: drivers.start(*flags, program="finetune", **QUICK_REPORTS)


def finish(driver: Driver) -> str:
    said = driver.finish()
    assert driver.returncode == 0, said
    return said


def has_checkpoint(output: Path) -> bool:
    """Whether Ray Train knows of one. It hears of the first at the latest when the third is written, for a worker waits
    until its last report but one was taken.
    """
    return max(map(iteration_of, output.glob("train/checkpoint_*/training.json")), default=0) >= 3 * SAVE_EVERY


def iteration_of(place: Path) -> int:
    """0 where the file is not whole, or was removed meanwhile."""
    try:
        return int(json.loads(place.read_text())["iteration"])
    except (OSError, ValueError):
        return 0


@pytest.fixture(scope="module")
def undisturbed(drivers, ray_session, folder, architecture, tmp_path_factory) -> Path:
    """The output of a training that nothing disturbs, in the Ray of the tests."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    flags = flags_of(folder, output, architecture=architecture, **validation(folder))
    cluster = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    said = finish(drivers.start(*flags, program="finetune", **QUICK_REPORTS, **cluster))
    assert f"{STEPS}/{STEPS}  loss" in said and "PQ" in said
    return output


def test_the_model_is_a_checkpoint_for_everyone(undisturbed):
    model = load_checkpoint(undisturbed / "model")
    config = json.loads((undisturbed / "model" / "config.json").read_text())
    assert [c["id"] for c in config["categories"]] == [17, 90, 3]  # things first
    from transformers import Mask2FormerForUniversalSegmentation

    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(undisturbed / "model").eval()
    pixels = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = model(pixels), theirs(pixels)
    assert torch.allclose(found.class_queries_logits, expected.class_queries_logits, atol=1e-4)
    assert torch.allclose(found.masks_queries_logits, expected.masks_queries_logits, atol=1e-4)


def test_log_and_plot_lie_beside_it(undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == STEPS // SAVE_EVERY
    assert losses[-1] < losses[0]
    assert {"PQ", "PQ_things", "PQ_stuff"} <= rows[-1].keys()
    assert (undisturbed / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_finished_training_is_left_as_it_is(folder, architecture, undisturbed, capsys):
    with pytest.raises(SystemExit) as stop:
        finetune.main(flags_of(folder, undisturbed, architecture=architecture, **validation(folder)))
    assert stop.value.code == 2
    assert "holds a finished training" in capsys.readouterr().err


_SIGNALS = {
    "driver": signal.SIGKILL,
    "driver, by Ctrl-C": signal.SIGINT,
    "driver, by SIGTERM": signal.SIGTERM,
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "victim",
    [
        "driver",
        pytest.param("worker", marks=pytest.mark.thorough),
        pytest.param("driver, by Ctrl-C", marks=pytest.mark.thorough),
        pytest.param("driver, by SIGTERM", marks=pytest.mark.thorough),
    ],
)
def test_a_killed_training_ends_with_the_same_weights(job, folder, architecture, undisturbed, tmp_path, victim):
    """kill -9, SIGINT or SIGTERM, at a random moment after the first checkpoint. A dead worker is replaced within the
    run; after a dead driver the same command continues it.
    """
    output = tmp_path / "out"
    flags = flags_of(folder, output, architecture=architecture, **validation(folder))
    process = job(flags)
    process.wait_until(lambda: has_checkpoint(output))
    time.sleep(random.uniform(0, 0.5))
    if victim != "worker":
        assert process.kill(_SIGNALS[victim]), "the training was over before it could be killed"
        said = process.finish()
        if victim != "driver":
            code, how = (130, "interrupted") if victim == "driver, by Ctrl-C" else (143, "stopped by SIGTERM")
            assert process.returncode == code, said
            assert said.splitlines()[-1] == f"finetune.py: {how}; {finetune._KEPT}"
        assert not (output / "model").exists()
        process = job(flags)
    else:
        os.kill(worker_of(process.pid), signal.SIGKILL)
    said = finish(process)
    assert "continuing after step" in said
    expected = load_file(undisturbed / "model" / "model.safetensors")
    found = load_file(output / "model" / "model.safetensors")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "loss" in row] == list(range(SAVE_EVERY, STEPS + 1, SAVE_EVERY))


def whole_checkpoint(output: Path) -> str:
    """The name of the one checkpoint."""
    [folder] = (path for path in (output / "train").glob("checkpoint_*") if path.is_dir())
    return folder.name.removeprefix("checkpoint_")


def worker_of(driver: int) -> int:
    """Ray's worker process that trains."""
    [worker] = [process for process in processes_below([driver]) if process.command.startswith("ray::RayTrainWorker")]
    return worker.pid


@pytest.mark.thorough
def test_two_workers_on_instance_data(job, folder, architecture, tmp_path):
    output = tmp_path / "out"
    flags = [
        flag for flag in flags_of(folder, output, iterations=8, architecture=architecture) if "panoptic" not in flag
    ]
    flags += [f"--instances-gt={folder.instances_gt}", "--workers=2", "--evaluate-every=8"]
    said = finish(job([*flags, f"--val-images={folder.images}", f"--val-gt={folder.instances_gt}"]))
    assert "training on 2 workers" in said and "8/8  AP of masks" in said
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "block", "1": "bar"}


@pytest.mark.thorough
def test_a_start_from_a_checkpoint_keeps_or_replaces_the_class_head(job, folder, undisturbed, tmp_path):
    """Of the same classes the head stays; a step of nothing shows it. Others get a new one, and keep the rest."""
    same, other = tmp_path / "same", tmp_path / "other"
    nothing = {"iterations": 1, "save_every": 1, "learning_rate": 1e-12, "weight_decay": 0}
    kept = finish(job(flags_of(folder, same, model=undisturbed / "model", **nothing)))
    flags = [flag for flag in flags_of(folder, other, model=undisturbed / "model", **nothing) if "panoptic" not in flag]
    replaced = finish(job([*flags, f"--instances-gt={folder.instances_gt}"]))
    assert "the class head starts from random weights" in replaced and "the class head" not in kept
    start = load_file(undisturbed / "model" / "model.safetensors")
    of_same, of_other = (load_file(path / "model" / "model.safetensors") for path in (same, other))
    for name, weight in start.items():
        assert torch.allclose(of_same[name], weight, atol=1e-6), name
        if name.startswith("class_predictor."):
            assert of_other[name].shape[0] == len(CATEGORIES) and weight.shape[0] == len(CATEGORIES) + 1
        else:
            assert torch.allclose(of_other[name], weight, atol=1e-6), name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"panoptic_gt": "missing.json"}, "--panoptic-gt .*missing.json does not exist"),
        ({"architecture": "swin-huge"}, "--architecture swin-huge is neither one of swin-tiny"),
        ({"model": "missing/checkpoint.pkl"}, "give either --model or --architecture"),
        ({"crop_size": "64:64"}, "--crop-size is '64:64'"),
        ({"crop_size": "whole", "max_scale": 3.0}, "--max-scale sets the jitter"),
        ({"batch_size": 3, "workers": 2}, "--batch-size 3 cannot be shared equally by 2 --workers"),
        (
            {"evaluate_every": 6, "val_images": "images", "val_gt": "gt.json"},
            f"--evaluate-every 6 is not a multiple of --save-every {SAVE_EVERY}",
        ),
        ({"evaluate_every": 8}, "--evaluate-every needs images to validate with"),
        ({"images": "missing"}, r"image .*missing/001.png does not exist"),
        ({"panoptic_pngs": "missing"}, r"missing/001.png does not exist"),
        ({"val_pngs": " "}, "--val-pngs is empty"),
        ({"val_images": "images"}, "--val-images and --val-gt belong together"),
        ({"min_scale": 3.0}, "--min-scale 3.0 is above --max-scale 2.0"),
        ({"importance_sample_ratio": 1.5}, "--importance-sample-ratio is 1.5; it must lie in 0.0 .. 1.0"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, architecture, tmp_path, capsys, changed, message):
    output = tmp_path / "out"
    flags = flags_of(folder, output, **{"architecture": architecture, **changed})
    with pytest.raises(SystemExit) as stop:
        finetune.main(flags)
    assert stop.value.code == 2
    line = last_line(capsys.readouterr().err)
    assert re.search(message, line), line
    assert not output.exists()


def test_more_workers_than_the_cluster_has_cpus_for(ray_session, folder, architecture, tmp_path, capsys):
    flags = flags_of(folder, tmp_path / "out", architecture=architecture, workers=1000, batch_size=1000)
    with pytest.raises(SystemExit) as stop:
        finetune.main(flags)
    assert stop.value.code == 2
    assert "1000 workers with 1 CPUs each do not fit" in last_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_another_trainings_folder_is_refused(folder, architecture, undisturbed, tmp_path, capsys):
    with pytest.raises(SystemExit):
        finetune.main(flags_of(folder, undisturbed, architecture=architecture, seed=5))
    assert "holds a training with other settings" in capsys.readouterr().err
    (tmp_path / "photograph.jpg").write_bytes(b"")
    with pytest.raises(SystemExit):
        finetune.main(flags_of(folder, tmp_path, architecture=architecture))
    assert "is not empty and holds no training" in capsys.readouterr().err


@pytest.mark.thorough
def test_other_data_in_the_same_file_is_another_training(job, folder, architecture, tmp_path, capsys):
    """The paths alone would let a head with one output too few go on. The same data goes on to the very end."""
    output, changed = tmp_path / "out", tmp_path / "panoptic.json"
    content = json.loads(folder.panoptic_gt.read_text())
    changed.write_text(json.dumps(content))
    flags = flags_of(
        folder, output, architecture=architecture, panoptic_gt=changed, panoptic_pngs=folder.root / "panoptic"
    )
    finish(job([*flags, "--iterations=1"]))
    weights, log = (output / "model" / "model.safetensors").read_bytes(), (output / "log.jsonl").read_bytes()
    for last in ("model", "log.jsonl", "loss.png"):  # as if it had been killed before the last of its work
        (shutil.rmtree if last == "model" else os.remove)(output / last)
    shutil.copytree(*(output / "train" / f"checkpoint_{name}" for name in (whole_checkpoint(output), "2026-begun")))
    finish(job([*flags, "--iterations=1"]))
    assert (output / "model" / "model.safetensors").read_bytes() == weights
    assert (output / "log.jsonl").read_bytes() == log and (output / "loss.png").exists()
    assert whole_checkpoint(output), "what a killed worker had begun to save is still there"
    shutil.rmtree(output / "model")
    more_classes = [*content["categories"], {"id": 91, "name": "cube", "isthing": 1}]
    for name, value in {"categories": more_classes, "annotations": content["annotations"][:-1]}.items():
        changed.write_text(json.dumps({**content, name: value}))
        with pytest.raises(SystemExit):
            finetune.main([*flags, "--iterations=1"])
        what = {"categories": "categories", "annotations": "number_of_images"}[name]
        assert f"holds a training with other settings: {what} (" in capsys.readouterr().err


@pytest.mark.thorough
def test_what_would_fail_again_ends_it_with_one_line(job, folder, architecture, tmp_path):
    """An image that cannot be read, met in the middle: no second try, and the checkpoints stay."""
    for name in ("images", "panoptic", "panoptic.json"):
        source = folder.root / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    broken = CocoFolder(tmp_path)
    (broken.images / "004.png").write_bytes(b"no image")
    process = job(flags_of(broken, tmp_path / "out", architecture=architecture, save_every=1))
    said = process.finish()
    assert process.returncode == 2, said
    last = said.splitlines()[-1]
    assert last.startswith("finetune.py: error: the training cannot continue: image "), last
    assert "004.png cannot be used" in last
    assert said.count("starting;") == 1 and "continuing" not in said


@pytest.mark.thorough
def test_a_fault_in_the_validation_loses_no_step(job, folder, architecture, tmp_path):
    """The second of the images to validate with is broken, which only the first validation finds out. It is the second
    worker's, which does not write the checkpoint.
    """
    shutil.copytree(folder.root, tmp_path / "val")
    val = CocoFolder(tmp_path / "val")
    whole = (val.images / "002.png").read_bytes()
    (val.images / "002.png").write_bytes(b"no image")
    places = {"val_images": val.images, "val_gt": val.panoptic_gt, "iterations": 4, "save_every": 2, "workers": 2}
    flags = flags_of(folder, tmp_path / "out", architecture=architecture, **places)
    process = job(flags)
    said = process.finish()
    assert process.returncode == 2, said
    assert "the training cannot continue: image" in said.splitlines()[-1] and "002.png" in said.splitlines()[-1]
    (val.images / "002.png").write_bytes(whole)
    said = finish(job(flags))
    assert "continuing after step 2" in said and "2/4  PQ" in said and "4/4  PQ" in said
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows if "PQ" in row] == [2, 4]
