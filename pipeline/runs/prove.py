"""Refuse a store on which two drivers could write at once, or on which a run could lose results; choose the lease."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.commit.claims import ClaimLease
from pipeline.commit.held_lease import HeldLease
from pipeline.commit.lease import Lease
from pipeline.errors import RunError
from pipeline.guard.interruption import interrupt_main, interruptible
from pipeline.layout import Output
from pipeline.store.filesystem import is_local
from pipeline.store.proofs import find_faults, store_name

logger = logging.getLogger(__name__)


def proven(output: Output, allow_unsafe_store: bool) -> Output:
    """`output`, with what this has found out of its store by twelve small requests: whether it has conditional writes.

    Raises RunError if it has none, unless `allow_unsafe_store` is set, and if the store cannot be used at all.
    """
    with output.errors():
        faults = find_faults(output.filesystem, output.runs)
    if not faults:
        return output
    fault = faults[0]
    found = f"{output.flag} {output.uri}: {store_name(output.filesystem, output.root)} {fault.words}"
    if fault.is_usable and allow_unsafe_store:
        logger.warning(
            "%s. Because of --allow-unsafe-store the job goes on with a lease of claims, which takes longer and keeps "
            "other jobs away less surely (docs/stores.md)",
            found,
        )
        return replace(output, has_conditions=False)
    if is_local(output.filesystem):
        with contextlib.suppress(OSError):  # if it was there before, it is not empty
            Path(output.runs).rmdir()
    if fault.is_usable:
        advice = "two jobs could write there at once, so use another store, or --allow-unsafe-store"
    else:
        advice = "a run there could fail or lose results, so use another store"
    raise RunError(f"{found}; {advice} (docs/stores.md)")


@contextlib.contextmanager
def holding_lease(output: Output, seconds: float) -> Iterator[HeldLease]:
    """Hold the lease on `output`, which `proven` has returned, and release it at the end.

    RunError if another driver holds the lease. If the lease is lost, the main thread is interrupted, and this raises
    BrokenRunError.
    """
    lease = lease_on(output, seconds)
    with contextlib.ExitStack() as held:
        held.enter_context(interruptible())
        with output.errors():
            held.enter_context(lease)
        try:
            yield lease
        except KeyboardInterrupt:
            lease.check()  # raises if the loss of the lease caused the interrupt
            raise


def lease_on(output: Output, seconds: float) -> HeldLease:
    """The lease that suits the store of `output`; not taken yet."""
    if output.has_conditions:
        return Lease(output.filesystem, output.lease_json, seconds, interrupt_main)
    return ClaimLease(output.filesystem, output.runs, seconds, interrupt_main)
