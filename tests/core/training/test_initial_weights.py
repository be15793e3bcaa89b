"""Training starts with the original's initial weights, the same ones for the same seed."""

import math

import pytest
import torch

from m2f_core.config.mask2former import Mask2FormerConfig, ResNetConfig
from m2f_core.training.initial_weights import initial_model, new_class_predictor

CONFIG = Mask2FormerConfig.tiny()


def test_seed_decides_and_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = initial_model(CONFIG, 1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = initial_model(CONFIG, 1).state_dict(), initial_model(CONFIG, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["pixel_decoder.level_embed"], other["pixel_decoder.level_embed"])


def test_deformable_attention_looks_around():
    """Head m's point p lies p + 1 cells away, in the direction 2 pi m / M; weights are equal wherever a token is."""
    attention = initial_model(CONFIG, 0).pixel_decoder.layers[0].attention
    offsets = attention.sampling_offsets.bias.view(attention.num_heads, 3, 4, 2)
    for head in range(attention.num_heads):
        angle = 2 * math.pi * head / attention.num_heads
        longest = max(abs(math.cos(angle)), abs(math.sin(angle)))
        for point in range(4):
            expected = torch.tensor([math.cos(angle), math.sin(angle)]) / longest * (point + 1)
            assert torch.allclose(offsets[head, 0, point], expected, atol=1e-5)
    assert attention.sampling_offsets.weight.abs().max() == 0
    assert attention.attention_weights.weight.abs().max() == 0


def test_swin_is_drawn_with_a_small_spread():
    model = initial_model(Mask2FormerConfig.tiny(), 0)
    weight = model.backbone.stages[3].blocks[0].mlp.fc1.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.backbone.stages[0].blocks[0].attention.qkv.bias.abs().max() == 0


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
def test_a_resnet_starts_too(layer_type):
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=(32, 64, 96, 128), depths=(1, 1, 1, 2), layer_type=layer_type
    )
    model = initial_model(Mask2FormerConfig(backbone_config=backbone, decoder_layers=2, encoder_layers=1), 0)
    assert model(torch.zeros(1, 3, 64, 64)).class_queries_logits.isfinite().all()


def test_new_class_predictor_replaces_only_the_head():
    model = initial_model(CONFIG, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    new_class_predictor(model, 3, seed=7)
    assert model.class_predictor.weight.shape == (4, CONFIG.hidden_dim)
    for name, value in model.state_dict().items():
        assert name.startswith("class_predictor.") or torch.equal(value, before[name])
