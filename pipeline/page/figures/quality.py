"""What stands out in the input: images that are doubled, oddly sized, dark, blurred, and so on.

Kinds and bounds are those of CleanVision (cleanlab/cleanvision, issue_managers), where the run knows the values.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.page.figures.tallies import NOW, rows
from pipeline.tables.spill_database import ScratchDatabase

_EXAMPLES = 12  # of each kind
_ODD_ASPECT = 0.35  # shorter side / longer side
_IQR_FACTOR = 3.0  # an odd size lies this many interquartile ranges outside the quartiles of sqrt(height * width)


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
_ODD_SIZES = _Kind(
    "odd_size",
    "odd size",
    f"the mean side lies {_IQR_FACTOR:g} interquartile ranges outside the quartiles of the run",
    f"side < low - {_IQR_FACTOR} * (high - low) OR side > high + {_IQR_FACTOR} * (high - low)",
    "-abs(side - (low + high) / 2)",
)
# Bounds of CleanVision: dark, light, blurry, low information; each value lies between 0 and 1.
_OF_PIXELS = (
    _Kind(
        "dark",
        "dark",
        "99 % of the pixels are darker than 0.32",
        "quality.brightness_p99 < 0.32",
        "quality.brightness_p99",
    ),
    _Kind(
        "light",
        "light",
        "95 % of the pixels are brighter than 0.95",
        "quality.brightness_p05 > 0.95",
        "-quality.brightness_p05",
    ),
    _Kind("blurry", "blurry", "the sharpness is below 0.29", "quality.sharpness < 0.29", "quality.sharpness"),
    _Kind(
        "low_information", "little information", "the entropy is below 0.3", "quality.entropy < 0.3", "quality.entropy"
    ),
    _Kind("grey", "grey", "all three channels are equal", "quality.is_grey", "image_key"),
)


def quality(scratch: ScratchDatabase) -> dict[str, Any]:
    """The kinds with numbers of images and examples, and which kinds could not be looked for, and why."""
    kinds = [_count(scratch, _ODD_ASPECTS), _count(scratch, _ODD_SIZES)]
    missing: list[dict[str, Any]] = []
    duplicates = _exact_duplicates(scratch)
    (kinds if duplicates is not None else missing).append(
        duplicates
        or {"kinds": "exact duplicates", "why": "the keys of this run have no ETags that depend on the content alone"}
    )
    if _has_values(scratch):
        kinds += [_count(scratch, kind) for kind in _OF_PIXELS]
        kinds.append(
            _doubles(scratch, "near_duplicates", "near duplicates", "equal perceptual hashes", "quality.phash")
        )
    else:
        why = "the rows of this run have no values of pixels (column quality)"
        missing.append({"kinds": ", ".join([*(kind.title for kind in _OF_PIXELS), "near duplicates"]), "why": why})
    return {"kinds": [one for one in kinds if one is not None], "missing": missing}


def _count(scratch: ScratchDatabase, kind: _Kind) -> dict[str, Any]:
    base = (
        f"""
        (SELECT *, sqrt(height::DOUBLE * width) AS side,
                quantile_cont(sqrt(height::DOUBLE * width), 0.25) OVER () AS low,
                quantile_cont(sqrt(height::DOUBLE * width), 0.75) OVER () AS high
         FROM {NOW}_images WHERE height > 0 AND width > 0)
    """
        if "side" in kind.condition
        else f"(SELECT * FROM {NOW}_images WHERE height > 0 AND width > 0)"
    )
    found = rows(
        scratch,
        f"""
        SELECT image_key, height, width, count(*) OVER () AS images FROM {base} WHERE {kind.condition}
        ORDER BY {kind.score}, image_key LIMIT {_EXAMPLES}
        """,
    )
    return {
        "kind": kind.name,
        "title": kind.title,
        "means": kind.means,
        "images": found[0]["images"] if found else 0,
        "examples": [one["image_key"] for one in found],
    }


def _has_values(scratch: ScratchDatabase) -> bool:
    """Whether the rows say something of pixels; tables of older runs have no such column, or null in it."""
    columns = {one["column_name"] for one in rows(scratch, f"DESCRIBE {NOW}_images")}
    return "quality" in columns and bool(rows(scratch, f"SELECT 1 FROM {NOW}_images WHERE quality IS NOT NULL LIMIT 1"))


def _exact_duplicates(scratch: ScratchDatabase) -> dict[str, Any] | None:
    """Images whose objects have one ETag and size. None if no image has an ETag that says something of its content.

    The ETag of an image in a tar or Parquet file is the one of that file; of a local file it is a time and a size.
    """
    condition = "etag <> '' AND NOT contains(image_key, '#') AND NOT starts_with(image_key, 'file://')"
    if not rows(scratch, f"SELECT 1 FROM {NOW}_images WHERE {condition} LIMIT 1"):
        return None
    return _doubles(
        scratch, "exact_duplicates", "exact duplicates", "equal ETag and size", "(etag, size_bytes)", f"AND {condition}"
    )


def _doubles(
    scratch: ScratchDatabase, kind: str, title: str, means: str, of: str, condition: str = ""
) -> dict[str, Any]:
    """Images that have the value `of` in common with another image."""
    found = rows(
        scratch,
        f"""
        SELECT count(*) AS of_value, sum(count(*)) OVER ()::BIGINT AS images, min(image_key) AS first,
               max(image_key) AS last
        FROM {NOW}_images WHERE {of} IS NOT NULL {condition}
        GROUP BY {of} HAVING count(*) > 1 ORDER BY of_value DESC, first LIMIT {_EXAMPLES // 2}
        """,
    )
    return {
        "kind": kind,
        "title": title,
        "means": means,
        "images": found[0]["images"] if found else 0,
        "examples": [key for one in found for key in (one["first"], one["last"])],
    }
