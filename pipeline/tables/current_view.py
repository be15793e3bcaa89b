"""The published tables, as readers see them: Delta Lake tables below the output, and the newest row of every image.

A run is published in two transactions: `segments` first, `images` last. So a reader of both tables takes the snapshot
of `images` first and the snapshot of `segments` second: then every visible image has its segments, and the join on
image_key and run_id drops segments of images that are not visible yet.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import duckdb
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError
from fsspec.asyn import sync

from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.schema import TABLES
from pipeline.store.filesystem import STORE_ERRORS, is_local, is_s3, uri_of
from pipeline.tables.removals import segments_before_removal
from pipeline.tables.spill_database import MEMORY_MIB, ScratchDatabase, out_of_room, register, registered
from pipeline.tables.stream_table import check_files, columns_of, plain, retrying, stream_table

_T = TypeVar("_T")

_READ_ERRORS = (DeltaError, *STORE_ERRORS, pa.ArrowException)

_BATCH_ROWS = 16_384


def table_uri(output: Output, table: str) -> str:
    """The table's name for `deltalake`: a local path, or a URI whose path is escaped (unlike everywhere else here).

    An unescaped `#` or `?` would end the path, and the table would lie in another folder.
    """
    if is_local(output.filesystem):
        return output.at(table)
    protocol, path = uri_of(output.filesystem, output.at(table)).split("://", 1)
    return f"{protocol}://{quote(path)}"


def delta_options(output: Output) -> dict[str, str]:
    """`storage_options` with which `deltalake` opens the tables of `output`: the same endpoint, the same credentials.

    The options hold secrets, and credentials of a role expire within the hour: neither log nor keep the options. For
    stores other than S3, the library finds its credentials itself. Raises RunError if there are no credentials.
    """
    filesystem: Any = output.filesystem
    if not is_s3(filesystem):
        return {}
    client = filesystem.s3
    region, endpoint = client.meta.region_name or "us-east-1", client.meta.endpoint_url
    options = {"AWS_REGION": region}
    if re.fullmatch(r"https://s3\.([a-z0-9-]+\.)?amazonaws\.com(\.cn)?", endpoint):
        # AWS itself: botocore finds the region of a bucket by itself, deltalake must be given the region.
        options["AWS_REGION"] = _region_of_bucket(filesystem, output.root.partition("/")[0]) or region
    else:
        options["AWS_ENDPOINT_URL"] = endpoint
        options["AWS_ALLOW_HTTP"] = str(endpoint.startswith("http://")).lower()
    return {**options, **_credentials(filesystem, output.uri)}


def _region_of_bucket(filesystem: Any, bucket: str) -> str | None:
    try:
        return filesystem.call_s3("head_bucket", Bucket=bucket).get("BucketRegion")
    except Exception:
        return None  # permission is missing, or there is no such bucket: later requests report that better


def _credentials(filesystem: Any, uri: str) -> dict[str, str]:
    if filesystem.anon:
        return {"AWS_SKIP_SIGNATURE": "true"}
    key, secret, token = filesystem.key, filesystem.secret, filesystem.token
    if not key:

        async def frozen() -> Any:
            found = await filesystem.session.get_credentials()
            return found and await found.get_frozen_credentials()

        credentials = sync(filesystem.loop, frozen)
        if credentials is None:
            raise RunError(f"cannot open {uri}: no credentials found in the environment, a profile or a role")
        key, secret, token = credentials.access_key, credentials.secret_key, credentials.token
    options = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    return {**options, "AWS_SESSION_TOKEN": token} if token else options


def open_table(output: Output, table: str, version: int | None = None) -> DeltaTable | None:
    """The newest snapshot of a published table, or the snapshot of `version`. None if nothing is published.

    Raises RunError if the table cannot be read after a few attempts. A reader of both tables must read `images` first:
    see the top of this file.
    """
    return reading(output, table, lambda: _open(output, table, version))


def _open(output: Output, table: str, version: int | None) -> DeltaTable | None:
    uri = table_uri(output, table)
    check_log(output, table)
    try:
        return DeltaTable(uri, version=version, storage_options=delta_options(output))
    except TableNotFoundError:
        return None


def open_segments(output: Output, table: str, images_version: int) -> DeltaTable | None:
    """A version of `segments` that has all segments of this version of `images`.

    This is the newest version, unless rows have left the tables since. `segments` is opened before `images` is asked:
    if the version that was opened lacks rows, their removal from `images` came earlier and shows.
    """
    newest = open_table(output, table)

    def look() -> int | None:
        images = _open(output, "images", None)
        return None if images is None else segments_before_removal(images, images_version)

    before = reading(output, "images", look)
    return newest if before is None else open_table(output, table, before)


def published_files(output: Output, table: str) -> set[str]:
    """The paths, relative to the output, of the files that the table has now. RunError if it cannot be read."""
    snapshot = open_table(output, table)
    return (
        set()
        if snapshot is None
        else {f"{table}/{p}" for p in check_files(output, table, snapshot)["path"].to_pylist()}
    )


def check_log(output: Output, table: str) -> None:
    """Raise RunError if the log of the table, or an object in it, is a link that leads out of the output."""
    log = output.inside(output.at(f"{table}/_delta_log"))
    if is_local(output.filesystem) and Path(log).is_dir():
        with os.scandir(log) as entries:
            for entry in entries:
                if entry.is_symlink():
                    output.inside(entry.path)


def reading(output: Output, table: str, read: Callable[[], _T]) -> _T:
    """Call `read`, with retries; RunError if it fails in the end.

    `read` must open the table itself: a flipped byte in the table's log may show only as a missing file.
    """
    try:
        return retrying(_READ_ERRORS)(read)
    except _READ_ERRORS as error:
        raise RunError(f"the table {table} below {output.uri} cannot be read: {plain(error)}") from None


# `below` without slashes; the character after the input ends its name.
_IS_BELOW = """list_bool_or(list_transform(getvariable('below'), lambda one:
    starts_with(image_key, one) AND substr(image_key, length(one) + 1, 1) IN ('', '/', '#')))"""

_IS_OF_RUN = "run_id = getvariable('run_id')"


def load_current(
    database: duckdb.DuckDBPyConnection,
    output: Output,
    columns: Sequence[str] = (),
    below: Sequence[str] = (),
    version: int | None = None,
    run_id: str | None = None,
) -> int | None:
    """Make the table `current`: image_key, run_id and `columns` of the newest row of every image, without tombstones.

    `below` are inputs, each with a slash at its end: only keys of the inputs count. These start with the input, or are
    the input without the slash (an input may be one object), or are that object with `#` and a name (the object may
    hold images). Without `below`, all keys count. With `run_id`, the rows of this run take the place of the newest
    rows. Returns the version of the table `images`, or None if nothing is
    published (then `current` is empty). Raises RunError if the table cannot be read.
    """
    wanted = list(dict.fromkeys(["image_key", "run_id", "run_created", "status", *columns]))

    def load() -> int | None:
        snapshot = _open(output, "images", version)
        batches = iter(()) if snapshot is None else stream_table(output, "images", snapshot, wanted, below, run_id)
        database.execute("SET VARIABLE below = ?", [[folder.rstrip("/") for folder in below]])
        database.execute("SET VARIABLE run_id = ?", [run_id])
        # A window function, because DuckDB sorts it on disk; arg_max would group in memory, and took three times as
        # long.
        query = f"""
            CREATE OR REPLACE TABLE current AS
            SELECT {", ".join(dict.fromkeys(["image_key", "run_id", *columns]))} FROM (
                SELECT * FROM published
                WHERE {_IS_BELOW if below else "true"} AND {"true" if run_id is None else _IS_OF_RUN}
                QUALIFY row_number() OVER (PARTITION BY image_key ORDER BY run_created DESC, run_id DESC) = 1
            ) WHERE status <> 'removed'
        """
        with registered(database, "published", columns_of("images", wanted), batches):
            database.execute(query)
        return None if snapshot is None else snapshot.version()

    with out_of_room():
        return reading(output, "images", load)


def current_images(
    output: str, columns: Sequence[str] | None = None, *, version: int | None = None, memory_mib: int = MEMORY_MIB
) -> pa.RecordBatchReader:
    """The current view of `images`: for every image the row with the latest run_created, unless it says `removed`.

    Returns a reader of record batches, in no particular order. The reader streams, and every library accepts it (DuckDB
    and Polars as they accept a table). `columns` are columns of schema.IMAGES; default: all. `version` is a version of
    the table `images`, for a view of the past or for the same view twice. `memory_mib` limits the memory for finding
    the newest rows; the rest goes to TMPDIR.

    Raises RunError if nothing is published or the tables cannot be read.
    """
    return _current(Output.open(output), "images", columns, version, memory_mib)


def current_segments(
    output: str, columns: Sequence[str] | None = None, *, version: int | None = None, memory_mib: int = MEMORY_MIB
) -> pa.RecordBatchReader:
    """The segments of exactly the rows of `current_images`, with the same parameters (`version` is a version of
    `images`).

    The snapshot of `images` is taken first and the snapshot of `segments` second, because a run is published in the
    other order. So every image of the view has all its segments, and segments of images that are not visible yet are
    left out. If rows have left the tables since the snapshot of `images` (a roll-back), the version of `segments` from
    before is read.
    """
    return _current(Output.open(output), "segments", columns, version, memory_mib)


def _current(
    output: Output, table: str, columns: Sequence[str] | None, version: int | None, memory_mib: int
) -> pa.RecordBatchReader:
    schema = TABLES[table] if columns is None else columns_of(table, columns)
    scratch = ScratchDatabase(memory_mib)
    try:
        current_version = load_current(scratch.connection, output, version=version)
        snapshot = None
        if current_version is not None:  # read the same version of `images`, whatever is published meanwhile
            by_table = open_table if table == "images" else open_segments
            snapshot = by_table(output, table, current_version)
        if snapshot is None:
            raise RunError(f"{output.uri} has no published table {table}; give the --output of a run")
        names = list(dict.fromkeys([*schema.names, "image_key", "run_id"]))
        rows = stream_table(output, table, snapshot, names)
        register(scratch.connection, "published", columns_of(table, names), rows)
        with out_of_room():
            reader = scratch.connection.sql(
                f"SELECT {', '.join(schema.names)} FROM published SEMI JOIN current USING (image_key, run_id)"
            ).to_arrow_reader(_BATCH_ROWS)
    except BaseException:
        scratch.close()
        raise

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for batch in reader:
                yield pa.RecordBatch.from_arrays(batch.cast(schema).columns, schema=schema)
        finally:
            scratch.close()

    return pa.RecordBatchReader.from_batches(schema, batches())
