"""A data set of synthetic scenes against those who will read it: pycocotools, our targets, our ground truth readers.

Legend: H W pixels; N segments.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from m2f_core.config.labels import LabelMap
from m2f_core.masks.panoptic_png import panoptic_ids, panoptic_png
from m2f_core.training.targets import instance_targets, panoptic_targets
from pipeline.coco.ground_truth import read_instances, read_panoptic
from pipeline.coco.ground_truth_png import read_panoptic_png
from pipeline.errors import RunError
from pipeline.scenes import write as module
from pipeline.scenes.draw import CATEGORIES, draw_scene
from pipeline.scenes.settings import MAX_SCENES, ScenesSettings
from pipeline.scenes.write import scene_annotations, write_scenes

NUMBER, FIRST, SEED, SIZE_HW = 12, 30, 5, (48, 72)
JSONS = ["instances.json", "panoptic.json"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> ScenesSettings:
    """Of a small data set that is there."""
    output = str(tmp_path_factory.mktemp("scenes") / "train")
    settings = ScenesSettings(output, NUMBER, SEED, FIRST, *SIZE_HW)
    write_scenes(settings)
    return settings


@pytest.fixture(scope="module")
def root(settings) -> Path:
    return Path(settings.output)


def load(file: Path) -> dict:
    return json.loads(file.read_text())


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.format == "PNG" and image.mode == "RGB"
        return np.asarray(image)


# What is written


def test_images_are_the_scenes_and_nothing_else_is_written(root):
    names = [f"{index:06d}.png" for index in range(FIRST, FIRST + NUMBER)]
    assert set(files(root)) == {f"{folder}/{name}" for folder in ("images", "panoptic") for name in names} | set(JSONS)
    for index, name in zip(range(FIRST, FIRST + NUMBER), names, strict=True):
        scene = draw_scene(SEED, index, *SIZE_HW)
        np.testing.assert_array_equal(pixels(root / "images" / name), scene.pixels_HW3)
        np.testing.assert_array_equal(panoptic_ids(pixels(root / "panoptic" / name)), scene.ids_HW)


@given(hnp.arrays(np.int32, (3, 4), elements=st.integers(0, 2**24 - 1)))
def test_segment_ids_survive_the_png(ids_HW):
    np.testing.assert_array_equal(panoptic_ids(panoptic_png(ids_HW)), ids_HW)


@given(st.integers(0, 10**6), st.integers(32, 90), st.integers(32, 90))
def test_areas_and_boxes_are_those_of_pycocotools(index, height, width):
    scene = draw_scene(0, index, height, width)
    annotations = list(scene_annotations(scene))
    assert [(a["id"], a["category_id"]) for a in annotations] == list(scene.segments)
    for annotation in annotations:
        mask_HW = np.asfortranarray(scene.ids_HW == annotation["id"], np.uint8)
        expected = coco_mask.encode(mask_HW)
        assert annotation["segmentation"] == {"size": [height, width], "counts": expected["counts"].decode()}
        assert annotation["area"] == coco_mask.area(expected)
        assert annotation["bbox"] == coco_mask.toBbox(expected).tolist()
        assert annotation["iscrowd"] == 0


def test_panoptic_json_keeps_the_rules_of_panopticapi(root):
    content = load(root / "panoptic.json")
    assert content["categories"] == list(CATEGORIES) and content["licenses"] == []
    assert [image["id"] for image in content["images"]] == list(range(FIRST, FIRST + NUMBER))
    assert [entry["image_id"] for entry in content["annotations"]] == list(range(FIRST, FIRST + NUMBER))
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        ids_HW = panoptic_ids(pixels(root / "panoptic" / entry["file_name"]))
        assert (
            (image["height"], image["width"]) == ids_HW.shape == pixels(root / "images" / image["file_name"]).shape[:2]
        )
        areas = dict(zip(*np.unique(ids_HW, return_counts=True), strict=True))
        assert {segment["id"]: segment["area"] for segment in entry["segments_info"]} == areas
        for segment in entry["segments_info"]:
            assert set(segment) == {"id", "category_id", "area", "bbox", "iscrowd"}


def test_panoptic_annotation_gives_the_scenes_masks_as_training_targets(root):
    content = load(root / "panoptic.json")
    label_map = LabelMap.from_coco_categories(content["categories"])
    class_ids = {category.category_id: category.class_id for category in label_map.categories}
    for entry in content["annotations"]:
        scene = draw_scene(SEED, entry["image_id"], *SIZE_HW)
        targets = panoptic_targets(pixels(root / "panoptic" / entry["file_name"]), entry["segments_info"], class_ids)
        assert targets.class_labels.tolist() == [class_ids[category_id] for _, category_id in scene.segments]
        for mask_HW, (segment_id, _) in zip(targets.mask_labels.numpy(), scene.segments, strict=True):
            np.testing.assert_array_equal(mask_HW, scene.ids_HW == segment_id)


def test_pycocotools_finds_the_things_in_instances_json(root):
    coco = COCO(root / "instances.json")
    assert [category["isthing"] for category in coco.loadCats(coco.getCatIds())] == [1] * 6
    assert min(coco.getAnnIds()) == 1
    class_ids = {category_id: category_id for category_id in coco.getCatIds()}
    for index in coco.getImgIds():
        scene = draw_scene(SEED, index, *SIZE_HW)
        annotations = coco.loadAnns(coco.getAnnIds(index))
        things = [(segment_id, category_id) for segment_id, category_id in scene.segments if category_id in class_ids]
        assert [annotation["category_id"] for annotation in annotations] == [category_id for _, category_id in things]
        targets = instance_targets(annotations, *SIZE_HW, class_ids)
        for annotation, ours_HW, (segment_id, _) in zip(annotations, targets.mask_labels, things, strict=True):
            np.testing.assert_array_equal(coco.annToMask(annotation), scene.ids_HW == segment_id)
            np.testing.assert_array_equal(ours_HW.numpy(), scene.ids_HW == segment_id)


def test_both_kinds_of_evaluation_and_training_can_read_it(root):
    panoptic = read_panoptic(str(root / "panoptic.json"), None)
    instances = read_instances(str(root / "instances.json"))
    assert len(panoptic.images) == len(instances.images) == NUMBER
    for image in panoptic.images:
        assert set(read_panoptic_png(image).values.tolist()) == {segment["id"] for segment in image.annotations}


# How it is written


def test_the_same_settings_give_the_same_bytes(settings, tmp_path):
    write_scenes(replace(settings, output=str(tmp_path / "again")))
    assert files(tmp_path / "again") == files(Path(settings.output))


def test_a_part_holds_the_same_scenes_as_the_whole(settings, root, tmp_path):
    part = replace(settings, output=f"{tmp_path}/part/", number=3, first_index=FIRST + 4)
    write_scenes(part)
    whole, written = files(root), files(tmp_path / "part")
    assert {name for name in written if name.endswith(".png")} < set(whole)
    assert all(data == whole[name] for name, data in written.items() if name.endswith(".png"))
    entries = load(tmp_path / "part" / "panoptic.json")["annotations"]
    assert entries == load(root / "panoptic.json")["annotations"][4:7]


@pytest.mark.parametrize(
    "failing", [f"images/{FIRST:06d}.png", f"panoptic/{FIRST + NUMBER - 1:06d}.png", "instances.json", "panoptic.json"]
)
def test_unless_all_is_written_there_is_no_panoptic_json_and_the_command_can_be_repeated(
    settings, root, tmp_path, monkeypatch, failing
):
    put_object = module.put_object

    def put_but_one(filesystem, path, data):
        if path.endswith(f"broken/{failing}"):
            raise OSError("the disk is full")
        put_object(filesystem, path, data)

    again = replace(settings, output=str(tmp_path / "broken"))
    monkeypatch.setattr(module, "put_object", put_but_one)
    with pytest.raises(RunError, match="broken cannot be written: the disk is full"):
        write_scenes(again)
    assert not (tmp_path / "broken" / "panoptic.json").exists()
    monkeypatch.setattr(module, "put_object", put_object)
    write_scenes(again)
    assert files(tmp_path / "broken") == files(root)


def test_pictures_come_first_and_panoptic_json_last(settings, tmp_path, monkeypatch):
    paths = []
    monkeypatch.setattr(module, "put_object", lambda filesystem, path, data: paths.append(Path(path).name))
    write_scenes(replace(settings, output=str(tmp_path)))
    assert len(paths) == 2 * NUMBER + 2 and paths[-2:] == JSONS


def test_a_data_set_is_not_written_over_another(settings, root):
    before = files(root)
    with pytest.raises(RunError, match=r"already holds a panoptic\.json"):
        write_scenes(replace(settings, seed=SEED + 1))
    assert files(root) == before


# What is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output": " "}, "--output is empty"),
        ({"number": 0}, "--number is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"first_index": -1}, "--first-index is -1"),
        ({"number": 2, "first_index": MAX_SCENES - 1}, "go beyond scene 999999"),
        ({"height": 31}, "--height is 31"),
        ({"width": 10_000}, "--width is 10000"),
    ],
)
def test_settings_that_make_no_sense_are_named(change, said):
    with pytest.raises(RunError, match=said):
        ScenesSettings(**{"output": "scenes", **change})


def test_a_size_without_scenes_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(RunError, match=r"--height and --width: .* got 32 x 200"):
        write_scenes(ScenesSettings(str(tmp_path / "scenes"), height=32, width=200))
    assert not (tmp_path / "scenes").exists()
