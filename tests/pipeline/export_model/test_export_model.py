"""A checkpoint leaves PyTorch: what another program reads answers as the checkpoint does, and model.json says so."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2f_core.checkpoints.checkpoint import Checkpoint, load_checkpoint
from pipeline.errors import BrokenRunError, RunError
from pipeline.export_model import export_model as flow
from pipeline.export_model import extra
from pipeline.export_model.export_model import ExportedModel, export_model
from pipeline.export_model.formats import Run, read_pt2
from pipeline.export_model.settings import ExportModelSettings
from tests.support.places import ROOT

CheckpointOf = Callable[[str], Path]
WITH_SEGMENTS = ("ihc.png", "hubble_deep_field.jpg")  # by every seeded model
NEEDS_ONNX = "onnx, onnxscript or onnxruntime is missing; the extra `test` has them"


def random_images(number: int, hw: tuple[int, int]) -> Tensor:
    return torch.randn(number, 3, *hw, generator=torch.Generator().manual_seed(10 + number))


def export(name: str, checkpoint_of: CheckpointOf, output: Path, **settings: object) -> tuple[ExportedModel, dict]:
    """Export to squares of 64 x 64, which every checkpoint here takes."""
    given = {"image_size": "64x64", "model": str(checkpoint_of(name)), **settings}
    exported = export_model(ExportModelSettings(str(output), **given))
    return exported, json.loads((output / "model.json").read_text())


def assert_answers_as(run: Callable[[Tensor], tuple[Tensor, Tensor]], checkpoint: Path, task: str) -> None:
    """The logits of one and of three images against the plain model of the checkpoint."""
    model = load_checkpoint(checkpoint)
    model.set_task(task)
    for number in (1, 3):
        images = random_images(number, (64, 64))
        with torch.no_grad():
            expected = model(images)
        classes, masks = run(images)
        torch.testing.assert_close(classes, expected.class_queries_logits, rtol=0, atol=2e-4)
        torch.testing.assert_close(masks, expected.masks_queries_logits, rtol=0, atol=5e-4)
        assert ((masks >= 0) != (expected.masks_queries_logits >= 0)).float().mean() < 1e-5


def assert_described(description: dict, output: Path, checkpoint: Path, format_name: str) -> None:
    file = output / f"model.{format_name}"
    opened = Checkpoint(checkpoint)
    assert description["format"] == format_name
    assert description["files"] == {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    }
    assert description["checkpoint_sha256"] == opened.sha256
    assert description["categories"] == opened.labels.to_list()
    assert description["input"]["shape"] == ["batch", 3, 64, 64]
    assert sorted(path.name for path in output.iterdir()) == sorted([file.name, "model.json"])
    assert str(ROOT).encode() not in file.read_bytes(), "the file names a folder of this machine"
    assert description["model"] == checkpoint.name and str(checkpoint.parent) not in json.dumps(description)


ONNX = [
    ("mask2former", {}),
    pytest.param("mask2former with swin", {}, marks=pytest.mark.thorough),
    pytest.param("mask2former with swin", {"opset": 18}, marks=pytest.mark.thorough),
    pytest.param("mask2former with swin", {"opset": 23}, marks=pytest.mark.thorough),
    pytest.param("maskformer", {"task": "semantic"}, marks=pytest.mark.thorough),
    pytest.param("oneformer", {"task": "instance"}, marks=pytest.mark.thorough),
    ("eomt", {}),
    pytest.param("eomt on dinov3", {}, marks=pytest.mark.thorough),
    pytest.param("eomt for windows", {"task": "semantic"}, marks=pytest.mark.thorough),
]


@pytest.mark.parametrize(("name", "settings"), ONNX)
def test_onnxruntime_reads_the_file_back(name, settings, checkpoint_of, photographs, tmp_path):
    """In a session of the test; operators and opset are counted in the file."""
    onnx = pytest.importorskip("onnx", reason=NEEDS_ONNX)
    onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS_ONNX)
    output = tmp_path / "exported"
    images = tuple(str(photographs / image) for image in WITH_SEGMENTS)
    exported, description = export(name, checkpoint_of, output, format="onnx", check=images, **settings)
    assert_described(description, output, checkpoint_of(name), "onnx")
    session = onnxruntime.InferenceSession(output / "model.onnx", providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        classes, masks = session.run(None, {"pixel_values": images.numpy()})
        return torch.from_numpy(classes), torch.from_numpy(masks)

    task = settings.get("task", "panoptic")
    assert_answers_as(run, checkpoint_of(name), task)
    shapes = [one.shape for one in (*session.get_inputs(), *session.get_outputs())]
    assert shapes == [description["input"]["shape"], *(one["shape"] for one in description["outputs"])]
    read = onnx.load(output / "model.onnx")
    onnx.checker.check_model(read, full_check=True)
    assert dict(Counter(node.op_type for node in read.graph.node)) == description["operators"]
    assert {one.domain: one.version for one in read.opset_import} == {"": settings.get("opset", 20)}
    assert description["opset"] == settings.get("opset", 20)
    facts = session.get_modelmeta().custom_metadata_map
    assert facts == {
        "family": description["family"],
        "license": description["license"],
        "sha256": description["checkpoint_sha256"],
    }
    assert description["task"] == (task if name == "oneformer" else None)
    assert exported.comparison.images == 2 and exported.comparison.segments > 0
    assert exported.comparison.segments_alike == exported.comparison.segments
    assert exported.comparison.flipped < 1e-5


PT2 = [pytest.param(name, marks=pytest.mark.thorough) for name in ("mask2former", "maskformer", "oneformer")] + ["eomt"]


@pytest.mark.parametrize("name", PT2)
def test_torch_reads_the_program_back(name, checkpoint_of, photographs, tmp_path):
    output = tmp_path / "exported"
    exported, description = export(name, checkpoint_of, output, format="pt2", check=(str(photographs),), limit=1)
    assert_described(description, output, checkpoint_of(name), "pt2")
    assert_answers_as(torch.export.load(output / "model.pt2").module(), checkpoint_of(name), "panoptic")
    assert description["opset"] is None and description["operators"]["aten.linear.default"] > 3
    assert exported.comparison.images == 1 and exported.comparison.passes


def test_a_file_that_computes_something_else_is_not_kept(checkpoint_of, tmp_path, monkeypatch):
    def read_wrong(file: Path) -> Run:
        run = read_pt2(file)
        return lambda images: (run(images)[0], run(images.flip(-1))[1])

    monkeypatch.setattr(flow, "read_pt2", read_wrong)
    with pytest.raises(BrokenRunError, match=r"model.pt2 does not compute what PyTorch computes: .* was not written"):
        export("eomt", checkpoint_of, tmp_path / "exported", format="pt2")
    assert not list(tmp_path.iterdir())


# --- bad input: each is refused before anything is written ---------------------------------------------------------


def assert_refused(match: str, **settings: object) -> None:
    with pytest.raises(RunError, match=match):
        export_model(ExportModelSettings(**settings))


def test_sizes_that_are_refused(checkpoint_of, tmp_path):
    output, model = str(tmp_path / "exported"), str(checkpoint_of("mask2former"))
    common = {"output": output, "format": "pt2", "model": model}
    assert_refused("sides must be multiples of 32 here, .*; the next size is 96x96", **common, image_size="70x90")
    assert_refused(r"different sizes \(640:1333\), .* give --image-size HEIGHTxWIDTH", **common, image_size="640:1333")
    assert_refused("different sizes", **common)  # without a file, the size is the paper's
    assert_refused("--image-size: image size '64' is neither", **common, image_size="64")
    assert_refused(
        "this model takes squares of 64x64", **{**common, "model": str(checkpoint_of("eomt"))}, image_size="96x96"
    )
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_refused(checkpoint_of, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    common = {"format": "pt2", "model": str(checkpoint_of("eomt"))}
    assert_refused("full is not empty; name another folder", output=str(tmp_path / "full"), **common)
    assert_refused("file is a file; name a folder", output=str(tmp_path / "full" / "file"), **common)
    assert_refused("s3://bucket/model is no local folder", output="s3://bucket/model", **common)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["file"]


def test_an_empty_folder_is_filled(checkpoint_of, tmp_path):
    (tmp_path / "exported").mkdir()
    exported, _ = export("eomt", checkpoint_of, tmp_path / "exported", format="pt2")
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == sorted(exported.files)


def test_an_unknown_family_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "detr"}')
    assert_refused(
        'model_type must be one of "mask2former", .*, not .detr.: this is another architecture',
        output=str(tmp_path / "exported"),
        format="pt2",
        model=str(tmp_path / "model"),
    )
    assert not (tmp_path / "exported").exists()


def test_flags_that_do_not_belong_together():
    assert_refused("--opset is for --format onnx, not for pt2", output="out", format="pt2", opset=20)
    assert_refused(r"--opset is 17; it must lie in 18 .. 23", output="out", format="onnx", opset=17)


def test_images_that_are_refused(checkpoint_of, tmp_path):
    images, broken = tmp_path / "none", tmp_path / "broken"
    images.mkdir()
    broken.mkdir()
    (broken / "a.jpg").write_bytes(b"no image")
    common = {"output": str(tmp_path / "exported"), "format": "pt2", "model": str(checkpoint_of("eomt"))}
    assert_refused("--check .*none holds no images", **common, check=(str(images),))
    assert_refused("--check: .*a.jpg cannot be decoded", **common, check=(str(broken),))
    assert not (tmp_path / "exported").exists()


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    there = extra.find_spec
    monkeypatch.setattr(extra, "find_spec", lambda name: None if name == "onnxruntime" else there("json"))
    assert_refused(
        r"needs the extra `onnx` \(onnxruntime missing\): pip install 'm2f-pipeline\[onnx\]'",
        output="out",
        format="onnx",
    )
