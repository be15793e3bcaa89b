"""torch.export: the exported program answers as the model does, bit for bit, for any number of images of its size.

It is made of the same operations in the same order, so no tolerance is needed. Only deformable attention is not: a
program that shall run anywhere holds torch's operations, so the model uses these here too; that the compiled kernel
gives the same up to rounding is shown here for the whole model, and in test_deformable_attention.py.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from m2f_core.config.mask2former import Mask2FormerConfig, ResNetConfig
from m2f_core.config.oneformer import OneFormerConfig
from m2f_core.layers import deformable_attention
from m2f_core.model.contract import SegmentationModel, SegmentationOutput
from tests.support.seeded_model import seeded_model

HEIGHT, WIDTH = 70, 90  # no multiple of the patch, the window or a stride
# Exporting takes seconds a layer: one of each kind is enough.
TINY = replace(Mask2FormerConfig.tiny(), encoder_layers=1, decoder_layers=2)
SMALL_RESNET = ResNetConfig(embedding_size=16, hidden_sizes=(32, 64, 96, 128), depths=(1, 1, 1, 1))
CONFIGS = {
    "swin": TINY,
    "resnet": replace(TINY, backbone_config=SMALL_RESNET),
    "oneformer": replace(OneFormerConfig.tiny(), encoder_layers=1, decoder_layers=2),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def torch_operations_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model computes as its exported program does."""
    monkeypatch.setattr(deformable_attention, "fused_way", lambda *inputs: None)


@pytest.fixture(scope="module", params=["swin", pytest.param("resnet", marks=pytest.mark.thorough), "oneformer"])
def model(request: pytest.FixtureRequest) -> SegmentationModel:
    """One that reads the task is exported for the task that it is asked for."""
    model = seeded_model(CONFIGS[request.param], seed=0).eval()
    model.set_task("instance")
    return model


def random_images(batch: int) -> Tensor:
    return torch.randn(batch, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(batch))


@pytest.fixture(scope="module")
def program(model: SegmentationModel) -> torch.export.ExportedProgram:
    """Of the model as users have it, for any number of images."""
    shapes = {"pixel_values_B3HW": {0: torch.export.Dim("batch")}}
    with torch.no_grad():
        return torch.export.export(model, (random_images(2),), dynamic_shapes=shapes)


def assert_same_answer(program: torch.export.ExportedProgram, model: SegmentationModel, images: Tensor) -> None:
    with torch.no_grad():
        output, expected = program.module()(images), model(images)
    assert type(output) is SegmentationOutput
    assert torch.equal(output.class_queries_logits, expected.class_queries_logits)
    assert torch.equal(output.masks_queries_logits, expected.masks_queries_logits)
    assert output.loss is None and output.encoder_hidden_states is None


@pytest.mark.usefixtures("torch_operations_only")
@pytest.mark.thorough
def test_one_size(model: SegmentationModel, tmp_path: Path) -> None:
    """Also after a round through a file."""
    with torch.no_grad():
        program = torch.export.export(model, (random_images(2),))
    assert_same_answer(program, model, random_images(2))
    with pytest.raises(AssertionError, match="Guard failed"):
        program.module()(random_images(3))
    torch.export.save(program, tmp_path / "model.pt2")
    assert_same_answer(torch.export.load(tmp_path / "model.pt2"), model, random_images(2))


@pytest.mark.usefixtures("torch_operations_only")
def test_any_number_of_images(model: SegmentationModel, program: torch.export.ExportedProgram) -> None:
    for batch in (1, 2, 5):
        assert_same_answer(program, model, random_images(batch))


@pytest.mark.usefixtures("torch_operations_only")
def test_hidden_states_are_exported_where_asked_for() -> None:
    """Tuples and dicts in the output come back as what they were."""
    model = seeded_model(TINY, seed=0).eval()
    asked = {"output_hidden_states": True, "output_auxiliary_logits": True}
    with torch.no_grad():
        output = torch.export.export(model, (random_images(1),), asked).module()(random_images(1), **asked)
        expected = model(random_images(1), **asked)
    for mine, theirs in zip(output.auxiliary_logits, expected.auxiliary_logits, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for name in ("encoder_hidden_states", "pixel_decoder_hidden_states", "transformer_decoder_hidden_states"):
        states = getattr(output, name)
        assert type(states) is tuple
        assert all(torch.equal(*pair) for pair in zip(states, getattr(expected, name), strict=True))


def test_beside_the_kernel(model: SegmentationModel, program: torch.export.ExportedProgram) -> None:
    """The model as users have it, with its kernel: the program differs by rounding only."""
    images = random_images(2)
    with torch.no_grad():
        output, expected = program.module()(images), model(images)
    torch.testing.assert_close(output.class_queries_logits, expected.class_queries_logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(output.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)
