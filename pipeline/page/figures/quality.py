"""What stands out in the input: images that are doubled, oddly sized, dark, blurred, and so on.

Kinds and bounds are those of CleanVision (cleanlab/cleanvision, issue_managers), where the run knows the values.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from m2f_core.images.quality import KINDS
from pipeline.page.figures.tallies import NOW, rows
from pipeline.tables.spill_database import ScratchDatabase, out_of_room

_EXAMPLES = 12  # of each kind
_ODD_ASPECT = 0.35  # shorter side / longer side
_IQR_FACTOR = 3.0  # an odd size lies this many interquartile ranges outside the quartiles of the mean sides
# The mean side of an image, in whole pixels: so the quartiles come from some thousand counts, whatever the run's size.
_SIDE = "least(round(sqrt(height::DOUBLE * width)), 100000)"


@dataclass(frozen=True)
class _Kind:
    """Images of a table for which a condition holds; `score` orders them, the worst first."""

    name: str
    title: str
    means: str
    condition: str
    score: str


_ODD_ASPECTS = _Kind(
    "odd_aspect",
    "odd aspect ratio",
    f"one side is less than {_ODD_ASPECT:.0%} of the other",
    f"least(height, width) < {_ODD_ASPECT} * greatest(height, width)",
    "least(height, width) / greatest(height, width)",
)
# Kinds of m2f_core.images.quality, which has their bounds.
_OF_PIXELS = (
    _Kind("dark", "dark", "99 % of the pixels are darker than 0.32", KINDS["dark"], "quality.brightness_p99"),
    _Kind("light", "light", "95 % of the pixels are brighter than 0.95", KINDS["light"], "-quality.brightness_p05"),
    _Kind("blurry", "blurry", "edges are weak, at 64 pixels", KINDS["blurry"], "quality.sharpness"),
    _Kind(
        "low_information",
        "little information",
        "the histogram has less than 3 bits of entropy",
        KINDS["low_information"],
        "quality.entropy",
    ),
    _Kind("grey", "grey", "all three channels are equal", KINDS["grey"], "image_key"),
)


def quality(scratch: ScratchDatabase) -> dict[str, Any]:
    """The kinds with numbers of images and examples, and which kinds could not be looked for, and why."""
    kinds = [_count(scratch, _ODD_ASPECTS), _count(scratch, _odd_sizes(scratch))]
    missing: list[dict[str, Any]] = []
    duplicates = _exact_duplicates(scratch)
    (kinds if duplicates is not None else missing).append(
        duplicates
        or {"kinds": "exact duplicates", "why": "the keys of this run have no ETags that depend on the content alone"}
    )
    if rows(scratch, f"SELECT 1 FROM {NOW}_images WHERE quality IS NOT NULL LIMIT 1"):
        kinds += [_count(scratch, kind) for kind in _OF_PIXELS]
        kinds.append(
            _doubles(scratch, "near_duplicates", "near duplicates", "equal perceptual hashes", "quality.phash")
        )
    else:
        why = "the rows of this run have no values of pixels (column quality), as those of older programs"
        missing.append({"kinds": ", ".join([*(kind.title for kind in _OF_PIXELS), "near duplicates"]), "why": why})
    return {"kinds": [one for one in kinds if one is not None], "missing": missing}


def _odd_sizes(scratch: ScratchDatabase) -> _Kind:
    low, high = _quartiles(scratch)
    reach = _IQR_FACTOR * (high - low)
    return _Kind(
        "odd_size",
        "odd size",
        f"the mean side lies {_IQR_FACTOR:g} interquartile ranges outside the quartiles of the run",
        f"({_SIDE} < {low - reach} OR {_SIDE} > {high + reach})",
        f"-abs({_SIDE} - {(low + high) / 2})",
    )


def _quartiles(scratch: ScratchDatabase) -> tuple[float, float]:
    """The quartiles of the mean sides of all images with a size; between two images, the point on the line."""
    counts = rows(
        scratch,
        f"""
        SELECT {_SIDE} AS side, count(*) AS images FROM {NOW}_images WHERE height > 0 AND width > 0
        GROUP BY side ORDER BY side
        """,
    )
    if not counts:
        return 0.0, 0.0
    sides, upto = np.array([one["side"] for one in counts]), np.cumsum([one["images"] for one in counts])
    places = np.array([0.25, 0.75]) * (upto[-1] - 1)
    below, above = (sides[np.searchsorted(upto, whole(places), side="right")] for whole in (np.floor, np.ceil))
    low, high = below + (above - below) * (places % 1)
    return float(low), float(high)


def _count(scratch: ScratchDatabase, kind: _Kind) -> dict[str, Any]:
    of = f"FROM {NOW}_images WHERE height > 0 AND width > 0 AND {kind.condition}"
    [counted] = rows(scratch, f"SELECT count(*) AS images {of}")
    found = rows(scratch, f"SELECT image_key {of} ORDER BY {kind.score}, image_key LIMIT {_EXAMPLES}")
    return {
        "kind": kind.name,
        "title": kind.title,
        "means": kind.means,
        "images": counted["images"],
        "examples": [one["image_key"] for one in found],
    }


def _exact_duplicates(scratch: ScratchDatabase) -> dict[str, Any] | None:
    """Images whose objects have one ETag and size. None if no image has an ETag that says something of its content.

    The ETag of an image in a tar or Parquet file is the one of that file; of a local file it is a time and a size.
    """
    # The row of an image that is gone has the ETag that the image had.
    condition = (
        "status <> 'removed' AND etag <> '' AND NOT contains(image_key, '#') AND NOT starts_with(image_key, 'file://')"
    )
    if not rows(scratch, f"SELECT 1 FROM {NOW}_images WHERE {condition} LIMIT 1"):
        return None
    return _doubles(
        scratch, "exact_duplicates", "exact duplicates", "equal ETag and size", "(etag, size_bytes)", f"AND {condition}"
    )


def _doubles(
    scratch: ScratchDatabase, kind: str, title: str, means: str, of: str, condition: str = ""
) -> dict[str, Any]:
    """Images that have the value `of` in common with another image."""
    images = f"FROM {NOW}_images WHERE {of} IS NOT NULL {condition}"
    with out_of_room():
        # Without keys: DuckDB cannot spill texts of groups to the disk.
        scratch.connection.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE several AS
            SELECT {of} AS value, count(*) AS of_value {images} GROUP BY value HAVING count(*) > 1
            """
        )
    [counted] = rows(scratch, "SELECT coalesce(sum(of_value), 0)::BIGINT AS images FROM several")
    found = rows(
        scratch,
        f"""
        SELECT min(image_key) AS first, max(image_key) AS last FROM (SELECT {of} AS value, image_key {images}) JOIN (
            SELECT * FROM several ORDER BY of_value DESC, value LIMIT {_EXAMPLES // 2}
        ) USING (value) GROUP BY value, of_value ORDER BY of_value DESC, value
        """,
    )
    return {
        "kind": kind,
        "title": title,
        "means": means,
        "images": counted["images"],
        "examples": [key for one in found for key in (one["first"], one["last"])],
    }
