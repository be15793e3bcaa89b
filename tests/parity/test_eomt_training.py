"""An EoMT is trained as by its authors: losses and gradients equal transformers' at equal seeds, masked attention fades
out and learning rates fall towards the first block as in the authors' code.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from m2f_core.checkpoints.checkpoint import load_checkpoint
from m2f_core.config.eomt import EomtConfig
from m2f_core.model.eomt.eomt import build_model
from m2f_core.training.optimization import parameter_groups
from tests.parity.test_eomt_parity import SMALL, jittered, saved
from tests.parity.test_loss_parity import CASES, predictions
from tests.parity.test_model_parity import image_batch

TINY = EomtConfig(**{name: value for name, value in SMALL.items() if name != "num_labels"})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("shares", [[1.0, 1.0], [1.0, 0.6], [0.3, 0.0], [0.0, 0.0]], ids=str)
@pytest.mark.parametrize("case", ["normal", "one empty image"])
def test_losses_and_gradients_are_those_of_transformers(case: str, shares: list[float], tmp_path: Path) -> None:
    """Through the whole model: the same queries lose their masks, and masks are compared at the same points."""
    counts, sizes_hw = CASES[case]
    given = predictions(counts, sizes_hw)
    pixels = image_batch(64, 64, batch=len(counts))
    theirs = jittered(num_labels=8, train_num_points=200)
    ours = load_checkpoint(saved(theirs, tmp_path)).train()
    theirs.train().attn_mask_probs.copy_(torch.tensor(shares))
    ours.mask_shares = shares
    classes = given.class_labels
    torch.manual_seed(3)
    expected = theirs(pixels, mask_labels=[masks.float() for masks in given.mask_labels], class_labels=classes)
    expected.loss.backward()
    state = torch.get_rng_state()
    torch.manual_seed(3)
    output = ours(pixels, mask_labels=given.mask_labels, class_labels=classes)
    output.loss.backward()
    assert torch.equal(torch.get_rng_state(), state), "another number of random draws"
    assert len(output.losses) == 3 * 3, "three predictions"
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-6, atol=1e-6)
    pairs = [
        ("query.weight", ours.queries),
        ("embeddings.patch_embeddings.projection.weight", ours.tokens.patches.weight),
        ("layers.0.mlp.fc1.weight", ours.blocks[0].feedforward.fc1.weight),
        ("layers.4.attention.q_proj.weight", ours.blocks[4].attention.q_proj.weight),
        ("mask_head.fc1.weight", ours.mask_head[0].weight),
        ("class_predictor.bias", ours.class_predictor.bias),
    ]
    of_theirs = dict(theirs.named_parameters())
    for name, parameter in pairs:
        gradient = of_theirs[name].grad
        largest = float(gradient.abs().max())
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=2e-5 * largest, msg=name)


STEPS = 88_692  # twelve times through COCO
# `attn_mask_annealing_start_steps` and `..._end_steps` of configs/dinov2/coco/panoptic in the authors' code.
ANNEALING = {
    "small": ([14782, 36955, 59128], [29564, 51737, 73910]),
    "large": ([14782, 29564, 44346, 59128], [29564, 44346, 59128, 73910]),
    "giant": ([14782, 25869, 36955, 48042, 59128], [29564, 40651, 51737, 62824, 73910]),
}


@pytest.mark.parametrize("size", ANNEALING)
def test_masked_attention_fades_out_as_in_the_authors_trainings(size: str) -> None:
    """`mask_annealing` of training/lightning_module.py, written down again."""
    starts, ends = ANNEALING[size]
    num_blocks = EomtConfig.published(size).num_blocks
    assert len(starts) == num_blocks
    model = build_model(replace(TINY, num_blocks=num_blocks))
    for step in range(0, STEPS + 1, 997):
        model.set_progress(step / STEPS)
        for share, start, end in zip(model.mask_shares, starts, ends, strict=True):
            if step < start:
                expected = 1.0
            elif step >= end:
                expected = 0.0
            else:
                expected = (1.0 - (step - start) / (end - start)) ** 0.9
            assert share == pytest.approx(expected, abs=1e-3), step
        assert model.attn_mask_probs.tolist() == [float(share >= 0.5) for share in model.mask_shares]
    model.set_progress(1.0)
    assert model.mask_shares == [0.0] * num_blocks


def test_learning_rates_fall_towards_the_first_block_as_in_the_authors_code() -> None:
    """`configure_optimizers` of training/lightning_module.py, whose factor from block to block is 0.8."""
    model = build_model(TINY)
    num_blocks = len(model.blocks)
    rates = {
        id(parameter): group["lr"]
        for group in parameter_groups(model, 1e-4, 0.05, 0.8 ** (num_blocks - 1))
        for parameter in group["params"]
    }
    assert rates.keys() == {id(parameter) for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        part, *rest = name.split(".")
        block = int(rest[0]) if part == "blocks" else 0 if part == "tokens" else num_blocks - 1
        assert rates[id(parameter)] == pytest.approx(1e-4 * 0.8 ** (num_blocks - 1 - block)), name
    assert {group["weight_decay"] for group in parameter_groups(model, 1e-4, 0.05, 0.1)} == {0.05}, "all decay"
