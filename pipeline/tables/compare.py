"""Compare the tables of two outputs: what did a disturbed run lose, write twice or write differently? For drills.

All rows are held in memory, so this is meant for samples. Rows are read through the Delta tables, as every reader does.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pipeline.layout import Output
from pipeline.tables.current_view import open_table
from pipeline.tables.stream_table import check_files, check_table

# Columns that differ by design between two runs over the same images.
_OF_THE_RUN = frozenset(("run_id", "run_created", "attempt", "shard"))

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The rows of an output by image_key, without columns that describe only the run."""

    images: dict[str, list[Row]]
    segments: dict[str, list[Row]]

    def one(self, image_key: str) -> Row:
        """The row of an image. KeyError if the image has no row."""
        return self.images[image_key][0]


@dataclass(frozen=True)
class Differences:
    """Sorted image keys. If all lists are empty, the two outputs have the same rows."""

    lost: list[str] = field(default_factory=list)  # only in the reference
    unexpected: list[str] = field(default_factory=list)  # only in the other output
    duplicated: list[str] = field(default_factory=list)  # images or segments that the other output has more than once
    differing: list[str] = field(default_factory=list)  # one row in each output, but other values or other segments

    def __bool__(self) -> bool:
        return bool(self.lost or self.unexpected or self.duplicated or self.differing)

    def __str__(self) -> str:
        found = {name: keys for name, keys in vars(self).items() if keys}
        return "; ".join(
            f"{len(k)} {name} ({', '.join(k[:3])}{', ...' if len(k) > 3 else ''})" for name, k in found.items()
        )


def read_rows(output: str) -> Rows:
    """All rows of the tables at `output`, of all runs. No rows if there is no table."""
    images, segments = (_by_image(_read(output, table)) for table in ("images", "segments"))
    return Rows(images, {key: sorted(rows, key=lambda row: row["segment_id"]) for key, rows in segments.items()})


def compare(reference: Rows, other: Rows, among: Callable[[str], bool] = lambda image_key: True) -> Differences:
    """How `other` differs from `reference`, for the images for which `among` is true."""
    there, here = ({key for key in rows.images if among(key)} for rows in (reference, other))
    duplicated = {key for key in here if len(other.images[key]) > 1}
    for key, rows in other.segments.items():
        if among(key) and max(Counter(row["segment_id"] for row in rows).values()) > 1:
            duplicated.add(key)
    orphans = {key for key in other.segments if among(key) and key not in other.images}
    differing = {
        key
        for key in (there & here) - duplicated
        if reference.images[key] != other.images[key] or reference.segments.get(key, []) != other.segments.get(key, [])
    }
    return Differences(sorted(there - here), sorted((here - there) | orphans), sorted(duplicated), sorted(differing))


def check_books(rows: Rows, planned: Iterable[str]) -> list[str]:
    """Check that every planned image has one row and that its segments are there. Returns a line for each violation."""
    wanted = set(planned)
    lines = []
    for what, keys in (
        ("have no row", wanted - set(rows.images)),
        ("have a row but were not planned", set(rows.images) - wanted),
        ("have several rows", {key for key, found in rows.images.items() if len(found) > 1}),
        ("have segments but no row", set(rows.segments) - set(rows.images)),
        (
            "have a num_segments that is not their number of segments",
            {k for k, found in rows.images.items() if found[0]["num_segments"] != len(rows.segments.get(k, []))},
        ),
    ):
        if keys:
            lines.append(f"{len(keys)} images {what}, for example {min(keys)}")
    return lines


def _read(output: str, table: str) -> list[Row]:
    place = Output.open(output)
    delta = open_table(place, table)
    if delta is None:
        return []
    check_table(place, table, delta)
    check_files(place, table, delta)
    return delta.to_pyarrow_dataset().to_table().to_pylist()


def _by_image(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        bare = {name: value for name, value in row.items() if name not in _OF_THE_RUN}
        found.setdefault(row["image_key"], []).append(bare)
    return found
