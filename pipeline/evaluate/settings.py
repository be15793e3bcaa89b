"""The evaluation's settings: their names, types, defaults and help texts.

`jobs/` turns this dataclass into the command line, as it does with that of `pipeline/config.py`. Nothing heavy is
imported here, so that `--help` answers at once.
"""

from dataclasses import dataclass

from pipeline.errors import RunError

GROUND_TRUTHS = ("panoptic_gt", "instances_gt", "semantic_gt")


@dataclass(frozen=True)
class EvaluationSettings:
    """Score the tables of a finished run against ground truth in COCO's formats: PQ, AP and mIoU.

    Paths may be local folders or URIs (s3://bucket/prefix). Credentials come from the usual AWS chain, never from here.
    """

    tables: str
    """Folder or URI of the tables: what was --output of the run."""
    panoptic_gt: str | None = None
    """COCO panoptic JSON: gives PQ, SQ, RQ and, without --semantic-gt, mIoU."""
    panoptic_pngs: str | None = None
    """Folder of the PNGs of --panoptic-gt. Default: beside it, named as it is without its ending."""
    instances_gt: str | None = None
    """COCO instances JSON: gives AP and AR of masks and boxes. Of a panoptic run the things count."""
    semantic_gt: str | None = None
    """Folder of label PNGs named as the images: gives mIoU. Pixels are class numbers from 0, 255 is ignored."""
    reduce_zero_label: bool = False
    """Classes in --semantic-gt are numbered from 1, and 0 is ignored, as in ADE20K's files."""
    run_id: str | None = None
    """The run to score. Default: the one that finished last."""
    workers: int | None = None
    """Processes that read and compare. Default: one per CPU."""
    report: str | None = None
    """JSON file or URI to write everything to; the figures of each class stand only there."""

    def __post_init__(self) -> None:
        for name in ("tables", "run_id", "report", "panoptic_pngs", *GROUND_TRUTHS):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise RunError(f"{_flag(name)} is empty")
        if not any(getattr(self, name) for name in GROUND_TRUTHS):
            raise RunError(f"name what to compare with: one or more of {', '.join(map(_flag, GROUND_TRUTHS))}")
        for name, needed in (("panoptic_pngs", "panoptic_gt"), ("reduce_zero_label", "semantic_gt")):
            if getattr(self, name) and not getattr(self, needed):
                raise RunError(f"{_flag(name)} belongs to {_flag(needed)}, which is not given")
        if self.workers is not None and not 1 <= self.workers <= 1024:
            raise RunError(f"--workers is {self.workers}; it must lie in 1 .. 1024")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
