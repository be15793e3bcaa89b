"""`m2f_core.Mask2FormerImageProcessor` gives what transformers gives, bit for bit, whatever form an image has.

The oracle is transformers' implementation with Pillow; its other one, with torchvision, resizes otherwise.
"""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from m2f_core import Mask2FormerImageProcessor

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")

from transformers.models.mask2former.image_processing_pil_mask2former import (  # noqa: E402
    Mask2FormerImageProcessorPil,
)

RNG = np.random.default_rng(0)
WIDE, TALL, CLEAR = (RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((48, 64, 3), (70, 50, 3), (40, 44, 4)))
FORMS: dict[str, Any] = {
    "Pillow": Image.fromarray(WIDE),
    "a list": [Image.fromarray(WIDE), Image.fromarray(TALL)],
    "a list of lists": [[Image.fromarray(WIDE)], [Image.fromarray(TALL)]],
    "numpy, channels last": WIDE,
    "numpy, channels first": WIDE.transpose(2, 0, 1),
    "a list of arrays": [WIDE, TALL],
    "a stack of arrays": np.stack([WIDE, WIDE]),
    "torch": torch.from_numpy(WIDE.transpose(2, 0, 1).copy()),
    "a stack of tensors": torch.from_numpy(np.stack([WIDE, WIDE]).transpose(0, 3, 1, 2).copy()),
    "float from 0 to 1": (WIDE / 255).astype(np.float32),
    "float from 0 to 255": WIDE.astype(np.float32),
    "float64": WIDE.astype(np.float64),
    "int64": WIDE.astype(np.int64),
    "zeros and ones": (WIDE > 128).astype(np.float32),
    "gray": Image.fromarray(WIDE[..., 0]),
    "a palette": Image.fromarray(WIDE).quantize(16),
    "transparent": Image.fromarray(CLEAR),
    "transparent, numpy": CLEAR,
}
SMALL = {"size": {"height": 32, "width": 40}}
EDGES = {"size": {"shortest_edge": 50, "longest_edge": 90}}
PARAMETERS: dict[str, dict[str, Any]] = {
    "edges": EDGES,
    "no divisor": {**EDGES, "size_divisor": 0},
    "a divisor of 8": {**EDGES, "size_divisor": 8},
    "limits": {"size": {"max_height": 60, "max_width": 50}},
    "a fixed size": {"size": {"height": 64, "width": 96}},
    "a pair": {"size": (32, 64)},
    "not resized": {"do_resize": False},
    "bicubic": {**SMALL, "resample": 3},
    "other numbers": {**SMALL, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "rescale_factor": 1 / 128},
    "one number": {**SMALL, "image_mean": 0.5, "image_std": 0.25},
    "not rescaled": {**SMALL, "do_rescale": False},
    "not normalised": {**SMALL, "do_normalize": False},
    "neither": {**SMALL, "do_rescale": False, "do_normalize": False},
    "as RGB": {**SMALL, "do_convert_rgb": True},
}


def outcome(processor: Any, *args: Any, **parameters: Any) -> Any:
    """What it returns, or that it refuses."""
    try:
        return processor(*args, **parameters)
    except (ValueError, TypeError) as error:
        return type(error)


def assert_equal(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs), (ours, theirs)
    if isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for mine, expected in zip(ours, theirs, strict=True):
            assert_equal(mine, expected)
    else:
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
@pytest.mark.parametrize("parameters", PARAMETERS)
def test_every_form_of_an_image(parameters: str, return_tensors: str | None) -> None:
    num_compared = 0
    for form, images in FORMS.items():
        given = {**PARAMETERS[parameters], "return_tensors": return_tensors}
        theirs = outcome(Mask2FormerImageProcessorPil(), images, **given)
        ours = outcome(Mask2FormerImageProcessor(), images, **given)
        if isinstance(theirs, type) or isinstance(ours, type):
            assert ours is theirs, form
            continue
        assert ours.keys() == theirs.keys(), form
        for name in theirs:
            assert_equal(ours[name], theirs[name])
        num_compared += 1
    assert num_compared >= 12


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_parameters_of_a_call_are_those_of_the_processor(parameters: str) -> None:
    given = PARAMETERS[parameters]
    in_call = Mask2FormerImageProcessor()(FORMS["Pillow"], return_tensors="np", **given)
    of_processor = Mask2FormerImageProcessor(**given)(FORMS["Pillow"], return_tensors="np")
    assert in_call.keys() == of_processor.keys()
    for name in in_call:
        np.testing.assert_array_equal(in_call[name], of_processor[name])


def test_pad_size() -> None:
    """transformers takes it when the processor is made, not in a call."""
    given = {"size": {"height": 64, "width": 96}, "pad_size": {"height": 100, "width": 101}}
    theirs = Mask2FormerImageProcessorPil(**given)(FORMS["a list"], return_tensors="np")
    ours = Mask2FormerImageProcessor(**given)(FORMS["a list"], return_tensors="np")
    assert ours["pixel_values"].shape == (2, 3, 100, 101)
    for name in ("pixel_values", "pixel_mask"):
        np.testing.assert_array_equal(ours[name], theirs[name])


MAP = np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 16, axis=0).repeat(16, axis=1)  # 48 x 64
MAPS: dict[str, Any] = {
    "numpy": MAP,
    "Pillow": Image.fromarray(MAP),
    "a palette": Image.fromarray(MAP, "P"),
    "a list": [MAP],
    "with a channel": MAP[None],
    "torch": torch.from_numpy(MAP),
    "int64": MAP.astype(np.int64),
    "float": MAP.astype(np.float32),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "semantic": {},
    "ignored": {"ignore_index": 3},
    "reduced": {"ignore_index": 255, "do_reduce_labels": True},
    "instances": {"instance_id_to_semantic_id": {value: value // 3 for value in range(12)}},
    "instances, reduced": {
        "instance_id_to_semantic_id": {value: 1 + value // 3 for value in range(1, 12)},
        "ignore_index": 255,
        "do_reduce_labels": True,
    },
    "a mapping each": {"instance_id_to_semantic_id": [{value: value // 4 for value in range(12)}]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("form", MAPS)
def test_every_form_of_a_segmentation_map(form: str, option: str, return_tensors: str | None) -> None:
    given = {**EDGES, **OPTIONS[option], "return_tensors": return_tensors}
    ours, theirs = (
        processor(WIDE, MAPS[form], **given)
        for processor in (Mask2FormerImageProcessor(), Mask2FormerImageProcessorPil())
    )
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert_equal(ours[name], theirs[name])
    assert len(ours["class_labels"][0]) >= 10


def test_maps_of_another_size_are_resized_to_that_of_their_image() -> None:
    coarse = MAP[::2, ::2]
    given = {"size": {"height": 64, "width": 96}, "return_tensors": "np"}
    ours, theirs = (
        processor(WIDE, coarse, **given) for processor in (Mask2FormerImageProcessor(), Mask2FormerImageProcessorPil())
    )
    for name in theirs:
        assert_equal(ours[name], theirs[name])


def test_files_go_both_ways(tmp_path) -> None:
    """A file of each is read by the other, and means the same."""
    given = {
        "size": {"shortest_edge": 50, "longest_edge": 90},
        "size_divisor": 16,
        "image_mean": [0.1, 0.2, 0.3],
        "ignore_index": 7,
        "do_reduce_labels": True,
    }
    Mask2FormerImageProcessorPil(**given).save_pretrained(tmp_path / "theirs")
    Mask2FormerImageProcessor(**given).save_pretrained(tmp_path / "ours")
    batches = [
        reader.from_pretrained(tmp_path / folder)(WIDE, MAP, return_tensors="np")
        for reader in (Mask2FormerImageProcessorPil, Mask2FormerImageProcessor)
        for folder in ("theirs", "ours")
    ]
    for batch in batches[1:]:
        assert batch.keys() == batches[0].keys()
        for name in batch:
            assert_equal(batch[name], batches[0][name])


def test_defaults_are_theirs() -> None:
    theirs = Mask2FormerImageProcessorPil()
    ours = Mask2FormerImageProcessor()
    for name, value in ours.__dict__.items():
        expected = getattr(theirs, name)
        assert (dict(expected) if name == "size" else expected) == (tuple(value) if isinstance(value, list) else value)
