"""The assignment is the cheapest there is, for whatever number of targets and whatever the logits hold."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from m2f_core.losses.matcher import LossWeights, match_targets, matching_cost, pairwise_cross_entropy, pairwise_dice

WEIGHTS = LossWeights(cross_entropy=2.0, mask=5.0, dice=5.0)
NUM_POINTS = 50


def random_case(seed: int, queries: int, targets: int, classes: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [Q, K+1] and [Q, 6, 7] of one image, masks [N, 11, 9] and classes [N]."""
    generator = torch.Generator().manual_seed(seed)
    return (
        2 * torch.randn(queries, classes + 1, generator=generator),
        4 * torch.randn(queries, 6, 7, generator=generator),
        torch.rand(targets, 11, 9, generator=generator) > 0.5,
        torch.randint(0, classes, (targets,), generator=generator),
    )


def same_points(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """In place of torch.rand: the same at every call."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)).to(device)


def match_one(class_logits: Tensor, mask_logits: Tensor, masks: Tensor, classes: Tensor) -> dict[int, int]:
    """The target of each matched query of one image."""
    (match,) = match_targets(
        class_logits[None], mask_logits[None], [masks], [classes], WEIGHTS, NUM_POINTS, rand=same_points
    )
    assert match.queries.dtype == match.targets.dtype == torch.int64
    assert len(match.queries) == len(match.targets)
    return dict(zip(match.queries.tolist(), match.targets.tolist(), strict=True))


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 5))
def test_no_assignment_is_cheaper(seed: int, queries: int, targets: int) -> None:
    case = random_case(seed, queries, targets)
    target_of = match_one(*case)
    assert len(target_of) == len(set(target_of.values())) == min(queries, targets)
    cost = matching_cost(*case, WEIGHTS, same_points((1, NUM_POINTS, 2), torch.device("cpu"))[0])
    rows, columns = sorted(cost.shape)
    if queries > targets:
        cost, target_of = cost.T, {target: query for query, target in target_of.items()}
    every = [sum(cost[i, j] for i, j in enumerate(chosen)) for chosen in permutations(range(columns), rows)]
    assert sum(cost[i, j] for i, j in target_of.items()) <= min(every) + 1e-5


@given(st.integers(0, 10_000), st.permutations(range(4)))
def test_the_order_of_targets_changes_their_numbers_only(seed: int, order: list[int]) -> None:
    class_logits, mask_logits, masks, classes = random_case(seed, queries=6, targets=4)
    expected = match_one(class_logits, mask_logits, masks, classes)
    permuted = match_one(class_logits, mask_logits, masks[order], classes[order])
    assert {query: order[target] for query, target in permuted.items()} == expected


def test_the_query_that_says_so_gets_the_target() -> None:
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :, :4] = masks[1, :, 4:] = True
    class_logits = torch.zeros(5, 4)
    mask_logits = torch.zeros(5, 8, 8)
    mask_logits[3], mask_logits[1] = 20.0 * masks[0] - 10, 20.0 * masks[1] - 10
    assert match_one(class_logits, mask_logits, masks, torch.tensor([2, 2])) == {3: 0, 1: 1}
    # The same mask twice: now the class decides.
    class_logits[0, 1] = class_logits[4, 2] = 5.0
    both = masks[:1].expand(2, -1, -1)
    mask_logits[:] = mask_logits[3].clone()
    assert match_one(class_logits, mask_logits, both, torch.tensor([2, 1])) == {4: 0, 0: 1}


def test_images_are_matched_one_by_one() -> None:
    cases = [random_case(seed, queries=5, targets=targets) for seed, targets in enumerate([3, 0, 7])]
    class_logits, mask_logits = (torch.stack([case[i] for case in cases]) for i in (0, 1))
    masks, classes = ([case[i] for case in cases] for i in (2, 3))
    together = match_targets(class_logits, mask_logits, masks, classes, WEIGHTS, NUM_POINTS, rand=same_points)
    pairs = [dict(zip(m.queries.tolist(), m.targets.tolist(), strict=True)) for m in together]
    assert pairs == [match_one(*case) for case in cases]
    assert [len(p) for p in pairs] == [3, 0, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_the_last_resort(bad: float) -> None:
    class_logits, mask_logits, masks, classes = random_case(0, queries=4, targets=3)
    mask_logits[2] = bad
    class_logits[2] = bad
    assert sorted(match_one(class_logits, mask_logits, masks, classes)) == [0, 1, 3]
    mask_logits[:] = float("nan")
    assert len(match_one(class_logits, mask_logits, masks, classes)) == 3


@pytest.mark.parametrize("autocast", [False, True])
def test_costs_are_computed_in_float32(autocast: bool) -> None:
    """bfloat16 logits, under autocast or not, are matched as the same numbers in float32."""
    class_logits, mask_logits, masks, classes = random_case(3, queries=12, targets=9)
    rounded = class_logits.bfloat16(), mask_logits.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert match_one(*rounded, masks, classes) == match_one(*(x.float() for x in rounded), masks, classes)


def test_autocast_would_change_the_costs() -> None:
    """The test above can fail: where nothing switches autocast off, costs are others."""
    points = same_points((1, NUM_POINTS, 2), torch.device("cpu"))[0]
    class_logits, mask_logits, masks, classes = random_case(3, queries=12, targets=9)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = matching_cost(class_logits, mask_logits, masks, classes, WEIGHTS, points)
    exact = matching_cost(class_logits, mask_logits, masks, classes, WEIGHTS, points)
    assert (rounded - exact).abs().max() > 0.01


def test_pairwise_costs_are_those_of_each_pair() -> None:
    """Against the definitions, pair by pair, in float64."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 31, generator=generator, dtype=torch.float64)
    wanted = torch.rand(3, 31, generator=generator, dtype=torch.float64)
    entropy, dice = pairwise_cross_entropy(logits, wanted), pairwise_dice(logits, wanted)
    for q, n in [(q, n) for q in range(4) for n in range(3)]:
        on, t = 1 / (1 + torch.exp(-logits[q])), wanted[n]
        torch.testing.assert_close(entropy[q, n], -(t * on.log() + (1 - t) * (1 - on).log()).mean())
        torch.testing.assert_close(dice[q, n], 1 - (2 * (on * t).sum() + 1) / (on.sum() + t.sum() + 1))


def test_a_class_for_each_mask() -> None:
    class_logits, mask_logits, masks, classes = random_case(0, queries=4, targets=3)
    with pytest.raises(AssertionError, match="one class for each target"):
        match_one(class_logits, mask_logits, masks, classes[:1])
    with pytest.raises(ValueError, match="zip"):
        match_targets(class_logits[None], mask_logits[None], [masks], [], WEIGHTS, NUM_POINTS)
