"""Kernels compile with a cache where there is one, and without where there is none."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba.core.caching

from m2f_core import jit
from m2f_core.jit import KernelCache, compiled
from m2f_core.masks import rle
from tests.support.places import ROOT

COMPILE = """
import numpy as np
from m2f_core.masks import rle
rle.decode_counts(b"52203")
print(rle.__file__, *rle.read_numbers.stats.cache_hits.values())
"""


def twice(x):
    return 2 * x


def test_compiles_where_nothing_can_be_written(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    assert compiled(twice)(21) == 42


def test_releases_the_gil_and_caches():
    function = compiled(twice)
    assert function.targetoptions["nogil"]
    assert type(function._cache).__name__ == "FunctionCache"


def test_only_our_kernels_are_in_our_cache():
    assert type(rle.read_numbers._cache._impl.locator) is KernelCache
    assert type(compiled(twice)._cache._impl.locator) is not KernelCache


def run(root: Path, cache: Path, **environment: str) -> list[str]:
    """The file that was imported, and how often a kernel's machine code came from the cache."""
    clean = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    found = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=root,
        env={**clean, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split()


def test_a_copy_of_the_package_compiles_nothing_again_until_a_kernel_changes(tmp_path):
    roots = [tmp_path / name for name in ("first", "second")]
    for root in roots:
        shutil.copytree(ROOT / "m2f_core", root / "m2f_core", ignore=shutil.ignore_patterns("__pycache__"))
    first, second = (run(root, tmp_path / "cache") for root in roots)
    assert [first, second] == [
        [f"{root}/m2f_core/masks/rle.py", *hits] for root, hits in zip(roots, ([], ["1"]), strict=True)
    ]
    changed = roots[1] / "m2f_core" / "images" / "resize.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    assert run(roots[1], tmp_path / "cache") == [f"{roots[1]}/m2f_core/masks/rle.py"]


def test_numbas_own_variable_goes_first(tmp_path):
    run(ROOT, tmp_path / "cache", NUMBA_CACHE_DIR=str(tmp_path / "other"))
    assert any((tmp_path / "other").rglob("*.nbc")) and not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_left_out(monkeypatch):
    def refuse(self):
        raise OSError("read-only")

    monkeypatch.setattr(KernelCache, "ensure_cache_path", refuse)
    assert KernelCache.from_function(rle.decode, rle.__file__) is None


def test_the_hash_is_of_all_files_with_kernels(monkeypatch, tmp_path):
    monkeypatch.setattr(jit, "_PACKAGE", tmp_path)
    (tmp_path / "kernel.py").write_text("@compiled\n")
    (tmp_path / "other.py").write_text("1\n")
    before = jit.kernels_sha256.__wrapped__()
    (tmp_path / "other.py").write_text("2\n")
    assert jit.kernels_sha256.__wrapped__() == before
    (tmp_path / "kernel.py").write_text("@compiled\n#\n")
    assert jit.kernels_sha256.__wrapped__() != before
