"""The rows of a run, without masks, in a DuckDB database on disk, and the figures that are counted there.

The rows are streamed, so memory does not grow with the run. A run that is compared with is loaded beside it.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.page.figures.runs import ShownRun
from pipeline.tables.current_view import reading
from pipeline.tables.run_rows import stream_run
from pipeline.tables.spill_database import ScratchDatabase, out_of_room, registered
from pipeline.tables.stream_table import columns_of

NOW, BEFORE = "now", "before"  # prefixes of the tables of the run that is shown and of the other

SCORE_BINS = 20
_IMAGE_COLUMNS = [
    "image_key",
    "status",
    "error_code",
    "error_message",
    "height",
    "width",
    "etag",
    "size_bytes",
    "shard",
    "quality",
]
_SEGMENT_COLUMNS = ["image_key", "segment_id", "category_id", "category_name", "isthing", "score", "area"]


def load(
    scratch: ScratchDatabase,
    run: ShownRun,
    prefix: str,
    more: Iterable[str] = (),
    *,
    shards: Collection[int] | None = None,
    shared_with: str | None = None,
) -> None:
    """Make the tables `<prefix>_images`, `<prefix>_segments` (rows), `<prefix>_categories` and `<prefix>_pairs`, a row
    per image and category.

    `more` are further columns of `images` that are wanted; `shards` are the only ones that are read. `shared_with` is
    the prefix of a run that is loaded: only images which that run has, too, are kept. Raises RunError if the tables
    cannot be read or there is no room.
    """
    kept = "" if shared_with is None else f"SEMI JOIN {shared_with}_images USING (image_key)"
    of_images = list(dict.fromkeys([*_IMAGE_COLUMNS, *more]))
    for table, columns in (("images", of_images), ("segments", _SEGMENT_COLUMNS)):
        name = f"{prefix}_{table}"

        def copy(table: str = table, columns: Sequence[str] = columns, name: str = name) -> None:
            batches: Iterator[pa.RecordBatch] = stream_run(run.output, table, run.run_id, columns, shards)
            with registered(scratch.connection, "streamed", columns_of(table, columns), batches):
                scratch.connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM streamed {kept}")

        with out_of_room():
            reading(run.output, table, copy)
    _make_pairs(scratch, prefix)


def _make_pairs(scratch: ScratchDatabase, prefix: str) -> None:
    with out_of_room():
        # Names are not in the groups of pairs: DuckDB cannot spill texts of groups to the disk.
        scratch.connection.execute(
            f"""
            CREATE OR REPLACE TABLE {prefix}_categories AS
            SELECT category_id, any_value(category_name) AS name, any_value(isthing) AS isthing
            FROM {prefix}_segments GROUP BY category_id;
            CREATE OR REPLACE TABLE {prefix}_pairs AS
            SELECT image_key, category_id, count(*) AS segments, sum(area)::BIGINT AS pixels, min(score) AS min_score,
                   sum(score) AS sum_score
            FROM {prefix}_segments GROUP BY image_key, category_id
            """
        )


def rows(scratch: ScratchDatabase, query: str, *parameters: Any) -> list[dict[str, Any]]:
    """The rows of a query, for results of a size that the page bounds."""
    with out_of_room():
        cursor = scratch.connection.execute(query, list(parameters))
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def totals(scratch: ScratchDatabase) -> dict[str, Any]:
    """The row of figures of the tables: images, segments, pixels, scores.

    A row with the status `removed` stands for an image that is gone: it is no image of the run.
    """
    [images] = rows(
        scratch,
        f"""
        SELECT count(*) FILTER (status <> 'removed') AS images, count(*) FILTER (status = 'ok') AS ok,
               count(*) FILTER (status = 'failed') AS failed, count(*) FILTER (status = 'removed') AS removed,
               coalesce(sum(height::BIGINT * width) FILTER (status = 'ok'), 0)::BIGINT AS pixels,
               coalesce(sum(size_bytes) FILTER (status <> 'removed'), 0)::BIGINT AS bytes
        FROM {NOW}_images
        """,
    )
    [segments] = rows(
        scratch,
        f"""
        SELECT coalesce(sum(segments), 0)::BIGINT AS segments, count(DISTINCT category_id) AS classes,
               coalesce(sum(pixels), 0)::BIGINT AS segment_pixels, sum(sum_score) / sum(segments) AS mean_score,
               count(DISTINCT image_key) AS images_with_segments
        FROM {NOW}_pairs
        """,
    )
    ok, pixels = images["ok"], images["pixels"]
    return {
        **images,
        **segments,
        "ok_share": ok / images["images"] if images["images"] else None,
        "segments_per_image": segments["segments"] / ok if ok else None,
        "images_without_segments": ok - segments["images_with_segments"],
        "pixel_share_in_segments": segments["segment_pixels"] / pixels if pixels else None,
    }


def classes(scratch: ScratchDatabase, prefix: str, pixels: int) -> list[dict[str, Any]]:
    """Each category that occurs: its segments, images, pixels and mean score, the largest first."""
    found = rows(
        scratch,
        f"""
        SELECT category_id, name, isthing, segments, images, pixels, mean_score
        FROM {prefix}_categories JOIN (
            SELECT category_id, sum(segments)::BIGINT AS segments, count(*) AS images, sum(pixels)::BIGINT AS pixels,
                   sum(sum_score) / sum(segments) AS mean_score
            FROM {prefix}_pairs GROUP BY category_id
        ) USING (category_id) ORDER BY pixels DESC, category_id
        """,
    )
    return [{**one, "pixel_share": one["pixels"] / pixels if pixels else None} for one in found]


def pixels_of(scratch: ScratchDatabase, prefix: str) -> int:
    """Pixels of all images with a result."""
    [one] = rows(scratch, f"SELECT sum(height::BIGINT * width) AS n FROM {prefix}_images WHERE status = 'ok'")
    return int(one["n"] or 0)


def histograms(scratch: ScratchDatabase) -> dict[str, Any]:
    """Segments by score in equal bins, and by area in bins of a doubling, things and stuff apart."""
    scores = rows(
        scratch,
        f"""
        SELECT greatest(0, least(floor(score * {SCORE_BINS}), {SCORE_BINS - 1}))::INT AS bin, isthing,
               count(*) AS segments
        FROM {NOW}_segments GROUP BY ALL ORDER BY ALL
        """,
    )
    areas = rows(
        scratch,
        f"""
        SELECT floor(log2(greatest(area, 1)))::INT AS bin, isthing, count(*) AS segments
        FROM {NOW}_segments GROUP BY ALL ORDER BY ALL
        """,
    )
    return {
        "scores": [
            {"from": one["bin"] / SCORE_BINS, "to": (one["bin"] + 1) / SCORE_BINS, **_of_bin(one)} for one in scores
        ],
        "areas": [{"from": 2 ** one["bin"], "to": 2 ** (one["bin"] + 1), **_of_bin(one)} for one in areas],
    }


def _of_bin(row: dict[str, Any]) -> dict[str, Any]:
    return {"isthing": row["isthing"], "segments": row["segments"]}


def failures(scratch: ScratchDatabase, most: int) -> dict[str, Any]:
    """Failed images by code, and examples: of each code some, spread by a hash of the key."""
    by_code = rows(
        scratch,
        f"""
        SELECT error_code AS code, count(*) AS images FROM {NOW}_images WHERE status = 'failed'
        GROUP BY error_code ORDER BY images DESC, code
        """,
    )
    each = max(1, most // max(1, len(by_code)))
    examples = rows(
        scratch,
        f"""
        SELECT image_key, error_code AS code, error_message AS message, shard, etag, size_bytes FROM {NOW}_images
        WHERE status = 'failed'
        QUALIFY row_number() OVER (PARTITION BY error_code ORDER BY hash(image_key), image_key) <= {each}
        ORDER BY code, image_key LIMIT {most}
        """,
    )
    return {"by_code": by_code, "examples": examples}
