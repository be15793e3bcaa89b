"""Whether models may run in a precision on a device: decided here for the driver, the model actor and the training."""

import socket

from m2f_core.layers.cpu_instructions import bf16_refusal
from pipeline.errors import RunError


def check_precision(precision: str, device: str) -> None:
    """RunError where `device` is this machine's CPU and `precision` would be slower there than fp32."""
    if device == "cpu" and precision == "bf16" and (refusal := bf16_refusal()) is not None:
        raise RunError(f"--precision bf16: {refusal} (on {socket.gethostname()}); use --precision fp32, or a GPU")
