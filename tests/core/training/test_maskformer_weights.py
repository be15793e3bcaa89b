"""A MaskFormer's training starts with the original's initial weights, the same ones for the same seed."""

import pytest
import torch
from torch import nn

from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.training.maskformer_weights import initial_maskformer

CONFIG = MaskFormerConfig.tiny()


def test_seed_decides_and_the_global_random_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = initial_maskformer(CONFIG, 1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = initial_maskformer(CONFIG, 1).state_dict(), initial_maskformer(CONFIG, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "transformer_decoder.query_positions"
    assert not torch.equal(first[name], other[name])


def test_attention_starts_as_one_matrix_of_queries_keys_and_values():
    """The largest weight is near Xavier's bound for [3 D, D], and biases are zero, as in PyTorch's own attention."""
    dim = CONFIG.decoder_config.d_model
    theirs = nn.MultiheadAttention(dim, 4)
    nn.init.xavier_uniform_(theirs.in_proj_weight)
    for layer in initial_maskformer(CONFIG, 0).transformer_decoder.layers:
        for attention in (layer.self_attention, layer.cross_attention):
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                assert linear.weight.abs().max().item() == pytest.approx(
                    theirs.in_proj_weight.abs().max().item(), rel=0.01
                )
                assert not linear.bias.any()
            assert not attention.out_proj.bias.any()
            assert attention.out_proj.weight.abs().max().item() == pytest.approx((6 / (2 * dim)) ** 0.5, rel=0.01)


def test_the_pyramid_starts_with_caffe2s_xavier():
    decoder = initial_maskformer(CONFIG, 0).pixel_decoder
    bound = (3 / (CONFIG.fpn_feature_size * 9)) ** 0.5
    for conv in (decoder.steps[2].output.conv, decoder.mask_projection):
        assert conv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert not decoder.mask_projection.bias.any()
