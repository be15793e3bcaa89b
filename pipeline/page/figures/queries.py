"""Queries over the tables of the run, for people to copy."""

import json

from pipeline.page.figures.runs import ShownRun
from pipeline.store.filesystem import whole_path
from pipeline.tables.current_view import table_uri

_DELTA = "INSTALL delta; LOAD delta;\n"


def queries(run: ShownRun, category: str) -> list[dict[str, str]]:
    """Titles and texts, each of which runs alone; `category` is the name of one that occurs.

    DuckDB needs its extension `delta`, Polars the package deltalake.
    """
    images, segments = (table_uri(run.output, table) for table in ("images", "segments"))
    sql_images, sql_segments, sql_run = map(_sql, (whole_path(images), whole_path(segments), run.run_id))
    return [
        {
            "title": "DuckDB: segments of each class",
            "text": (
                f"{_DELTA}SELECT category_name, count(*) AS segments, sum(area) AS pixels, avg(score) AS mean_score\n"
                f"FROM delta_scan({sql_segments})\nWHERE run_id = {sql_run}\nGROUP BY ALL ORDER BY pixels DESC;"
            ),
        },
        {
            "title": "DuckDB: the least certain images",
            "text": (
                f"{_DELTA}SELECT image_key, min(score) AS lowest_score, count(*) AS segments\n"
                f"FROM delta_scan({sql_segments})\nWHERE run_id = {sql_run}\n"
                "GROUP BY image_key ORDER BY lowest_score LIMIT 100;"
            ),
        },
        {
            "title": "DuckDB: failed images",
            "text": (
                f"{_DELTA}SELECT image_key, error_code, error_message\nFROM delta_scan({sql_images})\n"
                f"WHERE run_id = {sql_run} AND status = 'failed';"
            ),
        },
        {
            "title": "Polars: large segments of a class",
            "text": (
                "import polars as pl\n\n"
                f"segments = pl.scan_delta({json.dumps(segments)})\n"
                "segments.filter(\n"
                f'    pl.col("run_id") == {json.dumps(run.run_id)},\n'
                f'    pl.col("category_name") == {json.dumps(category)},\n'
                '    pl.col("area") > 10_000,\n'
                ').select("image_key", "segment_id", "score", "area").collect()'
            ),
        },
    ]


def _sql(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
