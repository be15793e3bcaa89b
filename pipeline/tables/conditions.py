"""--where: SQL conditions of a person, which can only look at the columns of a row."""

import json
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa

from pipeline.errors import RunError
from pipeline.store.filesystem import one_line

# Their values change between two calls, so a continued export could choose other rows.
_CHANGING = ("VOLATILE", "CONSISTENT_WITHIN_QUERY")
# Functions that change with the time though DuckDB calls them constant, and the keywords of its macros.
_OF_THE_TIME = (
    *("current_localtime", "current_localtimestamp"),
    *("current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"),
)
_OF_THE_TIME_UNLESS_TWO = ("age",)  # arguments: else it counts from today
_MOST_DEPTH = 200  # of expressions in expressions; a deeper tree would end Python's recursion
_CONFIG: dict[str, Any] = {"enable_external_access": "false", "max_expression_depth": str(_MOST_DEPTH)}


def columns_of_condition(where: str, columns: pa.Schema) -> set[str]:
    """The columns that the condition --where looks at, among `columns`, as they are spelled there.

    RunError if the text is anything but one condition over these columns that DuckDB can compute. A condition may still
    fail for the values of a row, as a cast does: see `condition_fails`.
    """
    known = {name.lower(): name for name in columns.names}  # DuckDB takes SCORE for score
    with duckdb.connect(config=_CONFIG) as database:
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
                column = known.get(node["column_names"][0].lower())
                if column is None:
                    why = "masks cannot be compared" if name == "segmentation" else f"there is no column {name}"
                    raise RunError(f"--where {where!r}: {why}; columns are {', '.join(columns.names)}")
                names.add(column)
            if node.get("class") in ("FUNCTION", "OPERATOR", "WINDOW") and "function_name" in node:
                _check_function(database, where, node)
        _check_types(database, where, columns)
    return names


def condition_fails(where: str, error: Exception) -> RunError:
    """What to raise if a checked condition fails for the values of a row."""
    return RunError(f"--where {where!r}: {one_line(error)}")


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
        "SELECT function_type FROM duckdb_functions() WHERE function_name = lower(?)", [name]
    ).fetchall()
    if ("aggregate",) in found:
        raise RunError(f"--where {where!r}: a condition may not look at other rows ({name})")
    if _changes(database, node):
        raise RunError(f"--where {where!r}: {name} may have another value each time; write the value itself")


def _changes(database: duckdb.DuckDBPyConnection, node: dict[str, Any]) -> bool:
    """Whether a function or keyword has another value at another time; a macro has, if one of its parts has."""
    if node.get("class") == "COLUMN_REF":
        return node["column_names"][-1].lower() in _OF_THE_TIME
    if "function_name" not in node:
        return False
    name = node["function_name"].lower()
    if name in _OF_THE_TIME or (name in _OF_THE_TIME_UNLESS_TWO and len(node["arguments"]) != 2):
        return True
    found = database.execute(
        "SELECT stability, macro_definition FROM duckdb_functions() WHERE function_name = ?", [name]
    ).fetchall()
    bodies = [f"SELECT {body}" for _, body in found if body is not None]
    return any(stability in _CHANGING for stability, _ in found if stability is not None) or any(
        _changes(database, part)
        for body in bodies
        for [text] in database.execute("SELECT json_serialize_sql(?)", [body]).fetchall()
        for part in _nodes(json.loads(text))
    )


def _check_types(database: duckdb.DuckDBPyConnection, where: str, columns: pa.Schema) -> None:
    """Let DuckDB bind the condition over a table without rows: it knows functions and types."""
    try:
        database.register("of_rows", columns.empty_table())
        database.execute(f"SELECT 1 FROM of_rows WHERE (\n{where}\n)")
    except duckdb.Error as error:
        raise RunError(f"--where {where!r} is no SQL condition: {one_line(error)}") from None
