"""--where and the other flags that choose rows -> SQL conditions that can only look at the columns of a row."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from pipeline.errors import RunError
from pipeline.export.settings import ExportSettings
from pipeline.schema import IMAGES, SEGMENTS
from pipeline.tables.conditions import columns_of_condition
from pipeline.tables.rows_by_image import Wanted

_NOT_FOR_CONDITIONS = ("segmentation",)  # masks do not pass through the database
_OF_SEGMENTS = [name for name in SEGMENTS.names if name not in (*_NOT_FOR_CONDITIONS, *IMAGES.names)]
_COLUMNS = pa.schema([*(SEGMENTS.field(name) for name in _OF_SEGMENTS), *IMAGES])


def wanted_rows(settings: ExportSettings) -> Wanted:
    """The rows that the flags choose, among images with a result. RunError if --where is no condition over columns."""
    columns: set[str] = set()
    if settings.where is not None:
        columns = columns_of_condition(settings.where, _COLUMNS)
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


def check_classes(settings: ExportSettings, categories: Iterable[Mapping[str, Any]]) -> None:
    """RunError if --classes names a category that the exported runs do not have."""
    known = {text.casefold(): text for one in categories for text in (one["name"], str(one["id"]))}
    for name in settings.classes:
        if name not in known.values():
            near = [known[one] for one in get_close_matches(name.casefold(), known, n=5)]
            hint = f"near names: {', '.join(near)}" if near else f"there are {', '.join(sorted(known.values())[:20])}"
            raise RunError(f"--classes {name!r} is neither the name nor the id of a category of these runs; {hint}")


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
