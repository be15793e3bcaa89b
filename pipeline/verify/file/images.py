"""Check rows of the table `images`, each by itself."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from m2f_core.masks.rle import MAX_PIXELS
from pipeline.errors import ErrorCode
from pipeline.schema import IMAGES, REASONS
from pipeline.verify.file.rows import Rows
from pipeline.verify.findings import Kind

# Of the numbers in `quality`; all are at least 0. Edges are differences of levels, 256 bins hold at most 64 x 64 cells.
MOST_OF_QUALITY = {
    "brightness_p05": 1.0,
    "brightness_p99": 1.0,
    "entropy": math.log2(768) + 1e-5,
    "sharpness": 255.0,
    "grey_spread": 64 * 64,
}
_STATUSES = ("ok", "failed", "removed")
# What the comparisons of whole runs need of each row, and the number of the file.
FOUND_IMAGES = pa.schema(
    [
        *(
            IMAGES.field(name)
            for name in ("image_key", "run_id", "status", "error_code", "height", "width", "num_segments", "shard")
        ),
        *(IMAGES.field(name) for name in ("etag", "size_bytes", "reason", "attributes")),
        pa.field("file", pa.int32()),
    ]
)


def check_images(rows: Rows) -> pa.Table:
    """Add what is wrong with the rows to their findings. Returns FOUND_IMAGES of the rows."""
    rows.check_shared()
    _check_status(rows)
    _check_values(rows)
    run, proof = rows.run, rows.file.proof
    rows.check(pc.not_equal(rows["fingerprint"], run.fingerprint), Kind.OF_RUN, "fingerprint")
    rows.check(
        pc.not_equal(rows["run_created"], pa.scalar(run.created, rows["run_created"].type)), Kind.OF_RUN, "run_created"
    )
    attempts = rows.numbers("attempt")
    if proof is not None:
        rows.check(attempts != proof.attempt, Kind.OF_RUN, "attempt")
    else:
        most = run.num_attempts or np.iinfo(np.int32).max
        rows.check((attempts < 1) | (attempts > most), Kind.OF_RUN, "attempt")
    columns = [rows.table[name] for name in FOUND_IMAGES.names[:-1]]
    return pa.table(
        [*columns, pa.repeat(pa.scalar(rows.file.number, pa.int32()), len(rows))], names=FOUND_IMAGES.names
    ).cast(FOUND_IMAGES)


def _check_status(rows: Rows) -> None:
    """The status decides which columns have a value."""
    is_ok, is_failed, is_removed = (pc.equal(rows["status"], status) for status in _STATUSES)
    rows.check(pc.invert(pc.is_in(rows["status"], pa.array(_STATUSES))), Kind.VALUE, "status")
    for field in ("error_code", "error_message"):
        rows.check(pc.not_equal(is_failed, rows[field].is_valid()), Kind.STATUS, field)
    for field in ("height", "width"):
        rows.check(pc.not_equal(is_ok, rows[field].is_valid()), Kind.STATUS, field)
    rows.check(pc.not_equal(is_removed, pc.equal(rows["reason"], "removed")), Kind.STATUS, "reason")
    num_segments = rows["num_segments"]
    rows.check(pc.and_(pc.invert(is_ok), pc.not_equal(num_segments, 0)), Kind.STATUS, "num_segments")
    rows.check(pc.and_(is_ok, pc.equal(rows["size_bytes"], 0)), Kind.STATUS, "size_bytes")


def _check_values(rows: Rows) -> None:
    rows.check(pc.equal(rows["image_key"], ""), Kind.VALUE, "image_key")
    rows.check(pc.invert(pc.is_in(rows["reason"], pa.array(REASONS))), Kind.VALUE, "reason")
    codes = pa.array([code.value for code in ErrorCode])
    rows.check(
        pc.and_(rows["error_code"].is_valid(), pc.invert(pc.is_in(rows["error_code"], codes))), Kind.VALUE, "error_code"
    )
    for field in ("num_segments", "size_bytes"):
        rows.check(pc.less(rows[field], 0), Kind.VALUE, field)
    height, width = (pc.fill_null(rows[name], 1).cast(pa.int64()) for name in ("height", "width"))
    rows.check(pc.less(height, 1), Kind.VALUE, "height")
    rows.check(pc.or_(pc.less(width, 1), pc.greater(pc.multiply(height, width), MAX_PIXELS)), Kind.VALUE, "width")
    if rows["attributes"].null_count < len(rows):
        bad = np.array([not _is_object(text) for text in rows["attributes"].to_pylist()])
        rows.check(bad, Kind.VALUE, "attributes")
    if rows["quality"].null_count < len(rows):
        _check_quality(rows)


def _check_quality(rows: Rows) -> None:
    quality = rows["quality"]
    rows.check(pc.and_(quality.is_valid(), pc.not_equal(rows["status"], "ok")), Kind.STATUS, "quality")
    values = {name: pc.fill_null(pc.struct_field(quality, name), 0) for name in MOST_OF_QUALITY}
    for name, most in MOST_OF_QUALITY.items():
        is_within = pc.and_(pc.greater_equal(values[name], 0), pc.less_equal(values[name], most))  # false for NaN
        rows.check(pc.invert(is_within), Kind.VALUE, "quality")
    rows.check(pc.greater(values["brightness_p05"], values["brightness_p99"]), Kind.VALUE, "quality")


def _is_object(text: str | None) -> bool:
    try:
        return text is None or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
