"""Which images the gallery shows: the hardest, the most changed, some of each category, and others by chance.

The choice depends on the rows alone: the same tables give the same gallery.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa

from pipeline.page.figures.tallies import BEFORE, NOW, rows
from pipeline.schema import IMAGES
from pipeline.tables.conditions import condition_fails
from pipeline.tables.spill_database import ScratchDatabase, out_of_room

_IMAGES_PER_CHUNK = 200_000
_EXAMPLES_PER_CLASS = 4
_MOST_CLASSES = 200
_COMPUTED = {  # columns that a condition may name beside those of the table `images`
    "min_score": pa.float64(),
    "classes": pa.list_(pa.string()),
    "change": pa.float64(),
    "pq": pa.float64(),
    "ap": pa.float64(),
}
CONDITION_COLUMNS = pa.schema([*IMAGES, *(pa.field(name, kind) for name, kind in _COMPUTED.items())])
# Shares of the gallery; what is left are images by chance.
_LOWEST_QUALITY, _LOWEST_SCORES, _MOST_SEGMENTS, _MOST_CHANGED, _OF_CLASSES = 0.2, 0.15, 0.1, 0.2, 0.3


@dataclass
class SampledImage:
    """An image of the gallery: what the tables say of it, and why it was chosen."""

    image_key: str
    shard: int
    height: int
    width: int
    etag: str
    size_bytes: int
    segments: int
    min_score: float | None
    change: float | None  # against the other run; None if the image is not in both
    shard_before: int | None  # in the other run
    pq: float | None = None  # against ground truth, if there is any, as ap
    ap: float | None = None
    why: list[str] = field(default_factory=list)


def make_by_image(scratch: ScratchDatabase, compared: bool) -> None:
    """Make the table `by_image`: a row for each image with a result, with its figures."""
    join, change = "", "NULL::DOUBLE AS change, NULL::INTEGER AS shard_before"
    if compared:
        join = f"LEFT JOIN changes USING (image_key) LEFT JOIN {BEFORE}_images b USING (image_key)"
        change = "change, CASE WHEN change IS NOT NULL THEN b.shard END AS shard_before"
    with out_of_room():
        scratch.connection.execute(
            f"""
            CREATE OR REPLACE TABLE by_image AS
            SELECT image_key, i.shard, i.height, i.width, i.etag, i.size_bytes,
                   coalesce(s.segments, 0)::BIGINT AS segments, s.min_score, {change}, pq, ap
            FROM {NOW}_images i LEFT JOIN (
                SELECT image_key, sum(segments) AS segments, min(min_score) AS min_score
                FROM {NOW}_pairs GROUP BY image_key
            ) s USING (image_key) LEFT JOIN scores USING (image_key) {join}
            WHERE i.status = 'ok' AND i.height > 0 AND i.width > 0
            """
        )


def choose(scratch: ScratchDatabase, number: int) -> list[SampledImage]:
    """At most `number` images, the most telling first."""
    lists = {
        "lowest quality": (_by("coalesce(pq, ap) IS NOT NULL", "coalesce(pq, ap)"), _LOWEST_QUALITY),
        "largest change": (_by("change > 0", "change DESC"), _MOST_CHANGED),
        "lowest score": (_by("min_score IS NOT NULL", "min_score"), _LOWEST_SCORES),
        "example of a class": (_of_classes(_MOST_CLASSES), _OF_CLASSES),
        "most segments": (_by("segments > 0", "segments DESC"), _MOST_SEGMENTS),
        "by chance": (_by("true", "hash(image_key)"), 1.0),
    }
    chosen: dict[str, SampledImage] = {}
    for why, (query, share) in lists.items():
        room = max(1, round(share * number)) if why != "by chance" else number
        for row in rows(scratch, query, min(number, room)):
            image = chosen.get(row["image_key"])
            if image is None and len(chosen) < number:
                image = chosen[row["image_key"]] = SampledImage(**row)
            if image is not None:
                image.why.append(why)
    return list(chosen.values())


_COLUMNS = "image_key, shard, height, width, etag, size_bytes, segments, min_score, change, shard_before, pq, ap"


def _by(condition: str, order: str) -> str:
    return f"SELECT {_COLUMNS} FROM by_image WHERE {condition} ORDER BY {order}, image_key LIMIT ?"


def _of_classes(most: int) -> str:
    """Images in which a category is large, the first of every category before the second of any.

    `arg_min` with a number keeps so many rows of each category; a window function would sort all rows of the run.
    """
    return f"""
        SELECT {_COLUMNS} FROM by_image JOIN (
            SELECT image_key, min(place) AS place FROM (
                SELECT unnest(keys) AS image_key, generate_subscripts(keys, 1) AS place FROM (
                    SELECT arg_min(image_key, {{pixels: -pixels, image_key: image_key}}, {_EXAMPLES_PER_CLASS}) AS keys
                    FROM {NOW}_pairs WHERE category_id IN (
                        SELECT category_id FROM {NOW}_pairs GROUP BY category_id ORDER BY sum(pixels) DESC LIMIT {most}
                    )
                    GROUP BY category_id
                )
            ) GROUP BY image_key
        ) USING (image_key) ORDER BY place, hash(image_key), image_key LIMIT ?
    """


def matching(scratch: ScratchDatabase, where: str, at_a_time: int) -> Iterator[list[SampledImage]]:
    """All images for which a checked condition over CONDITION_COLUMNS holds, by shard.

    RunError if the condition fails for the values of an image.
    """
    # DuckDB keeps the lists of a group in memory, so the condition sees some shards at a time.
    for chunk in rows(scratch, _CHUNKS):
        try:
            with out_of_room():
                cursor = scratch.connection.cursor().execute(
                    f"{_condition_on(where)} ORDER BY shard, image_key", [chunk["first"], chunk["last"]]
                )
                while found := cursor.fetchmany(at_a_time):
                    yield [SampledImage(*row) for row in found]
        except duckdb.Error as error:
            raise condition_fails(where, error) from None


_CHUNKS = f"""
    SELECT min(shard) AS first, max(shard) AS last FROM (
        SELECT shard, sum(count(*)) OVER (ORDER BY shard) // {_IMAGES_PER_CHUNK} AS chunk FROM by_image GROUP BY shard
    ) GROUP BY chunk ORDER BY first
"""


def _condition_on(where: str) -> str:
    columns = ", ".join(f"b.{name}" for name in _COLUMNS.split(", "))
    return f"""
        WITH chunk AS (SELECT * FROM by_image WHERE shard BETWEEN ? AND ?), named AS (
            SELECT image_key, list(name ORDER BY name) AS classes
            FROM {NOW}_pairs JOIN {NOW}_categories USING (category_id) SEMI JOIN chunk USING (image_key)
            GROUP BY image_key
        )
        SELECT {columns} FROM chunk b JOIN (
            SELECT image_key FROM (
                SELECT i.*, min_score, coalesce(classes, []) AS classes, change, pq, ap
                FROM {NOW}_images i JOIN chunk USING (image_key) LEFT JOIN named USING (image_key)
            ) WHERE ({where}
            )
        ) USING (image_key)
    """
