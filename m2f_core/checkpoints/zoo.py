"""Published checkpoints: their names, and the task each was trained for.

docs/checkpoints.md lists them. Does not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.config.labels import TASKS, LabelMap, Task
from m2f_core.families.registry import FAMILIES

# The six digits in model_final_*.pkl; images only, no video. By dataset: COCO, Cityscapes, ADE20K, Mapillary Vistas.
# The last row of panoptic and of semantic is MaskFormer's, the others are Mask2Former's.
_DIGITS: dict[Task, tuple[str, ...]] = {
    "panoptic": (
        "94dc52 b807bd 9fd0ae a407fd 9d7f02 54b88a f07440",
        "4ab90c 04d286 ceba0f 23efb7 fa840f 064788",
        "5c90d4 e0c58e",
        "4e9874 132c71",
        "539394 5bf6b1 4b7f49 7505c4",
    ),
    "instance": (
        "3c8ec9 eba159 86143f 1e7f22 f6e0f6 83d103 e5f453",
        "01a8ed c2b8c8 6a63f8 974824 7a3b6d dfa862",
        "67e945 92dae9",
    ),
    "semantic": (
        "cc1b1f 257ce8 2d58d4 fa26ae 1c6b65 17c1ee",
        "500878 0d68be 5274a6 011c6d 503e96 7e47bf 6b4a3a",
        "6c66d0 90ee2d",
        "d8dbeb 1aeb94 8657a5 528157 45388b aefa3b cb03eb eb19bb f4e3f6 88df33 38c00c f3fc73",
    ),
}
ZOO_FILES: dict[str, Task] = {digits: task for task, rows in _DIGITS.items() for row in rows for digits in row.split()}


def zoo_task(pickled: Path) -> Task | None:
    """The task that a published `.pkl` was trained for, by its name; None for any other name."""
    digits = re.fullmatch(r"model_final_([0-9a-f]{6})\.pkl", pickled.name)
    return None if digits is None else ZOO_FILES.get(digits[1])


def guessed_names_warning(checkpoint: Checkpoint) -> Iterator[str]:
    """A warning if the labels of a checkpoint are guessed from the number of its classes alone."""
    pickled, labels = checkpoint.pickle, checkpoint.labels
    if pickled is not None and labels.known and zoo_task(pickled) is None:
        names = [category.name for category in labels.categories]
        yield (
            f"{pickled.name} holds no class names; its {len(names)} classes are assumed to be {names[0]}, {names[1]}, "
            f"..., {names[-1]}, because a known dataset has this number of classes"
        )


def trained_task(checkpoint: Checkpoint, name: str, labels: LabelMap) -> Task | None:
    """The task that a checkpoint, given as `name`, was trained for; None if neither name nor classes show it.

    A name shows the task if it is the name of a published `.pkl`, or contains a name as on the hub
    (`mask2former-...-semantic`, `maskformer-...-ade`; also as the folder of a copy). Classes show the task if they are
    known and all are things (instance) or all are stuff (semantic). `_name_or_path` in config.json is not used, because
    it names the checkpoint that the training started from.
    """
    of_file = None if checkpoint.pickle is None else zoo_task(checkpoint.pickle)
    return of_file or task_of_name(name, labels)


def task_of_name(name: str, labels: LabelMap) -> Task | None:
    """The part of `trained_task` that needs no file of the checkpoint."""
    if (of_file := zoo_task(Path(name))) is not None:
        return of_file
    for family in FAMILIES:
        for task in TASKS:
            words = family.task_words.get(task, task)
            if family.task_in_name is not None and re.search(family.task_in_name.format(task=words), name):
                return task
    kinds = {category.isthing for category in labels.categories}
    if not labels.known or len(kinds) != 1:
        return None
    return "instance" if kinds == {True} else "semantic"
