"""Check rows of the table `segments`: each by itself, and those of one image together.

Legend: N rows, G images.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m2f_core.masks.measure import FAULTS, Measured, measure, shared_pixels
from pipeline.verify.file.rows import Rows
from pipeline.verify.findings import Kind

# Scores are computed in single precision, and means of scores are accurate to this.
_SCORE_TOLERANCE = 1e-5
# The segments of an image, added up over its rows in one batch; the number of the file.
GROUPS = pa.schema(
    [
        ("image_key", pa.string()),
        ("run_id", pa.string()),
        ("num_rows", pa.int64()),
        ("num_ids", pa.int64()),  # distinct segment ids
        ("last_id", pa.int64()),
        ("area", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("shard", pa.int32()),
        ("file", pa.int32()),
    ]
)


def check_segments(rows: Rows) -> pa.Table:
    """Add what is wrong with the rows to their findings. Returns GROUPS of the rows that have lists as they must be."""
    rows = rows.without(_check_lists(rows))
    if not len(rows):
        return GROUPS.empty_table()
    rows = _by_image(rows)
    rows.check_shared()
    scores = rows.numbers("score")
    with np.errstate(invalid="ignore"):
        rows.check(~((scores >= 0) & (scores <= 1 + _SCORE_TOLERANCE)), Kind.VALUE, "score")
    _check_categories(rows)
    _check_embeddings(rows)
    measured = _check_masks(rows)
    return _check_groups(rows, measured)


def _check_lists(rows: Rows) -> NDArray[np.bool_]:
    """Which rows have a box or a mask that is no list of so many numbers, or no text."""
    segmentation = rows["segmentation"]
    bad_box, bad_size = _is_no_list(rows["bbox"], 4), _is_no_list(segmentation.field("size"), 2)
    no_counts = segmentation.field("counts").is_null().to_numpy(zero_copy_only=False)
    rows.check(bad_box, Kind.VALUE, "bbox")
    rows.check(bad_size | no_counts, Kind.VALUE, "segmentation")
    return bad_box | bad_size | no_counts


def _is_no_list(lists: pa.ListArray, length: int) -> NDArray[np.bool_]:
    values = lists.flatten()
    if len(values) == length * len(lists) and not values.null_count and not lists.null_count:
        lengths = np.diff(lists.offsets.to_numpy())
        if np.all(lengths == length):
            return np.zeros(len(lists), bool)
    return np.array([one is None or len(one) != length or None in one for one in lists.to_pylist()], bool)


def _by_image(rows: Rows) -> Rows:
    """The rows with those of an image side by side, as they nearly always are."""
    keys = _key_numbers(rows)
    return rows if np.all(keys[1:] >= keys[:-1]) else rows.in_order(np.argsort(keys, kind="stable"))


def _key_numbers(rows: Rows) -> NDArray[np.int32]:
    numbers: NDArray[np.int32] = rows["image_key"].indices.to_numpy()
    return numbers


def _check_categories(rows: Rows) -> None:
    """The three columns of a category must be a row of the label map; of a semantic run, the one that the id says."""
    of_id: dict[int, set[tuple[str, bool]]] = {}
    for number, name, isthing in rows.run.categories:
        if rows.run.classes and name not in rows.run.classes:
            continue
        of_id.setdefault(number, set()).add((name, isthing))
    ids, names = rows.numbers("category_id").astype(np.int64), rows["category_name"]
    things = rows["isthing"].to_numpy(zero_copy_only=False)
    together = (ids << 32) | (names.indices.to_numpy().astype(np.int64) << 1) | things
    for one in np.unique(together).tolist():
        category_id, name, isthing = one >> 32, names.dictionary[(one >> 1) & 0x7FFFFFFF].as_py(), bool(one & 1)
        known = of_id.get(category_id)
        if known is None:
            rows.check(together == one, Kind.CATEGORY, "category_id")
        elif (name, isthing) not in known:
            field = "isthing" if name in {of_map for of_map, _ in known} else "category_name"
            rows.check(together == one, Kind.CATEGORY, field)
    if rows.run.task == "semantic":
        by_class = np.array([number for number, _, _ in rows.run.categories] or [-1])
        classes = rows.numbers("segment_id").astype(np.int64) - 1
        inside = (classes >= 0) & (classes < by_class.size)
        rows.check(~inside | (by_class[np.where(inside, classes, 0)] != ids), Kind.SEGMENT_IDS, "segment_id")


def _check_embeddings(rows: Rows) -> None:
    """All segments of a run have lists of finite half floats, of one length, or none has."""
    embeddings = rows["embedding"]
    rows.check(embeddings.is_valid().to_numpy(False) != rows.run.has_embeddings, Kind.OF_RUN, "embedding")
    values = embeddings.flatten()
    if not len(values):
        return
    lengths = pc.list_value_length(embeddings)
    rows.check(pc.not_equal(lengths, pc.max(lengths)), Kind.VALUE, "embedding", lambda n: f"{lengths[n]} numbers")
    numbers = values.to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore", invalid="ignore"):
        is_half = np.isfinite(numbers) & (numbers.astype(np.float16) == numbers)
    if not is_half.all():
        bad = np.zeros(len(rows), bool)
        bad[pc.list_parent_indices(embeddings).to_numpy()[~is_half]] = True
        rows.check(bad, Kind.VALUE, "embedding", lambda n: "a number that is no half float")


def _check_masks(rows: Rows) -> Measured:
    segmentation = rows["segmentation"]
    sizes = _numbers_of(segmentation.field("size"), 2)
    counts = segmentation.field("counts")
    _, offsets, data = counts.buffers()
    places = np.frombuffer(offsets, np.int32)[counts.offset : counts.offset + len(counts) + 1]
    characters = np.frombuffer(data or b"", np.uint8)
    measured = measure(characters, places, sizes[:, 0], sizes[:, 1])
    ids = rows.numbers("segment_id")
    faults, areas = measured.faults, rows.numbers("area")
    rows.check(faults > 0, Kind.NO_RLE, "segmentation", lambda n: f"segment {ids[n]}: {FAULTS[int(faults[n])]}")
    is_sound = faults == 0
    rows.check(
        is_sound & (measured.areas == 0), Kind.NO_RLE, "segmentation", lambda n: f"segment {ids[n]} has no pixel"
    )
    rows.check(
        is_sound & (areas != measured.areas),
        Kind.NOT_MEASURED,
        "area",
        lambda n: f"segment {ids[n]} has {areas[n]}, its mask {measured.areas[n]}",
    )
    boxes = _numbers_of(rows["bbox"], 4)
    rows.check(
        is_sound & np.any(boxes != measured.boxes_xywh.astype(np.float32), axis=1),
        Kind.NOT_MEASURED,
        "bbox",
        lambda n: f"segment {ids[n]} has {boxes[n].tolist()}, its mask {measured.boxes_xywh[n].tolist()}",
    )
    return measured


def _numbers_of(lists: pa.ListArray, length: int) -> NDArray[Any]:
    numbers: NDArray[Any] = lists.flatten().to_numpy().reshape(-1, length)
    return numbers


def _check_groups(rows: Rows, measured: Measured) -> pa.Table:
    """Check the rows of each image together, and add them up."""
    keys, ids = _key_numbers(rows), rows.numbers("segment_id")
    firsts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    behind = np.append(firsts[1:], len(rows))
    rows.check(ids < 1, Kind.SEGMENT_IDS, "segment_id")
    is_first_of_id = _first_of_each_id(rows, keys, ids)
    if rows.run.is_disjoint:
        _check_disjoint(rows, measured, firsts, behind, is_first_of_id)
    sizes, shards = _numbers_of(rows["segmentation"].field("size"), 2), rows.numbers("shard")
    of_image = np.repeat(firsts, behind - firsts)
    rows.check(
        np.any(sizes != sizes[of_image], axis=1), Kind.SIZE, "segmentation", lambda n: f"segment {ids[n]} differs"
    )
    rows.check(shards != shards[of_image], Kind.OF_RUN, "shard")
    columns = {
        "image_key": rows["image_key"].take(pa.array(firsts)),
        "run_id": pa.repeat(rows.run.run_id, firsts.size),
        "num_rows": behind - firsts,
        "num_ids": np.add.reduceat(is_first_of_id, firsts, dtype=np.int64),
        "last_id": np.maximum.reduceat(ids, firsts),
        "area": np.add.reduceat(rows.numbers("area"), firsts),
        "height": sizes[firsts, 0],
        "width": sizes[firsts, 1],
        "shard": shards[firsts],
        "file": np.full(firsts.size, rows.file.number),
    }
    return pa.table([pa.array(columns[field.name]).cast(field.type) for field in GROUPS], schema=GROUPS)


def _first_of_each_id(rows: Rows, keys: NDArray[np.int32], ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Whether a row is the first of its image with its segment id. Others are faults, unless they share a mask."""
    if np.all((keys[1:] != keys[:-1]) | (ids[1:] > ids[:-1])):
        return np.ones(len(rows), bool)
    order = np.lexsort((ids, keys))
    again = (keys[order][1:] == keys[order][:-1]) & (ids[order][1:] == ids[order][:-1])
    is_first = np.ones(len(rows), bool)
    is_first[order[1:][again]] = False
    if again.any():
        if not rows.run.may_share_ids:
            rows.check(~is_first, Kind.SEGMENT_IDS, "segment_id", lambda n: f"{ids[n]} occurs twice")
        else:
            masks = rows["segmentation"].field("counts")
            for one, other in zip(order[:-1][again], order[1:][again], strict=True):
                if masks[int(one)] != masks[int(other)]:
                    key = rows["image_key"][int(other)].as_py()
                    rows.add(Kind.SEGMENT_IDS, "segmentation", f"segment {ids[other]} has two masks", key)
    return is_first


def _check_disjoint(
    rows: Rows,
    measured: Measured,
    firsts: NDArray[np.intp],
    behind: NDArray[np.intp],
    is_first_of_id: NDArray[np.bool_],
) -> None:
    """No pixel is in two masks of an image. Rows with the same id share a mask, which counts once."""
    num_pixels = _numbers_of(rows["segmentation"].field("size"), 2).astype(np.int64).prod(axis=1)
    num_pixels[measured.faults > 0] = 0  # such a mask has no runs, and may have any size
    largest = np.maximum.reduceat(num_pixels, firsts)
    shared = shared_pixels(measured, np.append(firsts, len(rows)), largest, is_first_of_id)
    for image in np.flatnonzero(shared).tolist():
        key = rows["image_key"][int(firsts[image])].as_py()
        rows.add(Kind.SHARED_PIXELS, "segmentation", f"some of its {behind[image] - firsts[image]} segments", key)
