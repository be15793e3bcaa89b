"""Refuse a store on which two drivers could write at once, or on which a run could lose results."""

import contextlib
from pathlib import Path

from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.store.filesystem import is_local
from pipeline.store.proofs import find_faults, store_name


def refuse_unsafe_store(output: Output) -> None:
    """Try the store of `output` with twelve small requests. Raise RunError if it does not do what a run relies on."""
    with output.errors():
        faults = find_faults(output.filesystem, output.runs)
    if not faults:
        return
    if is_local(output.filesystem):
        with contextlib.suppress(OSError):  # if it was there before, it is not empty
            Path(output.runs).rmdir()
    harm = "two jobs could write there at once" if faults[0].of_conditions else "a run there could lose results"
    raise RunError(
        f"{output.flag} {output.uri}: {store_name(output.filesystem, output.root)} {faults[0].words}; {harm}, so use "
        "another store (docs/operations.md)"
    )
