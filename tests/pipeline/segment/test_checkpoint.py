"""Checkpoints by path, URI and name: a pickle of the original code is fetched where it is meant, others never."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from m2f_core.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from m2f_core.checkpoints.licenses import ZOO_LICENSE, model_license
from m2f_core.config.labels import LabelMap
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.inference.settings import PanopticSettings
from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.runs.check import check, check_model
from pipeline.segment import checkpoint
from pipeline.segment.checkpoint import is_local_path, stage_model
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentedImage, SegmentSpec
from pipeline.train.settings import FinetuneSettings
from pipeline.train.starting_model import start_warnings
from tests.support.detectron2_pickles import original_names, write_pickle
from tests.support.planning import planned
from tests.support.seeded_model import seeded_model

BUCKET = "m2f-weights"
NAME = "model_final_9fd0ae.pkl"
DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def pickled(tiny_checkpoint, tmp_path_factory) -> Path:
    """The demonstration's weights, which have 8 classes as Cityscapes' instance models have."""
    folder = tmp_path_factory.mktemp("pickled")
    return write_pickle(folder / NAME, original_names(load_file(tiny_checkpoint / "model.safetensors")))


@pytest.fixture
def settings(tmp_path, pickled) -> Settings:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"a")
    return Settings(input=str(tmp_path / "in"), output=str(tmp_path / "out"), model=str(pickled))


def test_a_local_file_and_its_folder(pickled):
    assert stage_model(str(pickled)).path == pickled
    assert stage_model(str(pickled), Checkpoint(pickled).sha256).path == pickled
    assert stage_model(str(pickled.parent)).path == pickled.parent
    assert Checkpoint(pickled).sha256 == Checkpoint(pickled.parent).sha256
    with pytest.raises(RunError, match="sha256"):
        stage_model(str(pickled), "0" * 64)


@pytest.mark.parametrize("name", ["nowhere.pkl", "a/b.pkl", "notes.txt"])
def test_what_is_no_checkpoint_is_no_hub_id_either(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(RunError, match=rf"--model {name}: there is no such folder or \.pkl file"):
        stage_model(name)


def test_a_uri_of_a_file_and_of_its_folder_give_the_same_weights(pickled, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(pickled, source)
    for name in ("optimizer.pkl", "last_checkpoint", "model_0004999.pkl"):
        (source / name).write_bytes(b"never fetched")
    of_file, of_folder = stage_model(f"file://{source}/{NAME}").path, stage_model(f"file://{source}/").path
    assert of_file.name == NAME
    assert [path.name for path in of_folder.iterdir()] == [NAME]
    assert Checkpoint(of_folder).pickle == of_folder / NAME
    assert Checkpoint(of_file).sha256 == Checkpoint(of_folder).sha256 == Checkpoint(pickled).sha256


def test_of_a_hugging_face_folder_pickles_are_not_fetched_but_the_card_is(tiny_checkpoint, pickled, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_checkpoint, source)
    shutil.copy(pickled, source)
    (source / "README.md").write_text("---\nlicense: mit\n---\n")
    staged = stage_model(f"file://{source}").path
    assert {path.name for path in staged.iterdir()} == {"config.json", "model.safetensors", "README.md"}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["optimizer.pkl", "README.md"], "holds no checkpoint"),
        ([NAME, "model_final_000000.pkl"], rf"holds several checkpoints \(model_final_000000.pkl, {NAME}\)"),
    ],
)
def test_folders_that_are_no_checkpoint(tmp_path, names, says):
    (tmp_path / "source").mkdir()
    for name in names:
        (tmp_path / "source" / name).write_bytes(b"x")
    with pytest.raises(RunError, match=says):
        stage_model(f"file://{tmp_path}/source")


@pytest.mark.parametrize("source", ["uri", "hub"])
def test_weights_that_are_pickled_beside_a_config_must_be_converted(tiny_checkpoint, tmp_path, monkeypatch, source):
    shutil.copytree(tiny_checkpoint, tmp_path / "source")
    weights = tmp_path / "source" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    hub = SimpleNamespace(snapshot_download=lambda model, allow_patterns: str(tmp_path / "source"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    with pytest.raises(RunError, match=r"--model .* convert .* to model\.safetensors first"):
        stage_model({"uri": f"file://{tmp_path}/source", "hub": "somebody/their-mask2former"}[source])


def test_uris_of_no_file(tmp_path):
    (tmp_path / "folder.pkl").mkdir()
    with pytest.raises(RunError, match="is not a file"):
        stage_model(f"file://{tmp_path}/folder.pkl")
    with pytest.raises(RunError, match="does not exist"):
        stage_model(f"file://{tmp_path}/nowhere.pkl")


def test_from_s3(s3, pickled):
    s3.bucket(BUCKET)
    for key in (f"zoo/{NAME}", "zoo/optimizer.pkl"):
        s3.client.put_object(Bucket=BUCKET, Key=key, Body=pickled.read_bytes())
    of_file, of_folder = stage_model(f"s3://{BUCKET}/zoo/{NAME}").path, stage_model(f"s3://{BUCKET}/zoo").path
    assert of_file.read_bytes() == (of_folder / NAME).read_bytes() == pickled.read_bytes()
    assert [path.name for path in of_folder.iterdir()] == [NAME]
    with pytest.raises(RunError, match="does not exist"):
        stage_model(f"s3://{BUCKET}/zoo/model_final_000000.pkl")


def test_a_run_says_which_licence_its_model_has(settings, tmp_path, tiny_checkpoint):
    """And where names of classes come from, unless the file is known."""
    known = check_model(settings)
    assert (known.license, known.warnings) == ("CC BY-NC 4.0", ())
    run = planned(settings)
    run_json = json.loads((tmp_path / "out" / "_runs" / run.run_id / "run.json").read_text())
    assert run_json["model_license"] == "CC BY-NC 4.0"
    assert run_json["model"]["categories"] == LabelMap.of_dataset("cityscapes-instance").to_list()

    shutil.copy(settings.model, tmp_path / "model_final.pkl")
    unknown = check_model(dataclasses.replace(settings, model=str(tmp_path / "model_final.pkl"), task="instance"))
    assert unknown.license == "unknown"
    assert len(unknown.warnings) == 1
    assert (
        "model_final.pkl holds no class names; its 8 classes are assumed to be person, rider, ...,"
        in unknown.warnings[0]
    )
    training = FinetuneSettings("images", "out", panoptic_gt="panoptic.json", model=str(tmp_path / "model_final.pkl"))
    assert start_warnings(training) == list(unknown.warnings)
    assert start_warnings(dataclasses.replace(training, model=settings.model)) == []

    shutil.copytree(tiny_checkpoint, tmp_path / "folder")
    (tmp_path / "folder" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert check_model(dataclasses.replace(settings, model=str(tmp_path / "folder"))).license == "apache-2.0"


def test_a_relative_file_is_made_whole(settings, tmp_path, monkeypatch, pickled):
    shutil.copy(pickled, tmp_path)
    monkeypatch.chdir(tmp_path)
    checked = check(dataclasses.replace(settings, model=NAME))
    assert checked.settings.model == str(tmp_path / NAME)


def test_what_would_run_ends_the_check_by_name(settings, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "touched"), "w")

    path = write_pickle(tmp_path / "model_final.pkl", {"a": Evil()})
    with pytest.raises(RunError, match=r"model_final\.pkl: refuses _?io\.open") as error:
        check(dataclasses.replace(settings, model=str(path)))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", {"num_labels": 10**9, "id2label": None}, "num_labels must give 1 to"),
        ("config.json", {"hidden_dim": 10**9}, "hidden_dim must be a whole number"),
        ("config.json", DEEP, "nested in more than"),
        ("preprocessor_config.json", DEEP, "nested in more than"),
        ("preprocessor_config.json", {"size_divisor": 10**9}, "size_divisor = 1000000000"),
    ],
)
def test_a_hostile_file_of_a_checkpoint_is_one_line(settings, tiny_checkpoint, tmp_path, name, content, says):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    if isinstance(content, dict):
        before = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        content = json.dumps({key: value for key, value in (before | content).items() if value is not None})
    (folder / name).write_text(content)
    with pytest.raises(RunError, match=says) as error:
        check_model(dataclasses.replace(settings, model=str(folder)))
    assert "\n" not in str(error.value) and name in str(error.value)


def test_an_actor_finds_the_same_segments_with_either_format(tiny_checkpoint, pickled):
    image = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((160, 120)).save(image, "PNG")
    results = []
    for path in (tiny_checkpoint, pickled):
        spec = SegmentSpec(
            model=str(path),
            weights_sha256=Checkpoint(path).sha256,
            preprocess="reference",
            image_size=None,
            exif=True,
            max_image_pixels=1_000_000,
            inference=PanopticSettings.defaults("reference"),
            precision="fp32",
            device="cpu",
            threads=1,
            batch_size=1,
            max_batch_pixels=1_000_000,
        )
        (result,) = Segmenter(spec).segment([image.getvalue()])
        assert isinstance(result, SegmentedImage)
        assert result.segments
        results.append(result)
    assert results[0] == results[1]


def test_converted_it_keeps_its_licence(pickled, tmp_path):
    published = tmp_path / "model_final_9fd0ae.pkl"
    published.symlink_to(pickled)
    save_checkpoint(
        load_checkpoint(published), tmp_path / "converted", license_name=model_license(Checkpoint(published))
    )
    assert model_license(Checkpoint(tmp_path / "converted")) == ZOO_LICENSE


def test_saved_again_it_is_a_hugging_face_folder(pickled, tmp_path):
    model = load_checkpoint(pickled)
    save_checkpoint(model, tmp_path / "converted")
    assert Checkpoint(tmp_path / "converted").pickle is None
    assert load_checkpoint(tmp_path / "converted").config == model.config
    (tmp_path / "converted" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "converted")


def test_the_embedded_checkpoint_is_found_by_name_wherever_a_worker_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = stage_model("synthetic-scenes").path
    assert path.is_absolute() and (path / "model.safetensors").stat().st_size <= 10_000_000
    (tmp_path / "synthetic-scenes").mkdir()
    assert stage_model("synthetic-scenes").path == path  # the same on every node; ./synthetic-scenes is the folder here
    assert stage_model("./synthetic-scenes").path != path
    assert is_local_path("./synthetic-scenes") and not is_local_path("synthetic-scenes")
    with pytest.raises(RunError):
        stage_model("another-name")


def test_submitted_code_without_checkpoints_takes_the_embedded_one_of_the_installed_package(tmp_path, monkeypatch):
    path = stage_model("synthetic-scenes").path
    site = tmp_path / "site-packages"
    (site / "m2f_pipeline-1.0.dist-info").mkdir(parents=True)
    (site / "m2f_pipeline-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: m2f-pipeline\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(checkpoint, "__file__", str(tmp_path / "working_dir/pipeline/segment/checkpoint.py"))
    with pytest.raises(RunError, match=r"--model synthetic-scenes, the default, .* install m2f-pipeline on every node"):
        stage_model("synthetic-scenes")
    shutil.copytree(path, site / "pipeline" / "models" / "synthetic-scenes")
    assert stage_model("synthetic-scenes").path == site / "pipeline" / "models" / "synthetic-scenes"


def test_a_file_of_pytorch_is_told_how_to_become_a_checkpoint(tmp_path, monkeypatch):
    """The line that is printed does it."""
    model = seeded_model(Mask2FormerConfig.tiny(), 0)
    save_checkpoint(model, tmp_path / "hub")
    arrays = original_names(load_file(tmp_path / "hub" / "model.safetensors"))
    weights = {"model": {name: torch.from_numpy(array) for name, array in arrays.items()}, "iteration": 4}
    torch.save(weights, tmp_path / "model_final.pth")
    with pytest.raises(RunError, match=r"is no folder and no \.pkl file") as error:
        stage_model(str(tmp_path / "model_final.pth"))
    assert "\n" not in str(error.value)
    program = str(error.value).split('python -c "')[1].removesuffix('"')
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    stage_model(str(tmp_path / "model_final.pkl")).check()
