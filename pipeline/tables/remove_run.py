"""Take the rows of one run out of the published tables.

The order is the reverse of publication: `images` first, then `segments`, then `logits`. A reader of several tables then
sees the run whole or not at all: once its images are out, its segments join no image.

One Delta transaction per table. Files that hold rows of this run alone leave the table without being read; a file that
compaction has merged from several runs is written again without the rows of this run. The old files stay on the disk,
and older versions of the tables stay readable (see `removals.py`), until `VACUUM`.
"""

from collections.abc import Callable

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from tenacity import retry_if_exception_type

from pipeline.errors import BrokenRunError
from pipeline.layout import Output
from pipeline.schema import ORDER, TABLES
from pipeline.store.retries import TABLE_COMMIT
from pipeline.tables.current_view import delta_options, open_table, table_uri
from pipeline.tables.removals import removal_properties
from pipeline.tables.stream_table import check_files, check_table, plain


def remove_run(output: Output, run_id: str, may_change: Callable[[], None]) -> dict[str, int]:
    """Remove the rows of the run `run_id` from all tables. Return the number of rows removed from each table.

    Calling again removes nothing more, so a caller that was killed in between may start from the beginning.
    `may_change` is called before each commit, and raises if the caller must not commit. Raises BrokenRunError if a
    commit to a table fails, RunError if a table cannot be read.
    """
    removed = {}
    for name in reversed(ORDER):
        if name not in TABLES and open_table(output, name) is None:
            continue
        try:
            removed[name] = _remove(output, name, run_id, may_change)
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise BrokenRunError(f"the table {name} cannot be changed: {plain(error)}") from error
    return removed


def _remove(output: Output, name: str, run_id: str, may_change: Callable[[], None]) -> int:
    if open_table(output, name) is None:
        return 0
    removed = 0
    quoted = run_id.replace("'", "''")
    # As in publication: an error may mean that the answer to our own commit was lost, so each attempt reads the table.
    for attempt in TABLE_COMMIT.retrying(retry_if_exception_type((DeltaError, OSError))):
        with attempt:
            table = DeltaTable(table_uri(output, name), storage_options=delta_options(output))
            check_table(output, name, table)
            check_files(output, name, table)
            properties = removal_properties(name, open_table(output, "segments"))
            may_change()
            removed += table.delete(f"run_id = '{quoted}'", commit_properties=properties)["num_deleted_rows"]
    return removed
