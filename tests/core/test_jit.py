"""Kernels compile with a cache where there is one, and without where there is none."""

import numba.core.caching

from m2f_core.jit import compiled


def twice(x):
    return 2 * x


def test_compiles_where_nothing_can_be_written(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    assert compiled(twice)(21) == 42


def test_releases_the_gil_and_caches():
    function = compiled(twice)
    assert function.targetoptions["nogil"]
    assert type(function._cache).__name__ == "FunctionCache"
