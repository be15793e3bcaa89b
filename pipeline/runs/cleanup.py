"""What a finished run leaves behind that nobody needs: parts without a receipt, half-written files, markers of starts.

A shard that was done twice with different results has a part too many. Readers of the Delta tables never see it, but
whoever reads `run=<run_id>/*.parquet` would. On a disk, a writer that was killed also leaves a temporary file.
"""

import contextlib
import logging

from pipeline.guard.start_markers import STARTED
from pipeline.layout import run_folder
from pipeline.runs.begin import Run
from pipeline.schema import TABLES
from pipeline.store.filesystem import STORE_ERRORS, is_temporary, list_folder, one_line, open_filesystem

logger = logging.getLogger(__name__)


def sweep(run: Run) -> int:
    """Delete the parts of `run` that its journal does not name, and what was never whole; how many there were."""
    filesystem, root = open_filesystem(run.settings.output)
    named = {f"{root}/{part.path}" for receipt in run.journal.read() for part in receipt.parts.values()}
    orphans = [
        path
        for table in TABLES
        for path in list_folder(filesystem, f"{root}/{run_folder(table, run.run_id)}")
        if (path.endswith(".parquet") and path not in named) or is_temporary(path)
    ]
    for path in orphans:
        try:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(path)
        except STORE_ERRORS as error:  # they harm nobody who reads the tables
            logger.warning("%s is in no receipt and cannot be deleted: %s", path, one_line(error))
    with contextlib.suppress(*STORE_ERRORS):  # as above; FileNotFoundError where no shard was ever started
        filesystem.rm(f"{root}/_runs/{run.run_id}/{STARTED}", recursive=True)
    return len(orphans)
