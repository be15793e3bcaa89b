"""Publish finished shards: one Delta Lake transaction per table adds the parts that the journal names.

Nothing is copied: the transaction names the Parquet files that the run wrote. Until the transaction is committed,
readers of the Delta table see none of these parts; afterwards they see all of them.

Two tables cannot change in one transaction, so the order matters: `logits` (if there are any), `segments`, and `images`
last. A reader who opens `images` first and `segments` second, and joins them, sees only whole runs. The segments of
each image that this reader sees were published before the image, and segments of a run that the reader does not see yet
find no image to join. In the other order, an image could be visible without its segments, as if the model had found
nothing in the image.

Publishing again is harmless. Each transaction carries the number of shards of the run that the table then holds
(Delta's application transaction version), so the next publication knows what the table already has. If two commits
build on the same version of the table and carry the same application id, delta-rs refuses the second.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction
from tenacity import retry_if_exception_type

from pipeline.commit.journal import Journal
from pipeline.commit.receipt import PartRecord
from pipeline.errors import BrokenRunError, RunError
from pipeline.guard.kill_points import reached
from pipeline.layout import Output
from pipeline.schema import ADDED_COLUMNS, ALL_TABLES, ORDER, SCHEMA_VERSION, TABLES
from pipeline.store.retries import TABLE_COMMIT
from pipeline.tables.current_view import check_log, delta_options, open_table, table_uri
from pipeline.tables.stream_table import check_files, check_table, plain, stream_table

logger = logging.getLogger(__name__)

TARGET_FILE_BYTES = 256 * 2**20  # for compaction


@dataclass
class Publisher:
    """Publishes one run. Call `publish` as often as you like."""

    output: Output
    run_id: str
    num_shards: Callable[[], int]  # of the plan of the run, as far as it goes
    journal: Journal
    may_publish: Callable[[], None] = lambda: None  # called before each commit; raises if this driver must not commit
    tables: Callable[[], Collection[str]] = lambda: TABLES  # of which the journal names parts
    shards: dict[str, set[int]] = field(default_factory=dict)  # by table: the shards that are known to be in the table

    def publish(self) -> dict[str, int]:
        """Add all parts that the journal names and the tables do not have yet. Return the version of each table.

        Raises BrokenRunError if a commit to a table fails.
        """
        versions, tables = {}, self.tables()
        reached("before segments published")
        for name in (name for name in ORDER if name in tables):
            try:
                versions[name] = self._publish_table(name)
            except (DeltaError, OSError, pa.ArrowException) as error:
                raise BrokenRunError(f"the table {name} cannot be published: {plain(error)}") from error
            if name == "logits":
                reached("between logits and segments published")
            if name == "segments":
                reached("between segments and images published")
        reached("after images published")
        return versions

    def compact(self) -> None:
        """Merge small files of the tables into large ones: see `compact`."""
        compact(self.output)

    def _publish_table(self, name: str) -> int:
        uri, options = table_uri(self.output, name), delta_options(self.output)
        # A failure can mean that another writer committed in between, that the answer to our own commit was lost, or
        # that one of the many requests of the Delta library failed and the library does not retry it. So each attempt
        # reads the table again.
        for attempt in TABLE_COMMIT.retrying(retry_if_exception_type((DeltaError, OSError))):
            with attempt:
                check_log(self.output, name)
                DeltaTable.create(uri, schema=ALL_TABLES[name], mode="ignore", storage_options=options)
                table = DeltaTable(uri, storage_options=options)
                check_table(self.output, name, table)
                self._add_columns(table, name)
                there = self._shards_in(table, name)
                new = {
                    receipt.shard: receipt.parts[name]
                    for receipt in self.journal.read(self.num_shards())
                    if receipt.shard not in there and name in receipt.parts
                }
                if not new:
                    return table.version()
                # An empty part adds nothing; a file without rows would only cost readers a request.
                actions: list[AddAction | RemoveAction] = [
                    _add_part(name, self.run_id, s, part) for s, part in new.items() if part.num_rows
                ]
                self.may_publish()
                table.create_write_transaction(
                    actions, mode="append", schema=table.schema(), commit_properties=self._properties(there | set(new))
                )
                self.shards[name] = there | set(new)
                return DeltaTable(uri, storage_options=options).version()
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _add_columns(self, table: DeltaTable, name: str) -> None:
        """Add the columns that a table of an older version of this program lacks; its rows have null there."""
        known = {field.name for field in table.schema().fields}
        added = pa.schema([field for field in ALL_TABLES[name] if field.name in ADDED_COLUMNS - known])
        new = Schema.from_arrow(added).fields
        if new:
            self.may_publish()
            table.alter.add_columns(new)

    def _shards_in(self, table: DeltaTable, name: str) -> set[int]:
        """The shards of this run that `table` holds, or whose part is empty."""
        count, num_shards = table.transaction_version(app_id(self.run_id)) or 0, self.num_shards()
        if not 0 <= count <= num_shards:
            raise RunError(
                f"the log of the table {name} below {self.output.uri} says that it has {count} shards of run "
                f"{self.run_id}, which has {num_shards}: somebody has changed the log"
            )
        known = self.shards.get(name, set())
        if count == len(known):
            return known
        if count == num_shards:
            return set(range(num_shards))
        # Another attempt has published some shards of the run: look into the table, whose files may have been merged
        # since. Shards without rows leave no trace in the table. They are published again, which adds nothing.
        shards: set[int] = set()
        for batch in stream_table(self.output, name, table, ["run_id", "shard"]):
            of_run = pc.equal(batch["run_id"], self.run_id)
            shards.update(pc.unique(batch["shard"].filter(of_run)).to_pylist())
        return shards

    def _properties(self, shards: set[int]) -> CommitProperties:
        return CommitProperties(
            custom_metadata={
                "m2f_run_id": self.run_id,
                "m2f_attempt": str(self.journal.attempt),
                "m2f_schema_version": str(SCHEMA_VERSION),
            },
            app_transactions=[Transaction(app_id(self.run_id), len(shards))],
            max_commit_retries=0,  # the loop in `_publish_table` handles conflicts
        )


def compact(output: Output) -> None:
    """Merge small files of the tables into large ones. Readers see the same rows before and after.

    Files of `logits` are large as they are, and stay. If merging fails, all rows stay as they were, and a warning is
    logged. The next call merges these files too.
    """
    for name in TABLES:
        try:
            check_log(output, name)
            table = DeltaTable(table_uri(output, name), storage_options=delta_options(output))
            check_table(output, name, table)
            check_files(output, name, table)
            metrics = table.optimize.compact(target_size=TARGET_FILE_BYTES)
        except (DeltaError, OSError, pa.ArrowException) as error:
            logger.warning("the table %s is published, but its files could not be merged: %s", name, plain(error))
            continue
        logger.info("the table %s: merged %d files into %d", name, metrics["numFilesRemoved"], metrics["numFilesAdded"])


def is_published(output: Output, run_id: str) -> bool:
    """Whether a table has shards of a run of this name. RunError if a table cannot be read."""
    tables = [open_table(output, name) for name in ORDER]
    return any(table is not None and table.transaction_version(app_id(run_id)) is not None for table in tables)


def app_id(run_id: str) -> str:
    """The name of a run in Delta's application transactions."""
    return f"m2f-pipeline/{run_id}"


def _add_part(table: str, run_id: str, shard: int, part: PartRecord) -> AddAction:
    """The Delta action that adds `part`. Its statistics let readers of some images, a run or a shard skip files."""
    of_run = {"run_id": run_id, "shard": shard}
    least, most = {**of_run, "image_key": part.first_key}, {**of_run, "image_key": part.last_key}
    return add_file(part.path.removeprefix(f"{table}/"), part.size_bytes, part.num_rows, least, most)


def add_file(path: str, size_bytes: int, num_rows: int, least: Mapping[str, Any], most: Mapping[str, Any]) -> AddAction:
    """The Delta action that adds a file. `least` and `most`: bounds of columns without null."""
    stats = {"numRecords": num_rows, "minValues": least, "maxValues": most, "nullCount": dict.fromkeys(least, 0)}
    return AddAction(path, size_bytes, {}, int(time.time() * 1000), True, json.dumps(stats))
