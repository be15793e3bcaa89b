"""Models of every family that can be trained learn, and what is saved of them is a checkpoint of their family."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.config.labels import LabelMap
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.families.registry import training_of
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import ImageSize
from m2f_core.images.square import SquareProcessor
from m2f_core.inference.semantic import semantic_segments
from m2f_core.inference.settings import SemanticSettings
from m2f_core.model.eomt.eomt import build_model
from m2f_core.training.augment import LargeScaleJitter
from pipeline.errors import RunError
from pipeline.train.annotated_images import AnnotatedImages, training_data
from pipeline.train.data import TrainingSamples, WorkerShare, load_batches
from pipeline.train.settings import FinetuneSettings
from pipeline.train.starting_model import check_start, starting_model
from pipeline.train.training import Training
from pipeline.train.validate import validate
from tests.support.coco_folders import write_coco_folder
from tests.support.seeded_eomt import make_eomt, tiny_config

PROCESSOR = ImageProcessor("reference", ImageSize(edges=(64, 80)))
SETTINGS = FinetuneSettings(
    images="images",
    output="out",
    panoptic_gt="panoptic.json",
    architecture="maskformer-swin-tiny",
    iterations=200,
    batch_size=2,
    learning_rate=2e-3,
    backbone_multiplier=1.0,
    warmup_iterations=0,
    crop_size="64x80",
    schedule="poly",
    flip=False,
)
# Without what training drops: 200 steps are too few to learn around it.
TINY = MaskFormerConfig.tiny(use_auxiliary_loss=True)
SQUARE = SquareProcessor.read(None, "reference", None, 64, cuts=False)
FAMILIES = {
    "MaskFormer": (replace(TINY, decoder_config=replace(TINY.decoder_config, dropout=0.0)), PROCESSOR, (64, 80)),
    "EoMT": (tiny_config(num_queries=10, train_num_points=1000), SQUARE, (64, 64)),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> AnnotatedImages:
    folder = write_coco_folder(tmp_path_factory.mktemp("coco") / "set", [(64, 64), (64, 80)])
    return AnnotatedImages.read(str(folder.images), str(folder.panoptic_gt), None, "panoptic", "--panoptic-gt")


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_and_validation_says_so(family: str, data, tmp_path) -> None:
    """Two images by heart, one of them padded: the loss falls to a fraction, and PQ, through inference, is high."""
    labels = LabelMap.from_coco_categories(list(data.categories))
    config, processor, crop_hw = FAMILIES[family]
    config = replace(config, id2label={c.class_id: c.name for c in labels.categories})
    model = training_of(config).initial_model(config, 0)
    training = Training(model, model, SETTINGS, labels, processor)
    jitter = LargeScaleJitter(crop_hw, 1.0, 1.0, False, processor.training_padding)
    samples = TrainingSamples(data, labels.class_id_of_category, jitter, 0)
    for batch in load_batches(samples, WorkerShare(2, 0, 1), range(SETTINGS.iterations), 0):
        training.step(batch)
        if training.iteration in (5, SETTINGS.iterations):
            training.add_log_row()
    first, last = training.log
    assert last["loss"] < 0.5 * first["loss"]
    assert {"loss", "loss_mask", "loss_dice", "loss_cross_entropy"} <= last.keys()
    assert validate(model, data, labels, processor, range(2), lambda value: [value])["PQ"] > 0.6
    training.save(tmp_path)
    saved = Checkpoint(tmp_path)
    assert saved.family.name == family
    assert saved.preprocessor_config["image_processor_type"] == saved.family.image_processor_type
    assert torch.equal(saved.load().class_predictor.weight, model.class_predictor.weight)


def test_a_setting_that_the_loss_does_not_have_is_refused(tmp_path) -> None:
    """Without building the model, whether the training starts from a size or from a checkpoint."""
    for flag in ({"train_num_points": 99}, {"importance_sample_ratio": 0.5}):
        [name] = flag
        with pytest.raises(RunError, match=f"--{name.replace('_', '-')}: the loss of a MaskFormer"):
            check_start(replace(SETTINGS, **flag))


def test_a_size_of_another_family_is_its_model() -> None:
    labels = LabelMap.of_dataset("cityscapes-panoptic")
    model, is_new = starting_model(SETTINGS, labels)
    assert is_new
    assert model.config == MaskFormerConfig.swin_tiny(id2label={c.class_id: c.name for c in labels.categories})


def eomt_settings(folder: Path, **flags: object) -> FinetuneSettings:
    make_eomt(folder)
    return replace(SETTINGS, **{"architecture": None, "model": str(folder), "crop_size": "64x64", **flags})


def test_a_training_of_an_eomt_takes_its_squares_alone(tmp_path) -> None:
    processor = check_start(eomt_settings(tmp_path))
    assert isinstance(processor, SquareProcessor) and processor.training_padding == 0
    check_start(eomt_settings(tmp_path, crop_size="whole"))
    with pytest.raises(RunError, match="--crop-size: 64x80: this model takes crops of 64x64 pixels alone"):
        check_start(eomt_settings(tmp_path, crop_size="64x80"))
    semantic = {"panoptic_gt": None, "semantic_gt": "maps"}
    assert check_start(eomt_settings(tmp_path, **semantic)).cuts, "as semantic images are segmented in windows"
    with pytest.raises(RunError, match="--crop-size: whole images are no squares"):
        check_start(eomt_settings(tmp_path, crop_size="whole", **semantic))
    with pytest.raises(RunError, match="image size 64:80: this model takes squares of 64x64"):
        check_start(eomt_settings(tmp_path, image_size="64:80"))
    assert check_start(replace(SETTINGS, architecture="eomt-small", crop_size="640x640")).side == 640


@pytest.mark.parametrize(
    ("field", "value"), [("drop_path_rate", 0.1), ("attention_dropout", 0.1), ("hidden_dropout_prob", 0.5)]
)
def test_a_training_that_would_drop_less_than_the_model_says_is_refused(field, value, tmp_path) -> None:
    settings = eomt_settings(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(RunError, match=f"{field} must be 0 for training here"):
        check_start(settings)


def test_a_checkpoint_from_the_middle_of_a_training_can_be_run_and_continued(data, tmp_path) -> None:
    """The file says for each block whether it masks; how often it does follows from the step."""
    labels = LabelMap.from_coco_categories(list(data.categories))
    config = replace(FAMILIES["EoMT"][0], id2label={c.class_id: c.name for c in labels.categories})
    trainings = [Training(model, model, SETTINGS, labels, SQUARE) for model in map(build_model, [config] * 2)]
    samples = TrainingSamples(data, labels.class_id_of_category, LargeScaleJitter((64, 64), 1.0, 1.0, False, 0), 0)
    [batch] = load_batches(samples, WorkerShare(2, 0, 1), range(1), 0)
    trainings[0].iteration = 45
    trainings[0].step(batch)
    shares = trainings[0].model.mask_shares
    assert 0.5 < shares[0] < 1.0 and shares[1] == 1.0
    trainings[0].save(tmp_path)
    assert Checkpoint(tmp_path).load().mask_shares == [1.0, 1.0]
    trainings[1].resume(tmp_path)
    assert trainings[1].iteration == 46
    for training in trainings:
        training.step(batch)
    assert trainings[1].model.mask_shares == trainings[0].model.mask_shares != shares


def test_windows_are_validated_as_a_run_segments_them(tmp_path) -> None:
    """An image of two windows, whose ground truth is what a run finds: no pixel is wrong."""
    make_eomt(tmp_path / "model", "semantic")
    checkpoint = Checkpoint(tmp_path / "model")
    model, processor = checkpoint.load(), checkpoint.image_processor("reference", task="semantic")
    image = Image.effect_noise((100, 70), 80).convert("RGB")
    inputs, geometry = processor.inputs_of(image)
    assert len(inputs) == len(geometry.windows) == 2
    with torch.inference_mode():
        output = model(inputs)
    settings = SemanticSettings.defaults("reference", "scores")
    found = semantic_segments(output.class_queries_logits, output.masks_queries_logits, geometry, settings)
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
    image.save(tmp_path / "images" / "a.png")
    Image.fromarray((found.label_map_HW - 1).astype(np.uint8)).save(tmp_path / "maps" / "a.png")
    settings = eomt_settings(
        tmp_path / "for its classes",
        images=str(tmp_path / "images"),
        panoptic_gt=None,
        semantic_gt=str(tmp_path / "maps"),
    )
    figures = validate(model, training_data(settings), checkpoint.labels, processor, range(1), lambda value: [value])
    assert figures["pAcc"] == 1.0
