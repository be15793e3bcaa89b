"""The reasons of images, in SQL: a batch of the listing against the current rows, in a scratch database.

Tables and views of the database: `listing` (LISTED, all images that are listed so far), `batch` (those to compare now),
`current` (the current rows), `fingerprints`, `planned_before` (keys that the run has planned already), and `changes`,
which `join` makes.
"""

from collections.abc import Iterable

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.run_record import read_run_record
from pipeline.errors import TRANSIENT, RunError
from pipeline.inputs.selection import Selection
from pipeline.layout import Output
from pipeline.schema import LISTED
from pipeline.shown_text import shown

ROWS = 20_000  # rows at a time between Python and DuckDB: a few MB

# An object may have the key of an image in a tar, because `t.tar#a.jpg` is a good name for an object, too.
MAY_BE_TWIN = "contains(coalesce(object_uri, image_key), '#')"


def may_hold_twins(database: duckdb.DuckDBPyConnection) -> bool:
    """Whether two images of one source may have the same key. See MAY_BE_TWIN."""
    [(containers, twins)] = database.execute(
        f"SELECT count(object_uri), count(*) FILTER ({MAY_BE_TWIN}) FROM listing"
    ).fetchall()
    return bool(containers and twins)


def refuse_twins(database: duckdb.DuckDBPyConnection) -> None:
    """RunError if one key stands for two objects, or for two places in an object."""
    place = "coalesce(object_uri, image_key), position, row_group"
    twins = database.execute(
        f"SELECT image_key, count(*) FROM listing GROUP BY image_key HAVING count(*) > 1 AND "
        f"(count(DISTINCT row({place})) > 1 OR count(DISTINCT etag) > 1) LIMIT 1"
    ).fetchone()
    if twins is not None:
        raise RunError(
            f"--input: {twins[1]} images have the key {shown(twins[0])} and lie in different places, or have different "
            "ETags; give each image a key of its own"
        )


def keep_each_once(database: duckdb.DuckDBPyConnection) -> None:
    """Keep one row of an image that is listed several times, by overlapping inputs or by lines of a manifest."""
    database.execute(
        "CREATE TABLE each_once AS SELECT * FROM listing QUALIFY row_number() OVER (PARTITION BY image_key) = 1"
    )
    database.execute("CREATE OR REPLACE VIEW listing AS FROM each_once")


def make_planned(database: duckdb.DuckDBPyConnection) -> None:
    """Make the table `planned_before`, empty."""
    database.execute("CREATE TABLE planned_before (image_key VARCHAR)")


def load_planned(database: duckdb.DuckDBPyConnection, planned: Iterable[pa.Table]) -> None:
    """Add keys of tables with the column `image_key` to `planned_before`. ValueError if a key comes twice."""
    for table in planned:
        if table.num_rows:
            database.from_arrow(table.select(["image_key"])).insert_into("planned_before")
    twice = database.execute(
        "SELECT image_key FROM planned_before GROUP BY image_key HAVING count(*) > 1 LIMIT 1"
    ).fetchone()
    if twice is not None:
        raise ValueError(f"the plan names {shown(twice[0])} twice")


def load_fingerprints(
    database: duckdb.DuckDBPyConnection, output: Output, fingerprint: str, weights_sha256: str
) -> None:
    """Make the table `fingerprints`: each other fingerprint of current rows, and the reason that it gives an image."""
    database.execute("CREATE TABLE fingerprints (fingerprint VARCHAR, reason VARCHAR)")
    others = database.execute(
        "SELECT fingerprint, arg_max(run_id, (run_created, run_id)) FROM current WHERE fingerprint <> ? GROUP BY ALL",
        [fingerprint],
    ).fetchall()
    for other, run_id in others:
        same_weights = _weights_of(output, run_id) == weights_sha256
        reason = "settings_changed" if same_weights else "model_changed"
        database.execute("INSERT INTO fingerprints VALUES (?, ?)", [other, reason])


def _weights_of(output: Output, run_id: str) -> str | None:
    """The hash of the weights of a run. None if its run.json is gone: then nothing shows that the model is the same."""
    record = read_run_record(output, output.run(run_id))
    return None if record is None else record.model.weights_sha256


_IN_MODE = {
    "incremental": "reason",
    "overwrite": "CASE reason WHEN 'unchanged' THEN 'overwrite' ELSE reason END",
    "retry-failed": """
        CASE WHEN failed THEN 'retry'
             WHEN reason = 'unchanged' THEN reason ELSE 'not_selected' END""",
}


def num_current(database: duckdb.DuckDBPyConnection) -> int:
    [(number,)] = database.execute("SELECT count(*) FROM current").fetchall()
    return int(number)


def join(database: duckdb.DuckDBPyConnection, mode: str) -> int:
    """Make the table `changes`: PLANNED_IMAGES of every image in `batch` that is not planned before. Returns how many
    of these images have a current row.

    A size of a row of a Parquet file is an estimate, and null or "" is a fact that nobody knows: neither is compared.
    The batch is hashed and the current rows are streamed, because most batches are smaller.
    """
    transient = ", ".join(f"'{code.value}'" for code in TRANSIENT)
    places = ", ".join(f"l.{name}" for name in LISTED.names[3:])
    database.execute(f"""
        CREATE OR REPLACE TABLE changes AS
        WITH compared AS (
            SELECT l.image_key,
                   coalesce(l.etag, c.etag) AS etag,
                   l.size_bytes,
                   {places},
                   c.image_key IS NOT NULL AS known,
                   c.status = 'failed' AS failed,
                   CASE
                       WHEN c.image_key IS NULL THEN 'new'
                       WHEN l.etag <> '' AND l.etag <> c.etag THEN 'changed'
                       WHEN l.row_group IS NULL AND l.size_bytes <> c.size_bytes THEN 'changed'
                       WHEN f.reason IS NOT NULL THEN f.reason
                       WHEN c.status = 'failed' AND c.error_code IN ({transient}) THEN 'retry'
                       ELSE 'unchanged'
                   END AS reason
            FROM current c RIGHT JOIN (FROM batch ANTI JOIN planned_before USING (image_key)) l
                ON l.image_key = c.image_key
            LEFT JOIN fingerprints f ON c.fingerprint = f.fingerprint
        )
        SELECT * EXCLUDE (failed) REPLACE ({_IN_MODE[mode]} AS reason) FROM compared
    """)
    [(number,)] = database.execute("SELECT count(*) FROM changes WHERE known").fetchall()
    return int(number)


def add_removed(database: duckdb.DuckDBPyConnection, selections: list[Selection]) -> None:
    """Add to `changes` the images with a current row that the whole listing lacks, as far as it could hold them."""
    places = ", ".join(f"NULL AS {name}" for name in LISTED.names[3:])
    database.execute(f"""
        INSERT INTO changes BY NAME
        SELECT image_key, etag, size_bytes, {places}, 'removed' AS reason
        FROM current ANTI JOIN listing USING (image_key) ANTI JOIN planned_before USING (image_key)
    """)
    _keep_removed_in_scope(database, selections)
    _keep_removed_of_read_containers(database)


def _keep_removed_in_scope(database: duckdb.DuckDBPyConnection, selections: list[Selection]) -> None:
    """Drop removed images that the listing could not hold: patterns leave them out, or they lie beside the input."""
    reader = database.cursor().sql("SELECT image_key FROM changes WHERE reason = 'removed'").to_arrow_reader(ROWS)
    database.execute("CREATE TABLE beside (image_key VARCHAR)")
    for batch in reader:
        keys = pa.chunked_array([batch["image_key"]])
        in_scope = pa.chunked_array([pa.repeat(pa.scalar(False), len(keys))])
        for selection in selections:
            in_scope = pc.or_(in_scope, selection.in_scope(keys))
        beside = keys.filter(pc.invert(in_scope))
        if len(beside):
            database.from_arrow(pa.table({"image_key": beside})).insert_into("beside")
    database.execute("DELETE FROM changes WHERE reason = 'removed' AND image_key IN (SELECT image_key FROM beside)")


def _keep_removed_of_read_containers(database: duckdb.DuckDBPyConnection) -> None:
    """Drop removed images of containers that could not be read, or not to their end: the images may still be there.

    The fault of such a container stands in a row that has its URI as key; the keys of its images are `<URI>#<name>`.
    """
    database.execute("""
        DELETE FROM changes WHERE reason = 'removed' AND image_key IN (
            SELECT image_key
            FROM (
                SELECT image_key, string_split(image_key, '#') AS parts
                FROM changes WHERE reason = 'removed' AND contains(image_key, '#')
            ), unnest(range(1, len(parts))) AS numbers(number)
            WHERE array_to_string(parts[1:number], '#') IN (
                SELECT image_key FROM listing WHERE fault IS NOT NULL AND object_uri IS NULL
            )
        )
    """)
