"""Delete what a finished run no longer needs: parts without a receipt, half-written files, start markers.

If a shard was processed twice with different results, one of its parts is superfluous. Readers of the Delta tables
never see that part, but a reader of `run=<run_id>/*.parquet` would. On a disk, a writer that was killed also leaves a
temporary file.
"""

import contextlib
import logging

from m2f_core.whole_files import is_temporary
from pipeline.commit.journal import Journal
from pipeline.guard.start_markers import is_start_marker
from pipeline.layout import parts_folder
from pipeline.schema import ALL_TABLES
from pipeline.store.filesystem import STORE_ERRORS, list_folder, one_line
from pipeline.store.removal import remove_objects
from pipeline.tables.current_view import published_files

logger = logging.getLogger(__name__)


def sweep(journal: Journal) -> int:
    """Delete the parts of a run that its journal does not name, and incomplete files. Return the number of both."""
    output, run_id = journal.folder.output, journal.folder.run_id
    named = {output.at(part.path) for receipt in journal.read() for part in receipt.parts.values()}
    filesystem, started = output.filesystem, journal.folder.started
    orphans = [
        path
        for table in ALL_TABLES
        for path in list_folder(filesystem, output.at(parts_folder(table, run_id)))
        if (path.endswith(".parquet") and path not in named) or is_temporary(path)
    ]
    if orphans:  # a damaged journal may have lost the receipt of a part that readers see
        published = {output.at(path) for table in ALL_TABLES for path in published_files(output, table)}
        orphans = [path for path in orphans if path not in published]
    for path in orphans:
        try:
            with contextlib.suppress(FileNotFoundError):
                filesystem.rm_file(path)
        except STORE_ERRORS as error:  # harmless: readers of the tables do not see these files
            logger.warning("no receipt names %s, but the file cannot be deleted: %s", path, one_line(error))
    with contextlib.suppress(*STORE_ERRORS):  # harmless as well
        remove_objects(filesystem, started, filter(is_start_marker, list_folder(filesystem, started)))
    return len(orphans)
