"""The network equals transformers' Mask2Former, module by module and from end to end.

The weights are random, of the real sizes of Swin-T and Swin-B, and every parameter is jittered: as initialised, the
offsets, biases and relative-position tables are zero and half of the code could be wrong unseen. Each module is fed
what transformers' own module was fed, so a difference cannot grow from one to the next. Activations are of order one
(the largest is about 8), so the bounds are absolute.

From end to end the bound is wider: where a mask logit is within rounding of zero, one cell more or less is attended to,
which moves the logits by about 1e-3.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import functools
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m2f_core.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.model.for_inference import prepare_for_inference
from m2f_core.model.mask2former import Mask2Former, build_model

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

TOLERANCE = 1e-5
END_TO_END_TOLERANCE = 5e-3
SWIN = {
    "swin_tiny": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7},
    "swin_base": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12},
}
# Of the output's hidden states
PARTS = {"encoder": TOLERANCE, "pixel_decoder": TOLERANCE, "transformer_decoder": END_TO_END_TOLERANCE}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SIZES = [(64, 96), (100, 140), (161, 203)]  # the last two are not multiples of the patch, window or stride
USUAL_SIZES = [SIZES[0], pytest.param(SIZES[1], marks=pytest.mark.thorough), SIZES[2]]


class Oracle:
    """transformers' model, ours with its weights, and a record of what each of its modules got and gave."""

    def __init__(self, theirs: nn.Module, folder: Path, prepared: bool = False) -> None:
        """`prepared`: ours as the job runs it."""
        self.theirs = theirs
        if not any(folder.iterdir()):
            self.theirs.save_pretrained(folder)
        self.ours = load_checkpoint(folder)
        if prepared:
            prepare_for_inference(self.ours, torch.device("cpu"), "fp32")
        self.folder = folder

    def run(self, pixel_values: Tensor) -> tuple[object, dict[str, list[tuple[tuple, dict, object]]]]:
        calls = defaultdict(list)
        parts = self.theirs.model
        watched = {
            "backbone": [parts.pixel_level_module.encoder],
            "pixel_decoder": [parts.pixel_level_module.decoder],
            "encoder_layer": parts.pixel_level_module.decoder.encoder.layers,
            "decoder_layer": parts.transformer_module.decoder.layers,
            "mask_predictor": [parts.transformer_module.decoder.mask_predictor],
            "class_predictor": [self.theirs.class_predictor],
        }
        hooks = [
            module.register_forward_hook(
                lambda _, args, kwargs, output, name=name: calls[name].append((args, kwargs, output)),
                with_kwargs=True,
            )
            for name, modules in watched.items()
            for module in modules
        ]
        output = self.theirs(pixel_values, output_auxiliary_logits=True)
        for hook in hooks:
            hook.remove()
        return output, calls


def jittered_model(swin: dict, **fields: object) -> nn.Module:
    """A transformers model whose every parameter differs from its initial value, with activations of order one."""
    return jittered(transformers.SwinConfig(**swin, out_features=STAGES), **fields)


def jittered(backbone: transformers.PreTrainedConfig, **fields: object) -> nn.Module:
    """The same with any backbone; where it has batch norms, their statistics are those of a photograph, jittered."""
    config = transformers.Mask2FormerConfig(backbone_config=backbone, **{"num_labels": 133, **fields})
    torch.manual_seed(0)
    return jitter(transformers.Mask2FormerForUniversalSegmentation(config).eval())


def jitter(model: nn.Module) -> nn.Module:
    """Move every parameter, and every statistic of a batch norm in the backbone, in place."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.1 if parameter.dim() < 2 else 0.5 * parameter[0].numel() ** -0.5
            parameter += scale * torch.randn(parameter.shape, generator=generator)
        encoder = model.model.pixel_level_module.encoder.train()
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all calls, of which there is one
        encoder(image_batch(64, 64, batch=2))
        for name, buffer in encoder.eval().named_buffers():
            if "running" in name:
                buffer *= 1 + 0.1 * torch.randn(buffer.shape, generator=generator).clamp(-3, 3)
    return model


def image_batch(height: int, width: int, batch: int = 1) -> Tensor:
    """Smooth and rough at once, as photographs are; of order one."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.randn(batch, 3, 5, 7, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return smooth + 0.3 * torch.randn(batch, 3, height, width, generator=generator)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    assert ours.shape == theirs.shape, what
    assert theirs.abs().max() > 0.1, f"{what}: nothing to compare"
    error = (ours - theirs).abs().max().item()
    print(f"{what}: max abs difference {error:.1e}, largest activation {theirs.abs().max():.1f}")
    assert error <= tolerance, what


@pytest.fixture(scope="module", autouse=True)
def one_thread_no_grad():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[nn.Module, Path]]:
    """Each size once, because a Swin-B takes seconds, with the folder in which it is or will be saved."""
    return functools.cache(lambda swin: (jittered_model(SWIN[swin]), tmp_path_factory.mktemp(swin)))


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(("swin_tiny", prepared), id=f"swin_tiny {prepared}") for prepared in (False, True)),
        *(
            pytest.param(("swin_base", prepared), id=f"swin_base {prepared}", marks=pytest.mark.thorough)
            for prepared in (False, True)
        ),
    ],
)
def oracle(request: pytest.FixtureRequest, models: Callable[[str], tuple[nn.Module, Path]]) -> Oracle:
    swin, prepared = request.param
    return Oracle(*models(swin), prepared)


@pytest.mark.parametrize("size", USUAL_SIZES, ids=str)
def test_modules_and_model_agree(oracle: Oracle, size: tuple[int, int]) -> None:
    pixel_values = image_batch(*size, batch=2 if size == SIZES[0] else 1)
    theirs, calls = oracle.run(pixel_values)
    check_backbone(oracle.ours, pixel_values, calls)
    check_pixel_decoder(oracle.ours, calls)
    check_decoder_layers(oracle.ours, calls)
    check_mask_predictor(oracle.ours, calls)
    (queries,), _, logits = calls["class_predictor"][-1]
    assert_close(oracle.ours.class_predictor(queries), logits, TOLERANCE, "class predictor")

    ours = oracle.ours(pixel_values)
    assert_close(ours.class_queries_logits, theirs.class_queries_logits, END_TO_END_TOLERANCE, "end to end, classes")
    assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, END_TO_END_TOLERANCE, "end to end, masks")


def check_backbone(ours: Mask2Former, pixel_values: Tensor, calls: dict) -> None:
    ((_, _, output),) = calls["backbone"]
    for stage, (mine, theirs) in enumerate(zip(ours.backbone(pixel_values), output.feature_maps, strict=True), 1):
        assert_close(mine, theirs, TOLERANCE, f"backbone stage {stage}")


def check_pixel_decoder(ours: Mask2Former, calls: dict) -> None:
    (((features,), _, output),) = calls["pixel_decoder"]
    level_hw = [tuple(feature.shape[2:]) for feature in reversed(features[1:])]
    places = ours.pixel_decoder.token_places(level_hw, features[0].device)
    for index, ((tokens, _), kwargs, (result,)) in enumerate(calls["encoder_layer"]):
        assert_close(places.code, kwargs["position_embeddings"][:1], TOLERANCE, "position and level code")
        assert_close(places.centre, kwargs["reference_points"][0, :, 0], TOLERANCE, "reference points")
        mine = ours.pixel_decoder.layers[index](tokens, places)
        assert_close(mine, result, TOLERANCE, f"pixel decoder layer {index}")
    assert index + 1 == len(ours.pixel_decoder.layers)

    mask_features, maps = ours.pixel_decoder(features)
    assert_close(mask_features, output.mask_features, TOLERANCE, "mask features")
    for level, (mine, theirs) in enumerate(zip(maps, output.multi_scale_features, strict=True)):
        assert_close(mine, theirs, TOLERANCE, f"multi-scale feature {level}")


def check_decoder_layers(ours: Mask2Former, calls: dict) -> None:
    for index, (args, kwargs, (result, *_)) in enumerate(calls["decoder_layer"]):
        queries, level, _, positions, query_positions, tokens = args
        blocked = kwargs["encoder_attention_mask"].unflatten(0, (queries.shape[1], -1))[:, 0]
        mine = ours.transformer_decoder.layers[index](
            queries.transpose(0, 1),
            query_positions.transpose(0, 1),
            (tokens[level] + positions[level]).transpose(0, 1),
            tokens[level].transpose(0, 1),
            ~blocked,
        )
        assert_close(mine, result.transpose(0, 1), TOLERANCE, f"transformer decoder layer {index}")
    assert index + 1 == len(ours.transformer_decoder.layers)


def check_mask_predictor(ours: Mask2Former, calls: dict) -> None:
    """Masks, and the cells that the next layer may attend to: equal but where the logit is within rounding of zero."""
    decoder = ours.transformer_decoder
    partly_on, rows = 0, 0
    for (queries, mask_features, size), _, (masks, blocked) in calls["mask_predictor"]:
        queries = queries.transpose(0, 1)
        assert_close(decoder.predict_masks(queries, mask_features), masks, TOLERANCE, "predicted masks")

        resized = nn.functional.interpolate(mask_features, size=size, mode="bilinear", align_corners=False).flatten(2)
        logits = decoder.mask_embedder(queries) @ resized
        blocked = blocked.unflatten(0, (len(masks), -1))[:, 0]
        may_attend = decoder.attended_cells(queries, resized)
        all_blocked = blocked.all(dim=-1, keepdim=True)
        assert torch.equal(may_attend & all_blocked, all_blocked.expand_as(may_attend)), "an empty row stays closed"
        flipped = (may_attend == blocked) & ~all_blocked
        assert (logits[flipped].abs() <= TOLERANCE).all(), "attention mask"
        partly_on += (blocked.any(-1) & ~blocked.all(-1)).sum().item()
        rows += blocked[..., 0].numel()
    print(f"attention masks partly on: {partly_on / rows:.0%}")
    assert partly_on / rows > 0.3, "masks that are all on or all off test little"


def test_auxiliary_logits_and_hidden_states_agree(oracle: Oracle) -> None:
    """As many of each, in the same order and shape, where transformers returns them."""
    pixel_values = image_batch(*SIZES[0], batch=2)
    asked = {"output_hidden_states": True, "output_auxiliary_logits": True}
    theirs, ours = oracle.theirs(pixel_values, **asked), oracle.ours(pixel_values, **asked)
    assert len(theirs.auxiliary_logits) == 9
    for index, (mine, expected) in enumerate(zip(ours.auxiliary_logits, theirs.auxiliary_logits, strict=True)):
        assert mine.keys() == expected.keys()
        for name in expected:
            assert_close(mine[name], expected[name], END_TO_END_TOLERANCE, f"auxiliary {name} {index}")
    for part, tolerance in PARTS.items():
        name = f"{part}_last_hidden_state"
        assert_close(getattr(ours, name), getattr(theirs, name), tolerance, name)
        mine, expected = (getattr(output, f"{part}_hidden_states") for output in (ours, theirs))
        assert type(mine) is type(expected) is tuple
        for index, (state, their_state) in enumerate(zip(mine, expected, strict=True)):
            assert_close(state, their_state, tolerance, f"{part}_hidden_states {index}")


SMALL_SWIN = {"embed_dim": 32, "depths": [1, 2, 1, 1], "num_heads": [2, 2, 4, 4], "window_size": 7}
SMALL = {"feature_size": 64, "mask_feature_size": 64, "hidden_dim": 64, "num_queries": 11, "num_labels": 9}
SMALL |= {"encoder_layers": 2, "decoder_layers": 5, "dim_feedforward": 96, "encoder_feedforward_dim": 80}


@pytest.mark.parametrize(
    "fields",
    [
        {"pre_norm": True},
        {"enforce_input_projection": True},
        {"hidden_dim": 96, "mask_feature_size": 48},
        {"activation_function": "gelu"},
        {"decoder_layers": 1},
    ],
    ids=str,
)
def test_rare_fields_agree(tmp_path: Path, fields: dict) -> None:
    theirs = jittered_model(SMALL_SWIN, **{**SMALL, **fields})
    theirs.save_pretrained(tmp_path)
    pixel_values = image_batch(70, 90)
    expected, ours = theirs(pixel_values), load_checkpoint(tmp_path)
    for model in (ours, prepare_for_inference(ours, torch.device("cpu"), "fp32")):
        output = model(pixel_values)
        assert_close(output.class_queries_logits, expected.class_queries_logits, END_TO_END_TOLERANCE, "classes")
        assert_close(output.masks_queries_logits, expected.masks_queries_logits, END_TO_END_TOLERANCE, "masks")


def test_every_layout_loads_to_the_same_weights(tmp_path: Path) -> None:
    """The hub's names, with the index buffers of its older files; version 5's names in memory; and shards."""
    theirs = jittered_model(SMALL_SWIN, **SMALL)
    in_memory = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}

    theirs.save_pretrained(tmp_path / "hub")
    hub = load_file(tmp_path / "hub" / "model.safetensors")
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self."
    assert block + "query.weight" in hub
    assert block + "query.weight" not in in_memory
    hub[block + "relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    save_file(hub, tmp_path / "hub" / "model.safetensors")

    shutil.copytree(tmp_path / "hub", tmp_path / "memory")
    save_file(in_memory, tmp_path / "memory" / "model.safetensors")

    theirs.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2

    pixel_values = image_batch(*SIZES[0])
    expected = load_checkpoint(tmp_path / "hub")(pixel_values)
    assert_close(
        expected.masks_queries_logits, theirs(pixel_values).masks_queries_logits, END_TO_END_TOLERANCE, "masks"
    )
    for layout in ("memory", "shards"):
        output = load_checkpoint(tmp_path / layout)(pixel_values)
        assert torch.equal(output.class_queries_logits, expected.class_queries_logits)
        assert torch.equal(output.masks_queries_logits, expected.masks_queries_logits)


def test_transformers_loads_what_we_save(tmp_path: Path) -> None:
    theirs = jittered_model(SMALL_SWIN, **SMALL)
    theirs.save_pretrained(tmp_path / "theirs")
    save_checkpoint(load_checkpoint(tmp_path / "theirs"), tmp_path / "ours")
    again, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    # A constant of the loss, which transformers computes itself; and a norm that nothing reads.
    assert all("criterion" in key or "swin.layernorm" in key for key in info["missing_keys"])
    pixel_values = image_batch(*SIZES[0])
    expected, output = theirs(pixel_values), again.eval()(pixel_values)
    assert torch.equal(output.class_queries_logits, expected.class_queries_logits)
    assert torch.equal(output.masks_queries_logits, expected.masks_queries_logits)


@pytest.mark.parametrize("variant", ["swin_tiny", "swin_small", "swin_base", "swin_large"])
def test_named_variants_are_theirs(variant: str) -> None:
    """transformers reads our config.json and writes one from which we read the same model."""
    ours = getattr(Mask2FormerConfig, variant)(num_labels=150)
    theirs = transformers.Mask2FormerConfig(**ours.to_dict())
    assert Mask2FormerConfig.from_dict(theirs.to_dict()) == ours
    swin = theirs.backbone_config
    assert {name: getattr(swin, name) for name in SWIN.get(variant, {})} == SWIN.get(variant, {})


def test_missing_fields_have_their_defaults() -> None:
    assert Mask2FormerConfig.from_dict({"model_type": "mask2former"}) == Mask2FormerConfig.from_dict(
        transformers.Mask2FormerConfig().to_dict()
    )


def test_stochastic_depth_is_drawn_as_theirs() -> None:
    """The same rates for the same blocks, and the same images for the same seed. Ours drops the feed-forward too."""
    theirs = jittered_model(SMALL_SWIN | {"drop_path_rate": 0.4}, **SMALL).train()
    ours = build_model(Mask2FormerConfig.from_dict(theirs.config.to_dict())).train()
    their_blocks = [
        layer for stage in theirs.model.pixel_level_module.encoder.swin.encoder.layers for layer in stage.blocks
    ]
    our_blocks = [block for stage in ours.backbone.stages for block in stage.blocks]
    expected = [getattr(block.drop_path, "drop_prob", 0.0) for block in their_blocks]
    assert [block.drop_path.rate for block in our_blocks] == expected
    assert expected[-1] == 0.4
    branch = torch.randn(64, 2, 3, 4)
    for mine, their in zip(our_blocks, their_blocks, strict=True):
        torch.manual_seed(5)
        dropped = their.drop_path(branch)
        torch.manual_seed(5)
        assert torch.equal(mine.drop_path(branch), dropped)


def test_maskformers_swin_is_a_swin_under_other_names(tmp_path: Path) -> None:
    """Its files load; what we save of it is a Swin, with the same outputs in transformers."""
    fields = {**SMALL_SWIN, "drop_path_rate": 0.0, "out_features": STAGES}
    oracle = Oracle(jittered(transformers.MaskFormerSwinConfig(**fields), **SMALL), tmp_path)
    (tmp_path / "ours").mkdir()
    save_checkpoint(oracle.ours, tmp_path / "ours")
    again = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(tmp_path / "ours").eval()
    assert again.config.backbone_config.model_type == "swin"
    for size in SIZES:
        pixel_values = image_batch(*size)
        expected, calls = oracle.run(pixel_values)
        check_backbone(oracle.ours, pixel_values, calls)
        for output in (oracle.ours(pixel_values), again(pixel_values)):
            assert_close(output.masks_queries_logits, expected.masks_queries_logits, END_TO_END_TOLERANCE, "masks")
