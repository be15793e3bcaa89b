"""Label maps: the known datasets, how a checkpoint's order of classes is recognised, categories of COCO files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.config.fields import ConfigError
from m2f_core.config.labels import DATASET_FILES, SHARE_OF_NAMES, TASKS, Category, LabelMap
from tests.support.places import ROOT

# (classes, things) of every order that is known.
SIZES = {
    "coco-panoptic": (133, 80),
    "coco-instance": (80, 80),
    "ade20k-panoptic": (150, 100),
    "ade20k-instance": (100, 100),
    "cityscapes-panoptic": (19, 8),
    "cityscapes-instance": (8, 8),
    "mapillary-panoptic": (65, 37),
    "mapillary-instance": (37, 37),
}

# (class_id, category_id, name, isthing), read off the datasets' own publications.
LANDMARKS = {
    "coco-panoptic": [(0, 1, "person", True), (79, 90, "toothbrush", True), (80, 92, "banner", False)],
    "coco-instance": [(11, 13, "stop sign", True), (79, 90, "toothbrush", True)],
    "ade20k-panoptic": [(0, 0, "wall", False), (7, 7, "bed", True), (12, 12, "person", True), (149, 149, "flag", True)],
    "ade20k-instance": [(0, 7, "bed", True), (1, 8, "windowpane", True), (99, 149, "flag", True)],
    "cityscapes-panoptic": [(0, 7, "road", False), (2, 11, "building", False), (11, 24, "person", True)],
    "cityscapes-instance": [(0, 24, "person", True), (5, 31, "train", True), (7, 33, "bicycle", True)],
    "mapillary-panoptic": [(0, 1, "Bird", True), (2, 3, "Curb", False), (64, 65, "Ego Vehicle", False)],
    "mapillary-instance": [(0, 1, "Bird", True), (2, 9, "Crosswalk - Plain", True), (36, 63, "Wheeled Slow", True)],
}

# Names by class_id where published files spell them in another way than the data files do.
OTHER_SPELLINGS = {
    "coco-instance": [  # Hugging Face's label file of mmdetection's names, in the published instance models
        {3: "motorbike", 4: "aeroplane", 57: "sofa", 58: "pottedplant", 60: "diningtable", 62: "tvmonitor"}
    ],
    "coco-panoptic": [{86: "door", 93: "mirror", 113: "water", 116: "tree", 119: "sky", 129: "building", 131: "wall"}],
    "ade20k-panoptic": [
        {1: "building, edifice", 7: "bed ", 8: "windowpane, window ", 37: "bathtub, bathing tub, bath, tub"},
        {6: "road, route", 8: "window ", 37: "tub", 38: "rail", 87: "street lamp", 89: "tv", 90: "plane"},
        {92: "clothes", 109: "pool", 113: "falls", 138: "trash can"},
    ],
    "cityscapes-panoptic": [{6: "Traffic Light", 7: "traffic_sign", 17: "Motorcycle"}],
    "mapillary-panoptic": [{1: "ground-animal", 8: "Crosswalk Plain", 49: "Traffic Sign Back"}],
}


@pytest.fixture
def coco_in_class_order(shared_data: Path) -> list[dict]:
    categories = json.loads((shared_data / "panoptic_coco_categories.json").read_text(encoding="utf-8"))
    return sorted(categories, key=lambda category: (not category["isthing"], category["id"]))


def id2label(names: list[str]) -> dict[str, str]:
    return {str(class_id): name for class_id, name in enumerate(names)}


def test_coco_panoptic(coco_in_class_order: list[dict]) -> None:
    label_map = LabelMap.from_config_dict({"id2label": id2label([c["name"] for c in coco_in_class_order])})
    assert label_map.known
    assert label_map.categories == tuple(
        Category(i, c["id"], c["name"], bool(c["isthing"])) for i, c in enumerate(coco_in_class_order)
    )
    assert label_map.stuff_class_ids == frozenset(range(80, 133))


def test_coco_instances(coco_in_class_order: list[dict]) -> None:
    things = [c for c in coco_in_class_order if c["isthing"]]
    label_map = LabelMap.from_config_dict({"id2label": id2label([c["name"] for c in things])})
    assert label_map.known
    assert [c.category_id for c in label_map.categories] == [c["id"] for c in things]
    assert label_map.stuff_class_ids == frozenset()


# The data files


@pytest.mark.parametrize("name", SIZES)
def test_datasets(name: str) -> None:
    num_classes, num_things = SIZES[name]
    label_map = LabelMap.of_dataset(name)
    assert label_map.known
    assert len(label_map.categories) == num_classes
    assert [c.class_id for c in label_map.categories] == list(range(num_classes))
    assert (
        len({c.category_id for c in label_map.categories}) == len({c.name for c in label_map.categories}) == num_classes
    )
    assert num_classes - len(label_map.stuff_class_ids) == num_things
    for landmark in LANDMARKS[name]:
        assert label_map.categories[landmark[0]] == Category(*landmark)
    assert label_map.class_id_of_category == {c.category_id: c.class_id for c in label_map.categories}


def test_these_are_all_datasets_there_are() -> None:
    assert {f"{dataset}-{task}" for dataset in DATASET_FILES for task in TASKS if task != "semantic"} == set(SIZES)
    for dataset in DATASET_FILES:
        assert LabelMap.of_dataset(f"{dataset}-semantic") == LabelMap.of_dataset(f"{dataset}-panoptic")
        things = [c for c in LabelMap.of_dataset(f"{dataset}-panoptic").categories if c.isthing]
        instances = LabelMap.of_dataset(f"{dataset}-instance").categories
        assert [(c.category_id, c.name) for c in instances] == [(c.category_id, c.name) for c in things]


def test_the_data_files_are_in_the_package() -> None:
    """A line of pyproject.toml that misses them shows only in an installed wheel."""
    root = ROOT
    declared = (root / "pyproject.toml").read_text(encoding="utf-8")
    assert 'm2f_core = ["datasets/*"]' in declared and '"models/*/*", "page/template/*"]' in declared
    assert {f.name for f in (root / "m2f_core" / "datasets").glob("*.json")} == set(DATASET_FILES.values())


@pytest.mark.parametrize("dataset", DATASET_FILES)
def test_no_spelling_stands_for_two_categories(dataset: str) -> None:
    """Each spelling of a category, at its place, leaves the dataset recognised; at any other place it does not."""
    root = ROOT / "m2f_core" / "datasets"
    entries = json.loads((root / DATASET_FILES[dataset]).read_text(encoding="utf-8"))["categories"]
    names = [e["name"] for e in entries]
    assert LabelMap.from_config_dict({"id2label": id2label(names)}).known
    for place, entry in enumerate(entries):
        for spelling in [entry["name"], *entry.get("also", [])]:
            respelled = [spelling if i == place else name for i, name in enumerate(names)]
            assert LabelMap.from_config_dict({"id2label": id2label(respelled)}).known, spelling
            misplaced = [spelling if i == (place - 1) % len(names) else name for i, name in enumerate(names)]
            assert not LabelMap.from_config_dict({"id2label": id2label(misplaced)}).known, spelling


@pytest.mark.parametrize("name", ["coco", "coco-", "-panoptic", "coco-detection", "COCO-panoptic", "lvis-instance", ""])
def test_unknown_datasets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="coco, ade20k, cityscapes, mapillary"):
        LabelMap.of_dataset(name)


def test_number_of_labels() -> None:
    for name, (num_classes, _) in SIZES.items():
        label_map = LabelMap.of_num_labels(num_classes)
        assert label_map is not None and not label_map.known  # a count is no proof
        assert label_map.categories == LabelMap.of_dataset(name).categories
    sizes = {num_classes for num_classes, _ in SIZES.values()}
    assert all(LabelMap.of_num_labels(n) is None for n in range(1000) if n not in sizes)


# Recognising the order of a checkpoint


@pytest.mark.parametrize(
    ("name", "spellings"), [(name, s) for name, variants in OTHER_SPELLINGS.items() for s in variants], ids=str
)
def test_published_spellings(name: str, spellings: dict[int, str]) -> None:
    expected = LabelMap.of_dataset(name)
    names = [spellings.get(c.class_id, c.name) for c in expected.categories]
    label_map = LabelMap.from_config_dict({"id2label": id2label(names)})
    assert label_map.known
    assert [(c.category_id, c.isthing) for c in label_map.categories] == [
        (c.category_id, c.isthing) for c in expected.categories
    ]
    assert [c.name for c in label_map.categories] == names


@st.composite
def written_differently(draw: st.DrawFn, name: str) -> str:
    case = draw(st.sampled_from([str, str.upper, str.title]))
    dash = draw(st.sampled_from([" ", "-", "_", ""]))
    end = draw(st.sampled_from(["", " ", ", another synonym"]))
    return case(name.replace(" ", dash)) + end


@given(st.sampled_from(sorted(SIZES)), st.data())
def test_case_dashes_and_synonyms_do_not_matter(name: str, data: st.DataObject) -> None:
    expected = LabelMap.of_dataset(name)
    names = [c.name for c in expected.categories]
    for place in data.draw(st.sets(st.integers(0, len(names) - 1), max_size=10)):
        names[place] = data.draw(written_differently(names[place]))
    label_map = LabelMap.from_config_dict({"id2label": id2label(names)})
    assert label_map.known
    assert [c.category_id for c in label_map.categories] == [c.category_id for c in expected.categories]


@given(st.sampled_from(sorted(SIZES)), st.data())
def test_two_classes_swapped_are_another_order(name: str, data: st.DataObject) -> None:
    names = [c.name for c in LabelMap.of_dataset(name).categories]
    a, b = data.draw(st.lists(st.integers(0, len(names) - 1), min_size=2, max_size=2, unique=True))
    names[a], names[b] = names[b], names[a]
    assert not LabelMap.from_config_dict({"id2label": id2label(names)}).known


@given(st.sampled_from(sorted(SIZES)), st.data())
def test_a_few_renamed_classes_are_tolerated_and_more_are_not(name: str, data: st.DataObject) -> None:
    names = [c.name for c in LabelMap.of_dataset(name).categories]
    renamed = data.draw(st.sets(st.integers(0, len(names) - 1), max_size=20))
    for place in renamed:
        names[place] = f"something of ours {place}"
    label_map = LabelMap.from_config_dict({"id2label": id2label(names)})
    assert label_map.known == (len(names) - len(renamed) >= SHARE_OF_NAMES * len(names))


@pytest.mark.parametrize("name", SIZES)
def test_one_class_more_or_less_is_another_dataset(name: str) -> None:
    names = [c.name for c in LabelMap.of_dataset(name).categories]
    assert not LabelMap.from_config_dict({"id2label": id2label(names[:-1])}).known
    assert not LabelMap.from_config_dict({"id2label": id2label([*names, "one more"])}).known


@pytest.mark.parametrize("num_labels", [2, 80, 133])
def test_unknown_names_are_a_guess_and_say_so(num_labels: int) -> None:
    """The number of classes alone is not enough: 133 classes may be anything."""
    label_map = LabelMap.from_config_dict({"num_labels": num_labels})
    assert not label_map.known
    assert [c.category_id for c in label_map.categories] == list(range(num_labels))
    assert label_map.stuff_class_ids == frozenset()


def test_own_categories_come_first(coco_in_class_order: list[dict]) -> None:
    names = [c["name"] for c in coco_in_class_order]
    own = [{"id": 1000 + i, "name": name, "isthing": i % 2} for i, name in enumerate(names)]
    label_map = LabelMap.from_config_dict({"id2label": id2label(names), "categories": own})
    assert label_map.known
    assert label_map.categories[3] == Category(3, 1003, names[3], True)
    assert label_map.stuff_class_ids == frozenset(range(0, 133, 2))
    assert label_map.to_list() == own


GOOD = {"id": 7, "name": "cat", "isthing": 1}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([GOOD], "2 entries"),
        ({"0": GOOD}, "2 entries"),
        ([GOOD, GOOD], "different ids"),
        ([GOOD, "sky"], r"categories\[1\]"),
        ([GOOD, {**GOOD, "id": "8"}], r"categories\[1\].id"),
        ([GOOD, {**GOOD, "id": -1}], r"categories\[1\].id"),
        ([{"id": 1, "isthing": 1}, GOOD], r"categories\[0\].name"),
        ([GOOD, {"id": 8, "name": "sky"}], r"categories\[1\].isthing"),
        ([GOOD, {**GOOD, "id": 8, "isthing": 2}], r"categories\[1\].isthing"),
    ],
    ids=str,
)
def test_broken_categories_are_refused(entries: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelMap.from_config_dict({"num_labels": 2, "categories": entries})


# Categories of COCO annotation files


def test_coco_files_give_the_order_of_the_published_models(shared_data: Path, coco_in_class_order: list[dict]) -> None:
    by_name = sorted(coco_in_class_order, key=lambda category: category["name"])
    assert LabelMap.from_coco_categories(by_name) == LabelMap.of_dataset("coco-panoptic")
    instances = json.loads((shared_data / "coco_things" / "instances.json").read_text(encoding="utf-8"))
    assert LabelMap.from_coco_categories(instances["categories"]) == LabelMap.of_dataset("coco-instance")


def test_categories_are_numbered_things_first() -> None:
    sky, cat, dog = {"id": 2, "name": "sky", "isthing": 0}, {**GOOD, "id": 9}, {"id": 4, "name": "dog", "isthing": 1}
    label_map = LabelMap.from_coco_categories([sky, cat, dog])
    assert label_map.known
    assert [(c.class_id, c.name, c.isthing) for c in label_map.categories] == [
        (0, "dog", True),
        (1, "cat", True),
        (2, "sky", False),
    ]
    assert label_map.class_id_of_category == {4: 0, 9: 1, 2: 2}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "at least one"),
        ({"categories": [GOOD]}, "at least one"),
        ([GOOD, {"id": 8, "name": "sky"}], r"categories\[1\].isthing"),
        ([{"id": 8, "name": "sky"}, "tree"], r"categories\[1\]"),
        ([GOOD, GOOD], "different ids"),
    ],
    ids=str,
)
def test_broken_coco_categories_are_refused(entries: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelMap.from_coco_categories(entries)
