"""Stochastic depth. What the backbone computes without it is shown in tests/parity."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.config.mask2former import Mask2FormerConfig, SwinConfig
from m2f_core.model.backbones import build_backbone
from m2f_core.model.swin import DropPath, SwinBlock, SwinTransformer
from tests.support.seeded_model import seeded_model

SWIN = SwinConfig(embed_dim=8, depths=(1, 2, 3, 1), num_heads=(1, 1, 1, 1), window_size=3)


def block_rates(backbone: SwinTransformer) -> list[float]:
    return [module.drop_path.rate for module in backbone.modules() if isinstance(module, SwinBlock)]


@given(st.floats(0, 0.95), st.integers(0, 2**30))
def test_an_image_is_dropped_or_scaled_whole(rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    branch = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    dropped = DropPath(rate).train()(branch)
    for before, after in zip(branch, dropped, strict=True):
        kept = torch.allclose(after, before / (1 - rate), rtol=1e-12, atol=0)
        assert kept or (rate > 0 and not after.any())


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.8])
def test_the_mean_over_many_draws_is_the_branch(rate: float) -> None:
    torch.manual_seed(0)
    images = 20_000
    dropped = DropPath(rate).train()(torch.ones(images, 1, 1, 1))
    share = (dropped == 0).float().mean().item()
    assert abs(share - rate) < 5 * (rate * (1 - rate) / images) ** 0.5
    assert abs(dropped.mean().item() - 1) < 5 * (rate / (1 - rate) / images) ** 0.5


def test_rates_grow_linearly_over_all_blocks() -> None:
    config = dataclasses.replace(SWIN, drop_path_rate=0.3)
    assert block_rates(build_backbone(config)) == pytest.approx([0.05 * index for index in range(7)])
    one = dataclasses.replace(SWIN, depths=(1, 1, 1, 1), drop_path_rate=0.3)
    assert block_rates(build_backbone(one)) == pytest.approx([0, 0.1, 0.2, 0.3])


def test_it_is_active_in_training_only() -> None:
    config = dataclasses.replace(
        Mask2FormerConfig.tiny(), backbone_config=dataclasses.replace(SWIN, embed_dim=32, drop_path_rate=0.9)
    )
    with_it = seeded_model(config, seed=0).backbone
    without = seeded_model(
        dataclasses.replace(config, backbone_config=dataclasses.replace(config.backbone_config, drop_path_rate=0.0)),
        seed=0,
    ).backbone
    images = torch.randn(2, 3, 40, 52)
    with torch.no_grad():
        expected = without.train()(images)
        assert all(map(torch.equal, with_it.eval()(images), expected))
        assert not torch.equal(with_it.train()(images)[-1], expected[-1])


def test_a_dropped_block_passes_its_input_on() -> None:
    """Both branches, attention and feed-forward, are dropped: as in the original."""
    block = SwinBlock(8, 2, 3, 0, 4.0, True, 1e-5, drop_path_rate=0.5, activation=torch.relu).train()
    x = torch.randn(400, 3, 3, 8)
    with torch.no_grad():
        torch.manual_seed(0)
        unchanged = (block(x, None) == x).flatten(1).all(dim=1).float().mean().item()
    assert abs(unchanged - 0.25) < 5 * (0.25 * 0.75 / 400) ** 0.5
