"""What a training starts from: which weights a checkpoint gives, and what flags replace."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from m2f_core.checkpoints.checkpoint import CONFIG_FILE, Checkpoint, save_checkpoint
from m2f_core.checkpoints.licenses import UNKNOWN, model_license
from m2f_core.config.labels import Category, LabelMap
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.families.family import TrainingParts
from m2f_core.families.registry import architectures
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.training.initial_weights import initial_model
from pipeline.errors import RunError
from pipeline.train.settings import FinetuneSettings
from pipeline.train.starting_model import start_warnings, starting_model
from pipeline.train.training import Training

LABELS = LabelMap.from_coco_categories([{"id": 7, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    config = Mask2FormerConfig.tiny(id2label={0: "cat", 1: "sky"})
    model = initial_model(replace(config, train_num_points=77, importance_sample_ratio=0.5), seed=3)
    save_checkpoint(model, folder, LABELS)
    return folder, model


def settings_from(folder):
    return FinetuneSettings(images="images", output="out", panoptic_gt="panoptic.json", model=str(folder))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, (77, 0.5)),
        ({"train_num_points": 99}, (99, 0.5)),
        ({"importance_sample_ratio": 0.0}, (77, 0.0)),
    ],
)
@pytest.mark.parametrize("kind", ["model", "architecture"])
def test_sampled_points_are_those_of_the_flags_else_of_the_start(checkpoint, kind, flags, expected):
    folder, saved = checkpoint
    start = {"model": str(folder)} if kind == "model" else {"architecture": str(folder / CONFIG_FILE)}
    settings = FinetuneSettings(images="images", output="out", panoptic_gt="panoptic.json", seed=3, **start, **flags)

    model, _ = starting_model(settings, LABELS)

    assert (model.config.train_num_points, model.config.importance_sample_ratio) == expected
    assert (model.criterion.num_points, model.criterion.importance_sample_ratio) == expected
    for name, weight in saved.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["model", "architecture"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("num_queries", "1000000000"),
        ("hidden_dim", "9" * 5000),
        ("hidden_dim", "[" * 940 + "]" * 940),
        ("hidden_dim", "[" * 100_000 + "]" * 100_000),
    ],
    ids=["large", "digits", "levels", "many levels"],
)
def test_a_hostile_config_is_one_line_before_anything_starts(checkpoint, tmp_path, kind, name, text):
    folder = shutil.copytree(checkpoint[0], tmp_path / "start")
    content = json.loads((folder / CONFIG_FILE).read_text())
    del content[name]
    (folder / CONFIG_FILE).write_text(f'{{"{name}": {text}, {json.dumps(content)[1:]}')
    start = {"model": str(folder)} if kind == "model" else {"architecture": str(folder / CONFIG_FILE)}
    with pytest.raises(RunError) as error:
        start_warnings(FinetuneSettings(images="images", output="out", panoptic_gt="panoptic.json", **start))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_the_class_head_is_kept_in_whatever_order_its_classes_were(checkpoint, tmp_path):
    _, saved = checkpoint
    sky, cat = Category(0, 9, "sky", False), Category(1, 7, "cat", True)
    save_checkpoint(saved, tmp_path, LabelMap((sky, cat)))

    model, has_new_head = starting_model(settings_from(tmp_path), LABELS)

    assert not has_new_head and model.config.id2label == {0: "cat", 1: "sky"}
    kept, head = saved.class_predictor, model.class_predictor
    for cat, sky, no_object, of_saved in ((*head.weight, kept.weight), (*head.bias, kept.bias)):
        torch.testing.assert_close(torch.stack([sky, cat, no_object]), of_saved, rtol=0, atol=0)


def test_names_of_the_data_set_s_own_files_keep_the_head_of_a_published_model(checkpoint, tmp_path):
    """ADE20K's: "windowpane" of the model is "window " there, "bathtub" is "tub"; and others come with synonyms."""
    files = {"windowpane": "window ", "bathtub": "tub", "streetlight": "street lamp", "road": "road, route"}
    published = LabelMap.of_dataset("ade20k-panoptic")
    assert files.keys() <= {category.name for category in published.categories}
    names = {category.class_id: category.name for category in published.categories}
    start = initial_model(Mask2FormerConfig.tiny(id2label=names), seed=3)
    save_checkpoint(start, tmp_path, published)
    entries = [{**entry, "name": files.get(entry["name"], entry["name"])} for entry in published.to_list()]

    labels = LabelMap.from_coco_categories(entries)
    model, has_new_head = starting_model(settings_from(tmp_path), labels)

    assert not has_new_head
    class_of_id = published.class_id_of_category
    order = [class_of_id[category.category_id] for category in labels.categories]
    assert order != sorted(order) and torch.equal(model.class_predictor.bias[:-1], start.class_predictor.bias[order])
    assert torch.equal(model.class_predictor.weight[:-1], start.class_predictor.weight[order])


def test_two_classes_of_one_name_keep_their_head(checkpoint, tmp_path):
    _, saved = checkpoint
    labels = LabelMap((Category(0, 7, "cat", True), Category(1, 8, "cat", True)))
    save_checkpoint(saved, tmp_path, labels)
    model, has_new_head = starting_model(settings_from(tmp_path), labels)
    assert not has_new_head and torch.equal(model.class_predictor.weight, saved.class_predictor.weight)


@pytest.mark.parametrize(
    "categories",
    [
        [{"id": 7, "name": "dog", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}],
        [{"id": 7, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 1}],
        [{"id": 7, "name": "cat", "isthing": 1}],
    ],
    ids=["name", "kind", "number"],
)
def test_other_classes_get_a_new_head(checkpoint, categories):
    folder, saved = checkpoint
    model, has_new_head = starting_model(settings_from(folder), LabelMap.from_coco_categories(categories))
    assert has_new_head and model.class_predictor.out_features == len(categories) + 1
    assert not torch.isin(model.class_predictor.weight, saved.class_predictor.weight).any()


def test_names_that_share_a_spelling_are_not_taken_for_each_other(checkpoint, tmp_path):
    _, saved = checkpoint
    of_model, of_data = (
        LabelMap((Category(0, 7, f"cat, {first}", True), Category(1, 8, f"cat, {second}", True)))
        for first, second in (("wild", "tame"), ("young", "old"))
    )
    save_checkpoint(saved, tmp_path, of_model)
    _, has_new_head = starting_model(settings_from(tmp_path), of_data)
    assert has_new_head


def test_wrong_categories_of_a_start_are_one_line(checkpoint, tmp_path):
    _, saved = checkpoint
    save_checkpoint(saved, tmp_path, LABELS)
    config = Checkpoint(tmp_path).config_dict
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, "categories": config["categories"][:1]}))
    with pytest.raises(RunError, match=r"--model .*: categories must be a list of 2 entries"):
        start_warnings(settings_from(tmp_path))


def test_labels_of_a_start_that_its_file_does_not_give_are_named(checkpoint, tmp_path):
    _, saved = checkpoint
    save_checkpoint(saved, tmp_path, LABELS)
    config = Checkpoint(tmp_path).config_dict
    assert start_warnings(settings_from(tmp_path)) == []
    (tmp_path / CONFIG_FILE).write_text(json.dumps({**config, "id2label": {"0": "dot", "7": "line"}}))
    [warning] = start_warnings(settings_from(tmp_path))
    assert warning.startswith(f"--model {tmp_path}: id2label in config.json has 2 entries")


@pytest.mark.parametrize("stated", ["CC BY-NC 4.0", None])
def test_what_is_trained_from_a_checkpoint_has_its_licence(checkpoint, tmp_path, stated):
    _, saved = checkpoint
    save_checkpoint(saved, tmp_path / "start", LABELS, license_name=stated)
    settings, processor = settings_from(tmp_path / "start"), ImageProcessor.from_preprocessor_config(None, "reference")
    model, _ = starting_model(settings, LABELS)
    Training(model, model, settings, LABELS, processor).save(tmp_path / "trained")
    assert model_license(Checkpoint(tmp_path / "trained")) == (stated or UNKNOWN)


def test_what_is_trained_from_nothing_says_no_licence(checkpoint, tmp_path):
    folder, saved = checkpoint
    settings = replace(settings_from(folder), model=None, architecture="swin-tiny")
    processor = ImageProcessor.from_preprocessor_config(None, "reference")
    Training(saved, saved, settings, LABELS, processor).save(tmp_path)
    assert "license" not in Checkpoint(tmp_path).config_dict


SAMPLING = [name for name, size in architectures().items() if hasattr(size(), "train_num_points")]


@pytest.mark.parametrize("name", SAMPLING)
def test_named_architectures_take_the_flags_too(name, monkeypatch):
    """The configuration that a model would be built of: building a Swin-L takes seconds and gigabytes."""
    points = {"train_num_points": 99, "importance_sample_ratio": 0.25}
    settings = FinetuneSettings(images="i", output="o", panoptic_gt="p", architecture=name, **points)
    built = []
    instead = TrainingParts(lambda config, seed: built.append(config), criterion=None, architectures={})
    monkeypatch.setattr("pipeline.train.starting_model.training_of", lambda config: instead)

    _, has_new_head = starting_model(settings, LABELS)

    [config] = built
    assert has_new_head
    assert config == replace(architectures()[name](id2label={0: "cat", 1: "sky"}), **points)
    assert (config.train_num_points, config.importance_sample_ratio) == (99, 0.25)
