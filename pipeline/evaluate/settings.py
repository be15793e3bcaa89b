"""The evaluation's settings: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with `pipeline/config.py`. Nothing heavy is imported
here, so that `--help` answers at once.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval

from pipeline.errors import RunError
from pipeline.setting_fields import IN_AND_OUT, RESOURCES, Section, check_fields, flag

GROUND_TRUTHS = ("panoptic_gt", "instances_gt", "semantic_gt")
_GROUND_TRUTH = Section("ground truth")


@dataclass(frozen=True)
class EvaluationSettings:
    """Score the tables of a finished run against ground truth in COCO's formats: PQ, AP and mIoU.

    Paths may be local folders or URIs (s3://bucket/prefix). Credentials come from the usual AWS chain, not from flags.
    """

    tables: Annotated[str, IN_AND_OUT]
    """Read the tables below this folder or URI, the --output of the run."""
    report: Annotated[str | None, IN_AND_OUT] = None
    """Write all figures to this JSON file or URI; only this file has the figures of each class."""
    run_id: Annotated[str | None, IN_AND_OUT] = None
    """Score this run. Default: the run that finished last."""
    panoptic_gt: Annotated[str | None, _GROUND_TRUTH] = None
    """Compare with this COCO panoptic JSON: gives PQ, SQ, RQ and, without --semantic-gt, mIoU."""
    panoptic_pngs: Annotated[str | None, _GROUND_TRUTH] = None
    """Read the PNGs of --panoptic-gt from this folder. Default: the path of the JSON file without `.json`."""
    instances_gt: Annotated[str | None, _GROUND_TRUTH] = None
    """Compare with this COCO instances JSON: gives AP and AR of masks and boxes. Of a panoptic run, things count."""
    semantic_gt: Annotated[str | None, _GROUND_TRUTH] = None
    """Compare with the label PNGs in this folder, named as the images: gives mIoU. Pixels are class numbers from
    0."""
    reduce_zero_label: Annotated[bool, _GROUND_TRUTH] = False
    """Class numbers in --semantic-gt begin at 1, and 0 is ignored, as in ADE20K's files."""
    ignore_label: Annotated[int, _GROUND_TRUTH, Interval(ge=0, le=65_535)] = 255
    """Ignore pixels of --semantic-gt with this value."""
    workers: Annotated[int | None, RESOURCES, Interval(ge=1, le=1024)] = None
    """Read and compare in N processes. Default: one per CPU."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not any(getattr(self, name) for name in GROUND_TRUTHS):
            raise RunError(f"no ground truth is given; pass one or more of {', '.join(map(flag, GROUND_TRUTHS))}")
        for name, needed in (("panoptic_pngs", "panoptic_gt"), ("reduce_zero_label", "semantic_gt")):
            if getattr(self, name) and not getattr(self, needed):
                raise RunError(f"{flag(name)} needs {flag(needed)}, which is not given")
        if self.ignore_label != 255 and self.semantic_gt is None:
            raise RunError("--ignore-label needs --semantic-gt, which is not given")
