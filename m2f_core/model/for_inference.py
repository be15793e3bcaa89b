"""Prepare a loaded model for inference only: it gets faster, but can no longer be trained or saved."""

import torch

from m2f_core.config.labels import Task
from m2f_core.layers.cpu_instructions import bf16_refusal, int8_refusal
from m2f_core.layers.int8 import round_to_int8
from m2f_core.layers.linear import convert_weights, pack_linear_layers, pack_pointwise_convolutions
from m2f_core.model.contract import SegmentationModel

ONLY_ON_CPUS = "int8 is for CPUs"


def prepare_for_inference(
    model: SegmentationModel, device: torch.device, precision: str, task: Task = "panoptic"
) -> SegmentationModel:
    """Move `model` to `device` in place, and lay out its weights for the device. `precision`: "fp32", "bf16" or
    "int8".

    For "bf16", call the model within `torch.autocast(device.type, torch.bfloat16)`, as on any device. "int8" is for
    CPUs, and for one image at a time: wide layers round weights and inputs to 8 bits, the others stay in float32.
    `task`: what the model is asked for, if it reads the task. ValueError for a precision that is slower than float32
    here.
    """
    refusals = {"bf16": bf16_refusal, "int8": int8_refusal} if device.type == "cpu" else {"int8": lambda: ONLY_ON_CPUS}
    if precision in refusals and (refusal := refusals[precision]()) is not None:
        raise ValueError(refusal)
    model.set_task(task)
    model = model.to(device).eval().requires_grad_(False)
    if device.type == "cpu":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if precision == "int8":
            for part in model.parts_in_8_bits():
                round_to_int8(part)
        pack_linear_layers(model, dtype)
        for part in model.convolutional_parts():
            pack_pointwise_convolutions(part, dtype)
    elif precision == "bf16":
        convert_weights(model, torch.bfloat16)
    return model
