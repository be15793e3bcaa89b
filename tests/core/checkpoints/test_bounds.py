"""Files of a checkpoint that declare more than they hold, or hold what no checkpoint holds: one line, at no cost."""

import json
import pickle
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from m2f_core.checkpoints.checkpoint import MAX_JSON_DEPTH, Checkpoint, save_checkpoint
from m2f_core.checkpoints.licenses import model_license
from m2f_core.checkpoints.plain_pickle import MAX_NUMBER_KEYS
from m2f_core.checkpoints.stored_weights import CheckpointError
from m2f_core.checkpoints.zoo import trained_task
from m2f_core.config import fields
from m2f_core.config.class_names import label_warnings
from m2f_core.config.fields import ConfigError
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.hf.config import Mask2FormerConfig as DocumentedConfig
from m2f_core.hf.image_processor import Mask2FormerImageProcessor
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import PAPER_SIZE
from tests.support.detectron2_pickles import original_names, write_pickle
from tests.support.places import ROOT
from tests.support.seeded_model import seeded_model

FILES = ("config.json", "preprocessor_config.json", "model.safetensors.index.json")
DEEP = "[" * 100_000 + "]" * 100_000
MERSENNE = 2**61 - 1  # the multiples of it have the hash 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    save_checkpoint(seeded_model(Mask2FormerConfig.tiny(), seed=0), folder)
    processor = ImageProcessor("hf", PAPER_SIZE, pad_hw=(2048, 2048))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.to_preprocessor_config()))
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path, dirs_exist_ok=True))


def read_all(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert checkpoint.preprocessor_config != {} and checkpoint.weights_files
    checkpoint.check()


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        read_all(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000
    return str(error.value)


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f'{{"a": {DEEP}}}', "nested in more than"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested in more than"),
        (f'{{"a": {"[" * MAX_JSON_DEPTH}{"]" * MAX_JSON_DEPTH}}}', "nested in more than"),
        (f'{{"a": {"9" * 5000}}}', "cannot be read as JSON"),
        ("[]", "must hold a JSON object"),
        ("7", "must hold a JSON object"),
        ('{"a": "\udcff"}', "cannot be read as JSON"),
        ("{" + " " * (1 << 16), "cannot be read as JSON"),
    ],
    ids=["lists", "objects", "little too deep", "digits", "a list", "a number", "not UTF-8", "cut"],
)
def test_json_that_no_checkpoint_has(folder: Path, name: str, text: str, says: str) -> None:
    if name == FILES[2]:
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    message = refusal(folder)
    assert name in message and says in message


@pytest.mark.parametrize("name", FILES)
def test_a_huge_json_file_is_not_read(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == FILES[2]:
        (folder / "model.safetensors").unlink()
        (folder / name).write_text("{}")
    monkeypatch.setattr("m2f_core.checkpoints.checkpoint.MAX_JSON_BYTES", (folder / name).stat().st_size - 1)
    assert "bytes, but at most" in refusal(folder)


@pytest.mark.parametrize(
    "header",
    [
        f'{{"a": {DEEP}}}',
        '{"a": 7}',
        "[]",
        '{"a": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, '
        '"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    ],
    ids=["deep", "a number", "a list", "a float", "more than there is", "the same bytes twice"],
)
def test_headers_of_safetensors(folder: Path, header: str) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(4))
    assert "model.safetensors: is not a complete safetensors file" in refusal(folder)


def test_more_tensors_than_any_model_has(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m2f_core.checkpoints.checkpoint.MAX_TENSORS", 100)
    assert "tensors, but at most 100 are read" in refusal(folder)


# --- numbers of config.json -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"num_labels": 10**9, "id2label": None}, "num_labels"),
        ({"num_labels": 10**400, "id2label": None}, "num_labels"),
        ({"num_queries": 10**9}, "num_queries"),
        ({"hidden_dim": 10**9}, "hidden_dim"),
        ({"dim_feedforward": 10**9}, "dim_feedforward"),
        ({"encoder_layers": 10**6}, "encoder_layers"),
        ({"decoder_layers": 10**6}, "decoder_layers"),
        ({"num_attention_heads": 10**9}, "num_attention_heads"),
        ({"train_num_points": 10**9}, "train_num_points"),
        ({"oversample_ratio": 1e300}, "oversample_ratio"),
        ({"class_weight": 10**400}, "class_weight"),
        ({"ignore_value": 10**400}, "ignore_value"),
        ({"backbone": "microsoft/swin-tiny-patch4-window96-224", "backbone_config": None}, "window_size"),
        ({"backbone": f"microsoft/swin-tiny-patch4-window{'9' * 5000}-224", "backbone_config": None}, "backbone"),
        *(
            ({"backbone_config": {"model_type": kind, name: value}}, name)
            for kind, name, value in (
                ("swin", "window_size", 96),
                ("swin", "patch_size", 10**6),
                ("swin", "embed_dim", 10**9),
                ("swin", "depths", [2, 2, 10**6, 2]),
                ("swin", "num_heads", [3, 6, 12, 10**9]),
                ("swin", "mlp_ratio", 10**400),
                ("swin", "mlp_ratio", 1e9),
                ("swin", "mlp_ratio", 1e-9),
                ("resnet", "embedding_size", 10**9),
                ("resnet", "hidden_sizes", [256, 512, 1024, 4 * 10**9]),
                ("resnet", "depths", [3, 4, 10**6, 3]),
            )
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_numbers_beyond_any_model_are_refused_before_the_weights(folder: Path, change: dict, field: str) -> None:
    content = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in {**content, **change}.items() if value is not None}
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=field) as error:
            Mask2FormerConfig.from_dict(config)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_the_largest_configuration_costs_little_until_it_meets_the_weights(folder: Path) -> None:
    """Widths at their limits make a billion parameters a layer, of which no value is ever made; the blocks of a model
    share the one table whose values are made, 2.7 MB for the largest window.
    """
    change = {
        "backbone_config": {
            "model_type": "swin",
            "embed_dim": fields.MAX_WIDTH // 8,
            "depths": [fields.MAX_LAYERS, 2, 2, 2],
            "num_heads": [32] * 4,
            "window_size": fields.MAX_WINDOW_SIZE,
            "mlp_ratio": 1.0,
        },
        "hidden_dim": fields.MAX_WIDTH,
        "dim_feedforward": fields.MAX_WIDTH,
        "num_queries": fields.MAX_QUERIES,
        "num_labels": fields.MAX_CLASSES,
    }
    content = json.loads((folder / "config.json").read_text()) | change
    del content["id2label"]
    (folder / "config.json").write_text(json.dumps(content))
    program = (
        "import resource, sys, torch\n"
        "from m2f_core.checkpoints.checkpoint import Checkpoint, CheckpointError\n"
        "import m2f_core.model.mask2former\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "try:\n"
        "    Checkpoint(sys.argv[1]).load()\n"
        "except CheckpointError as error:\n"
        "    print(peak() - before, error)\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    grown, message = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split(" ", 1)
    assert "the weights do not fit config.json" in message
    assert int(grown) < 150


# --- wrong types in every field ---------------------------------------------------------------------------------------

WRONG: list[Any] = [None, True, -1, 10**9, 10**400, float("nan"), float("inf"), 1e300, "x", [], {}, [[]], {"a": 1}]


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every field of a file, and the first entries of lists."""
    items = content.items() if isinstance(content, dict) else list(enumerate(content))[:2]
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*path, key))


def changed(content: dict, path: tuple, value: Any) -> dict:
    copy = json.loads(json.dumps(content))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def test_a_wrong_type_in_any_field_is_one_line(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    content = checkpoint.config_dict | {"num_labels": 8, "license": "x", "_name_or_path": "x", "hidden_size": 64}
    content["categories"] = checkpoint.labels.to_list()
    num_refused = 0
    for path in places(content):
        for value in WRONG:
            broken = Checkpoint(folder)
            broken.config_dict = changed(content, path, value)
            try:
                assert broken.config.num_labels and broken.labels
                label_warnings(broken.config_dict)
                trained_task(broken, "x", broken.labels)
                model_license(broken)
            except ValueError as error:  # ConfigError and CheckpointError among them
                assert "\n" not in str(error) and len(str(error)) < 1000
                num_refused += 1
    assert num_refused > 400


def test_a_wrong_type_in_any_field_of_the_preprocessor_is_one_line(folder: Path) -> None:
    content = Checkpoint(folder).preprocessor_config
    assert content is not None
    num_refused = 0
    for path in [*places(content), ("max_size",)]:
        for value in WRONG:
            config = changed(content, path, value)
            for read in (
                lambda config: ImageProcessor.from_preprocessor_config(config, "reference").geometry(480, 640),
                lambda config: ImageProcessor.from_preprocessor_config(config, "hf").geometry(480, 640),
                lambda config: Mask2FormerImageProcessor.from_dict(config),
            ):
                try:
                    read(config)
                except ValueError as error:
                    assert "\n" not in str(error) and len(str(error)) < 1000
                    num_refused += 1
    assert num_refused > 200


@pytest.mark.parametrize(
    "change",
    [
        {"size_divisor": 10**9},
        {"pad_size": {"height": 10**6, "width": 10**6}},
        {"size": {"shortest_edge": 800, "longest_edge": 10**9}},
        {"size": {"max_height": 10**9, "max_width": 10**9}},
        {"image_mean": [10**400] * 3},
        {"image_std": [1e-300] * 3},
        {"rescale_factor": 1e300},
    ],
    ids=str,
)
def test_numbers_of_the_preprocessor_are_bounded(folder: Path, change: dict) -> None:
    config = {**(Checkpoint(folder).preprocessor_config or {}), "pad_size": None, **change}
    for mode in ("reference", "hf"):
        with pytest.raises(ValueError, match=f"preprocessor_config.json: {next(iter(change))}"):
            ImageProcessor.from_preprocessor_config(config, mode)


@pytest.mark.parametrize("name", ["core", "to_dict", "self"])
def test_a_field_with_the_name_of_a_method(folder: Path, name: str) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, name: 1}))
    if name == "self":
        assert DocumentedConfig.from_pretrained(folder).to_dict()["self"] == 1
        return
    with pytest.raises(ConfigError, match=f"'{name}' is a method"):
        DocumentedConfig.from_pretrained(folder)
    with pytest.raises(ConfigError, match="'preprocess' is a method"):
        Mask2FormerImageProcessor.from_dict({"preprocess": 1})


# --- pickles ----------------------------------------------------------------------------------------------------------


def refused_pickle(path: Path, content: object, protocol: int = 2) -> str:
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(CheckpointError) as error:
        Checkpoint(path).check()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_keys_of_one_hash_are_refused_before_they_cost_time(tmp_path: Path) -> None:
    """200,000 of them take minutes: each is compared with all before."""
    keys = [(index + 1) * MERSENNE for index in range(1 << 14)]
    keys = [key for key in keys if key < 2**63]
    colliding = {float(2**61 * index): 0 for index in range(3)}  # floats share hashes too
    assert len({hash(key) for key in keys}) == 1 and len(colliding) == 3
    path = tmp_path / "model_final.pkl"
    mixed = list(range(MAX_NUMBER_KEYS + 1))
    for content in ({"model": dict.fromkeys(mixed)}, {"model": [{key: 0} for key in mixed]}):
        assert f"has more than {MAX_NUMBER_KEYS} numbers as keys" in refused_pickle(path, content)
    floats = {"model": dict.fromkeys(map(float, mixed))}
    assert "numbers as keys" in refused_pickle(path, floats)
    assert "more than 64 bits" in refused_pickle(path, {"model": {MERSENNE * 5: 0}})
    assert "has a tuple as a key" in refused_pickle(path, {"model": {(1, 2): 0}})


def test_the_state_of_an_optimizer_stays_readable(sound: Path, tmp_path: Path) -> None:
    """Its keys are numbers, and it is ignored."""
    arrays = original_names(load_file(sound / "model.safetensors"))
    path = write_pickle(tmp_path / "model_final.pkl", arrays)
    content = {**pickle.loads(path.read_bytes()), "optimizer": {"state": {index: {"step": 1} for index in range(1000)}}}
    path.write_bytes(pickle.dumps(content))
    assert Checkpoint(path).load().config.num_labels == 8


def test_arrays_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """A small file of many tensors, each a view of one block, would be copied into gigabytes."""
    block = np.zeros((256, 256), np.float32)
    message = refused_pickle(tmp_path / "model_final.pkl", {"model": {f"layer{n}": block for n in range(100)}}, 4)
    assert "arrays of 26,214,400 bytes, which share them" in message
