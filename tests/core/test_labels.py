import json
from pathlib import Path

import pytest

from m2f_core.config import ConfigError
from m2f_core.labels import COCO_STUFF_IDS, COCO_THING_IDS, Category, LabelMap

COCO_FILE = Path(__file__).parents[2].parent / "shared" / "data" / "panoptic_coco_categories.json"


@pytest.fixture
def coco_in_class_order() -> list[dict]:
    if not COCO_FILE.is_file():
        pytest.skip(f"no COCO categories at {COCO_FILE}")
    categories = json.loads(COCO_FILE.read_text(encoding="utf-8"))
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


def test_coco_ids_are_as_many_as_its_classes() -> None:
    assert (len(COCO_THING_IDS), len(COCO_STUFF_IDS)) == (80, 53)
    assert list(COCO_THING_IDS + COCO_STUFF_IDS) == sorted({*COCO_THING_IDS, *COCO_STUFF_IDS})


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
