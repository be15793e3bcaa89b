"""A listing that stops half-way until something exists: what happens meanwhile does not need the whole listing.

`import tests.support.gated_listing` changes the driver in this process as the environment asks: M2F_TEST_LISTED images
are listed one by one, or with M2F_TEST_TOGETHER all at once, and the others only once a file fits the pattern
M2F_TEST_GATE. With M2F_TEST_BREAKS the listing raises then.
"""

import glob
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs.listing import list_inputs
from pipeline.plan import spool
from pipeline.runs import preview
from tests.support.waiting import wait_until

LISTED, TOGETHER = "M2F_TEST_LISTED", "M2F_TEST_TOGETHER"
GATE, BREAKS = "M2F_TEST_GATE", "M2F_TEST_BREAKS"


def gated(number: int, is_open: Callable[[], Any], together: bool = False) -> Callable[..., Iterator[pa.Table]]:
    """Like list_inputs, one image at a time; with `together`, the images before the gate are one table."""

    def listing(spec: InputSpec, most: int | None, kept: Any, stopped: threading.Event) -> Iterator[pa.Table]:
        listed, before = 0, []
        for table in list_inputs(spec, most, kept, stopped):
            for row in range(table.num_rows):
                if together and listed < number:
                    before.append(table.slice(row, 1))
                    listed += 1
                    if listed == number:
                        yield pa.concat_tables(before)
                    continue
                if listed == number:
                    wait_until(lambda: stopped.is_set() or is_open())
                    if BREAKS in os.environ:
                        raise RunError("the store went away")
                yield table.slice(row, 1)
                listed += 1

    return listing


if GATE in os.environ:
    spool._ROWS_A_FILE = 1
    preview.list_inputs = gated(int(os.environ[LISTED]), lambda: glob.glob(os.environ[GATE]), TOGETHER in os.environ)
