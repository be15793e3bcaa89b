"""Waiting for events: tests hold on a machine on which everything takes ten times as long."""

import time
from collections.abc import Callable
from typing import Any

# Ends a test that hangs, and decides none: whatever a test waits for takes seconds on a free machine. Below the
# suite's `timeout`, so that a test that waits in vain can still say what for.
PATIENCE_SECONDS = 600.0


def wait_until(condition: Callable[[], Any], what: str = "") -> None:
    """Look at `condition` again and again until it holds; an exception of its own ends the waiting."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE_SECONDS:g} s in vain {what}".rstrip()
        time.sleep(0.05)
