"""Numba with one set of options for all kernels."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any], fastmath: set[str] | bool = False) -> Callable[..., Any]:
    """Compile `function` on its first call; the GIL is released, the machine code cached on disk.

    `fastmath`: what of IEEE arithmetic may go, in LLVM's words; nothing else than what is named.

    Where neither the package's folder nor the user's cache can be written (a container with a read-only root), every
    process compiles anew, a few seconds each; NUMBA_CACHE_DIR names another place.
    """
    try:
        return njit(cache=True, nogil=True, fastmath=fastmath)(function)
    except RuntimeError:  # numba's "no locator available": nowhere to cache
        return njit(nogil=True, fastmath=fastmath)(function)
