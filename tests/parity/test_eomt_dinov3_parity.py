"""The network of an EoMT on a DINOv3 equals transformers', module by module, end to end and in training."""

from pathlib import Path

import pytest
import torch
from torch import nn

from m2f_core.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from m2f_core.config.eomt_dinov3 import EomtDinov3Config
from m2f_core.config.fields import ConfigError
from m2f_core.model.for_inference import prepare_for_inference

pytest.importorskip("transformers", reason="transformers is the oracle of these tests")
import transformers

from tests.parity.test_eomt_parity import assert_same_model, saved
from tests.parity.test_loss_parity import CASES, predictions
from tests.parity.test_model_parity import TOLERANCE, assert_close, image_batch

SMALL = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3, "num_blocks": 2, "num_queries": 11}
SMALL |= {"image_size": 64, "patch_size": 8, "num_register_tokens": 2, "num_labels": 8, "intermediate_size": 96}
WIDER = {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "num_blocks": 3, "num_queries": 20}
WIDER |= {"image_size": 96, "patch_size": 16, "num_labels": 133, "intermediate_size": 320}
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
NO_BIAS = {"query_bias": False, "value_bias": False, "proj_bias": False, "mlp_bias": False, "key_bias": True}
MOVED = {"pos_embed_shift": 0.2, "pos_embed_jitter": 1.5, "pos_embed_rescale": 2.0}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def jittered(mask_probs: tuple[float, ...] | None = None, **fields: object) -> nn.Module:
    """A model of transformers whose every parameter differs from its initial value."""
    config = transformers.EomtDinov3Config(**{**SMALL, **fields})
    torch.manual_seed(0)
    model = transformers.EomtDinov3ForUniversalSegmentation(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.dim() < 2 else 0.5 * max(1, parameter[0].numel()) ** -0.5
            parameter += scale * torch.randn(parameter.shape, generator=generator)
        model.attn_mask_probs.copy_(torch.tensor(mask_probs or [0.0] * config.num_blocks))
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        WIDER,
        GATED,
        {**NO_BIAS, "rope_parameters": {"rope_type": "default", "rope_theta": 30.0}},
        {**GATED, "mlp_bias": False},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_module_and_the_whole_model(fields: dict, tmp_path: Path) -> None:
    theirs = jittered(**fields)
    ours = load_checkpoint(saved(theirs, tmp_path))
    pixels = image_batch(theirs.config.image_size, theirs.config.image_size, batch=2)
    turns = theirs.rope_embeddings(pixels)
    assert_close(ours.rotary(pixels.device), torch.stack(turns), TOLERANCE, "turns")
    tokens = theirs.embeddings(pixels)
    assert_close(ours.tokens(pixels), tokens, TOLERANCE, "tokens")
    with_queries = torch.cat([theirs.query.weight[None].expand(2, -1, -1), tokens], dim=1)
    for number, (of_theirs, block) in enumerate(zip(theirs.layers, ours.blocks, strict=True)):
        for given in (tokens, with_queries):
            expected = of_theirs(given, position_embeddings=turns)
            expected = expected[0] if isinstance(expected, tuple) else expected
            assert_close(block(given, None, ours.rotary(pixels.device)), expected, TOLERANCE, f"block {number}")
    assert_same_model(theirs, ours, pixels)
    assert_same_model(theirs, prepare_for_inference(ours, torch.device("cpu"), "fp32"), pixels)


@torch.no_grad()
def test_a_model_that_never_learned_to_do_without_masks_keeps_them(tmp_path: Path) -> None:
    theirs = jittered((0.0, 1.0))
    assert_same_model(theirs, load_checkpoint(saved(theirs, tmp_path)), image_batch(64, 64, batch=2))


@pytest.mark.parametrize("fields", [{}, MOVED, {"pos_embed_rescale": None}], ids=str)
def test_losses_gradients_and_random_draws_of_training(fields: dict, tmp_path: Path) -> None:
    """The places of all patches are moved as in transformers, and masks of the same queries are forgotten."""
    counts, sizes_hw = CASES["normal"]
    given = predictions(counts, sizes_hw)
    pixels = image_batch(64, 64, batch=len(counts))
    theirs = jittered(train_num_points=200, **fields)
    ours = load_checkpoint(saved(theirs, tmp_path)).train()
    theirs.train().attn_mask_probs.copy_(torch.tensor([0.6, 1.0]))
    ours.mask_shares = [0.6, 1.0]
    classes = given.class_labels
    torch.manual_seed(3)
    expected = theirs(pixels, mask_labels=[masks.float() for masks in given.mask_labels], class_labels=classes)
    expected.loss.backward()
    state = torch.get_rng_state()
    torch.manual_seed(3)
    output = ours(pixels, mask_labels=given.mask_labels, class_labels=classes)
    output.loss.backward()
    assert torch.equal(torch.get_rng_state(), state), "another number of random draws"
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=1e-5)
    gradient = theirs.layers[0].attention.q_proj.weight.grad
    largest = float(gradient.abs().max())
    torch.testing.assert_close(ours.blocks[0].attention.q_proj.weight.grad, gradient, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("fields", [{}, {**GATED, **MOVED}, {**NO_BIAS, "pos_embed_rescale": None}], ids=str)
@torch.no_grad()
def test_transformers_loads_what_we_save(fields: dict, tmp_path: Path) -> None:
    theirs = jittered(**fields)
    checkpoint = Checkpoint(saved(theirs, tmp_path / "theirs"))
    save_checkpoint(checkpoint.load(), tmp_path / "ours", checkpoint.labels)
    again = transformers.EomtDinov3ForUniversalSegmentation.from_pretrained(tmp_path / "ours").eval()
    for (name, first), (_, second) in zip(theirs.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(first, second), name
    for name in (*(f"pos_embed_{what}" for what in ("shift", "jitter", "rescale")), "rope_parameters", "image_size"):
        assert getattr(again.config, name) == getattr(theirs.config, name), name


def test_the_configuration_is_transformers() -> None:
    assert EomtDinov3Config.from_dict({}) == EomtDinov3Config.from_dict(transformers.EomtDinov3Config().to_dict())
    large = EomtDinov3Config.published("large")
    assert (large.hidden_size, large.intermediate_size, large.num_blocks) == (1024, 4096, 4)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type must be .default."),
        ({"rope_parameters": {"rope_theta": 0.0}}, "rope_theta"),
        ({"pos_embed_jitter": 0.5}, "pos_embed_jitter"),
        ({"use_gated_mlp": "yes"}, "use_gated_mlp"),
        ({"intermediate_size": 10**9}, "intermediate_size"),
        ({"hidden_size": 36, "num_attention_heads": 6}, "num_attention_heads"),
    ],
)
def test_a_wrong_field_is_named(fields: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EomtDinov3Config.from_dict(fields)
