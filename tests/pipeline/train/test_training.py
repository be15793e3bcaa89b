"""One worker's training: it learns, resumes bit for bit, and refuses to go on after a gradient that is not finite."""

import io
import os
import pickle
import shutil
import zipfile
from dataclasses import replace

import pytest
import torch

from m2f_core.checkpoints.checkpoint import Checkpoint, load_checkpoint
from m2f_core.config.labels import LabelMap
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import ImageSize
from m2f_core.training import recompute
from m2f_core.training.augment import LargeScaleJitter
from m2f_core.training.initial_weights import initial_model
from pipeline.errors import RunError
from pipeline.train.annotated_images import AnnotatedImages
from pipeline.train.data import Batch, TrainingSamples, WorkerShare, load_batches
from pipeline.train.log import as_text, from_lines, plot, to_lines
from pipeline.train.settings import FinetuneSettings
from pipeline.train.training import LossMeter, Training
from pipeline.train.validate import validate
from tests.support.coco_folders import write_coco_folder

PROCESSOR = ImageProcessor("reference", ImageSize(edges=(64, 96)))
SETTINGS = FinetuneSettings(
    images="images",
    output="out",
    panoptic_gt="panoptic.json",
    architecture="swin-tiny",
    iterations=1000,
    batch_size=2,
    learning_rate=1e-3,
    backbone_multiplier=1.0,
    warmup_iterations=0,
    crop_size="64x64",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> AnnotatedImages:
    folder = write_coco_folder(tmp_path_factory.mktemp("coco") / "set", [(64, 64), (64, 80)])
    return AnnotatedImages.read(str(folder.images), str(folder.panoptic_gt), None, "panoptic", "--panoptic-gt")


@pytest.fixture(scope="module")
def labels(data) -> LabelMap:
    return LabelMap.from_coco_categories(list(data.categories))


def tiny_config(labels: LabelMap) -> Mask2FormerConfig:
    names = {category.class_id: category.name for category in labels.categories}
    return replace(Mask2FormerConfig.tiny(id2label=names), train_num_points=256)


def training_of(model, labels, settings=SETTINGS) -> Training:
    return Training(model, model, settings, labels, PROCESSOR)


def batches(data, labels, iterations: range):
    jitter = LargeScaleJitter((64, 64), 0.9, 1.1, True)
    samples = TrainingSamples(data, labels.class_id_of_category, jitter, SETTINGS.seed)
    return load_batches(samples, WorkerShare(SETTINGS.batch_size, 0, 1), iterations, 0)


@pytest.fixture(scope="module")
def saved(labels, tmp_path_factory):
    """A training, and the folder of its checkpoint."""
    training = training_of(initial_model(tiny_config(labels), 0), labels)
    folder = tmp_path_factory.mktemp("saved") / "checkpoint_1"
    training.save(folder)
    return training, folder


def compressed(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", b""),
        ("optimizer.pt", b"PK\x03\x04" + bytes(50)),
        ("optimizer.pt", pickle.dumps({"state": os.system})),
        ("optimizer.pt", compressed(bytes(2**20))),
        ("training.json", b'{"iteration": -1}'),
        ("training.json", b'{"iteration": "2"}'),
        ("training.json", b'{"iteration": 1001}'),
        ("training.json", b"[" * 100_000),
        ("log.jsonl", b'{"iteration": "x"}\n'),
        ("log.jsonl", b"[" * 100_000),
    ],
    ids=[
        "empty",
        "no zip",
        "a program",
        "compressed",
        "below 0",
        "a text",
        "beyond the end",
        "deep",
        "no number",
        "a deep log",
    ],
)
def test_a_checkpoint_whose_files_are_damaged_is_a_line(name, content, saved, tmp_path):
    training, folder = saved
    shutil.copytree(folder, tmp_path / "checkpoint_1")
    (tmp_path / "checkpoint_1" / name).write_bytes(content)
    with pytest.raises(RunError, match=f"the checkpoint checkpoint_1 cannot be continued, {name}: ") as refused:
        training.resume(tmp_path / "checkpoint_1")
    assert "\n" not in str(refused.value)


def test_it_goes_on_bit_for_bit(data, labels, tmp_path):
    """Four steps in one go, and two and two with everything read back from disk: the same weights and the same log."""
    torch.manual_seed(1)  # of no importance: a step seeds itself
    whole = training_of(initial_model(tiny_config(labels), 0), labels)
    for batch in batches(data, labels, range(4)):
        whole.step(batch)

    first = training_of(initial_model(tiny_config(labels), 0), labels)
    for batch in batches(data, labels, range(2)):
        first.step(batch)
    first.add_log_row()
    first.save(tmp_path)
    torch.manual_seed(2)
    second = training_of(load_checkpoint(tmp_path).train(), labels)
    second.resume(tmp_path)
    assert second.iteration == 2 and second.log == first.log
    for batch in batches(data, labels, range(2, 4)):
        second.step(batch)

    expected, found = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_recomputed_activations_change_no_weight(data, labels, monkeypatch):
    """They are computed again at all: in each of the model's blocks, once a step."""
    computed = []
    checkpoint = recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *args, **kw: computed.append(1) or checkpoint(*args, **kw))
    plain = training_of(initial_model(tiny_config(labels), 0), labels)
    again = training_of(initial_model(tiny_config(labels), 0), labels, replace(SETTINGS, recompute_activations=True))
    for batch in batches(data, labels, range(2)):
        plain.step(batch)
        again.step(batch)
    assert len(computed) == 2 * len(again.model.repeated_blocks()) > 0
    expected, found = plain.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_checkpoint_is_a_hugging_face_folder(data, labels, tmp_path):
    training = training_of(initial_model(tiny_config(labels), 0), labels)
    training.save(tmp_path)
    assert Checkpoint(tmp_path).config_dict["categories"] == labels.to_list()
    again = ImageProcessor.from_preprocessor_config(Checkpoint(tmp_path).preprocessor_config, "reference")
    assert replace(again, size_source="default") == PROCESSOR
    from transformers import Mask2FormerForUniversalSegmentation

    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = theirs(pixels), training.model.eval()(pixels)
    assert torch.allclose(found.class_queries_logits, expected.class_queries_logits, atol=1e-4)


def test_it_learns_and_validation_says_so(data, labels):
    """Two images by heart in 80 steps: the loss falls to a fraction, and PQ, computed through inference, is high."""
    settings = replace(SETTINGS, iterations=80, learning_rate=2e-3, schedule="poly", flip=False)
    training = training_of(initial_model(tiny_config(labels), 0), labels, settings)
    jitter = LargeScaleJitter((64, 80), 1.0, 1.0, False)
    samples = TrainingSamples(data, labels.class_id_of_category, jitter, 0)
    for batch in load_batches(samples, WorkerShare(2, 0, 1), range(80), 0):
        training.step(batch)
        if training.iteration in (10, 80):
            training.add_log_row()
    first, last = training.log
    assert last["loss"] < 0.5 * first["loss"]
    processor = replace(PROCESSOR, size=ImageSize(edges=(64, 80)))
    figures = validate(training.model, data, labels, processor, range(2), lambda value: [value])
    assert figures["PQ"] > 0.8
    assert training.model.training
    untrained = initial_model(tiny_config(labels), 0)
    assert validate(untrained, data, labels, processor, range(2), lambda value: [value])["PQ"] < 0.2


def test_a_gradient_that_is_not_finite_ends_it(labels):
    model = initial_model(tiny_config(labels), 0)
    training = training_of(model, labels)
    with torch.no_grad():
        model.class_predictor.weight[0, 0] = float("inf")
    batch = Batch(torch.zeros((1, 64, 64, 3), dtype=torch.uint8), [torch.ones(1, 64, 64) > 0], [torch.tensor([0])])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RunError, match="step 1 is not finite"):
        training.step(batch)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_log_as_lines_text_and_plot():
    rows = [
        {"iteration": 20, "loss": 90.5, "loss_mask": 1.25, "iterations_per_second": 4.1, "learning_rate": 1e-4},
        {"iteration": 20, "PQ": 0.5, "PQ_things": None, "PQ_stuff": 0.75},
    ]
    assert from_lines(to_lines(rows)) == rows
    assert as_text(rows[0], 2000) == "20/2,000  loss 90.500 (mask 1.250)  lr 1.0e-04  4.10 it/s"
    assert as_text(rows[1], 2000) == (
        "20/2,000  PQ 50.00  PQ things none (the ground truth has no segment for it)  PQ stuff 75.00"
    )
    assert plot(rows).startswith(b"\x89PNG") and plot(rows[:1]).startswith(b"\x89PNG")


def test_validating_and_saving_are_no_part_of_a_step(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("pipeline.train.training.time.monotonic", lambda: now[0])
    meter = LossMeter(started=now[0])
    for _ in range(2):
        now[0] += 2.0
        meter.add(torch.tensor(1.0), {})
        with meter.pause():
            now[0] += 50.0
    assert meter.row()["iterations_per_second"] == 0.5
    now[0] += 4.0
    meter.add(torch.tensor(1.0), {})
    assert meter.row()["iterations_per_second"] == 0.25
