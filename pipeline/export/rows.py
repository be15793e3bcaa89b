"""The rows of an export: images with their segments in batches, their file names, and what is known of them before."""

from typing import Any

import duckdb
import pyarrow as pa

from pipeline.commit.run_record import read_run_record
from pipeline.errors import RunError
from pipeline.export.conditions import wanted_rows
from pipeline.export.format import Census
from pipeline.export.names import folded, needs_digest, plain_name, shared_folder, with_digest
from pipeline.export.settings import ExportSettings
from pipeline.input_spec import OWN_ACCESS, Access
from pipeline.layout import Output
from pipeline.tables.conditions import condition_fails
from pipeline.tables.rows_by_image import RowsByImage

IMAGE_COLUMNS = ("image_key", "height", "width", "etag", "size_bytes", "run_id", "attributes")
SEGMENT_COLUMNS = ("segment_id", "category_id", "category_name", "isthing", "score", "area", "bbox", "segmentation")
FILE_NAME = pa.field("file_name", pa.string())
_MEMORY_MIB = 192  # of DuckDB; workers need memory, too


def open_rows(output: Output, settings: ExportSettings, version: int | None) -> RowsByImage:
    """The wanted rows at a version of the table `images`; each image has a column `file_name`.

    RunError if nothing is published, if there is no such run, or if a condition fails for a row.
    """
    try:
        rows = RowsByImage(
            output,
            IMAGE_COLUMNS,
            SEGMENT_COLUMNS,
            wanted=wanted_rows(settings),
            run_id=settings.run_id,
            version=version,
            memory_mib=_MEMORY_MIB,
        )
    except duckdb.Error as error:
        if settings.where is None:
            raise
        raise condition_fails(settings.where, error) from None
    if settings.run_id is not None and not rows.num_current:
        names = [folder.run_id for folder in output.list_runs()]
        known = ", ".join([*(["..."] if len(names) > 5 else []), *names[-5:]]) or "none"
        raise RunError(f"{output.name} has no rows of run {settings.run_id}; its runs: {known}")
    _add_names(rows)
    return rows


def _add_names(rows: RowsByImage) -> None:
    """Give each image a file name: see names.py."""
    database = rows.connection
    [(first, last)] = database.execute("SELECT min(image_key), max(image_key) FROM numbered").fetchall()
    folder = shared_folder(first or "", last or "")
    text = duckdb.sqltypes.VARCHAR
    database.create_function("plain_name", lambda key: plain_name(key, folder), [text], text)
    database.create_function("folded", folded, [text], text)
    database.create_function("needs_digest", needs_digest, [text], duckdb.sqltypes.BOOLEAN)
    database.create_function("with_digest", with_digest, [text, text], text)
    database.execute(
        """
        CREATE TABLE plain AS
        SELECT *, folded(name) AS folded FROM (
            SELECT image_number, image_key, plain_name(image_key) AS name FROM numbered
        );
        CREATE TABLE several AS SELECT folded FROM plain GROUP BY folded HAVING count(*) > 1;
        """
    )
    rows.add_column(
        FILE_NAME,
        """
        SELECT image_number, CASE
            WHEN folded IN (SELECT folded FROM several) OR needs_digest(name) THEN with_digest(name, image_key)
            ELSE name
        END AS file_name FROM plain
        """,
    )
    database.execute("DROP TABLE plain; DROP TABLE several")


def take_census(output: Output, rows: RowsByImage) -> Census:
    """What the rows are. RunError if their runs give one category id to several categories."""
    database = rows.connection
    runs = [run for (run,) in database.execute("SELECT DISTINCT run_id FROM numbered ORDER BY 1").fetchall()]
    tasks: dict[str, str | None] = {}
    categories: dict[int, dict[str, Any]] = {}
    exif: dict[str, bool] = {}
    access: dict[str, Access] = {}
    disjoint = True
    for run_id in runs:
        record = read_run_record(output, output.run(run_id))
        tasks[run_id] = None if record is None else str(record.results["task"])
        exif[run_id] = record is None or bool(record.results.get("exif", True))
        access[run_id] = OWN_ACCESS if record is None else record.access
        for category in () if record is None else record.model.categories:
            _add(categories, dict(category))
        # transformers' panoptic results may give one mask to several segments.
        by_transformers = record is not None and record.results.get("postprocess") == "hf"
        disjoint &= tasks[run_id] == "semantic" or (tasks[run_id] == "panoptic" and not by_transformers)
    # Of runs that have left no record.
    found = database.execute("SELECT DISTINCT category_id, category_name, isthing FROM found ORDER BY ALL").fetchall()
    for number, name, isthing in found:
        _add(categories, {"id": number, "name": name, "isthing": int(isthing)})
    by_id = tuple(categories[number] for number in sorted(categories))
    return Census(tasks, exif, access, disjoint, by_id, rows.num_images(), rows.num_segments())


def _add(categories: dict[int, dict[str, Any]], new: dict[str, Any]) -> None:
    known = categories.setdefault(new["id"], new)
    if known != new:
        raise RunError(
            f"--tables: category {new['id']} is {known['name']!r} in some rows and {new['name']!r} in others, because "
            "runs with several label maps are current; give one of the runs as --run-id"
        )
