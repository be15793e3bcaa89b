"""The path of a batch over a CUDA device, without one: `cuda` tensors without values, every operation counted."""

import numpy as np
import pytest
import torch
from PIL import Image

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.inference.panoptic import PanopticSettings
from m2f_core.model.mask2former import build_model
from pipeline.segment import device_model
from pipeline.segment.device_model import Network
from tests.support.device_counts import DeviceCounts
from tests.support.fake_cuda import CUDA, fake_cuda


class FakeCheckpoint:
    """A model of fake tensors on the device, with no values."""

    preprocessor_config = None

    def load(self) -> torch.nn.Module:
        with torch.device(CUDA):
            model = build_model(Mask2FormerConfig.tiny(id2label={n: f"class {n}" for n in range(8)}))
        model.to = lambda device: model  # it is there already; PyTorch cannot move parameters that are fakes
        return model


def network(monkeypatch: pytest.MonkeyPatch, precision: str) -> Network:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # They compile kernels for the CPU, with values.
    monkeypatch.setattr(device_model, "warm_up", lambda settings: None)
    monkeypatch.setattr(ImageProcessor, "warm_up", lambda self: None)
    return Network(
        FakeCheckpoint(),
        device="cuda:0",
        precision=precision,
        preprocess="reference",
        image_size=None,
        inference=PanopticSettings.defaults("reference"),
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_network_runs_on_the_device_and_waits_for_nothing(precision, monkeypatch):
    with fake_cuda():
        one = network(monkeypatch, precision)
        pixels = Image.fromarray(np.zeros((480, 640, 3), np.uint8))
        images = [one.prepare(pixels, one.processor.geometry(480, 640), "image") for _ in range(2)]
        with torch.inference_mode():
            one._decoder_outputs(images)  # what is made once for a size is there now
        with torch.inference_mode(), DeviceCounts() as counts:
            logits, masks, _ = one._decoder_outputs(images)
    assert logits.device == masks.device == CUDA
    assert masks.shape == (2, 20, 200, 272) and masks.dtype == torch.float32
    counted = counts.counted
    assert not counted.to_host
    by_type = {operation.dtype for operation in counted.operations if operation.flops}
    assert (torch.bfloat16 in by_type) == (precision == "bf16")
    assert set(counted.waits) <= {"_to_copy to the device"}, "nothing is read back"
    assert counted.launches > 100 and counted.num_bytes > counted.peak_bytes > masks.numel() * 4
