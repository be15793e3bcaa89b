"""The network equals transformers' EoMT, module by module and from end to end; see test_model_parity for how.

Without masked attention nothing is thresholded, so both bounds are those of rounding.
"""

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m2f_core.checkpoints.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from m2f_core.config.eomt import EomtConfig
from m2f_core.model.for_inference import prepare_for_inference

pytest.importorskip("transformers", reason="transformers is the oracle of these tests")
import transformers

from tests.parity.test_model_parity import TOLERANCE, assert_close, image_batch, one_thread_no_grad  # noqa: F401

SMALL = {"hidden_size": 48, "num_hidden_layers": 5, "num_attention_heads": 3, "num_blocks": 2, "num_queries": 11}
SMALL |= {"image_size": 64, "patch_size": 8, "num_register_tokens": 2, "num_labels": 7}
WIDER = {"hidden_size": 128, "num_hidden_layers": 6, "num_attention_heads": 4, "num_blocks": 4, "num_queries": 20}
WIDER |= {"image_size": 96, "patch_size": 16, "num_labels": 133}
SWIGLU = {"use_swiglu_ffn": True, "hidden_act": "silu"}


def jittered(mask_probs: list[float] | None = None, **fields: object) -> nn.Module:
    """A model of transformers whose every parameter differs from its initial value."""
    config = transformers.EomtConfig(**{**SMALL, **fields})
    torch.manual_seed(0)
    model = transformers.EomtForUniversalSegmentation(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.dim() < 2 else 0.5 * max(1, parameter[0].numel()) ** -0.5
            parameter += scale * torch.randn(parameter.shape, generator=generator)
        model.attn_mask_probs.copy_(torch.tensor(mask_probs or [0.0] * config.num_blocks))
    return model


def saved(theirs: nn.Module, folder: Path) -> Path:
    theirs.save_pretrained(folder)
    return folder


def assert_same_modules(theirs: nn.Module, ours: nn.Module, pixels: Tensor) -> None:
    """Each module of ours gets what transformers' got."""
    pairs = [
        ("tokens", theirs.embeddings, ours.tokens),
        *((f"block {n}", *pair) for n, pair in enumerate(zip(theirs.layers, ours.blocks, strict=True))),
        ("norm", theirs.layernorm, ours.norm),
        ("mask head", theirs.mask_head, ours.mask_head),
        ("classes", theirs.class_predictor, ours.class_predictor),
    ]
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _, args, output, name=name: calls.update({name: (args[0], output)}))
        for name, module, _ in [*pairs, ("upscale", theirs.upscale_block, None)]
    ]
    theirs(pixels)
    for hook in hooks:
        hook.remove()
    for name, _, mine in pairs:
        given, expected = calls[name]
        assert_close(mine(given), expected, TOLERANCE, name)
    given, expected = calls["upscale"]
    assert_close(ours.upscale(given.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected, TOLERANCE, "upscale")


def assert_same_model(theirs: nn.Module, ours: nn.Module, pixels: Tensor) -> None:
    expected, output = theirs(pixels), ours(pixels, output_queries=True)
    assert_close(output.class_queries_logits, expected.class_queries_logits, TOLERANCE, "end to end, classes")
    assert_close(output.masks_queries_logits, expected.masks_queries_logits, 1e-4, "end to end, masks")
    queries = expected.last_hidden_state[:, : ours.config.num_queries]
    assert_close(output.queries, queries, TOLERANCE, "queries")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        WIDER,
        SWIGLU,
        {"num_register_tokens": 0, "num_upscale_blocks": 1, "num_blocks": 5},
        {"patch_size": 16, "num_upscale_blocks": 3, "mlp_ratio": 3, "hidden_act": "relu", "layer_norm_eps": 1e-3},
        {"image_size": 32, "hidden_act": "quick_gelu"},
    ],
    ids=str,
)
def test_modules_and_model_agree(tmp_path: Path, fields: dict) -> None:
    theirs = jittered(**fields)
    ours = load_checkpoint(saved(theirs, tmp_path))
    pixels = image_batch(theirs.config.image_size, theirs.config.image_size, batch=2)
    assert_same_modules(theirs, ours, pixels)
    assert_same_model(theirs, ours, pixels)
    assert_same_model(theirs, prepare_for_inference(ours, torch.device("cpu"), "fp32"), pixels)


@pytest.mark.parametrize("mask_probs", [[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]], ids=str)
def test_a_model_that_never_learned_to_do_without_masks_keeps_them(tmp_path: Path, mask_probs: list[float]) -> None:
    theirs = jittered(mask_probs)
    pixels = image_batch(64, 64, batch=2)
    ours = load_checkpoint(saved(theirs, tmp_path))
    assert ours.mask_shares == mask_probs
    assert_same_model(theirs, ours, pixels)
    without = load_checkpoint(saved(jittered([0.0, 0.0]), tmp_path / "without"))(pixels)
    difference = without.class_queries_logits - ours(pixels).class_queries_logits
    assert difference.abs().max() > 0.01, "masks change nothing, so this test shows nothing"


def test_a_model_that_masks_at_random_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"attn_mask_probs has \[0.0, 0.25\].* set each of these .* to 0 or to 1"):
        load_checkpoint(saved(jittered([0.0, 0.25]), tmp_path))


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(64, 96\) pixels, but the model takes 64"):
        load_checkpoint(saved(jittered(), tmp_path))(torch.zeros(1, 3, 64, 96))


@pytest.mark.parametrize("fields", [{}, SWIGLU], ids=str)
def test_transformers_loads_what_we_save(tmp_path: Path, fields: dict) -> None:
    theirs = jittered([0.0, 1.0], **fields)
    save_checkpoint(load_checkpoint(saved(theirs, tmp_path / "theirs")), tmp_path / "ours")
    again, info = transformers.EomtForUniversalSegmentation.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert all("criterion" in key for key in info["missing_keys"])
    pixels = image_batch(64, 64)
    expected, output = theirs(pixels), again.eval()(pixels)
    assert torch.equal(output.class_queries_logits, expected.class_queries_logits)
    assert torch.equal(output.masks_queries_logits, expected.masks_queries_logits)


def test_the_hubs_files_have_one_layer_for_both_parts_of_a_swiglu(tmp_path: Path) -> None:
    theirs = jittered(**SWIGLU)
    weights = load_file(saved(theirs, tmp_path) / "model.safetensors")
    parts: dict[str, list[Tensor]] = defaultdict(list)
    for part in ("gate_proj", "up_proj", "down_proj"):
        for name in [name for name in weights if part in name]:
            older = name.replace(part, "weights_out" if part == "down_proj" else "weights_in")
            parts[older].append(weights.pop(name))
    save_file(weights | {name: torch.cat(tensors) for name, tensors in parts.items()}, tmp_path / "model.safetensors")
    assert_same_model(theirs, load_checkpoint(tmp_path), image_batch(64, 64))


@pytest.mark.parametrize("fields", [{}, WIDER, SWIGLU], ids=str)
def test_a_configuration_survives_transformers(tmp_path: Path, fields: dict) -> None:
    theirs = transformers.EomtConfig(**{**SMALL, **fields})
    ours = EomtConfig.from_dict(theirs.to_dict())
    assert ours.num_labels == theirs.num_labels
    assert EomtConfig.from_dict(transformers.EomtConfig(**ours.to_dict()).to_dict()) == ours


def test_missing_fields_have_their_defaults() -> None:
    assert EomtConfig.from_dict({"model_type": "eomt"}) == EomtConfig.from_dict(transformers.EomtConfig().to_dict())


def test_the_family_is_found(tmp_path: Path) -> None:
    assert Checkpoint(saved(jittered(), tmp_path)).family.name == "EoMT"
