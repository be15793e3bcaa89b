"""Kept indexes of tars that no current row comes from: the tar is gone, or has another ETag.

An index is written once and read each night, so its age does not say whether it is needed. A tar without an index is
only slower to list.
"""

from datetime import datetime

import duckdb

from pipeline.layout import Output, tar_index_stem
from pipeline.store.listed import StoredObject, objects_below
from pipeline.tables.spill_database import out_of_room

# An image of a tar has the key `<URI of the tar>#<name>`; both may hold more of `#`.
_TARS = """
    WITH current AS (
        SELECT image_key, etag, status FROM all_images ANTI JOIN dropped_images USING (image_key, run_id)
        WHERE contains(image_key, '#')
        QUALIFY row_number() OVER (PARTITION BY image_key ORDER BY run_created DESC, run_id DESC) = 1
    ), split AS (SELECT string_split(image_key, '#') AS parts, etag FROM current WHERE status <> 'removed')
    SELECT DISTINCT array_to_string(parts[1:place], '#') AS uri, etag
    FROM split, unnest(generate_series(1, len(parts) - 1)) AS places(place)
"""
_TARS_AT_A_TIME = 10_000


def find_old_indexes(database: duckdb.DuckDBPyConnection, output: Output, cutoff: datetime) -> list[StoredObject]:
    """Indexes that were written before `cutoff` and belong to no current row of `all_images` in `database`.

    RunError if the output cannot be listed.
    """
    with output.errors():
        names = set(output.list_indexes())
        old = [one for one in objects_below(output.filesystem, output.indexes) if one.path in names]
    old = [one for one in old if one.written_at < cutoff.timestamp()]
    if not old:
        return []
    needed: set[str] = set()
    stems = {one.path: one.path.rpartition("/")[2].rpartition("-")[0] for one in old}
    among = set(stems.values())
    with out_of_room():
        tars = database.execute(_TARS)
        while found := tars.fetchmany(_TARS_AT_A_TIME):
            needed |= among & {tar_index_stem(uri, etag) for uri, etag in found}
    return [one for one in old if stems[one.path] not in needed]
