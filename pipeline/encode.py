"""Runs -> rows of the tables: COCO RLE, area, box, the dataset's categories; checked before anything is written."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2f_core.labels import Category
from m2f_core.rle import LabelRuns, counts_area, counts_bbox_xywh, decode_counts, encode_runs, label_runs
from pipeline.errors import InvalidResultError
from pipeline.schema import IMAGES, SEGMENTS


@dataclass(frozen=True)
class EncodeSpec:
    """What the rows of a run have in common."""

    run_id: str
    fingerprint: str
    attempt: int
    categories: tuple[Category, ...]  # by class_id


def warm_up() -> None:
    """Compile what encoding and checking compile on their first call, before a shard waits for it."""
    for rle in encode_runs(label_runs(np.eye(2, dtype=np.uint8)), 2, 2):
        counts_bbox_xywh(rle.counts, 2, 2)


def encode_shard(shard: int, images: pa.Table, spec: EncodeSpec) -> dict[str, pa.Table]:
    """The rows of `images` and `segments` for a shard as it comes from the model (schema.SEGMENTED).

    Raises InvalidResultError where a row would break an invariant of the tables.
    """
    segment_rows: list[dict[str, Any]] = []
    num_segments = []
    # Runs stay Arrow: as Python lists they would be the most expensive part of this stage.
    runs_of = [images.column(name).combine_chunks() for name in ("run_values", "run_lengths")]
    for index, image in enumerate(images.drop_columns(["run_values", "run_lengths"]).to_pylist()):
        rows = []
        if image["error_code"] is None:
            values, lengths = (column[index].values.to_numpy() for column in runs_of)
            rows = _segment_rows(image, LabelRuns(values, lengths), spec)
        num_segments.append(len(rows))
        segment_rows.extend({**row, "run_id": spec.run_id, "shard": shard} for row in rows)
    n = images.num_rows
    status = pc.if_else(pc.is_null(images.column("error_code")), "ok", "failed")
    columns = {
        **{name: images.column(name) for name in IMAGES.names if name in images.column_names},
        "status": status,
        "num_segments": pa.array(num_segments, pa.int32()),
        "run_id": pa.array([spec.run_id] * n, pa.string()),
        "shard": pa.array([shard] * n, pa.int32()),
        "fingerprint": pa.array([spec.fingerprint] * n, pa.string()),
        "attempt": pa.array([spec.attempt] * n, pa.int32()),
    }
    tables = {
        "images": pa.table([columns[name] for name in IMAGES.names], schema=IMAGES),
        "segments": pa.Table.from_pylist(segment_rows, schema=SEGMENTS),
    }
    check_tables(images, tables)
    return tables


def _segment_rows(image: dict[str, Any], runs: LabelRuns, spec: EncodeSpec) -> list[dict[str, Any]]:
    height, width = image["height"], image["width"]
    rles = {rle.label: rle for rle in encode_runs(runs, height, width)}
    listed = {info["segment_id"] for info in image["segments"]}
    if listed != set(rles):
        raise InvalidResultError(
            f"{image['image_key']}: segments {sorted(listed)} are listed, {sorted(rles)} are in the map"
        )
    rows = []
    for info in image["segments"]:
        rle = rles[info["segment_id"]]
        category = spec.categories[info["class_id"]]
        rows.append(
            {
                "image_key": image["image_key"],
                "segment_id": info["segment_id"],
                "category_id": category.category_id,
                "category_name": category.name,
                "isthing": category.isthing,
                "score": info["score"],
                "area": rle.area,
                "bbox": list(rle.bbox_xywh),
                "segmentation": {"size": [height, width], "counts": rle.counts.decode("ascii")},
            }
        )
    return rows


def check_tables(planned: pa.Table, tables: dict[str, pa.Table]) -> None:
    """The invariants of design and documentation, computed a second way from what is about to be written.

    Every image of the shard has one row; `num_segments` add up; area and box recomputed from the RLE agree; panoptic
    segments are disjoint and inside the image. Raises InvalidResultError.
    """
    images, segments = tables["images"], tables["segments"]
    if images.column("image_key").to_pylist() != planned.column("image_key").to_pylist():
        raise InvalidResultError("the rows of `images` are not the images of the shard")
    sizes = dict(
        zip(
            images.column("image_key").to_pylist(),
            zip(images.column("height").to_pylist(), images.column("width").to_pylist(), strict=True),
            strict=True,
        )
    )
    if len(sizes) != images.num_rows:
        raise InvalidResultError("an image has two rows")
    counts_of: dict[str, dict[int, bytes]] = {key: {} for key in sizes}
    num_segments = dict.fromkeys(sizes, 0)
    for row in segments.to_pylist():
        key, counts = row["image_key"], row["segmentation"]["counts"].encode("ascii")
        num_segments[key] += 1
        counts_of[key][row["segment_id"]] = counts
        _check_mask(row, counts, *sizes[key])
    for key, by_segment in counts_of.items():
        if _overlap(list(by_segment.values())):
            raise InvalidResultError(f"{key}: two segments share pixels")
    if list(num_segments.values()) != images.column("num_segments").to_pylist():
        raise InvalidResultError("num_segments does not add up to the rows of `segments`")


def _check_mask(row: dict[str, Any], counts: bytes, height: int, width: int) -> None:
    where = f"{row['image_key']}: segment {row['segment_id']}"
    try:
        area, bbox = counts_area(counts), list(counts_bbox_xywh(counts, height, width))
    except ValueError as error:  # not an RLE of an image of this size
        raise InvalidResultError(f"{where}: {error}") from error
    if row["segmentation"]["size"] != [height, width]:
        raise InvalidResultError(f"{where} has size {row['segmentation']['size']}, its image {[height, width]}")
    if area == 0 or (area, bbox) != (row["area"], row["bbox"]):
        raise InvalidResultError(f"{where} has area {row['area']} and box {row['bbox']}, its RLE {area} and {bbox}")


def _overlap(counts_of_masks: list[bytes]) -> bool:
    """Whether any pixel is in two of the masks (of one image). Compares runs; makes no mask."""
    if not counts_of_masks:
        return False
    ends = [np.cumsum(decode_counts(counts)) for counts in counts_of_masks]
    # Counts alternate between outside and inside: runs of the mask start where an even run ends.
    starts = np.concatenate([e[: e.size // 2 * 2 : 2] for e in ends])
    stops = np.concatenate([e[1::2] for e in ends])
    order = np.argsort(starts)
    return bool(np.any(stops[order][:-1] > starts[order][1:]))
