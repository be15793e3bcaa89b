"""The original code's pickles load to the weights they were made of, and nothing in them is ever run."""

import dataclasses
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from m2f_core.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from m2f_core.config.labels import LabelMap
from m2f_core.config.mask2former import Mask2FormerConfig, ResNetConfig, SwinConfig
from m2f_core.families.mask2former_names import detectron2_names
from m2f_core.families.mask2former_original import infer_config
from m2f_core.model.mask2former import Mask2Former, build_model
from tests.support.detectron2_pickles import original_names, write_pickle
from tests.support.seeded_model import seeded_model

TINY = Mask2FormerConfig.tiny(num_labels=7)  # as many as no dataset has
SWIN_RATE = 0.3  # leaves no trace in weights; the published models'
CONFIGS = {
    "swin": dataclasses.replace(
        TINY, backbone_config=dataclasses.replace(TINY.backbone_config, drop_path_rate=SWIN_RATE)
    ),
    "window 12, no qkv bias": dataclasses.replace(
        TINY,
        backbone_config=SwinConfig(
            embed_dim=16,
            depths=(2, 1, 3, 1),
            num_heads=(1, 2, 2, 8),
            window_size=12,
            mlp_ratio=2.5,
            qkv_bias=False,
            drop_path_rate=SWIN_RATE,
        ),
    ),
    "resnet": dataclasses.replace(
        TINY, backbone_config=ResNetConfig(embedding_size=16, hidden_sizes=(32, 64, 64, 128), depths=(1, 2, 3, 1))
    ),
    "other numbers": dataclasses.replace(
        TINY,
        backbone_config=dataclasses.replace(TINY.backbone_config, drop_path_rate=SWIN_RATE),
        feature_size=96,
        mask_feature_size=40,
        hidden_dim=48,
        encoder_layers=3,
        encoder_feedforward_dim=56,
        decoder_layers=6,
        num_attention_heads=2,
        dim_feedforward=72,
        num_queries=33,
    ),
    "projected": dataclasses.replace(
        TINY,
        backbone_config=dataclasses.replace(TINY.backbone_config, drop_path_rate=SWIN_RATE),
        enforce_input_projection=True,
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def arrays_of(model: Mask2Former, folder: Path, **spelling: bool) -> dict[str, np.ndarray]:
    save_checkpoint(model, folder)
    return original_names(load_file(folder / "model.safetensors"), **spelling)


@pytest.fixture(scope="module")
def model() -> Mask2Former:
    return seeded_model(CONFIGS["swin"], seed=0)


@pytest.fixture(scope="module")
def arrays(model: Mask2Former, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return arrays_of(model, tmp_path_factory.mktemp("source"))


@pytest.fixture
def path(arrays: dict[str, np.ndarray], tmp_path: Path) -> Path:
    (tmp_path / "checkpoint").mkdir()
    return write_pickle(tmp_path / "checkpoint" / "model_final_0a1b2c.pkl", arrays)


def assert_same_weights(mine: Mask2Former, theirs: Mask2Former) -> None:
    state, expected = mine.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    for name, tensor in state.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


def refusal(path: Path) -> str:
    """The error of every function that reads the file, which must be the same for all."""
    messages = set()
    for read in (Checkpoint.load, Checkpoint.check):
        with pytest.raises(CheckpointError) as error:
            read(Checkpoint(path))
        messages.add(str(error.value))
    assert len(messages) == 1
    assert "\n" not in messages.copy().pop()
    assert str(path) in messages.copy().pop()
    return messages.pop()


@pytest.mark.parametrize(
    ("static_query", "old_head"),
    [
        pytest.param(False, False, id="today's names"),
        pytest.param(True, True, id="older names"),
        pytest.param(False, True, id="old head", marks=pytest.mark.thorough),
        pytest.param(True, False, id="static_query", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.parametrize("variant", CONFIGS)
def test_the_weights_are_those_it_was_made_of(tmp_path: Path, variant: str, static_query: bool, old_head: bool) -> None:
    source = seeded_model(CONFIGS[variant], seed=1)
    is_resnet = isinstance(source.config.backbone_config, ResNetConfig)
    model = arrays_of(source, tmp_path, static_query=static_query, old_head=old_head, counts=is_resnet)
    path = write_pickle(tmp_path / "model_final.pkl", model)
    Checkpoint(path).check()
    loaded = load_checkpoint(path)
    assert loaded.config == source.config
    assert not loaded.training
    assert_same_weights(loaded, source)
    pixel_values = torch.randn(1, 3, 40, 52)
    with torch.inference_mode():
        assert torch.equal(loaded(pixel_values).masks_queries_logits, source(pixel_values).masks_queries_logits)


def test_frozen_batch_norms_have_counted_nothing(tmp_path: Path) -> None:
    source = seeded_model(CONFIGS["resnet"], seed=1)
    loaded = load_checkpoint(write_pickle(tmp_path / "model_final.pkl", arrays_of(source, tmp_path)))
    counts = {name for name in source.state_dict() if name.endswith("num_batches_tracked")}
    assert counts
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, torch.tensor(0) if name in counts else source.state_dict()[name]), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(model: Mask2Former, arrays: dict[str, np.ndarray], tmp_path: Path, protocol: int) -> None:
    assert_same_weights(load_checkpoint(write_pickle(tmp_path / "m.pkl", arrays, protocol)), model)


def test_other_kinds_of_float_and_layouts_in_memory(
    model: Mask2Former, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    changes = itertools.cycle([np.asfortranarray, lambda a: a.astype(">f4"), lambda a: a.astype("f8"), lambda a: a])
    pairs = zip(arrays.items(), changes, strict=False)
    changed = {name: change(array) if array.dtype == np.float32 else array for (name, array), change in pairs}
    assert_same_weights(load_checkpoint(write_pickle(tmp_path / "m.pkl", changed)), model)


@pytest.mark.parametrize(
    "variant",
    [
        "swin_tiny",
        "resnet50",
        *(
            pytest.param(variant, marks=pytest.mark.thorough)
            for variant in ("swin_small", "swin_base", "swin_large", "resnet101")
        ),
    ],
)
def test_published_variants_are_recognised_by_their_shapes(variant: str) -> None:
    for num_labels in (133, 80, 150, 19):
        label_map = LabelMap.of_num_labels(num_labels)
        assert label_map is not None
        id2label = {category.class_id: category.name for category in label_map.categories}
        config: Mask2FormerConfig = getattr(Mask2FormerConfig, variant)(id2label=id2label)
        with torch.device("meta"):
            state = build_model(config).state_dict()
        shapes = {}
        for our_name, tensor in state.items():
            source = detectron2_names(our_name)
            shape = tuple(tensor.shape)
            shapes[source.names[0]] = shape if source.third is None else (shape[0] * 3, *shape[1:])
        assert infer_config(shapes) == config


def test_literal_names(arrays: dict[str, np.ndarray]) -> None:
    """Names and shapes as published Swin-T files have them, in the tiny model's numbers."""
    assert arrays["backbone.layers.1.blocks.1.attn.qkv.weight"].shape == (192, 64)
    assert arrays["backbone.norm3.bias"].shape == (256,)
    assert arrays["sem_seg_head.pixel_decoder.adapter_1.norm.weight"].shape == (64,)
    assert arrays["sem_seg_head.pixel_decoder.input_proj.2.0.weight"].shape == (64, 64, 1, 1)
    fused = "sem_seg_head.predictor.transformer_{}_attention_layers.2.{}.in_proj_weight"
    assert arrays[fused.format("self", "self_attn")].shape == (192, 64)
    assert arrays[fused.format("cross", "multihead_attn")].shape == (192, 64)
    assert arrays["sem_seg_head.predictor.query_feat.weight"].shape == (20, 64)


@pytest.mark.parametrize("num_labels", [133, 80, 150, 100, 19, 8, 65])
def test_classes_are_those_of_the_dataset_with_as_many(
    arrays: dict[str, np.ndarray], tmp_path: Path, num_labels: int
) -> None:
    head = {f"sem_seg_head.predictor.class_embed.{kind}": arrays for kind in ("weight", "bias")}
    model = {**arrays, **{name: np.zeros((num_labels + 1, *arrays[name].shape[1:]), np.float32) for name in head}}
    config = Checkpoint(write_pickle(tmp_path / "model_final.pkl", model)).config_dict
    expected = LabelMap.of_num_labels(num_labels)
    assert expected is not None
    assert LabelMap.from_config_dict(config) == dataclasses.replace(expected, known=True)


def test_other_numbers_of_classes_have_numbers(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    head = ("sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias")
    model = {**arrays, **{name: arrays[name][:4] for name in head}}
    config = Checkpoint(write_pickle(tmp_path / "model_final.pkl", model)).config_dict
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert not LabelMap.from_config_dict(config).known


def test_a_file_and_its_folder_are_the_same_checkpoint(path: Path) -> None:
    (path.parent / "README.md").write_text("a note")
    (path.parent / "preprocessor_config.json").write_text("{}")
    assert Checkpoint(path).weights_files == Checkpoint(path.parent).weights_files == [path]
    assert Checkpoint(path).sha256 == Checkpoint(path.parent).sha256
    assert Checkpoint(path).config_dict == Checkpoint(path.parent).config_dict
    assert Checkpoint(path).config == Checkpoint(path.parent).config
    assert Checkpoint(path).preprocessor_config is Checkpoint(path.parent).preprocessor_config is None
    assert_same_weights(load_checkpoint(path.parent), load_checkpoint(path))


def test_the_hash_is_that_of_the_file(path: Path) -> None:
    original = Checkpoint(path).sha256
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    assert Checkpoint(path).sha256 != original


def test_two_pickles_in_a_folder_are_one_too_many(path: Path) -> None:
    (path.parent / "model_final_zzzzzz.pkl").write_bytes(path.read_bytes())
    assert "holds several checkpoints (model_final_0a1b2c.pkl, model_final_zzzzzz.pkl)" in refusal(path.parent)
    Checkpoint(path).check()


def test_a_hugging_face_folder_stays_one(model: Mask2Former, path: Path) -> None:
    """A pickle beside safetensors is not looked at."""
    save_checkpoint(model, path.parent)
    path.write_bytes(b"not looked at")
    assert Checkpoint(path.parent).weights_files == [path.parent / "model.safetensors"]
    assert_same_weights(load_checkpoint(path.parent), model)


@pytest.mark.parametrize("name", ["R-50.pkl", "model_0004999.pkl", "optimizer.pkl"])
def test_other_pickles_are_not_taken_from_a_folder(path: Path, name: str) -> None:
    path.rename(path.with_name(name))
    with pytest.raises(CheckpointError, match=name):
        assert Checkpoint(path.parent).weights_files
    Checkpoint(path.with_name(name)).check()


class TouchesFile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("read", [lambda c: c.load(), lambda c: c.check(), lambda c: c.config_dict, lambda c: c.config])
def test_a_hostile_pickle_is_refused_by_name(arrays: dict[str, np.ndarray], tmp_path: Path, read) -> None:
    path, target = tmp_path / "model_final.pkl", tmp_path / "touched"
    for model in ({**arrays, "z": TouchesFile(target)}, TouchesFile(target)):
        write_pickle(path, model)
        with pytest.raises(CheckpointError, match=rf"model_final\.pkl: refuses {os.system.__module__}\.system"):
            read(Checkpoint(path))
        with pytest.raises(CheckpointError, match=rf"refuses {os.system.__module__}\.system"):
            read(Checkpoint(tmp_path))
    assert Checkpoint(path).sha256
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists(), "or the test shows nothing"


def test_tensors_of_torch_are_refused_by_name(tmp_path: Path) -> None:
    write_pickle(tmp_path / "m.pkl", {"weight": torch.zeros(2)})
    assert "refuses torch._utils._rebuild_tensor_v2" in refusal(tmp_path / "m.pkl")
    torch.save({"model": {"weight": torch.zeros(2)}}, tmp_path / "m.pkl")
    assert "is an archive of torch.save" in refusal(tmp_path / "m.pkl")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "m.pkl: cannot mmap an empty file"),
        (b"<!DOCTYPE html><html>", "is not a pickle of protocol 2 to 5"),
        (pickle.dumps([1, 2]), 'has no entry "model"'),
        (pickle.dumps({"model": {}}), 'has no entry "model"'),
        (pickle.dumps({"model": [np.ones(1)]}), 'has no entry "model"'),
        (pickle.dumps({"model": {1: np.ones(1)}}), "whose name is not printable text"),
        (pickle.dumps({"model": {"a\nb": np.ones(1)}}), "whose name is not printable text"),
        (pickle.dumps({"model": {"a": [1.0]}}), "has a list as a, not an array"),
        (pickle.dumps({"model": {"a": np.array([{}], object)}}), "refuses arrays of dtype O8"),
        (pickle.dumps({"model": {"a": np.zeros(2, "f4,i4")}}), "refuses arrays of dtype V8"),
        (pickle.dumps({"model": {"a": np.array(["x"])}}), "refuses arrays of dtype U1"),
    ],
    ids=range(11),
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "m.pkl").write_bytes(content)
    assert says in refusal(tmp_path / "m.pkl")


@pytest.mark.parametrize("length", [1, 100, 10_000, -1])
def test_a_truncated_file_is_refused(path: Path, length: int) -> None:
    path.write_bytes(path.read_bytes()[:length])
    assert "is cut off" in refusal(path) or length == 1


def test_a_missing_file(tmp_path: Path) -> None:
    assert "model_final_9fd0ae.pkl: missing" in refusal(tmp_path / "model_final_9fd0ae.pkl")
    with pytest.raises(CheckpointError, match="cannot be read"):
        assert Checkpoint(tmp_path / "model_final_9fd0ae.pkl").sha256


PREDICTOR = "sem_seg_head.predictor."
TABLE = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
QUERIES = PREDICTOR + "query_feat.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({QUERIES: None}, f"holds no {QUERIES}"),
        ({"backbone.patch_embed.proj.weight": None}, "neither Swin (backbone.patch_embed) nor ResNet (backbone.stem)"),
        ({PREDICTOR + "query_embed.weight": None}, f"1 missing: {PREDICTOR}query_embed.weight"),
        ({"surprise": (1,)}, "1 unexpected: surprise"),
        (
            {PREDICTOR + "decoder_norm.bias": (63,)},
            f"{PREDICTOR}decoder_norm.bias (is [63], the model they describe says",
        ),
        ({"backbone.layers.1.blocks.7.norm1.weight": (64,)}, "missing: backbone.layers.1.blocks.2."),
        ({TABLE: (170, 2)}, "170 rows, which fits no window size"),
        ({TABLE: (51 * 51, 2)}, "2601 rows, which fits no window size"),
        ({TABLE: (169,)}, f"{TABLE} has the shape [169]"),
        ({TABLE: (169, 0)}, f"{TABLE} has the shape [169, 0]"),
        ({TABLE: (169, 3)}, "Swin stage 1 must be divisible by its entry of num_heads"),
        ({PREDICTOR + "class_embed.weight": (1, 64)}, "id2label"),
        ({PREDICTOR + "class_embed.weight": (10**12, 0)}, "class_embed.weight has the shape [1000000000000, 0]"),
        ({PREDICTOR + "class_embed.weight": (100_002, 1)}, "has 100001 classes"),
        ({"backbone.layers.0.blocks.998.x": (1,)}, "has layers up to backbone.layers.0.blocks.998"),
        ({PREDICTOR + "static_query.weight": (20, 64)}, f"has {QUERIES} twice"),
    ],
    ids=str,
)
def test_other_architectures_are_refused(
    arrays: dict[str, np.ndarray], tmp_path: Path, change: dict[str, tuple[int, ...] | None], says: str
) -> None:
    model = {**arrays, **{name: np.zeros(shape, np.float32) for name, shape in change.items() if shape is not None}}
    model = {name: array for name, array in model.items() if change.get(name, ()) is not None}
    assert says in refusal(write_pickle(tmp_path / "m.pkl", model))


def test_whole_numbers_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    name = PREDICTOR + "class_embed.bias"
    model = {**arrays, name: arrays[name].astype(np.int32)}
    assert f"1 not floating-point: {name} (int32)" in refusal(write_pickle(tmp_path / "m.pkl", model))


def test_an_imagenet_backbone_says_what_is_not_there(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = {name: array for name, array in arrays.items() if name.startswith("backbone.")}
    message = refusal(write_pickle(tmp_path / "swin_tiny_patch4_window7_224.pkl", model))
    assert "holds no head of a known model (Mask2Former, " in message


def test_weights_outlive_their_file(path: Path) -> None:
    loaded = load_checkpoint(path)
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    path.write_bytes(bytes(path.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


def test_the_driver_needs_no_torch_for_it(path: Path) -> None:
    code = (
        "import sys; from m2f_core.checkpoints.checkpoint import *; path = sys.argv[1];"
        "Checkpoint(path).config; Checkpoint(path).config_dict;"
        "Checkpoint(path).sha256; Checkpoint(path).preprocessor_config; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0
