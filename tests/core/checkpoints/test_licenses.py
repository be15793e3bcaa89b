import json
from pathlib import Path

import pytest

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.checkpoints.licenses import UNKNOWN, ZOO_LICENSE, model_license


def folder_with(folder: Path, config: dict, card: str | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- vision\n---\n# A model\n", "apache-2.0"),
        ("---\ntags: [a]\nlicense:   'mit'  # see LICENSE\n---\n", "mit"),
        ('---\r\nlicense: "cc-by-nc-4.0"\r\n---\r\n', "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: our-own\nlicense_link: LICENSE\n---\n", "our-own"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nbase:\n  license: mit\n---\n", UNKNOWN),
        ("---\nlicense:\n---\n", UNKNOWN),
        ("---\nlicense: mit\n", UNKNOWN),  # the front matter does not end
        ("license: mit\n---\n", UNKNOWN),
        ("# A model\n\nlicense: mit\n", UNKNOWN),
        ("", UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_the_model_card_says_it(tmp_path: Path, card: str | None, expected: str) -> None:
    assert model_license(Checkpoint(folder_with(tmp_path, {}, card))) == expected


def test_config_json_comes_before_the_card(tmp_path: Path) -> None:
    card = "---\nlicense: mit\n---\n"
    assert model_license(Checkpoint(folder_with(tmp_path, {"license": "apache-2.0"}, card))) == "apache-2.0"
    assert model_license(Checkpoint(folder_with(tmp_path, {"license": ["apache-2.0"]}, card))) == "mit"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("facebook/mask2former-swin-tiny-coco-panoptic", ZOO_LICENSE), ("shi-labs/oneformer_coco_swin_large", "MIT")],
)
@pytest.mark.parametrize("card", [None, "---\nlicense: other\n---\n"])
def test_published_ones_are_known_by_their_name_on_the_hub(
    tmp_path: Path, card: str | None, name: str, expected: str
) -> None:
    assert model_license(Checkpoint(folder_with(tmp_path, {"_name_or_path": name}, card))) == expected
    assert model_license(Checkpoint(folder_with(tmp_path, {}, card)), name) == expected
    other = f"somebody/{name.partition('/')[2]}"
    assert model_license(Checkpoint(folder_with(tmp_path, {"_name_or_path": other}, card)), other) != expected


def test_the_same_name_with_another_backbone_has_another_licence(tmp_path: Path) -> None:
    name = "tue-mps/coco_panoptic_eomt_large_640"
    for model_type, expected in (("eomt", "MIT"), ("eomt_dinov3", "DINOv3 License")):
        assert model_license(Checkpoint(folder_with(tmp_path, {"model_type": model_type}, None)), name) == expected


def test_what_the_owner_states_counts_more_than_a_name(tmp_path: Path) -> None:
    """A model trained further keeps the name of its origin in config.json."""
    config = {"_name_or_path": "facebook/mask2former-swin-tiny-coco-panoptic"}
    assert (
        model_license(Checkpoint(folder_with(tmp_path, config, "---\nlicense: cc-by-nc-sa-4.0\n---\n")))
        == "cc-by-nc-sa-4.0"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model_final_9fd0ae.pkl", ZOO_LICENSE),
        ("model_final_f10217.pkl", UNKNOWN),  # Mask R-CNN of detectron2's own zoo
        ("model_final.pkl", UNKNOWN),
        ("my_model_final_9fd0ae.pkl", UNKNOWN),
    ],
)
def test_published_pickles_are_known_by_their_file_name(tmp_path: Path, name: str, expected: str) -> None:
    """No file is opened for it."""
    (tmp_path / name).write_bytes(b"")
    assert model_license(Checkpoint(tmp_path / name)) == expected
    if name.startswith("model_final"):
        assert model_license(Checkpoint(tmp_path)) == expected


@pytest.mark.parametrize(
    "line", ["license:" + " " * 490 + "'", "license: a" + " " * 480 + "'x", "license:" + " " * 10**6]
)
def test_a_card_of_spaces_costs_no_time(tmp_path: Path, line: str) -> None:
    """Time grew with the third power: 0.5 s for 400 spaces, more than an hour for 8,000."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("---\n" + f"{line}\n" * 100 + "license: mit\n---\n")
    assert model_license(Checkpoint(tmp_path)) == ("mit" if len(line) < 1000 else "unknown")
