"""The dataset category of each class of a model.

A model numbers its classes 0, 1, 2, ... (`class_id`); a dataset has its own ids (`category_id`), with gaps. Mixing the
two is a classic bug, so the translation is an object that is made once: from the checkpoint's config.json, from the
name of a known dataset (`m2f_core/datasets`, described in its README), or from the categories of a COCO file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files
from typing import Any, Literal, get_args

from m2f_core.config.class_names import read_id2label
from m2f_core.config.fields import ConfigError, excerpt

# Names for users -> files. Panoptic and semantic models have all classes of a dataset, instance models its things.
DATASET_FILES = {
    "coco": "coco.json",
    "ade20k": "ade20k.json",
    "cityscapes": "cityscapes.json",
    "mapillary": "mapillary_vistas.json",
}
Task = Literal["panoptic", "instance", "semantic"]
TASKS: tuple[Task, ...] = get_args(Task)

MAX_CATEGORY_ID = 2**31 - 1  # the tables hold category ids in 32 bits

# Share of a checkpoint's names that must match a dataset, each at its place; a fine-tuned model may rename a few.
SHARE_OF_NAMES = 0.95


@dataclass(frozen=True)
class Category:
    """One class: `class_id` is the model's id, `category_id` the dataset's."""

    class_id: int
    category_id: int
    name: str
    isthing: bool


@dataclass(frozen=True)
class LabelMap:
    """The categories in class order. If `known` is false, ids and `isthing` are guessed and the caller should warn."""

    categories: tuple[Category, ...]
    known: bool = True

    @property
    def class_ids(self) -> frozenset[int]:
        return frozenset(category.class_id for category in self.categories)

    @property
    def stuff_class_ids(self) -> frozenset[int]:
        """Classes without instances (sky, road): their segments are merged into one."""
        return frozenset(category.class_id for category in self.categories if not category.isthing)

    @property
    def class_id_of_category(self) -> dict[int, int]:
        """category_id -> class_id, for annotations."""
        return {category.category_id: category.class_id for category in self.categories}

    def with_stuff(self, class_ids: Collection[int]) -> LabelMap:
        """The same categories, but exactly `class_ids` are stuff."""
        categories = tuple(replace(c, isthing=c.class_id not in class_ids) for c in self.categories)
        return replace(self, categories=categories)

    def to_list(self) -> list[dict[str, Any]]:
        """The `categories` entry of config.json, in COCO's form."""
        return [{"id": c.category_id, "name": c.name, "isthing": int(c.isthing)} for c in self.categories]

    @classmethod
    def from_config_dict(cls, config_json: Mapping[str, Any]) -> LabelMap:
        """Use the first of: the file's own `categories`, a dataset recognised by its class names, or a guess.

        The guess: category ids equal class ids, and all categories are things. Names always come from the file.
        """
        names = [name for _, name in sorted(read_id2label(config_json).items())]
        if config_json.get("categories") is not None:
            return cls(tuple(_read_categories(config_json["categories"], len(names))))
        for label_map, name_of_spelling in _known_orders():
            if _is_order_of(label_map, name_of_spelling, names):
                pairs = zip(label_map.categories, names, strict=True)
                return cls(tuple(replace(category, name=name) for category, name in pairs))
        return cls(tuple(Category(i, i, name, True) for i, name in enumerate(names)), known=False)

    @classmethod
    def of_dataset(cls, name: str) -> LabelMap:
        """The classes of the published models of `dataset-task`, for example coco-panoptic or ade20k-instance."""
        dataset, _, task = name.rpartition("-")
        if dataset not in DATASET_FILES or task not in TASKS:
            raise ValueError(
                f"the classes of dataset {name!r} are not known; use one of {', '.join(DATASET_FILES)}, "
                f"a dash and one of {', '.join(TASKS)}"
            )
        categories, _ = _read_dataset(dataset)
        return _things_of(categories) if task == "instance" else cls(categories)

    def has_classes_of(self, name: str) -> bool:
        """Whether these are the classes of `dataset-task`, as in `of_dataset`, in any order."""
        expected = self.of_dataset(name)
        _, name_of_spelling = _read_dataset(name.rpartition("-")[0])
        here, there = (sorted(_name_in(name_of_spelling, c.name) for c in of.categories) for of in (self, expected))
        return here == there

    @classmethod
    def of_num_labels(cls, num_labels: int) -> LabelMap | None:
        """The only dataset and task with this number of classes, or None.

        This is for detectron2's checkpoints, which hold no names. `known` is false, because the number proves little.
        """
        for label_map, _ in _known_orders():
            if len(label_map.categories) == num_labels:
                return replace(label_map, known=False)
        return None

    @classmethod
    def from_coco_categories(cls, entries: object) -> LabelMap:
        """Number the `categories` of a COCO annotation file: things by ascending id, then stuff by ascending id.

        This is detectron2's order for COCO, and the only possible order without stuff; categories without `isthing` (in
        an instance file) are things. ADE20K's and Mapillary's published models mix things and stuff: `of_dataset` knows
        their order, this method does not. Raises ConfigError.
        """
        if not isinstance(entries, list) or not entries:
            raise ConfigError("categories must be a list of at least one category, each with id, name and isthing")
        if not any(isinstance(entry, Mapping) and "isthing" in entry for entry in entries):
            entries = [{**entry, "isthing": 1} if isinstance(entry, Mapping) else entry for entry in entries]
        categories = _read_categories(entries, len(entries))
        return cls(_numbered(sorted(categories, key=lambda category: (not category.isthing, category.category_id))))


def _known_orders() -> Iterator[tuple[LabelMap, Mapping[str, str]]]:
    """Every known order of classes, each with a different length, and the dataset's map of spellings to names."""
    for dataset in DATASET_FILES:
        categories, name_of_spelling = _read_dataset(dataset)
        yield LabelMap(categories), name_of_spelling
        yield _things_of(categories), name_of_spelling


@cache
def _read_dataset(dataset: str) -> tuple[tuple[Category, ...], Mapping[str, str]]:
    """The categories in class order, and a map from each spelling to its name."""
    path = files("m2f_core") / "datasets" / DATASET_FILES[dataset]
    entries = json.loads(path.read_text(encoding="utf-8"))["categories"]
    spellings = {spelling(name): e["name"] for e in entries for name in [e["name"], *e.get("also", [])]}
    return tuple(_read_categories(entries, len(entries))), spellings


def _things_of(categories: Sequence[Category]) -> LabelMap:
    return LabelMap(_numbered([category for category in categories if category.isthing]))


def _numbered(categories: Sequence[Category]) -> tuple[Category, ...]:
    return tuple(replace(category, class_id=class_id) for class_id, category in enumerate(categories))


def spelling(name: str) -> str:
    """The key of a name's spellings: "Building, edifice", "building" and COCO's "building-other-merged" share one."""
    first_synonym = name.split(",")[0].strip().lower()
    without_suffix = re.sub(r"(-(other|merged|stuff))+$", "", first_synonym)
    return "".join(filter(str.isalnum, without_suffix))


def name_keys() -> Iterator[Callable[[str], str]]:
    """Key functions for comparing names of two lists: names with equal keys mean the same class.

    The first function compares spellings. Then each known dataset has a function that uses its synonyms; these are
    separate, because the window of one dataset may be the windowpane of another.
    """
    yield spelling
    for dataset in DATASET_FILES:
        yield partial(_name_in, _read_dataset(dataset)[1])


def _name_in(name_of_spelling: Mapping[str, str], name: str) -> str:
    return name_of_spelling.get(spelling(name), spelling(name))


def _is_order_of(label_map: LabelMap, name_of_spelling: Mapping[str, str], names: Sequence[str]) -> bool:
    """Whether `names` are these categories in this order, except for a few names that the dataset does not have.

    A single name that belongs to another category of the dataset proves that the order is different.
    """
    if len(names) != len(label_map.categories):
        return False
    pairs = [(name_of_spelling.get(spelling(n)), c.name) for n, c in zip(names, label_map.categories, strict=True)]
    num_right = sum(meant == expected for meant, expected in pairs)
    return num_right >= SHARE_OF_NAMES * len(names) and all(meant in (None, expected) for meant, expected in pairs)


def _read_categories(entries: object, num_labels: int) -> list[Category]:
    if not isinstance(entries, list) or len(entries) != num_labels:
        raise ConfigError(f"categories must be a list of {num_labels} entries, one for each class of id2label")
    categories = []
    for class_id, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise ConfigError(
                f"categories[{class_id}] must be an object with id, name and isthing, not {excerpt(entry)}"
            )
        category_id, name, isthing = entry.get("id"), entry.get("name"), entry.get("isthing")
        if isinstance(category_id, bool) or not isinstance(category_id, int) or not 0 <= category_id <= MAX_CATEGORY_ID:
            raise ConfigError(
                f"categories[{class_id}].id must be a whole number from 0 to {MAX_CATEGORY_ID}, "
                f"not {excerpt(category_id)}"
            )
        if not isinstance(name, str):
            raise ConfigError(f"categories[{class_id}].name must be a string, not {excerpt(name)}")
        if isthing not in (0, 1):
            raise ConfigError(f"categories[{class_id}].isthing must be 0 or 1, not {excerpt(isthing)}")
        categories.append(Category(class_id, category_id, name, bool(isthing)))
    if len({category.category_id for category in categories}) != len(categories):
        raise ConfigError("categories must have different ids")
    return categories
