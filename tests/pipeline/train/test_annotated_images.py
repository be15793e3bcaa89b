"""Label PNGs and maps of instances as training data: which image belongs to which PNG, and what a pixel says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m2f_core.checkpoints.checkpoint import save_checkpoint
from m2f_core.config.labels import Category, LabelMap
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.training.augment import LargeScaleJitter
from pipeline.errors import RunError
from pipeline.train.annotated_images import labels_of, training_data, validation_data
from pipeline.train.data import TrainingSamples
from pipeline.train.settings import FinetuneSettings
from tests.support.seeded_model import seeded_model

NAMES = {"0": "road", "1": "sky", "2": "tree"}
BANDS = np.repeat(np.array([0, 1, 2, 255], np.uint8), 4)[:, None].repeat(24, 1)  # 16 x 24


def write_maps(root: Path, maps: dict[str, np.ndarray], mode: str | None = None) -> FinetuneSettings:
    """A JPEG for each of `maps` in images/, the PNGs in labels/, names.json."""
    for name, map_ in maps.items():
        for folder in ("images", "labels"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((*map_.shape[:2], 3), np.uint8)).save(root / "images" / f"{name}.jpg")
        png = Image.fromarray(map_)
        if mode == "P":
            png = Image.frombytes("P", png.size, map_.tobytes())
            png.putpalette([value for value in range(256) for _ in range(3)][::-1])
        png.save(root / "labels" / f"{name}.png")
    (root / "names.json").write_text(json.dumps(NAMES))
    return FinetuneSettings(
        images=str(root / "images"),
        output=str(root / "out"),
        semantic_gt=str(root / "labels"),
        id2label=str(root / "names.json"),
        architecture="swin-tiny",
    )


@pytest.mark.parametrize(
    ("map_", "mode"),
    [
        (BANDS, None),
        (BANDS, "P"),
        (BANDS.astype(np.uint16), None),
        (np.stack([BANDS] * 3, axis=-1), None),
    ],
    ids=["gray", "palette", "16 bits", "equal channels"],
)
def test_every_form_of_a_label_png(tmp_path, map_, mode):
    data = training_data(write_maps(tmp_path, {"a": map_, "sub/b": map_}, mode))
    assert [image.name for image in data.images] == ["a.jpg", "sub/b.jpg"] and data.size(0) == (16, 24)
    labels = labels_of(data)
    assert [(c.class_id, c.category_id, c.name, c.isthing) for c in labels.categories] == [
        (class_id, class_id, name, False) for class_id, name in enumerate(NAMES.values())
    ]
    samples = TrainingSamples(data, labels.class_id_of_category, LargeScaleJitter((16, 24), 1.0, 1.0, False), 0)
    _, targets = samples[0]
    assert targets.class_labels.tolist() == [0, 1, 2]
    assert targets.mask_labels.sum((1, 2)).tolist() == [96, 96, 96], "a quarter each, and a quarter is ignored"
    assert targets.mask_labels[1, 4:8].all()


def test_labels_that_begin_at_1_and_another_ignored_value(tmp_path):
    settings = write_maps(tmp_path, {"a": np.where(BANDS == 255, 9, BANDS + 1).astype(np.uint8)})
    data = training_data(replace(settings, reduce_zero_label=True, ignore_label=9))
    classes_HW, class_ids, ignored = data.map(0, {})
    assert class_ids is None
    np.testing.assert_array_equal(classes_HW, np.where(BANDS == 255, ignored, BANDS.astype(int)))
    zero = write_maps(tmp_path / "zero", {"a": BANDS})
    classes_HW, _, ignored = training_data(replace(zero, reduce_zero_label=True)).map(0, {})
    assert (classes_HW[:4] == ignored).all() and (classes_HW[4:8] == 0).all()


def test_maps_of_instances(tmp_path):
    """Two trees in one image and a piece of sky: three objects."""
    objects = np.repeat(np.array([1, 1, 2, 0], np.uint8), 4)[:, None].repeat(24, 1)
    classes = np.repeat(np.array([1, 2, 2, 255], np.uint8), 4)[:, None].repeat(24, 1)
    settings = write_maps(tmp_path, {"a": np.stack([classes, objects, objects * 0], axis=-1)})
    data = training_data(replace(settings, semantic_gt=None, instance_maps=settings.semantic_gt))
    labels = labels_of(data)
    assert all(category.isthing for category in labels.categories)
    samples = TrainingSamples(data, labels.class_id_of_category, LargeScaleJitter((16, 24), 1.0, 1.0, False), 0)
    _, targets = samples[0]
    assert targets.class_labels.tolist() == [1, 2, 2] and targets.mask_labels.sum() == 3 * 96


def test_images_and_pngs_may_share_a_folder_and_strangers_are_counted(tmp_path, caplog):
    settings = write_maps(tmp_path, {"a": BANDS, "b": BANDS})
    (tmp_path / "labels" / "b.png").rename(tmp_path / "images" / "b.png")
    (tmp_path / "labels" / "a.png").rename(tmp_path / "images" / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "only.jpg")
    Image.new("L", (8, 8)).save(tmp_path / "images" / "alone.png")
    data = training_data(replace(settings, semantic_gt=settings.images))
    assert [image.name for image in data.images] == ["a.jpg", "b.jpg"]
    assert "1 PNGs have no image and are left out, for example alone" in caplog.text
    assert "1 images have no PNG and are left out, for example only" in caplog.text


def test_what_cannot_be_used_is_one_line(tmp_path):
    settings = write_maps(tmp_path, {"a": BANDS})

    def refused(match: str, **changes: object) -> None:
        with pytest.raises(RunError, match=match) as error:
            training_data(replace(settings, **changes)).check_first()
        assert "\n" not in str(error.value)

    (tmp_path / "images" / "a.png").write_bytes((tmp_path / "images" / "a.jpg").read_bytes())
    refused(r"a\.jpg and a\.png in .* are both the image of one PNG")
    (tmp_path / "images" / "a.png").unlink()
    refused("--architecture needs --id2label", id2label=None)
    refused("holds no .png files", semantic_gt=str(tmp_path / "images"))
    (tmp_path / "two.json").write_text('{"0": "a", "1": "b"}')
    refused("holds the value 2, but the 2 classes are numbered from 0", id2label=str(tmp_path / "two.json"))
    (tmp_path / "bad.json").write_text('{"road": 0}')
    refused("--id2label .*bad.json: id2label must have whole numbers as keys", id2label=str(tmp_path / "bad.json"))
    for text in ("[" * 100_000, '{"0": "a", "0": "b"}', '{"0": NaN}', "[]", ""):
        (tmp_path / "bad.json").write_text(text)
        refused("--id2label .*bad.json (is not JSON|must hold a JSON object)", id2label=str(tmp_path / "bad.json"))
    Image.fromarray(np.zeros((16, 24, 3), np.uint8) + np.arange(3, dtype=np.uint8)).save(tmp_path / "labels" / "a.png")
    refused("is in colour")
    Image.fromarray(BANDS[:8]).save(tmp_path / "labels" / "a.png")
    refused(r"is 16 x 24 .* its ground truth says \(8, 24\)")
    Image.fromarray(BANDS * 0 + 255).save(tmp_path / "labels" / "a.png")
    refused("hold no class, because pixels of 255 are ignored")
    (tmp_path / "labels" / "a.png").rename(tmp_path / "labels" / "other.png")
    refused(r"no PNG is named as an image in .*there are other\.png and a\.jpg")


def test_a_single_class_is_said(tmp_path, caplog):
    """Masks of 0 and 255, as many tools export them."""
    training_data(write_maps(tmp_path, {"a": np.where(BANDS < 2, 0, 255).astype(np.uint8)})).check_first()
    assert "hold one class only, 'road'; pixels of 255 are ignored, in 1 of them" in caplog.text


def test_classes_come_from_the_model_where_they_have_its_names(tmp_path):
    """Its category ids and kinds stay, so that its head is kept."""
    categories = tuple(Category(i, 10 * i, name, i == 2) for i, name in enumerate(NAMES.values()))
    config = Mask2FormerConfig.tiny(id2label=dict(enumerate(NAMES.values())))
    save_checkpoint(seeded_model(config, 0), tmp_path / "model", LabelMap(categories))
    settings = write_maps(tmp_path, {"a": BANDS})
    with_model = replace(settings, architecture=None, model=str(tmp_path / "model"))
    for id2label in (None, settings.id2label):
        assert labels_of(training_data(replace(with_model, id2label=id2label))).categories == categories
    (tmp_path / "other.json").write_text('{"id2label": {"0": "a", "1": "b", "2": "c"}}')
    others = labels_of(training_data(replace(with_model, id2label=str(tmp_path / "other.json"))))
    assert [(c.category_id, c.name, c.isthing) for c in others.categories] == [
        (0, "a", False),
        (1, "b", False),
        (2, "c", False),
    ]


def test_validation_maps_are_read_as_the_trainings(tmp_path):
    settings = write_maps(tmp_path, {"a": BANDS})
    data = validation_data(replace(settings, val_images=settings.images, val_gt=settings.semantic_gt))
    assert data is not None and data.kind == "semantic" and data.where.startswith("--val-gt")


def test_flags_of_maps_need_maps(tmp_path):
    settings = write_maps(tmp_path, {"a": BANDS})
    with pytest.raises(RunError, match="--id2label needs --semantic-gt or --instance-maps"):
        replace(settings, semantic_gt=None, panoptic_gt="p.json")
    with pytest.raises(RunError, match="exactly one of --panoptic-gt, --instances-gt, --semantic-gt, --instance-maps"):
        replace(settings, instance_maps="maps")
