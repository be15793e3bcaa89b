"""Class names of a config.json, as transformers reads them for every family of models. Does not import torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m2f_core.config.fields import MAX_CLASSES, ConfigError, excerpt, is_count


def numbered_labels(num_labels: int) -> dict[int, str]:
    return {class_id: f"LABEL_{class_id}" for class_id in range(num_labels)}


def read_id2label(json_dict: Mapping[str, Any]) -> dict[int, str]:
    """Class names of a config.json by class_id 0, 1, 2, ...

    As in transformers, the number of entries is the number of classes, whatever their keys, and another `num_labels`
    replaces them all by LABEL_0, LABEL_1, ... A class without an entry is LABEL_n; `label_warnings` names the entries
    that belong to no class.
    """
    by_id = _given_labels(json_dict)
    num_labels = json_dict.get("num_labels")
    if num_labels is None:
        num_labels = 2 if by_id is None else len(by_id)  # transformers' default
    if not is_count(num_labels) or num_labels > MAX_CLASSES:
        name = "num_labels" if json_dict.get("num_labels") is not None else "id2label"
        raise ConfigError(f"{name} must give 1 to {MAX_CLASSES} classes, not {excerpt(json_dict[name])}")
    if by_id is None or len(by_id) != num_labels:
        return numbered_labels(num_labels)
    return {class_id: by_id.get(class_id, label) for class_id, label in numbered_labels(num_labels).items()}


def check_id2label(id2label: Mapping[int, str]) -> None:
    """ConfigError unless these are the names of the classes 0, 1, 2, ..., and not too many."""
    if len(id2label) > MAX_CLASSES:
        raise ConfigError(f"id2label must name at most {MAX_CLASSES} classes, not {len(id2label)}")
    if not id2label or sorted(id2label) != list(range(len(id2label))):
        raise ConfigError("id2label must name the classes 0, 1, 2, ... without a gap, and at least one")


def label_warnings(json_dict: Mapping[str, Any]) -> list[str]:
    """What `read_id2label` does not take from the file, and the names that several classes share."""
    by_id, read = _given_labels(json_dict) or {}, read_id2label(json_dict)
    if by_id and len(by_id) != len(read):
        return [
            f"config.json has num_labels {len(read)}, but id2label has {len(by_id)} entries; as in transformers, the "
            f"classes are named LABEL_0 .. LABEL_{len(read) - 1}"
        ]
    return [*_left_out_warning(by_id, read), *_shared_name_warning(read)]


def _left_out_warning(by_id: Mapping[int, str], read: Mapping[int, str]) -> Iterator[str]:
    left_out = sorted(by_id.keys() - read.keys())
    if left_out:
        nameless = sorted(read.keys() - by_id.keys())
        yield (
            f"id2label in config.json has {len(by_id)} entries, so the model's classes are 0 .. {len(by_id) - 1}: the "
            f"entries {_few(left_out)} name no class, and the classes {_few(nameless)} are called LABEL_n"
        )


def _shared_name_warning(read: Mapping[int, str]) -> Iterator[str]:
    class_ids: dict[str, list[int]] = {}
    for class_id, name in read.items():
        class_ids.setdefault(name, []).append(class_id)
    shared = [(name, ids) for name, ids in class_ids.items() if len(ids) > 1]
    if shared:
        name, ids = shared[0]
        yield (
            f"id2label in config.json gives several classes the same name, for example {name!r} to {_few(ids)}; only "
            f"their ids tell their segments apart"
        )


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers if len(numbers) <= 5 else [*numbers[:4], "..."]))


def _given_labels(json_dict: Mapping[str, Any]) -> dict[int, str] | None:
    raw = json_dict.get("id2label")
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ConfigError(f"id2label must map class ids to names, not be a {type(raw).__name__}")
    if len(raw) > MAX_CLASSES:
        raise ConfigError(f"id2label must give at most {MAX_CLASSES} classes, not {len(raw)}")
    try:
        return {int(class_id): str(name) for class_id, name in raw.items()}
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"id2label must have whole numbers as keys, not {excerpt(list(raw)[:3])}") from None
