"""Images that kill whoever decodes them, for tests and drills; never looked for unless SegmentSpec says so.

A JPEG or PNG decodes as before with one of these markers behind its end.
"""

import ctypes
import os
import time
from collections.abc import Callable

CHUNK_BYTES = 64 * 2**20


def trip(data: bytes) -> None:
    """Do what the marker at the end of `data` says; nothing where there is none."""
    for marker, fault in FAULTS.items():
        if data.endswith(marker):
            fault()


def _allocate() -> None:
    held = []
    while True:
        held.append(bytearray(b"x") * CHUNK_BYTES)  # written to, so that the memory is really taken


def _hang() -> None:
    while True:
        time.sleep(3600)


def _hang_with_lock() -> None:
    """As a loop in C does that never lets Python's lock go: no other Python thread runs any more."""
    ctypes.PyDLL(None).sleep(10**6)


FAULTS: dict[bytes, Callable[[], None]] = {
    b"m2f-drill:abort": os.abort,
    b"m2f-drill:allocate": _allocate,
    b"m2f-drill:hang": _hang,
    b"m2f-drill:hang-with-lock": _hang_with_lock,
}
