"""The settings of the report page: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with `pipeline/config.py`. Nothing heavy is imported
here, so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from pipeline.errors import RunError
from pipeline.setting_fields import IN_AND_OUT, Section, check_fields

_COMPARISON = Section("comparison")
_PICTURES = Section("pictures")
_TRUTH = Section("ground truth")


@dataclass(frozen=True)
class ReportSettings:
    """Write a page that shows a finished run: report.html, which opens in a browser without a network, and report.json
    with every figure on it. The page holds small copies of images of the input, unless --images none is given.

    Paths may be local folders or URIs (s3://bucket/prefix). Credentials come from the usual AWS chain, not from flags.
    """

    tables: Annotated[str, IN_AND_OUT]
    """Read the tables below this folder or URI, the --output of the run."""
    run_id: Annotated[str | None, IN_AND_OUT] = None
    """Show this run. Default: the run that finished last."""
    to: Annotated[str | None, IN_AND_OUT] = None
    """Write the page to this folder or URI prefix. Default: `_runs/<run_id>/page` below --tables."""
    against: Annotated[str | None, _COMPARISON] = None
    """Compare with this run. Default: the run of the same task that finished last before, if there is one."""
    against_tables: Annotated[str | None, _COMPARISON] = None
    """Look for --against below this folder or URI. Default: --tables."""
    compare: Annotated[bool, _COMPARISON] = True
    """Compare with another run; --no-compare shows the run alone."""
    panoptic_gt: Annotated[str | None, _TRUTH] = None
    """Score the run against this COCO panoptic JSON, as evaluate.py does: PQ, mistaken classes, the worst images."""
    panoptic_pngs: Annotated[str | None, _TRUTH] = None
    """Read the PNGs of --panoptic-gt from this folder. Default: the path of the JSON file without `.json`."""
    instances_gt: Annotated[str | None, _TRUTH] = None
    """Score the run against this COCO instances JSON: AP of masks and boxes, the worst images. Of a panoptic run,
    things count."""
    images: Annotated[Literal["embed", "folder", "none"], _PICTURES] = "embed"
    """embed: put small copies of images into report.html; folder: write them to the folder `images` beside it, larger;
    none: copy no pixels, and show masks alone."""
    sample: Annotated[int, _PICTURES, Interval(ge=0, le=2000)] = 240
    """Show at most N images in the gallery: the hardest, the most changed, some of each class, and others at random."""
    overlays: Annotated[str | None, _PICTURES] = None
    """Also draw the segments over the images of the gallery, at full size, as JPEGs below this folder or URI."""
    where: Annotated[str | None, _PICTURES] = None
    """With --overlays: draw all images for which this SQL condition holds, over the columns of the table `images` and
    `min_score`, `classes` (list of names), `change`, `pq`, `ap`: width > 640 and list_contains(classes, 'dog')."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.panoptic_pngs is not None and self.panoptic_gt is None:
            raise RunError("--panoptic-pngs needs --panoptic-gt, which is not given")
        if self.where is not None and self.overlays is None:
            raise RunError("--where needs --overlays, which is not given")
        if self.against_tables is not None and self.against is None:
            raise RunError("--against-tables needs --against, which is not given")
        if self.against is not None and not self.compare:
            raise RunError("--against and --no-compare exclude each other; leave out one of them")
