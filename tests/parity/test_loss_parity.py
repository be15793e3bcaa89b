"""The loss and its gradients equal transformers', to the last bit at equal seeds and logits.

The arithmetic is the same and so is the order of random draws: nothing is rounded differently, so no tolerance is
needed. (transformers takes masks as float, ours are bool; 0 and 1 are exact in both.) Through the whole model they are
equal up to the rounding of the model.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from m2f_core.checkpoints.checkpoint import load_checkpoint
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.model.mask2former import build_criterion
from tests.parity.test_model_parity import SMALL, SMALL_SWIN, image_batch, jittered_model

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss  # noqa: E402

NUM_CLASSES, NUM_QUERIES, NUM_PREDICTIONS = 8, 20, 4
CASES = {
    "normal": ([3, 5], [(96, 128), (96, 128)]),
    "one empty image": ([3, 0, 4], [(64, 64)] * 3),
    "all images empty": ([0, 0], [(64, 64)] * 2),
    "targets of unequal sizes": ([2, 4, 1], [(96, 128), (50, 190), (130, 20)]),
    "more targets than queries": ([25, 1], [(64, 64)] * 2),
    "a single target": ([1], [(33, 47)]),
}
SETTINGS = {
    "defaults": {},
    "few points": {"train_num_points": 113, "oversample_ratio": 2.5, "importance_sample_ratio": 0.4},
    "only uncertain points": {"train_num_points": 200, "importance_sample_ratio": 1.0},
    "other weights": {"class_weight": 1.0, "mask_weight": 20.0, "dice_weight": 0.5, "no_object_weight": 0.4},
    "no object weighs nothing": {"no_object_weight": 0.0},
}


class Predictions(NamedTuple):
    """Logits of the predictions, from first to last, and the targets."""

    logits: list[dict[str, Tensor]]
    mask_labels: list[Tensor]
    class_labels: list[Tensor]


class Result(NamedTuple):
    losses: dict[str, Tensor]
    total: Tensor
    gradients: list[Tensor]
    state: Tensor  # of the random generator afterwards


def predictions(counts: list[int], sizes_hw: list[tuple[int, int]]) -> Predictions:
    """Blobs for masks, predicted and true: noise would make every point uncertain."""
    generator = torch.Generator().manual_seed(len(counts) + sum(counts))

    def blobs(batch: int, count: int, hw: tuple[int, int]) -> Tensor:
        coarse = 4 * torch.randn(batch, count, 5, 7, generator=generator)
        return F.interpolate(coarse, size=hw, mode="bilinear")

    logits = [
        {
            "class_queries_logits": 2 * torch.randn(len(counts), NUM_QUERIES, NUM_CLASSES + 1, generator=generator),
            "masks_queries_logits": blobs(len(counts), NUM_QUERIES, (24, 32)),
        }
        for _ in range(NUM_PREDICTIONS)
    ]
    masks = [blobs(1, max(n, 1), hw)[0, :n] > 0 for n, hw in zip(counts, sizes_hw, strict=True)]
    classes = [torch.randint(0, NUM_CLASSES, (n,), generator=generator) for n in counts]
    return Predictions(logits, masks, classes)


def their_losses(config: Mask2FormerConfig) -> Callable[..., dict[str, Tensor]]:
    """transformers' loss as its model calls it: weights are applied afterwards, by the terms' names."""
    oracle = transformers.Mask2FormerForUniversalSegmentation(transformers.Mask2FormerConfig(**config.to_dict()))
    assert isinstance(oracle.criterion, Mask2FormerLoss)

    def losses(mask_labels: list[Tensor], **arguments: object) -> dict[str, Tensor]:
        return oracle.get_loss_dict(mask_labels=[masks.float() for masks in mask_labels], **arguments)

    return losses


def evaluate(losses_of: Callable[..., dict[str, Tensor]], given: Predictions) -> Result:
    logits = [{name: x.clone().requires_grad_() for name, x in one.items()} for one in given.logits]
    *earlier, last = logits
    torch.manual_seed(5)
    losses = losses_of(
        **last, auxiliary_predictions=earlier, mask_labels=given.mask_labels, class_labels=given.class_labels
    )
    total = sum(losses.values())
    total.backward()
    return Result(losses, total, [x.grad for one in logits for x in one.values()], torch.get_rng_state())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_losses_and_gradients_are_theirs(case: tuple, settings: dict) -> None:
    config = Mask2FormerConfig.tiny(num_labels=NUM_CLASSES, num_queries=NUM_QUERIES, **settings)
    given = predictions(*case)
    theirs, ours = evaluate(their_losses(config), given), evaluate(build_criterion(config), given)
    assert list(ours.losses) == list(theirs.losses)
    assert len(ours.losses) == 3 * NUM_PREDICTIONS
    if not config.no_object_weight and not any(map(len, given.class_labels)):
        assert theirs.total.isnan(), "0 / 0; once transformers has a number, ours is to be the same"
        assert ours.total == 0 and all((gradient == 0).all() for gradient in ours.gradients)
        return
    for name, expected in theirs.losses.items():
        assert torch.equal(ours.losses[name], expected), name
    assert torch.equal(ours.total, theirs.total)
    assert theirs.total > 1
    for mine, expected in zip(ours.gradients, theirs.gradients, strict=True):
        assert torch.equal(mine, expected)
    assert torch.equal(ours.state, theirs.state), "the same random numbers were drawn"


def test_invalid_logits_are_matched_as_theirs() -> None:
    """A query of NaN or infinity is the last resort of both; everything else stays finite and equal."""
    config = Mask2FormerConfig.tiny(num_labels=NUM_CLASSES, num_queries=NUM_QUERIES, train_num_points=200)
    given = predictions([3, 5], [(64, 64)] * 2)
    for logits in given.logits:
        logits["masks_queries_logits"][:, 2] = float("nan")
        logits["masks_queries_logits"][:, 4] = float("inf")
    theirs, ours = evaluate(their_losses(config), given), evaluate(build_criterion(config), given)
    assert all(torch.equal(ours.losses[name], expected) for name, expected in theirs.losses.items())
    assert ours.total.isfinite()


def test_bfloat16_is_close_to_theirs_in_float32() -> None:
    """transformers computes the loss of bfloat16 logits in bfloat16; ours is that of the same numbers in float32."""
    config = Mask2FormerConfig.tiny(num_labels=NUM_CLASSES, num_queries=NUM_QUERIES)
    given = predictions(*CASES["normal"])
    rounded = [{name: x.bfloat16() for name, x in one.items()} for one in given.logits]
    ours = evaluate(build_criterion(config), given._replace(logits=rounded))
    exact = [{name: x.float() for name, x in one.items()} for one in rounded]
    theirs = evaluate(their_losses(config), given._replace(logits=exact))
    assert torch.equal(ours.total, theirs.total)
    assert all(x.isfinite().all() for x in ours.gradients)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_a_models_loss_and_gradients_agree(tmp_path: Path, training: bool) -> None:
    """Through the whole model. Gradients are compared by name: both sides' are stored as if they were weights."""
    theirs = jittered_model(SMALL_SWIN | {"drop_path_rate": 0.0}, **SMALL, train_num_points=500).train(training)
    theirs.save_pretrained(tmp_path / "weights")
    ours = load_checkpoint(tmp_path / "weights").train(training)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, 4, 3, 4, generator=generator)
    masks = list(F.interpolate(coarse, size=(70, 90), mode="bilinear") > 0)
    masks[1] = masks[1][:0]  # nothing to find in the second image
    classes = [torch.tensor([1, 8, 0, 1]), torch.tensor([], dtype=torch.int64)]

    pixel_values = image_batch(70, 90, batch=2)
    torch.manual_seed(3)
    expected = theirs(pixel_values, [m.float() for m in masks], classes)
    expected.loss.backward()
    torch.manual_seed(3)
    output = ours(pixel_values, masks, classes)
    output.loss.backward()
    print(f"loss {expected.loss.item():.4f}, difference {(output.loss - expected.loss).item():.1e}")
    assert expected.loss > 10
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)
    assert len(output.losses) == 3 * SMALL["decoder_layers"]

    for parameter in theirs.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    theirs.save_pretrained(tmp_path / "gradients")
    their_gradients = dict(load_checkpoint(tmp_path / "gradients").named_parameters())
    errors = {}
    for name, parameter in ours.named_parameters():
        theirs_norm = their_gradients[name].norm().item()
        if theirs_norm < 1e-5:  # the biases of keys, whose gradient would be zero without rounding
            assert "k_proj.bias" in name and parameter.grad.norm() < 1e-5
        else:
            errors[name] = (parameter.grad - their_gradients[name]).norm().item() / theirs_norm
    print(f"gradients: largest relative difference {max(errors.values()):.1e}")
    assert len(errors) > 100
    assert max(errors.values()) < 1e-3, max(errors, key=errors.get)
