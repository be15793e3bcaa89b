"""Numba with one set of options for all kernels."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` on its first call; the GIL is released, the machine code cached on disk.

    Where neither the package's folder nor the user's cache can be written (a container with a read-only root), every
    process compiles anew, a few seconds each; NUMBA_CACHE_DIR names another place.
    """
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba's "no locator available": nowhere to cache
        return njit(nogil=True)(function)
