"""The documented model classes give what transformers gives: outputs, losses, files, in the forms the page names."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import m2f_core
from tests.parity.test_model_parity import (
    END_TO_END_TOLERANCE,
    SMALL,
    SMALL_SWIN,
    TOLERANCE,
    image_batch,
    jittered_model,
)

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

EVERYTHING = {"output_hidden_states": True, "output_attentions": True, "output_auxiliary_logits": True}
LIBRARIES = (transformers, m2f_core)

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of transformers with random weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    jittered_model({**SMALL_SWIN, "drop_path_rate": 0.0}, **SMALL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def load(folder: Path) -> Any:
    """load(library, class name): its model of the checkpoint."""
    return functools.cache(lambda library, name: getattr(library, name).from_pretrained(folder))


def assert_outputs_agree(ours: Any, theirs: Any, tolerance: float, what: str = "output") -> int:
    """Types, lengths, names, shapes and values; the number of tensors."""
    if isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor) and ours.shape == theirs.shape and ours.dtype == theirs.dtype, what
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance, msg=lambda text: f"{what}: {text}")
        return 1
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), what
        pairs = [(ours[name], theirs[name], f"{what}.{name}") for name in theirs]
    else:
        assert len(ours) == len(theirs), what
        pairs = [(*pair, f"{what}[{i}]") for i, pair in enumerate(zip(ours, theirs, strict=True))]
    return sum(assert_outputs_agree(*pair[:2], tolerance, pair[2]) for pair in pairs)


@pytest.mark.parametrize("size", [(64, 96), (70, 45)], ids=str)
@pytest.mark.parametrize("name", ["Mask2FormerModel", "Mask2FormerForUniversalSegmentation"])
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["by default", "everything"])
@pytest.mark.parametrize("return_dict", [True, False])
def test_outputs(load: Any, name: str, options: dict, return_dict: bool, size: tuple[int, int]) -> None:
    """By attribute, by name and as a tuple, on two images."""
    options = {**options, "return_dict": return_dict}
    if name == "Mask2FormerModel":
        options.pop("output_auxiliary_logits", None)
    pixel_values = image_batch(*size, batch=2)
    with torch.inference_mode():
        theirs, ours = (load(library, name)(pixel_values, **options) for library in LIBRARIES)
    assert isinstance(ours, tuple) is not return_dict
    assert assert_outputs_agree(ours, theirs, END_TO_END_TOLERANCE) >= 5
    if return_dict:
        assert list(ours) == list(theirs)
        assert_outputs_agree(ours.to_tuple(), theirs.to_tuple(), END_TO_END_TOLERANCE)
        assert ours[0] is ours.to_tuple()[0] and ours[:2] == ours.to_tuple()[:2]


def test_the_configuration_says_what_is_returned(folder: Path) -> None:
    pixel_values = image_batch(64, 64)
    outputs = []
    for library in LIBRARIES:
        model = library.Mask2FormerForUniversalSegmentation.from_pretrained(folder, **EVERYTHING)
        with torch.inference_mode():
            outputs.append(model(pixel_values))
    assert_outputs_agree(outputs[1], outputs[0], END_TO_END_TOLERANCE)
    assert len(outputs[1].attentions) == SMALL["decoder_layers"] - 1


def test_a_pixel_mask_changes_nothing(load: Any) -> None:
    pixel_values = image_batch(64, 64, batch=2)
    mask = torch.zeros(2, 64, 64, dtype=torch.int64)
    mask[:, :40] = 1
    for library in LIBRARIES:
        model = load(library, "Mask2FormerForUniversalSegmentation")
        with torch.inference_mode():
            plain, masked = model(pixel_values), model(pixel_values=pixel_values, pixel_mask=mask)
        assert torch.equal(plain.masks_queries_logits, masked.masks_queries_logits)


def test_gradients_of_hidden_states_can_be_kept(folder: Path) -> None:
    model = m2f_core.Mask2FormerForUniversalSegmentation.from_pretrained(folder).train()
    output = model(image_batch(64, 64), **EVERYTHING)
    kept = [
        output.encoder_hidden_states[0],
        output.pixel_decoder_hidden_states[0],
        output.transformer_decoder_hidden_states[1],
        output.attentions[0],
    ]
    for tensor in kept:
        tensor.retain_grad()
    (output.masks_queries_logits.sum() + sum(attention.sum() for attention in output.attentions)).backward()
    assert all(tensor.grad is not None for tensor in kept)


def labels() -> dict[str, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    masks = [(torch.rand(n, 64, 64, generator=generator) > 0.5).float() for n in (3, 2)]
    return {"mask_labels": masks, "class_labels": [torch.tensor([0, 5, 5]), torch.tensor([7, 1])]}


@pytest.mark.parametrize("return_dict", [True, False])
def test_losses_and_gradients(folder: Path, return_dict: bool) -> None:
    """In training mode, from the same seed. transformers fails if a loss is wanted in a tuple."""
    results = []
    for library in LIBRARIES:
        model = library.Mask2FormerForUniversalSegmentation.from_pretrained(folder).train()
        torch.manual_seed(0)
        output = model(image_batch(64, 64, batch=2), **labels(), return_dict=return_dict or library is transformers)
        loss = output.loss if return_dict or library is transformers else output[0]
        loss.backward()
        class_predictor = model.class_predictor
        results.append((loss.detach(), class_predictor.weight.grad, class_predictor.bias.grad))
    assert_outputs_agree(results[1], results[0], TOLERANCE)


def test_files_go_both_ways(folder: Path, load: Any, tmp_path: Path) -> None:
    load(m2f_core, "Mask2FormerForUniversalSegmentation").save_pretrained(tmp_path)
    pixel_values = image_batch(64, 96)
    outputs = []
    for library in LIBRARIES:
        for source in (folder, tmp_path):
            with torch.inference_mode():
                outputs.append(library.Mask2FormerForUniversalSegmentation.from_pretrained(source)(pixel_values))
    for output in outputs[1:]:
        assert_outputs_agree(output, outputs[0], END_TO_END_TOLERANCE)
    ours, theirs = (library.Mask2FormerConfig.from_pretrained(tmp_path).to_dict() for library in LIBRARIES[::-1])
    assert {name: value for name, value in ours.items() if name in theirs and name != "backbone_config"} == {
        name: [*value]
        if isinstance(value, tuple)
        else {str(k): v for k, v in value.items()}
        if name == "id2label"
        else value
        for name, value in theirs.items()
        if name in ours and name != "backbone_config"
    }


def test_new_classes_need_a_word(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the tutorials load a checkpoint for other classes."""
    names = {0: "cat", 1: "dog", 2: "tree"}
    given = {"id2label": names, "label2id": {name: class_id for class_id, name in names.items()}}
    for library in LIBRARIES:
        with pytest.raises((ValueError, RuntimeError), match="ignore_mismatched_sizes"):
            library.Mask2FormerForUniversalSegmentation.from_pretrained(folder, **given)
        model = library.Mask2FormerForUniversalSegmentation.from_pretrained(
            folder, **given, ignore_mismatched_sizes=True
        )
        assert model.config.id2label == names and model.config.num_labels == 3
        assert model.class_predictor.weight.shape[0] == 4
        with torch.inference_mode():
            output = model(image_batch(64, 64))
        assert output.class_queries_logits.shape[-1] == 4
    assert "class_predictor.weight has shape" in caplog.text


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_labels": 7},
        {"id2label": {"0": "a", "1": "b"}},
        {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}},
        {"hidden_size": 128, "num_hidden_layers": 4},
        {
            "backbone_config": {
                "model_type": "swin",
                "embed_dim": 48,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            }
        },
        {"output_hidden_states": True, "dropout": 0.1, "no_object_weight": 0.2, "class_weight": 1.0},
    ],
    ids=str,
)
def test_configurations(fields: dict[str, Any]) -> None:
    theirs, ours = (library.Mask2FormerConfig(**fields) for library in LIBRARIES)
    for name in (*m2f_core.Mask2FormerConfig().core().__dataclass_fields__, "num_labels", "hidden_size"):
        mine, expected = getattr(ours, name), getattr(theirs, name)
        if name == "backbone_config":
            for field in ("embed_dim", "depths", "num_heads", "window_size", "drop_path_rate"):
                assert list(to_list(getattr(mine, field))) == list(to_list(getattr(expected, field))), field
        else:
            assert to_list(mine) == to_list(expected), name
    ours.num_labels = theirs.num_labels = 5
    assert ours.id2label == theirs.id2label and ours.label2id == theirs.label2id


def to_list(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def test_dropout_in_training(folder: Path) -> None:
    """Both drop in training and not in eval mode. transformers also skips whole layers and then fails, because the next
    layer reads a level of another size; ours skips none.
    """
    spread = []
    for library in LIBRARIES:
        torch.manual_seed(0)
        model = library.Mask2FormerForUniversalSegmentation.from_pretrained(folder, dropout=0.3)
        if library is transformers:
            with pytest.raises(RuntimeError, match=r"shape|size"):
                for _ in range(20):
                    model.train()(image_batch(64, 96))
            model.model.transformer_module.decoder.layerdrop = 0.0
        pixel_values = image_batch(64, 64)
        with torch.no_grad():
            still = [model.eval()(pixel_values).masks_queries_logits for _ in range(2)]
            drawn = torch.stack([model.train()(pixel_values).masks_queries_logits for _ in range(60)])
        assert torch.equal(*still)
        spread.append((drawn.std(0).mean() / still[0].std()).item())
    assert spread[1] == pytest.approx(spread[0], rel=0.1) and spread[0] > 0.1, spread
