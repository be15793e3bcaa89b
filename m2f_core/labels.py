"""Which dataset category each class of a model stands for.

A model counts its classes 0, 1, 2, ... (`class_id`); a dataset has ids of its own (`category_id`), with gaps. Mixing
the two is a classic bug, so the translation is an object, made once from the checkpoint's config.json.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from m2f_core.config import ConfigError, read_id2label

# COCO numbers its things 1 to 90 with gaps, and the 53 stuff categories of its panoptic task 92 to 200 with gaps.
COCO_THING_IDS = tuple(i for i in range(1, 91) if i not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
COCO_STUFF_IDS = (
    *(92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147, 148, 149, 151, 154),
    *(155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181, *range(184, 201)),
)

# Names by which COCO's order of classes is recognised; no other dataset has them at these places.
COCO_THING_LANDMARKS = {0: "person", 1: "bicycle", 10: "fire hydrant", 23: "giraffe", 79: "toothbrush"}
COCO_STUFF_LANDMARKS = {80: "banner", 81: "blanket", 100: "road"}


@dataclass(frozen=True)
class Category:
    """One class of the model: `class_id` is the model's, `category_id` the dataset's."""

    class_id: int
    category_id: int
    name: str
    isthing: bool


@dataclass(frozen=True)
class LabelMap:
    """The categories in class order. `known` is false where ids and `isthing` are a guess; the caller should warn."""

    categories: tuple[Category, ...]
    known: bool = True

    @property
    def stuff_class_ids(self) -> frozenset[int]:
        """Classes without instances (sky, road): their segments are merged into one."""
        return frozenset(category.class_id for category in self.categories if not category.isthing)

    def with_stuff(self, class_ids: Collection[int]) -> LabelMap:
        """The same categories, where exactly `class_ids` are stuff."""
        categories = tuple(replace(c, isthing=c.class_id not in class_ids) for c in self.categories)
        return replace(self, categories=categories)

    def to_list(self) -> list[dict[str, Any]]:
        """The `categories` entry of config.json, in COCO's words."""
        return [{"id": c.category_id, "name": c.name, "isthing": int(c.isthing)} for c in self.categories]

    @classmethod
    def from_config_dict(cls, config_json: Mapping[str, Any]) -> LabelMap:
        """In this order: the file's own `categories`, COCO recognised by its names, or a guess.

        The guess is that categories are numbered as classes and all of them are things.
        """
        names = [name for _, name in sorted(read_id2label(config_json).items())]
        if config_json.get("categories") is not None:
            return cls(tuple(_read_categories(config_json["categories"], len(names))))
        if len(names) == 133 and _has_names(names, COCO_THING_LANDMARKS | COCO_STUFF_LANDMARKS):
            ids = chain(COCO_THING_IDS, COCO_STUFF_IDS)
        elif len(names) == 80 and _has_names(names, COCO_THING_LANDMARKS):
            ids = chain(COCO_THING_IDS)
        else:
            return cls(tuple(Category(i, i, name, True) for i, name in enumerate(names)), known=False)
        return cls(tuple(Category(i, k, name, i < 80) for i, (k, name) in enumerate(zip(ids, names, strict=True))))


def _has_names(names: list[str], landmarks: dict[int, str]) -> bool:
    return all(names[class_id].strip().lower().startswith(name) for class_id, name in landmarks.items())


def _read_categories(entries: object, num_labels: int) -> list[Category]:
    if not isinstance(entries, list) or len(entries) != num_labels:
        raise ConfigError(f"categories must be a list of {num_labels} entries, one for each class of id2label")
    categories = []
    for class_id, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            raise ConfigError(f"categories[{class_id}] must be an object with id, name and isthing, not {entry!r}")
        category_id, name, isthing = entry.get("id"), entry.get("name"), entry.get("isthing")
        if isinstance(category_id, bool) or not isinstance(category_id, int) or category_id < 0:
            raise ConfigError(f"categories[{class_id}].id must be a whole number of at least 0, not {category_id!r}")
        if not isinstance(name, str):
            raise ConfigError(f"categories[{class_id}].name must be a string, not {name!r}")
        if isthing not in (0, 1):
            raise ConfigError(f"categories[{class_id}].isthing must be 0 or 1, not {isthing!r}")
        categories.append(Category(class_id, category_id, name, bool(isthing)))
    if len({category.category_id for category in categories}) != len(categories):
        raise ConfigError("categories must have different ids")
    return categories
