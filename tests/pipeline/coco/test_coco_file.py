"""Ground truth in COCO's formats: every wrong field is one line that names file, object and field, before anything
starts. Training and evaluation read through the same functions.
"""

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from m2f_core.masks import rle
from m2f_core.training.targets import annotation_mask
from pipeline.coco.ground_truth import GroundTruth, read_instances, read_panoptic
from pipeline.errors import RunError
from pipeline.train.annotated_images import AnnotatedImages
from tests.support.coco_folders import write_coco_folder

READERS: dict[str, Callable[..., GroundTruth]] = {
    "instances.json": read_instances,
    "panoptic.json": lambda place: read_panoptic(place, None),
}
NO_NUMBER = (None, "x", [], {}, float("nan"))
# No value that is right where a value of the type is right.
WRONG: dict[type, tuple[Any, ...]] = {
    int: (*NO_NUMBER, -1, 1.5, True),
    float: (*NO_NUMBER, float("inf")),
    str: (None, 5, "", [], {}),
    list: (None, 5, "x", {}, [None]),
    dict: (None, 5, "x", []),
}
# Whole numbers where others are right too
OTHERS: dict[str, tuple[Any, ...]] = {
    "area": (*NO_NUMBER, -1, float("inf")),
    "bbox": (*NO_NUMBER, float("inf")),
    "isthing": (*NO_NUMBER, -1, 2, 1.5),
    "iscrowd": (*NO_NUMBER, -1, 2, 1.5),
}
UNUSED = {"info", "licenses", "supercategory"}


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small data set: RLE, polygons and uncompressed counts, a category of each kind."""
    folder = write_coco_folder(tmp_path_factory.mktemp("coco") / "set", [(40, 48), (48, 40)])
    found = {name: json.loads((folder.root / name).read_text()) for name in READERS}
    first, second, *_ = found["instances.json"]["annotations"]
    first["segmentation"] = [[3.0, 4.0, 20.0, 4.0, 20.0, 15.5, 3.0, 15.5]]
    counts = rle.decode_counts(second["segmentation"]["counts"].encode())
    second["segmentation"] = {"size": second["segmentation"]["size"], "counts": counts.tolist()}
    return found


def places_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value, of lists only the first two entries."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, entry in entries:
        if key not in UNUSED:
            yield from places_of(entry, (*path, key))


def changed(content: Any, path: tuple, value: Any, remove: bool = False) -> Any:
    content = copy.deepcopy(content)
    *front, last = path
    owner = content
    for key in front:
        owner = owner[key]
    if remove:
        del owner[last]
    else:
        owner[last] = value
    return content


def outcome(reader: Callable[..., GroundTruth], file: Path, content: Any) -> GroundTruth | str:
    file.write_text(json.dumps(content))
    try:
        return reader(str(file))
    except RunError as error:
        assert "\n" not in str(error) and str(file) in str(error), error
        return str(error)


@pytest.mark.parametrize("name", READERS)
def test_every_field_that_is_wrong_is_a_line_or_changes_nothing(name, contents, tmp_path):
    file, content = tmp_path / name, contents[name]
    right = outcome(READERS[name], file, content)
    assert isinstance(right, GroundTruth) and len(right.images) == 2
    num_lines = 0
    for path in places_of(content):
        value = content
        for key in path:
            value = value[key]
        key = next((part for part in reversed(path) if isinstance(part, str)), "")
        for wrong in OTHERS.get(key, WRONG[type(value)]) if isinstance(value, int) else WRONG[type(value)]:
            if path[-1] == "segmentation" and wrong == []:  # left out, and counted: see tests of polygons without area
                continue
            found = outcome(READERS[name], file, changed(content, path, wrong))
            assert isinstance(found, str) or found == right, (path, wrong)
            num_lines += isinstance(found, str)
    assert num_lines > 150


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"height": 10**9}, "height"),
        ({"width": 65_536}, "width"),
        ({"height": 65_535, "width": 65_535}, r"images\[0\] has 65535 x 65535 pixels"),
        ({"height": 10**400}, "height"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_image_cannot_declare_a_size_that_no_image_has(name, change, says, contents, tmp_path):
    """Masks of its objects have a byte for each pixel."""
    content = copy.deepcopy(contents[name])
    content["images"][0].update(change)
    found = outcome(READERS[name], tmp_path / name, content)
    assert isinstance(found, str) and re.search(says, found), found


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("levels", [500, 100_000])
def test_a_deep_file_is_a_line(name, levels, contents, tmp_path):
    content = json.dumps(contents[name])
    deep = "[" * levels + "]" * levels
    (tmp_path / name).write_text(f'{content[:-1]}, "categories": {deep}}}')
    with pytest.raises(RunError) as error:
        READERS[name](str(tmp_path / name))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("counts", [[10**30], [2**32, 5], [40 * 48, 1], "oooooo3" * 9, "1" * 100_000])
def test_run_lengths_beyond_the_image_are_a_line(counts, contents, tmp_path):
    content = copy.deepcopy(contents["instances.json"])
    content["annotations"][1]["segmentation"]["counts"] = counts
    found = outcome(read_instances, tmp_path / "instances.json", content)
    assert isinstance(found, str) and "RLE" in found


# Without these, a file is complete.
OPTIONAL = {"iscrowd", "area", "bbox", "isthing"}


@pytest.mark.parametrize("name", READERS)
def test_every_field_that_is_missing_is_a_line_or_changes_nothing(name, contents, tmp_path):
    file, content = tmp_path / name, contents[name]
    for path in places_of(content):
        if isinstance(path[-1], str):
            found = outcome(READERS[name], file, changed(content, path, None, remove=True))
            assert isinstance(found, GroundTruth) == (
                path[-1] in OPTIONAL and (name, path[-1]) != ("panoptic.json", "isthing")
            ) or path[-2:] == ("segments_info", 0), (path, found)


def test_area_and_box_are_those_of_the_mask_where_a_file_has_none(contents, tmp_path):
    content = copy.deepcopy(contents["instances.json"])
    for annotation in content["annotations"]:
        del annotation["area"], annotation["bbox"]
    truth = outcome(read_instances, tmp_path / "i.json", content)
    assert isinstance(truth, GroundTruth)
    for image in truth.images:
        for annotation in image.annotations:
            mask_HW = annotation_mask(annotation["segmentation"], *image.size)
            counts = rle.encode_mask(mask_HW)
            assert annotation["area"] == mask_HW.sum() > 0
            assert tuple(annotation["bbox"]) == rle.counts_bbox_xywh(counts, *image.size)


def twice(list_name: str, key: str) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        content[list_name][1][key] = content[list_name][0][key]

    return change


def point(path: tuple, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        content.update(changed(content, path, value))

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("instances.json", twice("images", "id"), "images has id 1 2 times"),
        ("panoptic.json", twice("images", "id"), "images has id 1 2 times"),
        ("instances.json", twice("images", "file_name"), "images has file_name '001.png' 2 times"),
        ("panoptic.json", twice("images", "file_name"), "images has file_name '001.png' 2 times"),
        ("instances.json", twice("categories", "id"), "categories has id 17 2 times"),
        ("panoptic.json", twice("categories", "id"), "categories has id 3 2 times"),
        ("panoptic.json", twice("annotations", "image_id"), "annotations has image_id 1 2 times"),
        ("panoptic.json", point(("annotations", 0, "segments_info", 1, "id"), 1), "segments_info has id 1 2 times"),
        ("panoptic.json", point(("annotations", 0, "image_id"), 9), "names an image that is not in the file's images"),
        ("instances.json", point(("annotations", 0, "image_id"), 9), "annotation 1 is of image 9, which is not in"),
        ("instances.json", point(("annotations", 0, "category_id"), 9), "annotation 1 has category 9, which is not in"),
        ("panoptic.json", point(("annotations", 0, "segments_info", 0, "category_id"), 9), "segment 1 has category 9"),
        ("instances.json", point(("annotations", 0, "iscrowd"), 2), "annotations[0].iscrowd is 2"),
        ("instances.json", point(("annotations", 0, "bbox"), [1, 2, 3]), "annotations[0].bbox is [1, 2, 3]"),
        ("instances.json", point(("annotations", 0, "segmentation"), [1, 2, 3, 4, 5, 6]), "[[x0, y0, x1, y1, x2, y2"),
        ("instances.json", point(("annotations", 0, "segmentation"), [[1, 2, 3]]), "pairs of numbers"),
        ("instances.json", point(("annotations", 2, "segmentation", "counts"), "b'52203'"), "malformed RLE counts"),
        ("instances.json", point(("annotations", 2, "segmentation", "counts"), "52203"), "its RLE has"),
        ("instances.json", point(("annotations", 1, "segmentation", "counts"), [1, -2]), "at least 0"),
        ("instances.json", point(("annotations", 1, "segmentation", "size"), [48, 40]), "the size [48, 40]"),
        ("panoptic.json", point(("annotations",), []), "it has no annotations"),
    ],
)
def test_twice_nowhere_and_out_of_range(name, change, said, contents, tmp_path):
    content = copy.deepcopy(contents[name])
    change(content)
    found = outcome(READERS[name], tmp_path / name, content)
    assert isinstance(found, str) and said in found, found


def test_names_as_ids_of_images_are_those_of_cityscapes(contents, tmp_path):
    content = copy.deepcopy(contents["panoptic.json"])
    for image, entry in zip(content["images"], content["annotations"], strict=True):
        image["id"] = entry["image_id"] = f"frankfurt_{image['id']}"
    assert isinstance(outcome(READERS["panoptic.json"], tmp_path / "p.json", content), GroundTruth)


# --- no JSON of the format --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda text: "[" * 100_000, "recursion limit exceeded"),
        (lambda text: '{"a":' * 100_000, "recursion limit exceeded"),
        (lambda text: f'{{"x": {"[" * 100_000}{"]" * 100_000}, {text[1:]}', "recursion limit exceeded"),
        (lambda text: text.replace('"images"', f'"images": {"[" * 150}{"]" * 150}, "others"', 1), "images[0] is [["),
        (lambda text: text[:-20], "it is not JSON"),
        (lambda text: "", "it is not JSON"),
        (lambda text: "[]", "it must hold a JSON object, not a list"),
        (lambda text: "5", "it must hold a JSON object, not a int"),
        (lambda text: f'{text[:-1]}, "categories": []}}', "it has no categories"),
        (lambda text: f"{text[:-1]}, {text[1:]}", "twice in one object"),
        (lambda text: f'{text[:-1]}, "x": NaN}}', "NaN is no number"),
        (lambda text: f'{text[:-1]}, "x": {"9" * 5000}}}', "number out of range"),
        (
            lambda text: text.replace('"height": 40', '"height": 40000', 1).replace("48", "40001"),
            "x 40001 pixels",
        ),
        (lambda text: text.replace('"height": 40', f'"height": 1{"0" * 60}', 1), "less than or equal to"),
    ],
)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_json_of_the_format_is_a_line(name, broken, said, contents, tmp_path):
    file = tmp_path / name
    file.write_text(broken(json.dumps(contents[name])))
    with pytest.raises(RunError) as refused:
        READERS[name](str(file))
    assert said in str(refused.value) and str(file) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_mistake(encoding, contents, tmp_path):
    for name, reader in READERS.items():
        (tmp_path / name).write_text(json.dumps(contents[name]), encoding=encoding)
        assert len(reader(str(tmp_path / name)).images) == 2


# --- nothing to learn -------------------------------------------------------------------------------------------------


def all_crowds(content: Any) -> None:
    for annotation in content["annotations"]:
        for record in annotation.get("segments_info", [annotation]):
            record["iscrowd"] = 1


def no_annotation(content: Any) -> None:
    for annotation in content["annotations"]:
        if "segments_info" in annotation:
            annotation["segments_info"] = []
    if "segmentation" in content["annotations"][0]:
        content["annotations"] = []


def no_polygon(content: Any) -> None:
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("instances.json", all_crowds, "because all 4 annotations are crowds"),
        ("panoptic.json", all_crowds, "because all 6 annotations are crowds"),
        ("instances.json", no_annotation, "because there are no annotations"),
        ("panoptic.json", no_annotation, "because there are no annotations"),
        ("instances.json", no_polygon, "because there are no annotations"),
    ],
)
def test_a_training_without_an_object_is_refused(name, change, said, contents, tmp_path):
    folder = write_coco_folder(tmp_path / "set", [(40, 48), (48, 40)])
    content = copy.deepcopy(contents[name])
    change(content)
    (folder.root / name).write_text(json.dumps(content))
    kind = name.removesuffix(".json")
    data = AnnotatedImages.read(str(folder.images), str(folder.root / name), None, kind, f"--{kind}-gt")
    with pytest.raises(RunError, match=f"--{kind}-gt .* no object is left to learn from, {said}"):
        data.check_first()


def test_classes_without_an_object_are_said(contents, tmp_path, caplog):
    folder = write_coco_folder(tmp_path / "set", [(40, 48), (48, 40)])
    content = copy.deepcopy(contents["instances.json"])
    content["categories"] += [{"id": 200 + n, "name": f"class {n}"} for n in range(4)]
    (folder.root / "instances.json").write_text(json.dumps(content))
    data = AnnotatedImages.read(str(folder.images), str(folder.instances_gt), None, "instances", "--instances-gt")
    data.check_first()
    assert "4 of 6 classes have no object: class 0, class 1, class 2, ...; a model cannot learn them" in caplog.text
    assert data.most_objects() == 2


# --- kinds that people report -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("eval_rle_as_repr/instances.json", "cannot be used: malformed RLE counts"),
        ("annotations_of_unknown_images/instances.json", "annotations"),
        ("panoptic_duplicate_image_id/panoptic.json", "images has id 0 2 times"),
        ("eval_broken_fields/instances_category_name_null.json", "].name is None"),
        ("eval_broken_fields/instances_unknown_categories_999_and_ring.json", "category"),
        ("eval_broken_fields/panoptic_iscrowd_null.json", "].iscrowd is None"),
    ],
)
def test_public_cases_are_refused_by_name(shared_data, file, said):
    path = shared_data / "public_cases" / file
    reader = READERS["panoptic.json" if "panoptic" in path.name else "instances.json"]
    with pytest.raises(RunError) as error:
        reader(str(path))
    assert said in str(error.value) and "\n" not in str(error.value) and str(path) in str(error.value)


def test_brush_masks_that_are_all_crowds_are_refused_before_a_training(shared_data, tmp_path):
    path = shared_data / "public_cases" / "train_all_crowd" / "instances.json"
    data = AnnotatedImages.read(str(tmp_path), str(path), None, "instances", "--instances-gt")
    with pytest.raises(RunError, match="all 171 annotations are crowds"):
        data._check_objects()
