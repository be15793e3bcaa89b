"""What a checkpoint was trained for: by the names of the published ones, else by its classes."""

import re
from pathlib import Path

import pytest

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.checkpoints.zoo import ZOO_FILES, task_of_name, trained_task, zoo_task
from m2f_core.config.labels import Category, LabelMap
from tests.support.places import ROOT

PAGE = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
TABLES = re.findall(r"^### [\w ]+, (panoptic|instance|semantic) \(.*?\n(.*?)(?=^###|\Z)", PAGE, re.M | re.S)
PANOPTIC_OR_SEMANTIC = LabelMap.of_dataset("cityscapes-panoptic")


def labels(*isthing: bool, known: bool = True) -> LabelMap:
    return LabelMap(tuple(Category(i, i, f"c{i}", thing) for i, thing in enumerate(isthing)), known)


def test_the_page_lists_the_published_pickles_by_what_they_were_trained_for() -> None:
    listed = {digits: task for task, table in TABLES for digits in re.findall(r"\| `([0-9a-f]{6})` \|", table)}
    assert listed == ZOO_FILES
    assert len(ZOO_FILES) == 47 + 16
    for digits, task in listed.items():
        assert zoo_task(Path(f"model_final_{digits}.pkl")) == task


def test_names_on_the_hub_say_it(tmp_path: Path) -> None:
    """All of the page's, also as the folder of a copy."""
    ids = [
        (front + end, task)
        for task, table in TABLES
        for front in re.findall(r"hub id: `([\w/-]+)\.\.\.`", table)
        for end in re.findall(r"`([\w-]+)` \|$", table, re.M)
    ]
    assert len(ids) == 28 + 13
    for name, task in ids:
        copies = (name, f"/models/{name}", f"s3://bucket/{name.partition('/')[2]}/", f"{name}/snapshots/1234")
        assert [trained_task(Checkpoint(tmp_path), copy, PANOPTIC_OR_SEMANTIC) for copy in copies] == [task] * 4


SILENT = ["model", "s3://semantic/model", "mask2former-swin-tiny", "mask2former-x/y-semantic", "maskformer-swin-tiny"]


@pytest.mark.parametrize("name", SILENT)
def test_other_names_say_nothing(tmp_path: Path, name: str) -> None:
    assert trained_task(Checkpoint(tmp_path), name, PANOPTIC_OR_SEMANTIC) is None


def test_a_published_pickle_says_it(tmp_path: Path) -> None:
    (tmp_path / "model_final_5274a6.pkl").write_bytes(b"")
    for path in (tmp_path, tmp_path / "model_final_5274a6.pkl"):
        assert trained_task(Checkpoint(path), "model", labels(True)) == "semantic"
    (tmp_path / "model_final_5274a6.pkl").rename(tmp_path / "model_final_f10217.pkl")
    assert trained_task(Checkpoint(tmp_path), "model", labels(True)) == "instance"


def test_classes_of_one_kind_say_it_if_they_are_known(tmp_path: Path) -> None:
    assert trained_task(Checkpoint(tmp_path), "model", labels(True, True)) == "instance"
    assert trained_task(Checkpoint(tmp_path), "model", labels(False, False)) == "semantic"
    assert trained_task(Checkpoint(tmp_path), "model", labels(True, False)) is None
    assert trained_task(Checkpoint(tmp_path), "model", labels(True, True, known=False)) is None
    assert trained_task(Checkpoint(tmp_path), "model", LabelMap(())) is None


def test_a_name_counts_more_than_classes(tmp_path: Path) -> None:
    assert trained_task(Checkpoint(tmp_path), "mask2former-swin-tiny-things-panoptic", labels(True, True)) == "panoptic"


def test_the_name_of_a_published_file_is_enough():
    """A recut of kept logits has the name of the checkpoint, and no file of it."""
    for digits, task in ZOO_FILES.items():
        assert task_of_name(f"s3://models/model_final_{digits}.pkl", PANOPTIC_OR_SEMANTIC) == task
