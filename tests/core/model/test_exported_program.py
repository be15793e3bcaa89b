"""The network of each family as a program: what another process reads back answers as the model does.

`test_export.py` shows for the whole output that a program has the bits of the model; here the pair of logits leaves
this package.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2f_core.config.mask2former import Mask2FormerConfig, ResNetConfig
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.config.oneformer import OneFormerConfig
from m2f_core.layers.deformable_attention import DeformableAttention
from m2f_core.model.contract import SegmentationModel
from m2f_core.model.exported_program import export_program
from tests.support.seeded_eomt import SIDE, seeded_eomt, tiny_config
from tests.support.seeded_model import seeded_model

SIZE_HW = (64, 96)
SMALL_RESNET = ResNetConfig(embedding_size=16, hidden_sizes=(32, 64, 96, 128), depths=(1, 1, 1, 1))
SHORT = {"encoder_layers": 1, "decoder_layers": 2}

# In a process that knows torch alone.
READ_BACK = """
import sys, torch
program = torch.export.load("model.pt2").module()
torch.save([program(images) for images in torch.load("images.pt")], "logits.pt")
assert not [name for name in sys.modules if name.startswith(("m2f_core", "pipeline"))]
"""


def masking_eomt() -> SegmentationModel:
    """One whose last block masks attention, as after a training that did not turn the masks off."""
    model = seeded_eomt(tiny_config(), seed=1)
    state = model.state_dict()
    state["attn_mask_probs"] = torch.tensor([0.0, 1.0])
    model.load_state_dict(state)
    assert model.mask_shares == [0.0, 1.0]
    return model


MODELS = {
    "mask2former": lambda: seeded_model(replace(Mask2FormerConfig.tiny(), **SHORT, backbone_config=SMALL_RESNET), 0),
    "maskformer": lambda: seeded_model(replace(MaskFormerConfig.tiny(), backbone_config=SMALL_RESNET), 0),
    "oneformer": lambda: seeded_model(replace(OneFormerConfig.tiny(), **SHORT, backbone_config=SMALL_RESNET), 0),
    "eomt": lambda: seeded_eomt(tiny_config(), 0),
    "eomt that masks": masking_eomt,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def thorough(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.thorough)


def size_hw(model: SegmentationModel) -> tuple[int, int]:
    side = getattr(model.config, "image_size", None)
    return SIZE_HW if side is None else (side, side)


def random_images(number: int, hw: tuple[int, int]) -> Tensor:
    return torch.randn(number, 3, *hw, generator=torch.Generator().manual_seed(number))


def assert_close(logits: tuple[Tensor, Tensor], model: SegmentationModel, images: Tensor) -> None:
    with torch.no_grad():
        expected = model(images)
    for mine, theirs in zip(logits, (expected.class_queries_logits, expected.masks_queries_logits), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    "name",
    # The dynamic batches of the others are in test_export.py.
    [thorough("mask2former"), "maskformer", thorough("oneformer"), thorough("eomt"), "eomt that masks"],
)
def test_any_number_of_images(name: str) -> None:
    model = MODELS[name]()
    program = export_program(model, size_hw(model)).module()
    for number in (1, 3):
        images = random_images(number, size_hw(model))
        assert_close(program(images), model, images)


@pytest.mark.parametrize("name", [thorough("mask2former"), thorough("maskformer"), thorough("oneformer"), "eomt"])
def test_a_process_without_this_package_reads_the_program(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    batches = [random_images(number, size_hw(model)) for number in (1, 3)]
    torch.export.save(export_program(model, size_hw(model)), tmp_path / "model.pt2")
    torch.save(batches, tmp_path / "images.pt")
    subprocess.run([sys.executable, "-P", "-c", READ_BACK], cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}, check=True)
    for images, logits in zip(batches, torch.load(tmp_path / "logits.pt"), strict=True):
        assert_close(logits, model, images)


@pytest.mark.thorough
def test_deformable_attention_by_grid_sample() -> None:
    """An operator that other formats have; the model itself stays as it was."""
    model = MODELS["mask2former"]()
    program = export_program(model, SIZE_HW, by_grid_sample=True)
    parts = [part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    operators = {str(node.target) for part in parts for node in part.graph.nodes if node.op == "call_function"}
    assert "aten.grid_sampler.default" in operators and not any("embedding_bag" in name for name in operators)
    assert not any(layer.training for layer in model.modules() if isinstance(layer, DeformableAttention))
    images = random_images(3, SIZE_HW)
    assert_close(program.module()(images), model, images)


def test_another_size_than_the_model_takes_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"\(32, 96\) pixels, but the model takes {SIDE}"):
        export_program(MODELS["eomt"](), (32, 96))
