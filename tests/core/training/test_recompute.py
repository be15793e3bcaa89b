"""Blocks whose activations are computed again: the same loss and gradients, with less kept for the backward pass."""

import pytest
import torch

from m2f_core.config.backbones import ResNetConfig
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.model.contract import SegmentationModel
from m2f_core.model.mask2former import build_model
from m2f_core.model.maskformer.maskformer import build_model as build_maskformer
from m2f_core.training.recompute import recompute_activations

BACKBONES = {
    "swin": {},
    "resnet": {
        "backbone_config": ResNetConfig(embedding_size=16, hidden_sizes=(32, 64, 128, 256), depths=(1, 2, 1, 1))
    },
}


def model_of(backbone: str) -> SegmentationModel:
    torch.manual_seed(1)
    if backbone == "maskformer":
        return build_maskformer(MaskFormerConfig.tiny(use_auxiliary_loss=True)).train()
    tiny = Mask2FormerConfig.tiny(train_num_points=64, dropout=0.1)
    config = tiny if backbone == "swin" else Mask2FormerConfig(**{**_fields(tiny), **BACKBONES[backbone]})
    return build_model(config).train()


def _fields(config: Mask2FormerConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def step(model: SegmentationModel) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Loss, gradients, and the bytes that were kept between the forward and the backward pass."""
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(2)
    pixels, masks = torch.randn(2, 3, 64, 96), [torch.rand(3, 64, 96) > 0.5, torch.rand(1, 64, 96) > 0.5]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(pixels, mask_labels=masks, class_labels=[torch.tensor([0, 1, 2]), torch.tensor([3])]).loss
    assert loss is not None
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, kept


@pytest.mark.parametrize("backbone", [*BACKBONES, "maskformer"])
def test_loss_and_gradients_are_the_same_and_less_is_kept(backbone: str) -> None:
    """Also with dropout and dropped paths, whose random numbers are drawn twice."""
    plain, recomputed = model_of(backbone), model_of(backbone)
    recompute_activations(recomputed)

    loss, gradients, kept = step(plain)
    loss_again, gradients_again, kept_again = step(recomputed)

    assert torch.equal(loss, loss_again)
    assert gradients.keys() == gradients_again.keys()
    assert all(torch.equal(gradient, gradients_again[name]) for name, gradient in gradients.items())
    # The loss of whole masks keeps much itself.
    assert kept_again < (0.7 if backbone == "maskformer" else 0.5) * kept


def test_inference_and_the_names_of_weights_are_as_before() -> None:
    plain, recomputed = model_of("swin"), model_of("swin")
    recompute_activations(recomputed)

    assert list(plain.state_dict()) == list(recomputed.state_dict())
    with torch.inference_mode():
        one, other = (model.eval()(torch.ones(1, 3, 64, 64)) for model in (plain, recomputed))
    assert torch.equal(one.masks_queries_logits, other.masks_queries_logits)


def test_the_random_numbers_after_a_step_are_the_same() -> None:
    after = []
    for recompute in (False, True):
        model = model_of("swin")
        if recompute:
            recompute_activations(model)
        step(model)
        after.append(torch.rand(4))

    assert torch.equal(*after)
