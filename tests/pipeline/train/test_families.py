"""Models of every family that can be trained learn, and what is saved of them is a checkpoint of their family."""

from dataclasses import replace

import pytest
import torch

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.config.labels import LabelMap
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.families.registry import training_of
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import ImageSize
from m2f_core.training.augment import LargeScaleJitter
from pipeline.errors import RunError
from pipeline.train.annotated_images import AnnotatedImages
from pipeline.train.data import TrainingSamples, WorkerShare, load_batches
from pipeline.train.settings import FinetuneSettings
from pipeline.train.starting_model import check_start, starting_model
from pipeline.train.training import Training
from pipeline.train.validate import validate
from tests.support.coco_folders import write_coco_folder

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
CONFIGS = {"MaskFormer": replace(TINY, decoder_config=replace(TINY.decoder_config, dropout=0.0))}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> AnnotatedImages:
    folder = write_coco_folder(tmp_path_factory.mktemp("coco") / "set", [(64, 64), (64, 80)])
    return AnnotatedImages.read(str(folder.images), str(folder.panoptic_gt), None, "panoptic", "--panoptic-gt")


@pytest.mark.parametrize("family", CONFIGS)
def test_it_learns_and_validation_says_so(family: str, data, tmp_path) -> None:
    """Two images by heart, one of them padded: the loss falls to a fraction, and PQ, through inference, is high."""
    labels = LabelMap.from_coco_categories(list(data.categories))
    config = replace(CONFIGS[family], id2label={c.class_id: c.name for c in labels.categories})
    model = training_of(config).initial_model(config, 0)
    training = Training(model, model, SETTINGS, labels, PROCESSOR)
    jitter = LargeScaleJitter((64, 80), 1.0, 1.0, False)
    samples = TrainingSamples(data, labels.class_id_of_category, jitter, 0)
    for batch in load_batches(samples, WorkerShare(2, 0, 1), range(SETTINGS.iterations), 0):
        training.step(batch)
        if training.iteration in (5, SETTINGS.iterations):
            training.add_log_row()
    first, last = training.log
    assert last["loss"] < 0.5 * first["loss"]
    assert {"loss", "loss_mask", "loss_dice", "loss_cross_entropy"} <= last.keys()
    assert validate(model, data, labels, PROCESSOR, range(2), lambda value: [value])["PQ"] > 0.6
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
