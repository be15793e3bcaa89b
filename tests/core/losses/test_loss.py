"""What holds for the loss whatever the model is. That it is transformers' to the last bit is shown in tests/parity."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.losses.loss import Criterion, dice, mean_cross_entropy
from m2f_core.losses.matcher import LossWeights
from m2f_core.losses.points import draw_uncertain_points, read_at_own_points, read_at_same_points
from m2f_core.model.mask2former import build_criterion
from tests.support.seeded_model import seeded_model

TERMS = ["loss_mask", "loss_dice", "loss_cross_entropy"]
NUM_CLASSES = 4
SIZE = 16  # of the masks in these tests, predicted and true


def same_points(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """In place of torch.rand: the same points for every mask, at every call, on every worker."""
    points = torch.rand((1, *shape[1:]), generator=torch.Generator().manual_seed(shape[1]))
    return points.expand(shape).to(device)


def cell_centres(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Random points at which reading a mask of SIZE x SIZE takes a single cell."""
    return (torch.randint(0, SIZE, shape, generator=torch.Generator().manual_seed(0)).to(device) + 0.5) / SIZE


def make_criterion(rand=same_points, **fields: object) -> Criterion:
    criterion = Criterion(
        weights=LossWeights(cross_entropy=2.0, mask=5.0, dice=5.0),
        no_object_weight=0.1,
        num_points=200,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        rand=rand,
    )
    return replace(criterion, **fields)


def random_logits(seed: int, batch: int, queries: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, queries, 4, 4, generator=generator)
    masks = 4 * F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear")
    return 2 * torch.randn(batch, queries, NUM_CLASSES + 1, generator=generator), masks


def random_targets(seed: int, counts: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.randn(1, max(n, 1), 3, 3, generator=generator) for n in counts]
    masks = [
        F.interpolate(c, size=(SIZE, SIZE), mode="bilinear")[0, :n] > 0 for c, n in zip(coarse, counts, strict=True)
    ]
    return masks, [torch.randint(0, NUM_CLASSES, (n,), generator=generator) for n in counts]


def perfect_logits(masks: Tensor, classes: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """Queries that say what the targets are, from the last target to the first; the others say "no object"."""
    class_logits = torch.full((1, queries, NUM_CLASSES + 1), -20.0)
    class_logits[..., NUM_CLASSES] = 20.0
    mask_logits = torch.full((1, queries, SIZE, SIZE), -20.0)
    for query, (mask, class_id) in enumerate(zip(masks.flip(0), classes.flip(0), strict=True)):
        class_logits[0, query, NUM_CLASSES], class_logits[0, query, class_id] = -20.0, 20.0
        mask_logits[0, query][mask] = 20.0
    return class_logits, mask_logits


# --- the whole --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(0, 6))
def test_perfect_predictions_cost_nothing(seed: int, num_targets: int) -> None:
    masks, classes = random_targets(seed, [num_targets])
    class_logits, mask_logits = perfect_logits(masks[0], classes[0], queries=7)
    criterion = make_criterion(rand=cell_centres)
    losses = criterion(class_logits, mask_logits, [], masks, classes)
    assert list(losses) == TERMS
    assert all(0 <= loss < 1e-3 for loss in losses.values())
    if num_targets:
        worse = criterion(class_logits, -mask_logits, [], masks, [(classes[0] + 1) % NUM_CLASSES])
        assert sum(worse.values()) > 5


@given(st.integers(0, 10_000), st.permutations(range(5)))
def test_the_order_of_targets_changes_nothing(seed: int, order: list[int]) -> None:
    logits, (masks, classes) = random_logits(seed, batch=2, queries=8), random_targets(seed, [5, 3])
    expected = make_criterion()(*logits, [], masks, classes)
    permuted = make_criterion()(*logits, [], [masks[0][order], masks[1]], [classes[0][order], classes[1]])
    for term in TERMS:
        torch.testing.assert_close(permuted[term], expected[term], rtol=1e-6, atol=1e-6)


@given(st.integers(0, 10_000), st.permutations(range(6)))
def test_the_order_of_queries_changes_nothing(seed: int, order: list[int]) -> None:
    (class_logits, mask_logits), (masks, classes) = random_logits(seed, 1, queries=6), random_targets(seed, [4])
    expected = make_criterion()(class_logits, mask_logits, [], masks, classes)
    permuted = make_criterion()(class_logits[:, order], mask_logits[:, order], [], masks, classes)
    for term in TERMS:
        torch.testing.assert_close(permuted[term], expected[term], rtol=1e-5, atol=1e-5)


def test_every_prediction_is_matched_and_scored_by_itself() -> None:
    masks, classes = random_targets(0, [3, 2])
    predictions = [random_logits(seed, batch=2, queries=6) for seed in range(3)]
    *earlier, last = predictions
    named = [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in earlier]
    losses = make_criterion()(*last, named, masks, classes)
    assert list(losses) == TERMS + [f"{term}_{i}" for i in range(2) for term in TERMS]
    for suffix, logits in [("_0", predictions[0]), ("_1", predictions[1]), ("", predictions[2])]:
        alone = make_criterion()(*logits, [], masks, classes)
        assert all(torch.equal(losses[term + suffix], alone[term]) for term in TERMS)


def test_classes_by_hand() -> None:
    """One query takes the target, two are to say "no object", which counts a tenth."""
    class_logits = torch.tensor([[[3.0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0], [0, 2.0, 0, 0, 0]]])
    mask_logits = torch.full((1, 3, SIZE, SIZE), -9.0)
    mask_logits[0, 0] = 9.0
    losses = make_criterion()(
        class_logits, mask_logits, [], [torch.ones(1, SIZE, SIZE, dtype=torch.bool)], [torch.tensor([0])]
    )
    e = math.e
    found = math.log((e**3 + 4) / e**3)
    missed = math.log((e + 4) / e) + math.log(e**2 + 4)
    assert losses["loss_cross_entropy"].item() == pytest.approx(2 * (found + 0.1 * missed) / 1.2, rel=1e-6)


def test_terms_are_weighted() -> None:
    """With one query and one target, weights cannot change the match."""
    logits, (masks, classes) = random_logits(0, batch=1, queries=1), random_targets(0, [1])
    plain = make_criterion(weights=LossWeights(1.0, 1.0, 1.0))(*logits, [], masks, classes)
    weighted = make_criterion(weights=LossWeights(cross_entropy=3.0, mask=0.5, dice=7.0))(*logits, [], masks, classes)
    for term, factor in {"loss_cross_entropy": 3.0, "loss_mask": 0.5, "loss_dice": 7.0}.items():
        torch.testing.assert_close(weighted[term], factor * plain[term])


@pytest.mark.parametrize("counts", [[0, 0], [0, 3], [9, 1]], ids=str)
def test_few_and_many_targets(counts: list[int]) -> None:
    """None at all, and more than there are queries: finite, and a gradient for every logit that should have one."""
    class_logits, mask_logits = (x.requires_grad_() for x in random_logits(0, batch=2, queries=5))
    losses = make_criterion()(class_logits, mask_logits, [], *random_targets(0, counts))
    sum(losses.values()).backward()
    assert class_logits.grad.isfinite().all() and class_logits.grad.flatten(2).any(-1).all()
    matched = mask_logits.grad.flatten(2).any(-1).sum(-1)
    assert mask_logits.grad.isfinite().all()
    assert matched.tolist() == [min(n, 5) for n in counts]
    if not any(counts):
        assert losses["loss_mask"] == losses["loss_dice"] == 0


@pytest.mark.parametrize("autocast", [False, True])
def test_losses_are_computed_in_float32(autocast: bool) -> None:
    logits = [x.bfloat16() for x in random_logits(0, batch=2, queries=6)]
    named = [dict(zip(["class_queries_logits", "masks_queries_logits"], logits, strict=True))]
    targets = random_targets(0, [3, 0])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = make_criterion()(*logits, named, *targets)
    expected = make_criterion()(*(x.float() for x in logits), [], *targets)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected[name.removesuffix("_0")]), name


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_trains_in_bfloat16(autocast: bool) -> None:
    model = seeded_model(Mask2FormerConfig.tiny(train_num_points=128), seed=0).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(torch.randn(2, 3, 64, 64), *random_targets(0, [3, 0]))
    output.loss.backward()
    assert len(output.losses) == 3 * model.config.decoder_layers
    assert output.loss.isfinite()
    torch.testing.assert_close(output.loss, torch.stack(list(output.losses.values())).sum())
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_without_deep_supervision_the_last_prediction_counts() -> None:
    config = Mask2FormerConfig.tiny(train_num_points=128)
    model = seeded_model(config, seed=0)
    model.config = replace(config, use_auxiliary_loss=False)
    images, targets = torch.randn(1, 3, 64, 64), random_targets(0, [3])
    with torch.no_grad():
        torch.manual_seed(0)
        output = model(images, *targets)
        torch.manual_seed(0)
        expected = build_criterion(config)(output.class_queries_logits, output.masks_queries_logits, [], *targets)
    assert list(output.losses) == TERMS
    assert all(torch.equal(output.losses[term], expected[term]) for term in TERMS)


# --- its parts --------------------------------------------------------------------------------------------------------


def test_masks_are_compared_as_defined() -> None:
    """In float64, mask by mask."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, 40, generator=generator, dtype=torch.float64)
    wanted = torch.rand(3, 40, generator=generator, dtype=torch.float64)
    on = 1 / (1 + torch.exp(-logits))
    entropy = -(wanted * on.log() + (1 - wanted) * (1 - on).log()).mean(1)
    overlap = 1 - (2 * (on * wanted).sum(1) + 1) / (on.sum(1) + wanted.sum(1) + 1)
    num_masks = torch.tensor(2.0)
    torch.testing.assert_close(mean_cross_entropy(logits, wanted, num_masks), entropy.sum() / 2)
    torch.testing.assert_close(dice(logits, wanted, num_masks), overlap.sum() / 2)


def test_points_are_read_between_the_cells_centres() -> None:
    mask = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    points = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.5, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 0.25], [1.0, 0.25]])
    expected = torch.tensor([0.0, 1.0, 0.5, 1.5, 2.0, 0.0, 0.5])
    torch.testing.assert_close(read_at_own_points(mask[None], points[None])[0], expected)
    torch.testing.assert_close(read_at_same_points(mask[None], points)[0], expected)


def test_reading_many_masks_at_the_same_points() -> None:
    masks, points = torch.randn(9, 13, 17), torch.rand(301, 2)
    expected = read_at_own_points(masks, points.expand(9, -1, -1))
    assert torch.equal(read_at_same_points(masks, points), expected)


@pytest.mark.parametrize("ratio", [0.0, 0.75, 1.0])
def test_uncertain_points_are_the_most_undecided_ones(ratio: float) -> None:
    drawn = []

    def rand(shape: tuple[int, ...], device: torch.device) -> Tensor:
        drawn.append(torch.rand(shape, device=device))
        return drawn[-1]

    logits = F.interpolate(torch.randn(1, 5, 4, 4), size=(SIZE, SIZE), mode="bilinear")[0]
    points = draw_uncertain_points(logits, 100, oversample_ratio=3.0, importance_sample_ratio=ratio, rand=rand)
    uncertain = int(100 * ratio)
    assert points.shape == (5, 100, 2)
    assert [tuple(x.shape) for x in drawn] == [(5, 300, 2)] + [(5, 100 - uncertain, 2)] * (ratio < 1)
    candidates = read_at_own_points(logits, drawn[0]).abs().sort(dim=1).values
    chosen = read_at_own_points(logits, points[:, :uncertain]).abs().sort(dim=1).values
    assert torch.equal(chosen, candidates[:, :uncertain])
    if ratio < 1:
        assert torch.equal(points[:, uncertain:], drawn[1])


def test_smaller_masks_are_padded_with_nothing() -> None:
    """A mask with an empty right half is what is left of it without that half, beside one that has both."""
    logits, (masks, classes) = random_logits(0, batch=2, queries=1), random_targets(0, [1, 1])
    masks[0][:, :, SIZE // 2 :] = False
    whole = make_criterion()(*logits, [], masks, classes)
    cut = make_criterion()(*logits, [], [masks[0][:, :, : SIZE // 2], masks[1]], classes)
    assert all(torch.equal(cut[term], whole[term]) for term in TERMS)


# --- several workers --------------------------------------------------------------------------------------------------

COUNTS = [3, 0, 5]  # targets of the three images; worker 0 has the first two, worker 1 the last
FEWER_THAN_WORKERS = [1, 0, 0]
SHARES = [slice(0, 2), slice(2, 3)]


class ToyModel(nn.Module):
    """A feature map per image -> class and mask logits of six queries; every operation is per image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.queries = nn.Parameter(torch.randn(6, 8))
        self.class_head = nn.Linear(8, NUM_CLASSES + 1)

    def forward(self, features_BChw: Tensor) -> tuple[Tensor, Tensor]:
        masks_BQhw = torch.einsum("qc,bchw->bqhw", self.queries, features_BChw)
        return self.class_head(self.queries + features_BChw.mean((2, 3)).unsqueeze(1)), masks_BQhw


def toy_gradients(
    model: nn.Module, share: slice, counts: list[int] = COUNTS
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients after a backward pass over `share` of the three images, and the losses."""
    features = torch.randn(3, 8, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    masks, classes = random_targets(2, counts)
    model.zero_grad()
    class_logits, mask_logits = model(features[share])
    earlier = [{"class_queries_logits": 0.5 * class_logits, "masks_queries_logits": 0.5 * mask_logits}]
    losses = make_criterion()(class_logits, mask_logits, earlier, masks[share], classes[share])
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return gradients, {name: loss.item() for name, loss in losses.items()}


def toy_worker(rank: int, folder: str, counts: list[int]) -> None:
    """Averages gradients as DistributedDataParallel does; that itself aborts now and then as a process ends (gloo)."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    gradients, losses = toy_gradients(ToyModel(), SHARES[rank], counts)
    for gradient in gradients.values():
        torch.distributed.all_reduce(gradient)
        gradient /= 2
    torch.save((gradients, losses), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.thorough
@pytest.mark.parametrize("counts", [COUNTS, FEWER_THAN_WORKERS], ids=str)
def test_workers_gradients_average_to_that_of_the_joined_batch(tmp_path: Path, counts: list[int]) -> None:
    joined, joined_losses = toy_gradients(ToyModel(), slice(0, 3), counts)
    torch.multiprocessing.spawn(toy_worker, args=(str(tmp_path), counts), nprocs=2)
    (first, first_losses), (second, second_losses) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, expected in joined.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected, rtol=1e-5, atol=1e-6)
    for name, expected_loss in joined_losses.items():
        assert (first_losses[name] + second_losses[name]) / 2 == pytest.approx(expected_loss, rel=1e-5)


def test_plain_means_of_the_workers_would_not() -> None:
    """The test above can fail: each worker's own normalisation gives another gradient, also of the class head alone."""
    joined, _ = toy_gradients(ToyModel(), slice(0, 3))
    parts = [toy_gradients(ToyModel(), share)[0] for share in SHARES]
    for name, expected in joined.items():
        mean = (parts[0][name] + parts[1][name]) / 2
        assert (mean - expected).abs().max() > 0.05 * expected.abs().max(), name
