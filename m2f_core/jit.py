"""Numba with one set of options for all kernels."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any], fastmath: set[str] | bool = False) -> Callable[..., Any]:
    """Compile `function` on its first call; the GIL is released, the machine code cached on disk.

    `fastmath`: the IEEE rules that the compiler may break, by LLVM's names; all others are kept.

    If neither the package's folder nor the user's cache is writable (a container with a read-only root), every process
    compiles again, which takes a few seconds; NUMBA_CACHE_DIR sets another folder.
    """
    try:
        return njit(cache=True, nogil=True, fastmath=fastmath)(function)
    except RuntimeError:  # numba's "no locator available": no folder for the cache
        return njit(nogil=True, fastmath=fastmath)(function)
