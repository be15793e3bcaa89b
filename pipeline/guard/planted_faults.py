"""Planted faults: images that kill the process that decodes them, for tests and drills. Off unless SegmentSpec says so.

A JPEG or PNG with a marker after its end decodes as before. `M2F_PLANTED_FAULTS=1` in the environment of a driver makes
its model actors look for markers.
"""

import ctypes
import os
import time
from collections.abc import Callable

VARIABLE = "M2F_PLANTED_FAULTS"
CHUNK_BYTES = 64 * 2**20


def are_asked_for() -> bool:
    """Whether the environment of this process asks for model actors that look for markers."""
    return os.environ.get(VARIABLE) == "1"


def marker(fault: str) -> bytes:
    """The last bytes of an image that does `fault`, one of FAULTS, to the process that decodes it."""
    assert fault in FAULTS, fault
    return f"m2f-drill:{fault}".encode()


def trip(data: bytes) -> None:
    """Do what the marker at the end of `data` says. Without a marker, do nothing."""
    for name, fault in FAULTS.items():
        if data.endswith(marker(name)):
            fault()


def _allocate() -> None:
    held = []
    while True:
        held.append(bytearray(b"x") * CHUNK_BYTES)  # written to, so that the memory is really taken


def _hang() -> None:
    while True:
        time.sleep(3600)


def _hang_with_lock() -> None:
    """Behave like a loop in C that never releases Python's lock: no other Python thread runs any more."""
    ctypes.PyDLL(None).sleep(10**6)


FAULTS: dict[str, Callable[[], None]] = {
    "abort": os.abort,
    "allocate": _allocate,
    "hang": _hang,
    "hang-with-lock": _hang_with_lock,
}
