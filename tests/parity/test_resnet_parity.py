"""The network with a ResNet equals transformers' with its ResNet backbone; see test_model_parity for how it is judged.

Every weight is jittered, and so is every statistic of the batch norms.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m2f_core.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.model.mask2former import Mask2Former

pytest.importorskip("transformers", reason="transformers is the oracle of these tests")
import transformers

from tests.parity.test_model_parity import (
    END_TO_END_TOLERANCE,
    SIZES,
    SMALL,
    STAGES,
    TOLERANCE,
    USUAL_SIZES,
    Oracle,
    assert_close,
    check_backbone,
    check_decoder_layers,
    check_mask_predictor,
    check_pixel_decoder,
    image_batch,
    jittered,
    one_thread_no_grad,  # noqa: F401  for all tests here
)

SMALL_RESNET = {"embedding_size": 16, "hidden_sizes": [32, 64, 64, 128], "depths": [1, 2, 2, 1]}


def small_model(num_queries: int = 100, **fields: object) -> torch.nn.Module:
    backbone = transformers.ResNetConfig(**{**SMALL_RESNET, **fields}, out_features=STAGES)
    return jittered(backbone, **{**SMALL, "num_queries": num_queries})


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "prepared"])
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    theirs = jittered(transformers.ResNetConfig(out_features=STAGES), num_queries=200)
    return Oracle(theirs, tmp_path_factory.mktemp("resnet50"), prepared=request.param)


@pytest.mark.parametrize("size", USUAL_SIZES, ids=str)
def test_modules_and_model_agree(oracle: Oracle, size: tuple[int, int]) -> None:
    """ResNet-50 in its real size, with 200 queries."""
    pixel_values = image_batch(*size, batch=2 if size == SIZES[0] else 1)
    theirs, calls = oracle.run(pixel_values)
    check_backbone(oracle.ours, pixel_values, calls)
    check_pixel_decoder(oracle.ours, calls)
    check_decoder_layers(oracle.ours, calls)
    check_mask_predictor(oracle.ours, calls)
    (queries,), _, logits = calls["class_predictor"][-1]
    assert_close(oracle.ours.class_predictor(queries), logits, TOLERANCE, "class predictor")

    ours = oracle.ours(pixel_values)
    assert ours.class_queries_logits.shape[1] == 200
    assert_close(ours.class_queries_logits, theirs.class_queries_logits, END_TO_END_TOLERANCE, "end to end, classes")
    assert_close(ours.masks_queries_logits, theirs.masks_queries_logits, END_TO_END_TOLERANCE, "end to end, masks")


@pytest.mark.parametrize(
    ("prepared", "size"),
    [
        (False, (161, 203)),
        (True, (33, 65)),
        *(
            pytest.param(prepared, size, marks=pytest.mark.thorough)
            for prepared in (False, True)
            for size in ((1, 1), (70, 90), (161, 203) if prepared else (33, 65))
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"downsample_in_bottleneck": True},
        {"hidden_act": "gelu"},
        {"depths": [2, 1, 1, 3], "embedding_size": 32},
        {"layer_type": "basic"},
        {
            "layer_type": "basic",
            "embedding_size": 32,
            "downsample_in_bottleneck": True,
            "hidden_sizes": [33, 34, 47, 6],
        },
    ],
    ids=str,
)
def test_every_field_agrees(tmp_path: Path, fields: dict, size: tuple[int, int], prepared: bool) -> None:
    """An embedding as wide as the first stage needs no shortcut there."""
    oracle = Oracle(small_model(**fields), tmp_path, prepared)
    pixel_values = image_batch(*size, batch=2)
    expected, calls = oracle.run(pixel_values)
    check_backbone(oracle.ours, pixel_values, calls)
    output = oracle.ours(pixel_values)
    assert_close(output.class_queries_logits, expected.class_queries_logits, END_TO_END_TOLERANCE, "classes")
    assert_close(output.masks_queries_logits, expected.masks_queries_logits, END_TO_END_TOLERANCE, "masks")


@pytest.mark.parametrize("size", [(70, 90), (161, 203)], ids=str)
def test_a_batch_of_two_is_its_images_one_by_one(tmp_path: Path, size: tuple[int, int]) -> None:
    """In double precision, so that other kernels for other sizes of a batch do not matter."""
    ours = Oracle(small_model(), tmp_path).ours.double()
    pixel_values = image_batch(*size, batch=2).double()
    together = ours.backbone(pixel_values)
    for index in range(2):
        alone = ours.backbone(pixel_values[index : index + 1])
        for stage, (mine, expected) in enumerate(zip(alone, together, strict=True), start=1):
            assert_close(mine[0], expected[index], 1e-12, f"image {index}, stage {stage}")


def test_transformers_loads_what_we_save(tmp_path: Path) -> None:
    """Every tensor comes back, the counts of the batch norms included."""
    theirs = small_model()
    theirs.save_pretrained(tmp_path / "theirs")
    save_checkpoint(load_checkpoint(tmp_path / "theirs"), tmp_path / "ours")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    counts = [name for name in before if name.endswith("num_batches_tracked")]
    assert len(counts) == sum(SMALL_RESNET["depths"]) * 3 + 4 + 1
    assert all(before[name] == 1 for name in counts)
    assert set(before) - set(after) <= {"criterion.empty_weight"}
    assert all(torch.equal(after[name], before[name]) for name in after)

    again, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert all("criterion" in key for key in info["missing_keys"])
    pixel_values = image_batch(*SIZES[0])
    expected, output = theirs(pixel_values), again.eval()(pixel_values)
    assert torch.equal(output.class_queries_logits, expected.class_queries_logits)
    assert torch.equal(output.masks_queries_logits, expected.masks_queries_logits)


@pytest.mark.parametrize(("variant", "depths"), [("resnet50", [3, 4, 6, 3]), ("resnet101", [3, 4, 23, 3])])
def test_named_variants_are_theirs(variant: str, depths: list[int]) -> None:
    ours: Mask2FormerConfig = getattr(Mask2FormerConfig, variant)(num_labels=150)
    theirs = transformers.Mask2FormerConfig(**ours.to_dict())
    assert Mask2FormerConfig.from_dict(theirs.to_dict()) == ours
    assert theirs.backbone_config.depths == depths
    assert theirs.backbone_config.out_features == STAGES


def test_missing_fields_have_their_defaults() -> None:
    ours = Mask2FormerConfig.from_dict({"model_type": "mask2former", "backbone_config": {"model_type": "resnet"}})
    theirs = transformers.Mask2FormerConfig(backbone_config=transformers.ResNetConfig(out_features=STAGES))
    assert ours == Mask2FormerConfig.from_dict(theirs.to_dict())


def test_training_leaves_batch_norms_alone(oracle: Oracle) -> None:
    model: Mask2Former = oracle.ours
    trained = {name for name, _ in model.backbone.named_parameters()}
    assert trained
    assert not any("norm" in name for name in trained)
    before = {name: buffer.clone() for name, buffer in model.backbone.named_buffers()}
    pixel_values = image_batch(64, 64)
    expected = model.backbone(pixel_values)
    try:
        output = model.train().backbone(pixel_values)
    finally:
        model.eval()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(output, expected, strict=True))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.backbone.named_buffers())


def test_the_folder_says_what_it_is(oracle: Oracle) -> None:
    assert Checkpoint(oracle.folder).config_dict["backbone_config"]["model_type"] == "resnet"
