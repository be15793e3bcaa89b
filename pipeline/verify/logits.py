"""The check of the table `logits` (--keep-logits): whole files, rows that can be read, one for each result.

A row may outlive the row of its image: jobs/tidy.py removes files of this table only as a whole.
"""

from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from pipeline.errors import StoreUnavailableError
from pipeline.layout import Output, parts_folder
from pipeline.schema import LOGITS
from pipeline.store.filesystem import one_line
from pipeline.tables.spill_database import registered
from pipeline.tables.stream_table import check_files, check_table
from pipeline.verify.books import Library
from pipeline.verify.choose import Chosen
from pipeline.verify.facts import TableFile
from pipeline.verify.file.read import open_file
from pipeline.verify.findings import Findings, Kind

_KEPT = pa.schema([LOGITS.field(name) for name in ("image_key", "run_id")])


def check_logits(
    database: duckdb.DuckDBPyConnection,
    output: Output,
    snapshot: DeltaTable | None,
    library: Library,
    chosen: Chosen,
    findings: Findings,
) -> int:
    """Check the files of chosen shards, and that each image with a result there has a row. Returns the number of rows.

    `snapshot` is None if there is no such table. `database` has the table `images` (FOUND_IMAGES). RunError if the
    store does not answer.
    """
    files = [] if snapshot is None else [*_chosen_files(output, snapshot, library, chosen)]
    rows = (batch for file in files for batch in _rows(output, file, library, findings))
    with registered(database, "streamed", _KEPT, rows):
        database.execute("CREATE OR REPLACE TABLE kept AS SELECT * FROM streamed")
    twice = "SELECT count(*) - 1, run_id, image_key FROM kept GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL"
    for count, run_id, key in database.execute(twice).fetchall():
        findings.add(Kind.SEVERAL_ROWS, "logits", f"{count + 1} rows", run_id=run_id, key=key)
    with_logits = sorted(_shards_with_logits(library, chosen))
    database.execute("CREATE OR REPLACE TABLE with_logits (run_id VARCHAR, shard INTEGER)")
    if with_logits:
        database.executemany("INSERT INTO with_logits VALUES (?, ?)", with_logits)
    lacking = """
        SELECT run_id, count(*), min(image_key) FROM images SEMI JOIN with_logits USING (run_id, shard)
        ANTI JOIN kept USING (run_id, image_key) WHERE status = 'ok' GROUP BY run_id ORDER BY run_id
    """
    for run_id, count, key in database.execute(lacking).fetchall():
        findings.add(Kind.NO_ROW, "logits", "its logits were kept", run_id=run_id, key=key, count=count)
    return int(database.execute("SELECT count(*) FROM kept").fetchall()[0][0])


def _chosen_files(output: Output, snapshot: DeltaTable, library: Library, chosen: Chosen) -> Iterator[TableFile]:
    check_table(output, "logits", snapshot)
    parts = {path: found for books in library.books.values() for path, found in books.parts.items()}
    passed_over = tuple(f"{parts_folder('logits', run_id)}/" for run_id in library.others)
    for row in check_files(output, "logits", snapshot).select(["path", "size_bytes", "num_records"]).to_pylist():
        path = f"logits/{row['path']}"
        proof, part = parts.get(path, (None, None))
        if path.startswith(passed_over):
            continue
        if chosen.is_sample and (proof is None or (proof.run_id, proof.shard) not in chosen.whole_shards):
            continue
        size, num_rows = (row["size_bytes"], row["num_records"]) if part is None else (part.size_bytes, part.num_rows)
        yield TableFile(0, "logits", path, size, num_rows, proof)


def _shards_with_logits(library: Library, chosen: Chosen) -> Iterator[tuple[str, int]]:
    """The chosen shards of which receipts name logits."""
    for books in library.books.values():
        for path, (proof, _) in books.parts.items():
            if path.startswith("logits/") and (proof.run_id, proof.shard) in chosen.whole_shards:
                yield proof.run_id, proof.shard


def _rows(output: Output, file: TableFile, library: Library, findings: Findings) -> Iterator[pa.RecordBatch]:
    """The keys of a file of `logits`. What is wrong with it is added to the findings."""
    source, _ = open_file(output, file, findings)
    if source is None:
        return
    try:
        opened = pq.ParquetFile(source, page_checksum_verification=True)
        missing = [name for name in LOGITS.names if name not in opened.schema_arrow.names]
        if missing:
            findings.add(Kind.COLUMNS, "logits", f"it has no column {missing[0]}", file=file.path)
            return
        if file.num_rows not in (None, opened.metadata.num_rows):
            said = f"{opened.metadata.num_rows} rows, not {file.num_rows}"
            findings.add(Kind.NUM_ROWS, "logits", said, file=file.path)
        for group in range(opened.num_row_groups):
            rows = opened.read_row_group(group, columns=LOGITS.names, use_threads=False)
            for row in rows.to_pylist():
                _check_row(row, file, library, findings)
            yield from rows.select(_KEPT.names).cast(_KEPT).to_batches()
    except StoreUnavailableError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        findings.add(Kind.UNREADABLE, "logits", one_line(error), file=file.path)


def _check_row(row: dict[str, Any], file: TableFile, library: Library, findings: Findings) -> None:
    # Imported only here, because this loads PyTorch, which outputs without this table do not need.
    from pipeline.segment.kept_logits import KeptInput

    place = {"run_id": row["run_id"], "file": file.path, "key": row["image_key"]}
    if file.proof is not None and (row["run_id"], row["shard"]) != (file.proof.run_id, file.proof.shard):
        findings.add(Kind.OF_RUN, "logits", f"run {row['run_id']}, shard {row['shard']}", **place)
    books = library.books.get(row["run_id"])
    if books is None:
        if row["run_id"] not in library.others:
            findings.add(Kind.UNKNOWN_RUN, "logits", row["run_id"], **place)
        return
    try:
        if not row["inputs"]:
            raise ValueError("it has no inputs of the network")
        for one in row["inputs"]:
            KeptInput.from_row(one).logits(len(books.facts.categories))
    except (ValueError, TypeError, KeyError) as error:
        findings.add(Kind.VALUE, "logits.inputs", one_line(error), **place)
