"""MaskFormer's network, files and loss equal transformers'; see test_model_parity.py for the weights."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m2f_core.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from m2f_core.config.maskformer import MaskFormerConfig
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.model.for_inference import prepare_for_inference
from m2f_core.model.maskformer.maskformer import MaskFormer, build_criterion
from tests.parity.test_loss_parity import CASES, NUM_CLASSES, evaluate, predictions
from tests.parity.test_model_parity import (
    END_TO_END_TOLERANCE,
    SIZES,
    SMALL_SWIN,
    STAGES,
    SWIN,
    TOLERANCE,
    assert_close,
    image_batch,
    jitter,
)
from tests.support.detectron2_pickles import write_pickle
from tests.support.maskformer_pickles import original_names

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

from transformers.models.maskformer.image_processing_pil_maskformer import MaskFormerImageProcessorPil  # noqa: E402

RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64, 64, 128], "depths": [1, 2, 2, 1]}
SMALL_DECODER = {"d_model": 64, "decoder_attention_heads": 2, "decoder_ffn_dim": 96, "num_queries": 11}
SMALL = {"fpn_feature_size": 64, "mask_feature_size": 48, "num_labels": 9}
MODELS = {
    "swin tiny": (transformers.MaskFormerSwinConfig(**SWIN["swin_tiny"], out_features=STAGES), {}, {"num_labels": 133}),
    "small swin": (transformers.MaskFormerSwinConfig(**SMALL_SWIN, out_features=STAGES), SMALL_DECODER, SMALL),
    "small resnet": (transformers.ResNetConfig(**RESNET, out_features=STAGES), SMALL_DECODER, SMALL),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


def theirs_of(backbone: transformers.PreTrainedConfig, decoder: dict, fields: dict) -> nn.Module:
    decoder_config = transformers.DetrConfig(**decoder, use_timm_backbone=False)
    config = transformers.MaskFormerConfig(backbone_config=backbone, decoder_config=decoder_config, **fields)
    torch.manual_seed(0)
    with torch.no_grad():
        return jitter(transformers.MaskFormerForInstanceSegmentation(config).eval())


def loaded(theirs: nn.Module, folder: Path) -> MaskFormer:
    theirs.save_pretrained(folder)
    model = load_checkpoint(folder)
    assert isinstance(model, MaskFormer)
    return model


def watch(theirs: nn.Module, pixel_values: Tensor) -> tuple[object, dict[str, list]]:
    """Their output, and what each of their modules got and gave."""
    calls = defaultdict(list)
    parts = theirs.model
    watched = {
        "backbone": [parts.pixel_level_module.encoder],
        "step": parts.pixel_level_module.decoder.fpn.layers,
        "pixel_decoder": [parts.pixel_level_module.decoder],
        "layer": parts.transformer_module.decoder.layers,
        "decoder": [parts.transformer_module],
        "mask_embedder": [theirs.mask_embedder],
    }
    hooks = [
        module.register_forward_hook(
            lambda _, args, kwargs, output, name=name: calls[name].append((args, kwargs, output)), with_kwargs=True
        )
        for name, modules in watched.items()
        for module in modules
    ]
    output = theirs(pixel_values)
    for hook in hooks:
        hook.remove()
    return output, calls


@pytest.mark.parametrize("name", MODELS)
def test_modules_and_model_agree(name: str, tmp_path: Path) -> None:
    theirs = theirs_of(*MODELS[name])
    ours = loaded(theirs, tmp_path)
    decoder = ours.transformer_decoder
    with torch.inference_mode():
        for size in SIZES:
            pixel_values = image_batch(*size, batch=2 if size == SIZES[0] else 1)
            expected, calls = watch(theirs, pixel_values)
            [(_, _, output)] = calls["backbone"]
            for stage, (mine, their) in enumerate(zip(ours.backbone(pixel_values), output.feature_maps, strict=True)):
                assert_close(mine, their, TOLERANCE, f"backbone stage {stage}")
            for step, ((coarse, left), _, their) in zip(ours.pixel_decoder.steps, calls["step"], strict=True):
                assert_close(step(coarse, left), their, TOLERANCE, "step of the pyramid")
            [((features, *_), _, output)] = calls["pixel_decoder"]
            mask_features = ours.pixel_decoder.mask_projection(ours.pixel_decoder(features))
            assert_close(mask_features, output.last_hidden_state, TOLERANCE, "mask features")
            for layer, ((x, _, positions, queries, memory), _, their) in zip(
                decoder.layers, calls["layer"], strict=True
            ):
                assert_close(layer(x, queries[:1], memory + positions, memory), their, TOLERANCE, "decoder layer")
            [((coarsest, *_), _, output)] = calls["decoder"]
            assert_close(decoder(coarsest)[-1], output.last_hidden_state, TOLERANCE, "decoder")
            [((queries,), _, their)] = calls["mask_embedder"]
            assert_close(decoder.mask_embedder(queries), their, TOLERANCE, "mask embedder")

            mine = ours(pixel_values, output_queries=True)
            assert_close(mine.queries, output.last_hidden_state, TOLERANCE, "queries")
            assert_close(mine.class_queries_logits, expected.class_queries_logits, END_TO_END_TOLERANCE, "classes")
            assert_close(mine.masks_queries_logits, expected.masks_queries_logits, END_TO_END_TOLERANCE, "masks")
        prepare_for_inference(ours, torch.device("cpu"), "fp32")
        mine = ours(pixel_values)
        assert_close(mine.class_queries_logits, expected.class_queries_logits, END_TO_END_TOLERANCE, "classes")
        assert_close(mine.masks_queries_logits, expected.masks_queries_logits, END_TO_END_TOLERANCE, "masks")


@pytest.mark.parametrize(
    ("decoder", "fields"),
    [
        ({"d_model": 128}, {}),  # as wide as the ResNet's last map: no projection
        ({"activation_function": "gelu"}, {}),
        ({"decoder_layers": 1}, {"mask_feature_size": 8}),
        ({}, {"use_auxiliary_loss": True, "output_hidden_states": True}),
    ],
    ids=str,
)
def test_rare_fields_agree(decoder: dict, fields: dict, tmp_path: Path) -> None:
    backbone = transformers.ResNetConfig(**RESNET, out_features=STAGES)
    theirs = theirs_of(backbone, SMALL_DECODER | decoder, SMALL | fields)
    ours = loaded(theirs, tmp_path / "theirs")
    save_checkpoint(ours, tmp_path / "ours")
    again = transformers.MaskFormerForInstanceSegmentation.from_pretrained(tmp_path / "ours").eval()
    with torch.inference_mode():
        pixel_values = image_batch(70, 90)
        mine, expected = ours(pixel_values), theirs(pixel_values)
        assert torch.equal(again(pixel_values).masks_queries_logits, expected.masks_queries_logits)
    assert_close(mine.class_queries_logits, expected.class_queries_logits, END_TO_END_TOLERANCE, "classes")
    assert_close(mine.masks_queries_logits, expected.masks_queries_logits, END_TO_END_TOLERANCE, "masks")


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_every_file_is_the_same_model(backbone: str, tmp_path: Path) -> None:
    """transformers' folder, its names in memory, what we save of it, and the authors' pickle, also an older one."""
    theirs = theirs_of(*MODELS[f"small {backbone}"])
    ours = loaded(theirs, tmp_path / "hub")
    in_memory = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    assert not any(".out_proj." in name for name in in_memory)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "config.json").write_bytes((tmp_path / "hub" / "config.json").read_bytes())
    save_file(in_memory, tmp_path / "memory" / "model.safetensors")
    save_checkpoint(ours, tmp_path / "ours")
    again, info = transformers.MaskFormerForInstanceSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    # Constants, and a norm that nothing reads
    assert all("criterion" in key or "model.layernorm" in key or "index" in key for key in info["missing_keys"])
    hub = load_file(tmp_path / "hub" / "model.safetensors")
    pickles = [
        write_pickle(tmp_path / f"model_final_{old:06}.pkl", original_names(hub, old_head=bool(old))) for old in (0, 1)
    ]
    with torch.inference_mode():
        pixel_values = image_batch(*SIZES[0])
        expected = ours(pixel_values)
        assert torch.equal(again.eval()(pixel_values).masks_queries_logits, theirs(pixel_values).masks_queries_logits)
        for path in (tmp_path / "memory", tmp_path / "ours", *pickles):
            checkpoint = Checkpoint(path)
            checkpoint.check()
            assert checkpoint.family.name == "MaskFormer"
            mine = checkpoint.load()(pixel_values)
            assert torch.equal(mine.class_queries_logits, expected.class_queries_logits)
            assert torch.equal(mine.masks_queries_logits, expected.masks_queries_logits)


def test_an_image_of_a_batch_is_the_image_alone(tmp_path: Path) -> None:
    """Images of one padded size; transformers' `pixel_mask` changes nothing, so padding is read like black pixels."""
    theirs = theirs_of(*MODELS["small swin"])
    ours = loaded(theirs, tmp_path)
    pixels, mask = image_batch(64, 96, batch=3), torch.ones(3, 64, 96, dtype=torch.int64)
    mask[1, 40:] = 0
    with torch.inference_mode():
        plain, masked, batch = theirs(pixels), theirs(pixels, pixel_mask=mask), ours(pixels)
        assert torch.equal(masked.masks_queries_logits, plain.masks_queries_logits)
        assert torch.equal(masked.class_queries_logits, plain.class_queries_logits)
        for place in range(3):
            alone = ours(pixels[place : place + 1])
            for name in ("class_queries_logits", "masks_queries_logits"):
                assert_close(getattr(alone, name)[0], getattr(batch, name)[place], 5 * TOLERANCE, name)


@pytest.mark.parametrize(
    "given",
    [
        {"size": 64, "max_size": 100},  # of the hub's files
        {"size": {"shortest_edge": 64, "longest_edge": 100}, "do_reduce_labels": True},
        {"size": 64, "max_size": 100, "size_divisor": 64, "ignore_index": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("hw", [(48, 64), (201, 333), (333, 200), (10, 400)], ids=str)
def test_pixels_are_those_of_its_processor(given: dict, hw: tuple[int, int]) -> None:
    """In mode hf to the last bit, whichever form of `preprocessor_config.json` says the size."""
    image = Image.fromarray(np.random.default_rng(hw[0]).integers(0, 256, (*hw, 3), dtype=np.uint8))
    expected = MaskFormerImageProcessorPil(**given)(images=[image], return_tensors="np")["pixel_values"][0]
    processor = ImageProcessor.from_preprocessor_config(given, "hf")
    geometry = processor.geometry(*hw)
    found = processor.to_batch([processor.resize(image)], geometry.padded_hw)[0]
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    "variant", ["swin_tiny", "swin_small", "swin_base", "swin_large", "resnet50", "resnet101", "tiny"]
)
def test_named_variants_are_theirs(variant: str) -> None:
    """transformers reads our config.json and writes one from which we read the same model."""
    ours = getattr(MaskFormerConfig, variant)(num_labels=150)
    theirs = transformers.MaskFormerConfig(**ours.to_dict())
    assert MaskFormerConfig.from_dict(theirs.to_dict()) == ours


def test_missing_fields_have_their_defaults() -> None:
    assert MaskFormerConfig.from_dict({"model_type": "maskformer"}) == MaskFormerConfig.from_dict(
        transformers.MaskFormerConfig().to_dict()
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"cross_entropy_weight": 2.0, "mask_weight": 5.0, "dice_weight": 0.5, "no_object_weight": 0.4}],
    ids=["defaults", "other weights"],
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_losses_and_gradients_are_theirs(case: tuple, settings: dict) -> None:
    """Up to the order of sums, at equal logits."""
    config = MaskFormerConfig.tiny(num_labels=NUM_CLASSES, **settings)
    oracle = transformers.MaskFormerForInstanceSegmentation(transformers.MaskFormerConfig(**config.to_dict()))

    def their_losses(mask_labels: list[Tensor], auxiliary_predictions: list, **arguments: object) -> dict[str, Tensor]:
        masks = [of_image.float() for of_image in mask_labels]
        return oracle.get_loss_dict(mask_labels=masks, auxiliary_logits=auxiliary_predictions, **arguments)

    given = predictions(*case)
    theirs, ours = evaluate(their_losses, given), evaluate(build_criterion(config), given)
    assert list(ours.losses) == list(theirs.losses)
    for name, loss in theirs.losses.items():
        torch.testing.assert_close(ours.losses[name], loss, rtol=1e-6, atol=1e-6, msg=name)
    for mine, gradient in zip(ours.gradients, theirs.gradients, strict=True):
        torch.testing.assert_close(mine, gradient, rtol=1e-5, atol=1e-6)
