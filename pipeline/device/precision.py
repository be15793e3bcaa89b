"""Check whether a device may run models in a precision; the driver, the model actors and the training call this."""

import socket

from m2f_core.layers.cpu_instructions import bf16_refusal, int8_refusal
from pipeline.errors import RunError


def check_precision(precision: str, device: str) -> None:
    """Raise RunError if `precision` would be slower than fp32 on this machine's CPU, or is not for `device`."""
    if precision == "int8" and device != "cpu":
        raise RunError("--precision int8 is for CPUs; use --device cpu, or --precision bf16 on a GPU")
    refusal = {"bf16": bf16_refusal, "int8": int8_refusal}.get(precision, lambda: None)
    if device == "cpu" and (said := refusal()) is not None:
        raise RunError(f"--precision {precision}: {said} (on {socket.gethostname()}); use --precision fp32, or a GPU")
