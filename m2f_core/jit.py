"""Numba with one set of options for all kernels, and one cache of their machine code for all copies of this package.

Numba keeps machine code beside the source, by the source's path and time. `ray job submit --working-dir` unpacks every
upload into another folder, where each node would compile for 15 to 20 seconds. This cache goes by content instead: the
same kernels are compiled once for a user, wherever the package lies.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Self

from numba import njit
from numba.core import caching

from m2f_core.user_cache import user_cache

_PACKAGE = Path(__file__).parent


def compiled(function: Callable[..., Any], fastmath: set[str] | bool = False) -> Callable[..., Any]:
    """Compile `function` on its first call; the GIL is released, the machine code cached on disk.

    `fastmath`: the IEEE rules that the compiler may break, by LLVM's names; all others are kept.

    NUMBA_CACHE_DIR sets another folder. If no folder is writable, neither the user's cache nor TMPDIR nor the package's
    own, every process compiles again.
    """
    try:
        return njit(cache=True, nogil=True, fastmath=fastmath)(function)
    except RuntimeError:  # numba's "no locator available": no folder for the cache
        return njit(nogil=True, fastmath=fastmath)(function)


class KernelCache(caching._CacheLocator):
    """Where numba keeps the machine code of this package's kernels."""

    def __init__(self, function: Callable[..., Any], file: Path):
        self._name = f"{file.relative_to(_PACKAGE).with_suffix('').as_posix().replace('/', '.')}-{function.__name__}"

    def get_cache_path(self) -> str:
        return str(user_cache() / "kernels" / kernels_sha256()[:32])

    def get_source_stamp(self) -> str:
        """What must be equal for machine code to be used again."""
        return kernels_sha256()

    def get_disambiguator(self) -> str:
        return self._name

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> Self | None:
        """None, so that numba asks its own locators, for a function of others or if the folder is not writable."""
        path = Path(file)
        if not path.is_relative_to(_PACKAGE) or not path.is_file():
            return None
        try:
            locator = cls(function, path)
            locator.ensure_cache_path()
        except OSError:
            return None
        return locator


@cache
def kernels_sha256() -> str:
    """Of all files with kernels: a kernel contains those that it calls, which may be in another file."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        if b"@compiled" in content:
            digest.update(f"{path.relative_to(_PACKAGE).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


# After the locator that obeys NUMBA_CACHE_DIR
caching.CacheImpl._locator_classes = [
    *caching.CacheImpl._locator_classes[:1],
    KernelCache,
    *caching.CacheImpl._locator_classes[1:],
]
