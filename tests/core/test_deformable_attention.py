"""Both ways to compute deformable attention against plain loops written from the definition."""

import math

import pytest
import torch
from torch import Tensor

from m2f_core.deformable_attention import (
    DeformableAttention,
    TokenPlaces,
    attend_by_embedding_bag,
    attend_by_grid_sample,
)

WAYS = [attend_by_grid_sample, attend_by_embedding_bag]
CASES = {  # batch, queries, heads, dim, points, sizes of the levels
    "one level, one cell": (1, 3, 1, 4, 1, [(1, 1)]),
    "odd sizes": (2, 5, 2, 3, 4, [(3, 5), (7, 1), (2, 9)]),
    "many heads": (1, 7, 4, 8, 2, [(4, 4), (8, 6)]),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def attend_by_loops(value: Tensor, level_hw: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Float64 and one number at a time; outside of a map there are zeros."""
    batch, _, heads, dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    out = torch.zeros(batch, queries, heads, dim, dtype=torch.float64)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                start = 0
                for level, (height, width) in enumerate(level_hw):
                    for p in range(points):
                        x = locations[b, q, m, level, p, 0].item() * width - 0.5
                        y = locations[b, q, m, level, p, 1].item() * height - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                                    cell = value[b, start + row * width + column, m].double()
                                    out[b, q, m] += weights[b, q, m, level, p].item() * share * cell
                    start += height * width
    return out.flatten(2).float()


def random_inputs(case: str) -> tuple[Tensor, list[tuple[int, int]], Tensor, Tensor]:
    """Locations reach half a map beyond every edge; some lie exactly on centres, on edges and in corners."""
    batch, queries, heads, dim, points, level_hw = CASES[case]
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(batch, sum(h * w for h, w in level_hw), heads, dim, generator=generator)
    locations = torch.rand(batch, queries, heads, len(level_hw), points, 2, generator=generator) * 2 - 0.5
    locations[:, 0] = 0.0
    locations[:, 1] = 1.0
    locations[:, 2] = 0.5
    weights = torch.randn(batch, queries, heads, len(level_hw), points, generator=generator)
    return value, level_hw, locations, weights


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("attend", WAYS)
def test_equals_loops(attend, case: str) -> None:
    inputs = random_inputs(case)
    torch.testing.assert_close(attend(*inputs), attend_by_loops(*inputs), rtol=0, atol=5e-6)


@pytest.mark.parametrize("attend", WAYS)
def test_points_far_outside_read_nothing(attend) -> None:
    value, level_hw, locations, weights = random_inputs("odd sizes")
    for far in (-1e9, -3.0, 4.0, 1e9):
        assert torch.equal(
            attend(value, level_hw, torch.full_like(locations, far), weights).abs().max(), torch.tensor(0.0)
        )


def test_not_a_number_stays_where_it_is() -> None:
    """A broken activation must show in the result, and must not read outside of the table."""
    value, level_hw, locations, weights = random_inputs("odd sizes")
    locations[0, 3, 0] = float("nan")
    out = attend_by_embedding_bag(value, level_hw, locations, weights)
    broken = out.isnan().any(dim=-1)
    assert broken[0, 3]
    assert broken.sum() == 1


def test_both_ways_have_the_same_gradients() -> None:
    gradients = []
    for attend in WAYS:
        value, level_hw, locations, weights = random_inputs("odd sizes")
        locations[:, :3] += 0.0137  # off the kinks, where the gradient is not defined
        tensors = [t.double().requires_grad_() for t in (value, locations, weights)]
        attend(tensors[0], level_hw, tensors[1], tensors[2]).square().sum().backward()
        gradients.append([t.grad for t in tensors])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


def test_locations_and_weights_are_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(dim=16, num_heads=2, num_levels=1, num_points=3).eval()
    places = TokenPlaces([(4, 5)], torch.randn(1, 20, 16), torch.rand(20, 2), torch.tensor([[1 / 5, 1 / 4]]))
    seen: list[Tensor] = []

    def spy(value: Tensor, level_hw: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
        seen.extend((locations, weights))
        return attend_by_embedding_bag(value, level_hw, locations, weights)

    monkeypatch.setattr("m2f_core.deformable_attention.attend_by_embedding_bag", spy)
    x = torch.randn(1, 20, 16)
    with torch.no_grad():
        attention(x, places)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = attention(x, places)
    locations, weights, locations_autocast, weights_autocast = seen
    assert out.dtype == torch.bfloat16
    assert locations_autocast.dtype == weights_autocast.dtype == torch.float32
    assert torch.equal(locations_autocast, locations)
    assert torch.equal(weights_autocast, weights)


def test_training_and_inference_agree() -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(dim=16, num_heads=2, num_levels=1, num_points=3)
    places = TokenPlaces([(4, 5)], torch.randn(1, 20, 16), torch.rand(20, 2), torch.tensor([[1 / 5, 1 / 4]]))
    x = torch.randn(2, 20, 16)
    torch.testing.assert_close(attention.train()(x, places), attention.eval()(x, places), rtol=0, atol=1e-5)
