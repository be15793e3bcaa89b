"""The main job with an EoMT, whole: its tables against a plain loop over transformers, and its books."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from jobs import segment_bucket
from m2f_core.config.eomt import PlainTransformerConfig
from tests.support.seeded_eomt import CATEGORIES, make_eomt, tiny_config, tiny_dinov3_config
from tests.support.tables import read_report, read_table

pytest.importorskip("transformers", reason="transformers is the oracle of these tests")
import transformers

NAMES = ("coffee.png", "rocket.jpg", "chelsea.png")
STUFF = [category.class_id for category in CATEGORIES if not category.isthing]


def run(task: str, folder: Path, model: Path, output: Path, *flags: str) -> int:
    places = ["--input", str(folder), "--output", str(output), "--model", str(model)]
    as_hf = ["--preprocess", "hf", "--postprocess", "hf"]
    return segment_bucket.main([*places, "--task", task, *as_hf, "--images-per-shard", "2", *flags])


@pytest.fixture(scope="module")
def three(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of them upright, so that its windows are one above the other."""
    folder = tmp_path_factory.mktemp("three")
    for name in NAMES[:2]:
        shutil.copy(photographs / name, folder)
    Image.open(photographs / NAMES[2]).convert("RGB").rotate(90, expand=True).save(folder / NAMES[2])
    return folder


def expected_rows(task: str, folder: Path, model: Path, theirs: str) -> dict[str, list[tuple[int, np.ndarray]]]:
    """For each image (class, mask) of each segment, by transformers alone."""
    network = getattr(transformers, theirs).from_pretrained(model).eval()
    processor = transformers.EomtImageProcessorPil.from_pretrained(model)
    rows = {}
    for file in sorted(folder.iterdir()):
        image = Image.open(file).convert("RGB")
        hw = (image.height, image.width)
        inputs = processor(images=[image], return_tensors="pt")
        with torch.inference_mode():
            outputs = network(pixel_values=inputs["pixel_values"])
        if task == "semantic":
            outputs.patch_offsets = inputs["patch_offsets"]
            [classes] = processor.post_process_semantic_segmentation(outputs, [hw])
            rows[file.name] = [(int(c), (classes == c).numpy()) for c in classes.unique()]
            continue
        others = {"stuff_classes": STUFF, "overlap_mask_area_threshold": 0.2} if task == "panoptic" else {}
        [found] = getattr(processor, f"post_process_{task}_segmentation")(outputs, [hw], threshold=0.5, **others)
        map_HW = found["segmentation"].numpy()
        rows[file.name] = [(one["label_id"], map_HW == one["id"]) for one in found["segments_info"]]
    return rows


FLAGS = {"panoptic": ("--score-threshold", "0.5", "--overlap-threshold", "0.2"), "semantic": ()}
FLAGS["instance"] = ("--score-threshold", "0.5")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("panoptic", tiny_config()),
        ("semantic", tiny_config()),
        ("instance", tiny_config()),
        ("panoptic", tiny_dinov3_config()),
        ("semantic", tiny_dinov3_config()),
        ("instance", tiny_dinov3_config()),
    ],
    ids=lambda value: getattr(value, "MODEL_TYPE", value),
)
def test_tables_are_transformers(task: str, config: PlainTransformerConfig, three: Path, tmp_path: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "out"
    make_eomt(model, task, config=config)
    assert run(task, three, model, output, *FLAGS[task]) == 0
    expected, found = expected_rows(task, three, model, config.ARCHITECTURE), read_table(output, "segments")
    assert {row["status"] for row in read_table(output, "images")} == {"ok"}
    assert sum(map(len, expected.values())) > 5
    for name, segments in expected.items():
        rows = [row for row in found if Path(row["image_key"]).name == name]
        assert [row["category_id"] for row in rows] == [class_id + 1 for class_id, _ in segments]
        for row, (_, mask_HW) in zip(rows, segments, strict=True):
            if task == "instance":
                # In transformers' map, later instances cover earlier ones.
                assert (mask_HW <= coco.decode(row["segmentation"]).astype(bool)).mean() > 0.999
            else:
                assert (mask_HW == coco.decode(row["segmentation"]).astype(bool)).mean() > 0.999, "up to rounding"

    assert run(task, three, model, output, *FLAGS[task]) == 0
    assert len(read_table(output, "images")) == 3, "the second run finds nothing to do"


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_another_family_does_the_images_again(three: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    model, output = tmp_path / "model", tmp_path / "out"
    make_eomt(model)
    assert run("panoptic", three, model, output) == 0
    first = read_report(output)
    assert run("panoptic", three, tiny_checkpoint, output, "--image-size", "160:267") == 0
    second = read_report(output)
    assert first["run_id"] != second["run_id"]
    assert (first["num_images"], second["num_images"]) == (3, 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--image-size", "800:1333"), "image size 800:1333: this model takes squares of 64x64 pixels alone"),
        (("--keep-logits", "0.2"), "--keep-logits: for --task semantic, --model"),
    ],
    ids=str,
)
def test_flags_that_the_model_cannot_follow_are_refused(flags, said, three, tmp_path, capsys) -> None:
    make_eomt(tmp_path / "model", "semantic")
    with pytest.raises(SystemExit) as end:
        run("semantic", three, tmp_path / "model", tmp_path / "out", *flags)
    assert end.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "images").exists(), "the record of the night is all there is"
