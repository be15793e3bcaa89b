"""Planned images without a row: lost, or taken out of the tables for a reason.

jobs/tidy.py takes a row out of the tables if a newer row has replaced it, or if it says that the image is gone. Either
way, the part that the run wrote is then no file of the table any more.
"""

from collections.abc import Iterator

import pyarrow as pa
from deltalake import DeltaTable

from pipeline.layout import Output
from pipeline.schema import IMAGES
from pipeline.tables.spill_database import ScratchDatabase, registered
from pipeline.tables.stream_table import check_files
from pipeline.verify.books import Library
from pipeline.verify.choose import Chosen
from pipeline.verify.compare import Comparison
from pipeline.verify.facts import TableFile
from pipeline.verify.file.read import FileRows
from pipeline.verify.findings import Findings, Kind

_NEWEST = pa.schema([IMAGES.field(name) for name in ("image_key", "run_created")])


def find_missing(
    scratch: ScratchDatabase,
    output: Output,
    images: DeltaTable,
    library: Library,
    chosen: Chosen,
    comparison: Comparison,
    notes: list[str],
) -> set[str]:
    """Find planned images that have lost their row. Returns the runs, of those with a known plan, that have all rows.

    `notes` gets a line for rows that were taken out for a reason.
    """
    database = scratch.connection
    with_plan = {run for run, one in library.books.items() if not one.is_tidied and run not in comparison.unknown}
    database.execute("CREATE OR REPLACE TABLE in_parts (run_id VARCHAR, shard INTEGER)")
    if chosen.whole_shards:
        database.executemany("INSERT INTO in_parts VALUES (?, ?)", sorted(chosen.whole_shards))
    database.execute(
        "CREATE OR REPLACE TABLE missing AS "
        "SELECT m.*, p.shard IS NOT NULL AS is_lost FROM missing_images m LEFT JOIN in_parts p USING (run_id, shard)"
    )
    by_run = "SELECT run_id, bool_and(is_lost) FROM missing GROUP BY run_id"
    runs = dict(database.execute(by_run).fetchall())
    if not runs:
        return with_plan
    database.execute("CREATE OR REPLACE TABLE created (run_id VARCHAR, run_created TIMESTAMPTZ)")
    created = [(run, library.books[run].facts.created) for run in sorted(runs)]
    database.executemany("INSERT INTO created VALUES (?, ?)", created)
    rows = iter(()) if all(runs.values()) else _all_rows(output, images)
    with registered(database, "streamed", _NEWEST, rows):
        database.execute(
            "CREATE OR REPLACE TABLE newest AS SELECT image_key, max(run_created) AS newest FROM streamed "
            "SEMI JOIN missing USING (image_key) GROUP BY image_key"
        )
    database.execute(
        """
        CREATE OR REPLACE TABLE lost AS
        SELECT m.*, NOT is_lost AND coalesce(n.newest > c.run_created, m.reason = 'removed') AS may_be_gone
        FROM missing m JOIN created c USING (run_id) LEFT JOIN newest n USING (image_key)
        """
    )
    comparison.find(
        Kind.NO_ROW,
        "image_key",
        "SELECT run_id, image_key, NULL::INTEGER AS file, 'planned in shard ' || shard AS found FROM lost "
        "WHERE NOT may_be_gone",
    )
    left = "SELECT run_id, count(*) FROM lost WHERE may_be_gone GROUP BY run_id ORDER BY run_id"
    for run_id, number in database.execute(left).fetchall():
        notes.append(
            f"run {run_id}: {number:,} rows are no longer in the tables, because a newer row has replaced them or the "
            "image is gone"
        )
    return with_plan - runs.keys()


def _all_rows(output: Output, images: DeltaTable) -> Iterator[pa.RecordBatch]:
    """Key and time of every row of the table, of all runs. Files that cannot be read have been found already."""
    files = check_files(output, "images", images)
    for path, size in zip(files["path"].to_pylist(), files["size_bytes"].to_pylist(), strict=True):
        file = TableFile(0, "images", f"images/{path}", size, None)
        for batch in FileRows(output, file, Findings()):
            rows = batch.select(_NEWEST.names).drop_null()  # a row without them has been found, too
            yield from rows.cast(_NEWEST).combine_chunks().to_batches()
