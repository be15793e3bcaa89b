"""Checkpoints written and read by us. That transformers' own files load is shown in tests/parity."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from m2f_core.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from m2f_core.checkpoints.stored_weights import Source
from m2f_core.config.backbones import BackboneConfig
from m2f_core.config.labels import LabelMap
from m2f_core.config.mask2former import Mask2FormerConfig, ResNetConfig, SwinConfig
from m2f_core.families import mask2former_names
from m2f_core.families.mask2former_names import detectron2_names, hugging_face_names
from m2f_core.model.for_inference import prepare_for_inference
from m2f_core.model.mask2former import Mask2Former, build_model
from m2f_core.training.initial_weights import new_class_predictor
from tests.support.seeded_model import seeded_model

CLASSES = "class_predictor.weight"
QUERY = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.weight"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Mask2Former:
    return seeded_model(Mask2FormerConfig.tiny(), seed=0)


@pytest.fixture
def folder(model: Mask2Former, tmp_path: Path) -> Path:
    save_checkpoint(model, tmp_path)
    return tmp_path


def change_weights(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.update({name: tensor for name, tensor in change.items() if tensor is not None})
    kept = {name: tensor.clone() for name, tensor in weights.items() if change.get(name, tensor) is not None}
    save_file(kept, folder / "model.safetensors")


def change_config(folder: Path, **change: object) -> None:
    (folder / "config.json").write_text(json.dumps({**Checkpoint(folder).config_dict, **change}))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_round_trip_is_exact(model: Mask2Former, folder: Path) -> None:
    again = load_checkpoint(folder)
    assert again.config == model.config
    assert not again.training
    state, expected = again.state_dict(), model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    pixel_values = torch.randn(1, 3, 40, 52)
    with torch.inference_mode():
        assert torch.equal(again(pixel_values).masks_queries_logits, model(pixel_values).masks_queries_logits)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_weights_outlive_their_file(folder: Path) -> None:
    again = load_checkpoint(folder)
    before = {name: tensor.clone() for name, tensor in again.state_dict().items()}
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(bytes(size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.state_dict().items())


BACKBONES = (SwinConfig(), ResNetConfig(), ResNetConfig(layer_type="basic"))


def names_of_every_part(backbone: BackboneConfig) -> list[str]:
    """Our names of the weights of a model with every optional part."""
    with torch.device("meta"):
        model = build_model(Mask2FormerConfig(backbone_config=backbone, enforce_input_projection=True))
    return list(model.state_dict())


@pytest.mark.parametrize(
    ("table", "look_up", "backbones"),
    [
        ("RULES", hugging_face_names, BACKBONES),
        ("DETECTRON2_RULES", detectron2_names, BACKBONES[:2]),  # no published file has basic blocks
    ],
)
def test_every_name_is_used_once_and_every_rule_is_needed(
    monkeypatch: pytest.MonkeyPatch, table: str, look_up: Callable, backbones: Sequence[BackboneConfig]
) -> None:
    """In every spelling."""
    models = [names_of_every_part(backbone) for backbone in backbones]
    for names in models:
        sources = [look_up(our_name) for our_name in names]
        for spelling in zip(*sources, strict=True) if table == "RULES" else [sources]:
            theirs = [(name, source.third) for source in spelling for name in source.names]
            assert len(theirs) == len(set(theirs))
    # Layers of a stage differ in their numbers alone: the first two show whether a rule is needed.
    first_two = re.compile(r"(?!.*(?<!stages)\.([2-9]|\d\d+)\.)")
    names = sorted({name for model in models for name in model if first_two.match(name)})
    expected = [look_up(our_name) for our_name in names]
    rules = getattr(mask2former_names, table)
    for rule in rules:
        monkeypatch.setattr(mask2former_names, table, [other for other in rules if other is not rule])
        try:
            needed = [look_up(our_name) for our_name in names] != expected
        except AssertionError:
            needed = True
        assert needed, rule.ours


def test_literal_names() -> None:
    """A few, spelled out: the table must not be judged by itself alone."""
    block = "model.pixel_level_module.encoder.{}layers.2.blocks.5.attention.{}.bias"
    hub, in_memory = hugging_face_names("backbone.stages.2.blocks.5.attention.qkv.bias")
    assert hub == Source(tuple(block.format("encoder.", f"self.{name}") for name in ("query", "key", "value")))
    assert in_memory == Source(tuple(block.format("swin.encoder.", f"{name}_proj") for name in "qkv"))
    fused = "model.transformer_module.decoder.layers.7.cross_attn.in_proj_weight"
    ours = "transformer_decoder.layers.7.cross_attention.{}_proj.weight"
    assert [hugging_face_names(ours.format(name))[0] for name in "qkv"] == [Source((fused,), i) for i in range(3)]
    level_embed = Source(("model.pixel_level_module.decoder.level_embed",))
    assert hugging_face_names("pixel_decoder.level_embed") == (level_embed, level_embed)
    norm = "model.pixel_level_module.encoder.encoder.stages.2.layers.5.layer.1.normalization.running_var"
    assert hugging_face_names("backbone.stages.2.5.spatial.norm.running_var")[0] == Source((norm,))


def test_what_nothing_reads_is_ignored(model: Mask2Former, folder: Path) -> None:
    encoder = "model.pixel_level_module.encoder."
    change_weights(
        folder,
        {
            "criterion.empty_weight": torch.ones(9),
            QUERY.replace("query.weight", "relative_position_index"): torch.zeros(49, 49, dtype=torch.int64),
            encoder + "swin.layernorm.weight": torch.ones(256),
            encoder + "layernorm.bias": torch.ones(256),
        },
    )
    assert torch.equal(load_checkpoint(folder).class_predictor.weight, model.class_predictor.weight)


def test_half_precision_files_load_as_float32(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "model.safetensors")
    again = load_checkpoint(folder)
    assert all(parameter.dtype == torch.float32 for parameter in again.parameters())
    assert torch.equal(again.class_predictor.weight, weights[CLASSES].bfloat16().float())


@pytest.mark.parametrize("name", [CLASSES, QUERY, "model.transformer_module.decoder.layers.0.cross_attn.in_proj_bias"])
def test_a_missing_weight_is_named(folder: Path, name: str) -> None:
    change_weights(folder, {name: None})
    assert f"1 missing: {name}" in refusal(folder)


def test_unexpected_weights_are_named_and_counted(folder: Path) -> None:
    change_weights(folder, {f"surprise.{i}": torch.zeros(1) for i in range(5)})
    assert "5 unexpected: surprise.0, surprise.1, surprise.2 and 2 more" in refusal(folder)


def test_another_shape_is_named(folder: Path) -> None:
    change_weights(folder, {CLASSES: torch.zeros(4, 64)})
    assert f"1 of another shape: {CLASSES} (is [4, 64], config.json says [9, 64])" in refusal(folder)


def test_a_config_of_another_size_is_refused(folder: Path) -> None:
    change_config(folder, num_queries=50, decoder_layers=5)
    message = refusal(folder)
    assert "missing: model.transformer_module.decoder.layers.3." in message
    assert "model.transformer_module.queries_features.weight (is [20, 64], config.json says [50, 64])" in message


def test_whole_numbers_are_refused(folder: Path) -> None:
    change_weights(folder, {CLASSES: torch.zeros(9, 64, dtype=torch.int32)})
    assert f"1 not floating-point: {CLASSES} (I32)" in refusal(folder)


def test_another_architecture_is_refused(folder: Path) -> None:
    change_config(folder, model_type="segformer")
    message = refusal(folder)
    assert "config.json" in message
    assert "segformer" in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}"], ids=str)
def test_a_broken_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert "config.json" in refusal(folder)


def test_a_missing_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json: missing" in refusal(folder)


@pytest.mark.parametrize("length", [0, 4, 1000, -1])
def test_a_truncated_file_is_refused(folder: Path, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert "model.safetensors: is not a complete safetensors file" in refusal(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model_final_9fd0ae.pkl"])
def test_pickles_are_refused_with_advice(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    message = refusal(folder)
    assert name in message
    assert "convert it to model.safetensors" in message


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors" in refusal(folder)


def shard(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in weights if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def test_shards(model: Mask2Former, folder: Path) -> None:
    shard(folder)
    assert [path.name[:11] for path in Checkpoint(folder).weights_files] == ["model-00001", "model-00002"]
    state, expected = load_checkpoint(folder).state_dict(), model.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors: missing" in refusal(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": "../secret.safetensors"}}], ids=str)
def test_a_broken_index_is_refused(folder: Path, index: dict) -> None:
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json" in refusal(folder)


def test_the_hash_is_that_of_config_and_weights(folder: Path) -> None:
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    original = Checkpoint(folder).sha256
    assert original == digest.hexdigest()

    (folder / "README.md").write_text("not part of the model")
    assert Checkpoint(folder).sha256 == original
    change_config(folder, num_queries=21)
    changed_config = Checkpoint(folder).sha256
    assert changed_config != original
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert Checkpoint(folder).sha256 != changed_config


def test_hashing_says_which_file_is_missing(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        assert Checkpoint(folder).sha256


def test_categories_travel_with_the_checkpoint(model: Mask2Former, folder: Path) -> None:
    entries = [{"id": 10 * i, "name": f"name {i}", "isthing": i % 2} for i in range(8)]
    label_map = LabelMap.from_config_dict({"num_labels": 8, "categories": entries})
    save_checkpoint(model, folder, label_map)
    assert LabelMap.from_config_dict(Checkpoint(folder).config_dict) == label_map
    assert Checkpoint(folder).config == model.config


def test_a_model_that_would_not_load_again_is_not_saved(tmp_path: Path) -> None:
    """Packed for inference, its weights are no part of its state; with another head they do not fit its config."""
    packed = prepare_for_inference(seeded_model(Mask2FormerConfig.tiny(), seed=0), torch.device("cpu"), "fp32")
    other_head = seeded_model(Mask2FormerConfig.tiny(), seed=0)
    new_class_predictor(other_head, 11, seed=0)
    for broken in (packed, other_head):
        with pytest.raises(CheckpointError, match="by the model's configuration"):
            save_checkpoint(broken, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
