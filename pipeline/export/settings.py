"""The settings of an export: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with `pipeline/config.py`. Nothing heavy is imported
here, so that `--help` answers at once.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from annotated_types import Interval

from pipeline.errors import RunError
from pipeline.setting_fields import IN_AND_OUT, RESOURCES, Section, check_fields, flag

_ROWS = Section("rows", "Without these flags, all segments of the current view are exported.")
_FORMAT = Section("format")

FormatName = Literal[
    "coco-panoptic",
    "coco-results",
    "coco-instances",
    "csv",
    "label-png",
    "yolo",
    "label-studio",
    "cvat",
    "fiftyone",
    "geojson",
    "gpkg",
    "geoparquet",
    "crops",
    "hf",
]
# The flags that only some formats have.
_ONLY = {
    "palette": ("label-png",),
    "ignore_label": ("label-png",),
    "image_url_prefix": ("label-studio", "fiftyone"),
    "images": ("hf",),
}


@dataclass(frozen=True)
class ExportSettings:
    """Write the current rows of published tables in a format that other programs read.

    Paths may be local folders or URIs (s3://bucket/prefix). Credentials come from the usual AWS chain, not from flags.
    If the job is stopped or killed, the same command goes on where it was.
    """

    tables: Annotated[str, IN_AND_OUT]
    """Read the tables below this folder or URI, the --output of runs."""
    to: Annotated[str, IN_AND_OUT]
    """Write to this folder or URI prefix, which must be empty or hold what this export has begun."""
    format: Annotated[FormatName, _FORMAT]
    """Write this format; docs/results.md says what each one holds."""
    run_id: Annotated[str | None, _ROWS] = None
    """Export the rows of this run. Default: the current row of each image, from whatever run."""
    where: Annotated[str | None, _ROWS] = None
    """Export rows for which this SQL condition over the columns of both tables holds, such as "score > 0.8 AND width >=
    640". Images without such a segment are left out."""
    classes: Annotated[tuple[str, ...], _ROWS] = ()
    """Export segments of these categories, given by name or id. Images without them stay."""
    min_score: Annotated[float | None, _ROWS, Interval(ge=0.0, le=1.0)] = None
    """Leave out segments with a lower score. Their images stay."""
    min_area: Annotated[int | None, _ROWS, Interval(ge=1, le=2**31 - 1)] = None
    """Leave out segments of fewer pixels. Their images stay."""
    palette: Annotated[bool, _FORMAT] = False
    """Give label PNGs of 8 bits a palette, so that people see colours; pixels keep their values."""
    ignore_label: Annotated[int | None, _FORMAT, Interval(ge=0, le=65_535)] = None
    """Give pixels without a segment this value in label PNGs. Default: 255, or 65535 if ids need 16 bits."""
    image_url_prefix: Annotated[tuple[str, ...], _FORMAT] = ()
    """Give images URLs or paths that another program can open: FROM=TO replaces the beginning FROM of an image_key by
    TO. Default: the key itself."""
    images: Annotated[bool, _FORMAT] = True
    """Put the images themselves into a Hugging Face data set; they are read again from where the run has read them."""
    workers: Annotated[int | None, RESOURCES, Interval(ge=1, le=1024)] = None
    """Convert in N processes. Default: one per CPU."""

    def __post_init__(self) -> None:
        check_fields(self)
        defaults = {field.name: field.default for field in fields(self)}
        for name, formats in _ONLY.items():
            if getattr(self, name) != defaults[name] and self.format not in formats:
                raise RunError(f"{flag(name)} is for --format {' and '.join(formats)}, not for {self.format}")
