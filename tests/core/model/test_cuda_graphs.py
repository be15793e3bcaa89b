"""When a forward pass is recorded, what happens where it cannot be, and that nothing in the model forbids it."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.config.oneformer import OneFormerConfig
from m2f_core.families.registry import family_of
from m2f_core.model.cuda_graphs import CudaRecorder, GraphedForward
from m2f_core.model.mask2former import build_model


class Recorder:
    """Plays back by calling; counts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.played = 0
        self.error = error

    def __call__(self, forward, example):
        self.shapes.append(tuple(example.shape))
        if self.error is not None:
            raise self.error

        def play(x):
            self.played += 1
            return forward(x)

        return play


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_a_shape_is_recorded_when_it_comes_for_the_third_time() -> None:
    recorder = Recorder()
    graphed = GraphedForward(double, recorder)
    for size in (3, 4, 3, 3, 4, 3, 5):
        assert torch.equal(graphed(torch.ones(size)), torch.full((size,), 2.0))
    assert recorder.shapes == [(3,)] and recorder.played == 2
    graphed.forget()
    graphed(torch.ones(3))
    assert recorder.played == 2, "what is forgotten is not played"


def test_where_recording_fails_one_warning_says_so_and_results_come_all_the_same(caplog) -> None:
    recorder = Recorder(RuntimeError("operation not permitted when stream is capturing"))
    graphed = GraphedForward(double, recorder)
    for size in (3, 3, 3, 3, 4, 4, 4, 4):
        assert torch.equal(graphed(torch.ones(size)), torch.full((size,), 2.0))
    assert recorder.shapes == [(3,)]
    assert [r.levelname for r in caplog.records] == ["WARNING"] and "not permitted" in caplog.text


def test_a_batch_too_large_to_record_goes_without_and_smaller_ones_are_recorded(caplog) -> None:
    recorder = Recorder(torch.OutOfMemoryError("CUDA out of memory"))
    graphed = GraphedForward(double, recorder)
    for _ in range(5):
        assert torch.equal(graphed(torch.ones(3)), torch.full((3,), 2.0))
    assert recorder.shapes == [(3,)], "tried once"
    assert [r.message for r in caplog.records] == ["too little memory to record a CUDA graph for (3,); running without"]
    recorder.error = None
    for _ in range(4):
        assert torch.equal(graphed(torch.ones(2)), torch.full((2,), 2.0))
    assert recorder.shapes == [(3,), (2,)] and (2,) in graphed.recorded


def test_a_batch_that_does_not_fit_without_a_graph_either_is_said_to_be_too_large() -> None:
    def too_large(pixels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    graphed = GraphedForward(too_large, Recorder(torch.OutOfMemoryError("CUDA out of memory")))
    for _ in range(4):
        with pytest.raises(torch.OutOfMemoryError):
            graphed(torch.ones(3))


class OnDeviceOnly(TorchDispatchMode):
    """Fails where an operation would wait for a device, or bring something to it: neither can be recorded."""

    WAITS = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "item", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        assert not any(word in name for word in self.WAITS), f"{name} waits for the device"
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if "index" in name:
            assert all(x.dtype != torch.bool for x in tensors), f"{name} with a mask waits for the device"
        out = function(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        assert all(x.device.type == "meta" for x in (*tensors, *made)), f"{name} works on the host"
        return out


@pytest.mark.parametrize(
    "config",
    [lambda: small_config("swin"), lambda: small_config("resnet"), OneFormerConfig.tiny],
    ids=["swin", "resnet", "oneformer"],
)
def test_nothing_in_the_model_forbids_recording(config, monkeypatch) -> None:
    """On the meta device, which computes nothing, knows where a tensor is, and has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
    model = family_of(config().to_dict()).build_model(config()).eval().to("meta")
    pixels = torch.empty(2, 3, 64, 96, device="meta")
    with torch.inference_mode(), OnDeviceOnly():
        output = model(pixels)
    assert output.masks_queries_logits.shape[-2:] == (16, 24)


def test_the_check_above_can_fail() -> None:
    with OnDeviceOnly(), pytest.raises(AssertionError, match="host"):
        torch.empty(3, device="meta") + torch.ones(3)


def small_config(backbone: str) -> Mask2FormerConfig:
    """Of a Mask2Former."""
    config = Mask2FormerConfig.tiny(id2label={0: "a", 1: "b"})
    if backbone == "swin":
        return config
    resnet = {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 16, 16],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }
    return Mask2FormerConfig.from_dict({**config.to_dict(), "backbone_config": resnet})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_recording_gives_what_the_model_gives() -> None:
    model = build_model(small_config("swin")).eval().to("cuda")
    graphed = GraphedForward(lambda x: model(x).masks_queries_logits, CudaRecorder())
    with torch.inference_mode():
        for seed in range(5):
            pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed)).to("cuda")
            torch.testing.assert_close(graphed(pixels), model(pixels).masks_queries_logits)
    assert graphed.recorded
