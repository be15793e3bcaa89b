"""--where and the other flags that choose rows -> SQL conditions that can only look at the columns of a row."""

import json
from collections.abc import Iterator
from typing import Any

import duckdb

from pipeline.errors import RunError
from pipeline.export.settings import ExportSettings
from pipeline.schema import IMAGES, SEGMENTS
from pipeline.store.filesystem import one_line
from pipeline.tables.rows_by_image import Wanted

_NOT_FOR_CONDITIONS = ("segmentation",)  # masks do not pass through the database
_OF_SEGMENTS = [name for name in SEGMENTS.names if name not in (*_NOT_FOR_CONDITIONS, *IMAGES.names)]
_KNOWN = {name.lower(): name for name in (*IMAGES.names, *_OF_SEGMENTS)}  # DuckDB takes SCORE for score
# Their values change between two calls, so a continued export could choose other rows.
_CHANGING = ("VOLATILE", "CONSISTENT_WITHIN_QUERY")


def wanted_rows(settings: ExportSettings) -> Wanted:
    """The rows that the flags choose, among images with a result. RunError if --where is no condition over columns."""
    columns: set[str] = set()
    if settings.where is not None:
        columns = _columns_of(settings.where)
    of_segments = [name for name in _OF_SEGMENTS if name in columns]
    conditions = []
    if settings.classes:
        chosen = ", ".join(_literal(one) for one in settings.classes)
        conditions.append(f"category_name IN ({chosen}) OR category_id::VARCHAR IN ({chosen})")
        of_segments += ["category_name", "category_id"]
    if settings.min_score is not None:
        conditions.append(f"score >= {settings.min_score!r}::FLOAT")
        of_segments.append("score")
    if settings.min_area is not None:
        conditions.append(f"area >= {settings.min_area}")
        of_segments.append("area")
    return Wanted(
        images="status = 'ok'",
        rows=settings.where,
        segments=" AND ".join(f"({one})" for one in conditions) or "true",
        image_columns=tuple(dict.fromkeys(["status", *(name for name in IMAGES.names if name in columns)])),
        segment_columns=tuple(dict.fromkeys(of_segments)),
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _columns_of(where: str) -> set[str]:
    """The columns that a condition looks at. RunError if the text is anything but one condition over columns."""
    with duckdb.connect(config={"enable_external_access": "false"}) as database:
        tree = _parsed(database, where)
        names: set[str] = set()
        for node in _nodes(tree):
            if "subquery" in node:
                raise RunError(f"--where {where!r}: a condition may not hold a query of its own")
            if node.get("type") == "PARAMETER" or node.get("class") == "PARAMETER":
                raise RunError(f"--where {where!r}: a condition may not hold parameters")
            if node.get("class") == "STAR":
                raise RunError(f"--where {where!r}: a condition names its columns one by one")
            if node.get("class") == "COLUMN_REF":
                name = ".".join(node["column_names"])
                known = {one.lower(): one for one in (*IMAGES.names, *_OF_SEGMENTS)}.get(
                    node["column_names"][0].lower()
                )
                if known is None:
                    why = "masks cannot be compared" if name in _NOT_FOR_CONDITIONS else f"there is no column {name}"
                    columns = ", ".join(dict.fromkeys([*_OF_SEGMENTS, *IMAGES.names]))
                    raise RunError(f"--where {where!r}: {why}; columns are {columns}")
                names.add(known)
            if node.get("class") in ("FUNCTION", "OPERATOR", "WINDOW") and "function_name" in node:
                _check_function(database, where, node)
        _check_types(database, where)
    return names


def _parsed(database: duckdb.DuckDBPyConnection, where: str) -> dict[str, Any]:
    """The tree of the condition. RunError unless the text is a condition both with brackets around it and without."""
    for query in (f"SELECT 1 WHERE \n{where}\n", f"SELECT 1 WHERE (\n{where}\n)"):
        try:
            [(text,)] = database.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
        except duckdb.Error as error:
            raise RunError(f"--where {where!r} is no SQL condition: {one_line(error)}") from None
        tree = json.loads(text)
        if tree.get("error"):
            raise RunError(f"--where {where!r} is no SQL condition: {' '.join(tree['error_message'].split())}")
        condition = _condition_of(tree["statements"], where)
    return condition


def _condition_of(statements: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """The condition of a query that is nothing but a condition."""
    node = statements[0]["node"]
    alone = len(statements) == 1 and node["type"] == "SELECT_NODE" and node["from_table"]["type"] == "EMPTY"
    if not alone or node["modifiers"] or node["cte_map"]["map"] or node["group_expressions"] or node["having"]:
        raise RunError(f"--where {where!r} is more than one SQL condition")
    condition = node["where_clause"]
    if not isinstance(condition, dict) or len(node["select_list"]) != 1 or node["qualify"] or node["sample"]:
        raise RunError(f"--where {where!r} is more than one SQL condition")
    return condition


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)


def _check_function(database: duckdb.DuckDBPyConnection, where: str, node: dict[str, Any]) -> None:
    name = node["function_name"]
    if node.get("class") == "WINDOW":
        raise RunError(f"--where {where!r}: a condition may not look at other rows ({name})")
    found = database.execute(
        "SELECT function_type, stability FROM duckdb_functions() WHERE function_name = lower(?)", [name]
    ).fetchall()
    if any(kind == "aggregate" for kind, _ in found):
        raise RunError(f"--where {where!r}: a condition may not look at other rows ({name})")
    if any(stability in _CHANGING for _, stability in found):
        raise RunError(f"--where {where!r}: {name} may have another value each time; write the value itself")


def _check_types(database: duckdb.DuckDBPyConnection, where: str) -> None:
    """Let DuckDB bind the condition over tables without rows: it knows functions and types."""
    try:
        for table, schema in (("of_images", IMAGES), ("of_segments", SEGMENTS)):
            database.register(table, schema.empty_table())
        kept = ", ".join(_OF_SEGMENTS)
        database.execute(f"SELECT 1 FROM (SELECT of_images.*, {kept} FROM of_images, of_segments) WHERE (\n{where}\n)")
    except duckdb.Error as error:
        raise RunError(f"--where {where!r} is no SQL condition: {one_line(error)}") from None
