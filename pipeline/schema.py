"""The name, type and unit of every column on disk and between stages. A change of the bytes on disk is a new version.

Between stages, one shard is one row (and so one Ray Data block) with the columns `shard`, `visit` (which model actor
worked on the shard, and when), `costs` (seconds by step so far) and `images`, a list with one struct per image.
`pack_shard` and `unpack_shard` turn that row into a plain table of images and back without copying.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

SCHEMA_VERSION = 2

# Why a run contains an image. `removed` images no longer exist in the input: they get a row, but nothing is read.
REASONS = ("new", "changed", "model_changed", "settings_changed", "retry", "overwrite", "removed")

# --- the listing: one row per image -----------------------------------------------------------------------------------
LISTED = pa.schema(
    [
        # The object's URI, not escaped; of an image in a tar or Parquet file `<URI of the file>#<name in the file>`.
        pa.field("image_key", pa.string(), nullable=False),
        # The store's ETag of the object to read; local files: mtime in ns and size, in hex; "" if nobody knows.
        pa.field("etag", pa.string(), nullable=False),
        # Encoded; null if unknown until the image is read; of a row of a Parquet file the mean of its row group.
        pa.field("size_bytes", pa.int64()),
        pa.field("object_uri", pa.string()),  # the object to read; null: the object named image_key
        # In a tar, the place of the image's first byte; in a Parquet file, the number of its row. Both from 0.
        pa.field("position", pa.int64()),
        pa.field("row_group", pa.int32()),  # in a Parquet file
        pa.field("fault", pa.string()),  # what the listing found wrong with the image, which then is not read
        pa.field("attributes", pa.string()),  # what the input says of the image (--keep-columns), as a JSON object
    ]
)

# --- the plan: one row per image ------------------------------------------------------------------------------------
PLAN = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        *LISTED,
        pa.field("reason", pa.string(), nullable=False),  # why this run contains the image: one of REASONS
    ]
)

# --- between stages: the fields of one image ------------------------------------------------------------------------
PLANNED = list(PLAN)[1:]
_ERROR = [
    pa.field("error_code", pa.string()),  # null: no error so far
    pa.field("error_message", pa.string()),
]
# Once an image is read, nobody needs to know where it lies; etag and size_bytes are those of the bytes.
_READ = [PLAN.field(name) for name in ("image_key", "etag", "size_bytes", "reason", "attributes")]
# data: encoded bytes; null after an error
FETCHED = pa.schema([*_READ, *_ERROR, pa.field("data", pa.large_binary())])
# A mask of an image as COCO RLE. A mask is stored once, even if several segments share it.
MASK = pa.struct(
    [
        ("counts", pa.string()),  # compressed
        ("area", pa.int64()),  # pixels
        ("bbox", pa.list_(pa.float32())),  # x, y, width, height in pixels
    ]
)
FOUND_SEGMENT = pa.struct(
    [
        ("segment_id", pa.int32()),  # from 1; docs/table-format.md explains its meaning in each task
        ("class_id", pa.int32()),
        ("score", pa.float32()),
        ("mask", pa.int32()),  # index into `masks`, from 0
        ("embedding", pa.binary()),  # half floats, the lowest byte of each first; null without --embeddings
    ]
)
# Of m2f_core.images.quality.Quality, which says what the fields mean.
QUALITY = pa.struct(
    [
        ("brightness_p05", pa.float32()),
        ("brightness_p99", pa.float32()),
        ("entropy", pa.float32()),
        ("sharpness", pa.float32()),
        ("grey_spread", pa.float32()),
        ("is_grey", pa.bool_()),
        ("phash", pa.int64()),
    ]
)
# What the model said of an image or of one tile, kept to be reduced again later (--keep-logits). K queries are kept.
KEPT_INPUT = pa.struct(
    [
        # Height and width in pixels: of the image or tile, as resized, and as padded for the network
        ("original_hw", pa.list_(pa.int32())),
        ("resized_hw", pa.list_(pa.int32())),
        ("padded_hw", pa.list_(pa.int32())),
        ("num_queries", pa.int32()),  # of the model
        ("queries", pa.list_(pa.int32())),  # K numbers of queries, from 0, rising
        ("class_logits", pa.list_(pa.float32())),  # K x (classes + 1), query by query; the last class is "no object"
        ("mask_hw", pa.list_(pa.int32())),  # height and width of a mask as the network gives it
        # K x h x w mask logits as codes of m2f_core.inference.kept_masks, compressed by zstd
        ("masks", pa.binary()),
    ]
)
SEGMENTED = pa.schema(
    [
        *_READ,
        *_ERROR,
        pa.field("height", pa.int32()),  # pixels, EXIF orientation applied; null if the image was not decoded
        pa.field("width", pa.int32()),
        pa.field("masks", pa.list_(MASK)),
        pa.field("segments", pa.list_(FOUND_SEGMENT)),
        pa.field("quality", QUALITY),  # null if the image was not decoded as a whole
        pa.field("kept", pa.list_(KEPT_INPUT)),  # null without --keep-logits
    ]
)

# --- the tables -----------------------------------------------------------------------------------------------------
_VERSION = {b"m2f_schema_version": str(SCHEMA_VERSION).encode()}
IMAGES = pa.schema(
    [
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),  # ok | failed | removed
        pa.field("error_code", pa.string()),  # pipeline.errors.ErrorCode; null if ok
        pa.field("error_message", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),  # 0 if the image was not read and the input does not say it
        pa.field("num_segments", pa.int32(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        # When the run was planned. The row with the latest run_created is the current row of an image.
        pa.field("run_created", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("fingerprint", pa.string(), nullable=False),  # of weights and settings that change results
        pa.field("attempt", pa.int32(), nullable=False),  # 1 unless the run was resumed
        pa.field("reason", pa.string(), nullable=False),
        pa.field("attributes", pa.string()),  # what the input says of the image (--keep-columns), as a JSON object
        pa.field("quality", QUALITY),  # figures of the decoded picture; null if it was not decoded as a whole
    ],
    metadata=_VERSION,
)
SEGMENTS = pa.schema(
    [
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("segment_id", pa.int32(), nullable=False),  # from 1, in its image
        pa.field("category_id", pa.int32(), nullable=False),  # the dataset's id
        pa.field("category_name", pa.string(), nullable=False),
        pa.field("isthing", pa.bool_(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("area", pa.int64(), nullable=False),  # pixels
        pa.field("bbox", pa.list_(pa.float32()), nullable=False),  # x, y, width, height in pixels
        # Compressed COCO RLE, which pycocotools reads as it is.
        pa.field(
            "segmentation",
            pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]),  # size: height, width
            nullable=False,
        ),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        # The last state of the segment's query, rounded to half floats, which Delta tables lack; null without
        # --embeddings.
        pa.field("embedding", pa.list_(pa.float32())),
    ],
    metadata=_VERSION,
)
# Of runs with --keep-logits, a row for each image with a result.
LOGITS = pa.schema(
    [
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),  # pixels, as in `images`
        pa.field("width", pa.int32(), nullable=False),
        # One item for the image or, if the image was cut (--tile), one for each tile, row by row.
        pa.field("inputs", pa.list_(KEPT_INPUT), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
    ],
    metadata=_VERSION,
)
TABLES = {"images": IMAGES, "segments": SEGMENTS}  # of every run
ALL_TABLES = {**TABLES, "logits": LOGITS}
# The order in which the parts of a shard are written and the tables are published: see pipeline/tables/publish.py.
ORDER = ("logits", "segments", "images")
# Columns added without a new schema version: tables and files of older programs lack them, and their rows have null.
ADDED_COLUMNS = frozenset(("attributes", "quality", "embedding"))


class ModelVisit(NamedTuple):
    """Which model actor worked on a shard, and when, in seconds since the epoch."""

    actor: str = ""  # host and process
    started: float = 0.0
    ended: float = 0.0


_COSTS = pa.map_(pa.string(), pa.float64())
_VISIT = pa.struct([("actor", pa.string()), ("started", pa.float64()), ("ended", pa.float64())])


def pack_shard(
    shard: int, images: pa.Table, costs: Mapping[str, float] | None = None, visit: ModelVisit | None = None
) -> pa.Table:
    """One row: the shard's number and its images (a table of one row per image) as a list of structs.

    `costs` and `visit` are for the receipt: see `pipeline.commit.receipt.Receipt`.
    """
    structs = images.combine_chunks().to_struct_array().chunk(0)
    return pa.table(
        {
            "shard": pa.array([shard], pa.int32()),
            "visit": pa.array([(visit or ModelVisit())._asdict()], _VISIT),
            "costs": pa.array([list((costs or {}).items())], _COSTS),
            "images": pa.ListArray.from_arrays(pa.array([0, len(structs)], pa.int32()), structs),
        }
    )


def no_shard(images: pa.Schema) -> pa.Table:
    """No row, with the columns of a row that `pack_shard` has packed: what a stage gives for a shard that it left."""
    structs = pa.list_(pa.struct(list(images)))
    return pa.schema([("shard", pa.int32()), ("visit", _VISIT), ("costs", _COSTS), ("images", structs)]).empty_table()


def visit_of(row: pa.Table) -> ModelVisit:
    """The visit that the model actor passed to `pack_shard`."""
    return ModelVisit(**row.column("visit")[0].as_py())


def costs_of(row: pa.Table) -> dict[str, float]:
    """The costs that earlier stages passed to `pack_shard`."""
    return dict(row.column("costs")[0].as_py())


def unpack_shard(row: pa.Table) -> tuple[int, pa.Table]:
    """The inverse of `pack_shard`."""
    assert row.num_rows == 1, f"a batch holds one shard, this one holds {row.num_rows}"
    images = row.column("images").combine_chunks().flatten()
    return row.column("shard")[0].as_py(), pa.Table.from_batches([pa.RecordBatch.from_struct_array(images)])
