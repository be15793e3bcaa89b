"""Prepare a loaded model for inference only: it gets faster, but can no longer be trained or saved."""

import torch

from m2f_core.config.labels import Task
from m2f_core.layers.cpu_instructions import bf16_refusal
from m2f_core.layers.linear import convert_weights, pack_linear_layers, pack_pointwise_convolutions
from m2f_core.model.contract import SegmentationModel


def prepare_for_inference(
    model: SegmentationModel, device: torch.device, precision: str, task: Task = "panoptic"
) -> SegmentationModel:
    """Move `model` to `device` in place, and lay out its weights for the device. `precision`: "fp32" or "bf16".

    For "bf16", call the model within `torch.autocast(device.type, torch.bfloat16)`, as on any device. `task`: what the
    model is asked for, if it reads the task. ValueError for "bf16" on a CPU where bfloat16 is slower than float32.
    """
    if device.type == "cpu" and precision == "bf16" and (refusal := bf16_refusal()) is not None:
        raise ValueError(refusal)
    model.set_task(task)
    model = model.to(device).eval().requires_grad_(False)
    if device.type == "cpu":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        pack_linear_layers(model, dtype)
        for part in model.convolutional_parts():
            pack_pointwise_convolutions(part, dtype)
    elif precision == "bf16":
        convert_weights(model, torch.bfloat16)
    return model
