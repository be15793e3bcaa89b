"""Check whether a device may run models in a precision; the driver, the model actors and the training call this."""

import socket

from m2f_core.layers.cpu_instructions import bf16_refusal
from pipeline.errors import RunError


def check_precision(precision: str, device: str) -> None:
    """Raise RunError if `device` is this machine's CPU and `precision` would be slower than fp32 on this CPU."""
    if device == "cpu" and precision == "bf16" and (refusal := bf16_refusal()) is not None:
        raise RunError(f"--precision bf16: {refusal} (on {socket.gethostname()}); use --precision fp32, or a GPU")
