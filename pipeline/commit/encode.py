"""Segments -> rows of the tables, with the categories of the dataset. All rows are checked before they are written."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2f_core.config.labels import Category, Task
from m2f_core.masks.rle import counts_area, counts_bbox_xywh, decode_counts, encode_mask
from pipeline.errors import InvalidResultError
from pipeline.schema import IMAGES, LOGITS, SEGMENTS
from pipeline.shown_text import shown

# Python objects are made of these columns alone: an embedding is hundreds of numbers.
_OF_RESULT = ["image_key", "error_code", "reason", "height", "width", "masks", "segments"]
_CHECKED = {
    "images": ["image_key", "status", "height", "width", "num_segments"],
    "segments": ["image_key", "segment_id", "area", "bbox", "segmentation"],
}


@dataclass(frozen=True)
class EncodeSpec:
    """The values that all rows of a run have in common."""

    run_id: str
    run_created: datetime
    fingerprint: str
    attempt: int
    task: Task
    categories: tuple[Category, ...]  # by class_id
    all_classes: bool = True  # False if the run writes the segments of some classes alone


def warm_up() -> None:
    """Compile the functions that check rows, so that no shard has to wait for the compiler."""
    counts_bbox_xywh(encode_mask(np.eye(2, dtype=bool)), 2, 2)


def encode_shard(shard: int, images: pa.Table, spec: EncodeSpec) -> dict[str, pa.Table]:
    """The rows of the tables for a shard as it comes from the model (schema.SEGMENTED); `logits` only if they are kept.

    Raises InvalidResultError if a row would break an invariant of the tables.
    """
    segment_rows: list[dict[str, Any]] = []
    num_segments = []
    for image in images.select(_OF_RESULT).to_pylist():
        has_result = image["error_code"] is None and image["reason"] != "removed"
        rows = _segment_rows(image, spec) if has_result else []
        num_segments.append(len(rows))
        segment_rows.extend({**row, "run_id": spec.run_id, "shard": shard} for row in rows)
    n = images.num_rows
    done = pc.if_else(pc.is_null(images.column("error_code")), "ok", "failed")
    status = pc.if_else(pc.equal(images.column("reason"), "removed"), "removed", done)
    columns = {
        **{name: images.column(name) for name in IMAGES.names if name in images.column_names},
        "error_message": _messages(images.column("error_message")),
        "size_bytes": pc.fill_null(images.column("size_bytes"), 0),
        "status": status,
        "num_segments": pa.array(num_segments, pa.int32()),
        "run_id": pa.array([spec.run_id] * n, pa.string()),
        "run_created": pa.array([spec.run_created] * n, IMAGES.field("run_created").type),
        "shard": pa.array([shard] * n, pa.int32()),
        "fingerprint": pa.array([spec.fingerprint] * n, pa.string()),
        "attempt": pa.array([spec.attempt] * n, pa.int32()),
    }
    tables = {
        "images": pa.table([columns[name] for name in IMAGES.names], schema=IMAGES),
        "segments": _segments_table(segment_rows),
    }
    check_tables(images, tables, spec.task, spec.all_classes)
    if images["kept"].null_count < n:
        tables["logits"] = _logits_table(shard, images, spec)
    return tables


def _logits_table(shard: int, images: pa.Table, spec: EncodeSpec) -> pa.Table:
    there = images.select(["image_key", "height", "width", "kept"]).filter(pc.is_valid(images["kept"]))
    columns = {
        **{name: there[name] for name in ("image_key", "height", "width")},
        "inputs": there["kept"],
        "run_id": pa.repeat(pa.scalar(spec.run_id), there.num_rows),
        "shard": pa.repeat(pa.scalar(shard, pa.int32()), there.num_rows),
    }
    return pa.table([columns[name] for name in LOGITS.names], schema=LOGITS)


def _segments_table(rows: list[dict[str, Any]]) -> pa.Table:
    halves = [row.pop("embedding") for row in rows]
    values = np.frombuffer(b"".join(half or b"" for half in halves), "<f2").astype(np.float32)
    ends = np.cumsum([0, *(len(half or b"") // 2 for half in halves)], dtype=np.int32)
    is_null = pa.array([half is None for half in halves], pa.bool_())
    embeddings = pa.ListArray.from_arrays(
        pa.array(ends), pa.array(values), SEGMENTS.field("embedding").type, mask=is_null
    )
    plain = pa.schema([field for field in SEGMENTS if field.name != "embedding"])
    columns = pa.Table.from_pylist(rows, schema=plain).columns
    return pa.table([*columns, embeddings], schema=SEGMENTS)


def _messages(messages: pa.ChunkedArray) -> pa.Array:
    """Messages quote files and stores; `image_key` stays as it is, because it is the name of the object."""
    return pa.array([text and shown(text) for text in messages.to_pylist()], pa.string())


def _segment_rows(image: dict[str, Any], spec: EncodeSpec) -> list[dict[str, Any]]:
    size = [image["height"], image["width"]]
    rows = []
    for segment in image["segments"]:
        mask, category = image["masks"][segment["mask"]], spec.categories[segment["class_id"]]
        rows.append(
            {
                "image_key": image["image_key"],
                "segment_id": segment["segment_id"],
                "category_id": category.category_id,
                "category_name": category.name,
                "isthing": category.isthing,
                "score": segment["score"],
                "area": mask["area"],
                "bbox": mask["bbox"],
                "segmentation": {"size": size, "counts": mask["counts"]},
                "embedding": segment["embedding"],
            }
        )
    return rows


def check_tables(planned: pa.Table, tables: dict[str, pa.Table], task: Task, all_classes: bool = True) -> None:
    """Check the documented invariants, computed a second time from the rows that are about to be written.

    Every image of the shard has one row; `num_segments` is the number of its segments; area and box agree with the RLE;
    one segment id has one mask; masks are disjoint, except those of instances; masks of semantic segmentation cover the
    image if it has segments of all classes. Raises InvalidResultError.
    """
    images = tables["images"].select(_CHECKED["images"]).to_pylist()
    rows_of: dict[str, list[dict[str, Any]]] = {image["image_key"]: [] for image in images}
    if [image["image_key"] for image in images] != planned.column("image_key").to_pylist():
        raise InvalidResultError("the rows of `images` do not match the images of the shard")
    if len(rows_of) != len(images):
        raise InvalidResultError("an image has two rows")
    for row in tables["segments"].select(_CHECKED["segments"]).to_pylist():
        rows_of[row["image_key"]].append(row)
    for image in images:
        rows = rows_of[image["image_key"]]
        if len(rows) != image["num_segments"]:
            raise InvalidResultError("num_segments does not equal the number of rows in `segments`")
        _check_image(image, rows, task, all_classes)


def _check_image(image: dict[str, Any], rows: list[dict[str, Any]], task: Task, all_classes: bool) -> None:
    counts_of: dict[int, bytes] = {}
    for row in rows:
        counts = row["segmentation"]["counts"].encode("ascii")
        _check_mask(row, counts, image["height"], image["width"])
        if counts_of.setdefault(row["segment_id"], counts) != counts:
            raise InvalidResultError(f"{image['image_key']}: segment {row['segment_id']} has two masks")
    if task != "instance" and _overlap(list(counts_of.values())):
        raise InvalidResultError(f"{image['image_key']}: two segments share pixels")
    if task == "semantic" and all_classes and image["status"] == "ok":
        covered, num_pixels = sum(row["area"] for row in rows), image["height"] * image["width"]
        if covered != num_pixels:
            raise InvalidResultError(f"{image['image_key']}: the segments cover {covered} of {num_pixels} pixels")


def _check_mask(row: dict[str, Any], counts: bytes, height: int, width: int) -> None:
    where = f"{row['image_key']}: segment {row['segment_id']}"
    try:
        area, bbox = counts_area(counts), list(counts_bbox_xywh(counts, height, width))
    except ValueError as error:  # not an RLE of an image of this size
        raise InvalidResultError(f"{where}: {error}") from error
    if row["segmentation"]["size"] != [height, width]:
        raise InvalidResultError(f"{where} has size {row['segmentation']['size']}, but its image has {[height, width]}")
    if area == 0 or (area, bbox) != (row["area"], row["bbox"]):
        raise InvalidResultError(
            f"{where} has area {row['area']} and box {row['bbox']}, but its RLE has {area} and {bbox}"
        )


def _overlap(counts_of_masks: list[bytes]) -> bool:
    """Whether any pixel is in two of the masks of one image. Compares run lengths; builds no mask."""
    if not counts_of_masks:
        return False
    ends = [np.cumsum(decode_counts(counts)) for counts in counts_of_masks]
    # Counts alternate between outside and inside: runs of the mask start where an even run ends.
    starts = np.concatenate([e[: e.size // 2 * 2 : 2] for e in ends])
    stops = np.concatenate([e[1::2] for e in ends])
    order = np.argsort(starts)
    return bool(np.any(stops[order][:-1] > starts[order][1:]))
