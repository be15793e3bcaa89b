"""Refuse a store on which two drivers could write at once, or on which a run could lose results."""

import contextlib
import logging
from pathlib import Path

from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.store.filesystem import is_local
from pipeline.store.proofs import find_faults, store_name

logger = logging.getLogger(__name__)


def conditions_hold(output: Output, allow_unsafe_store: bool) -> bool:
    """Whether conditional writes keep a second driver off `output`. This tries the store with twelve small requests.

    Raises RunError if they do not, unless `allow_unsafe_store` is set, and if the store cannot be used at all.
    """
    with output.errors():
        faults = find_faults(output.filesystem, output.runs)
    if not faults:
        return True
    fault = faults[0]
    found = f"{output.flag} {output.uri}: {store_name(output.filesystem, output.root)} {fault.words}"
    if fault.is_usable and allow_unsafe_store:
        logger.warning(
            "%s. Because of --allow-unsafe-store the job goes on with a lease of claims, which takes longer and keeps "
            "other jobs away less surely (docs/stores.md)",
            found,
        )
        return False
    if is_local(output.filesystem):
        with contextlib.suppress(OSError):  # if it was there before, it is not empty
            Path(output.runs).rmdir()
    if fault.is_usable:
        advice = "two jobs could write there at once, so use another store, or --allow-unsafe-store"
    else:
        advice = "a run there could fail or lose results, so use another store"
    raise RunError(f"{found}; {advice} (docs/stores.md)")
