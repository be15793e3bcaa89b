"""Score one part of a run against its ground truth; the sums of all parts can be added. Runs in its own process.

Legend: H, W pixels of an image; C categories that are scored, in the order of the ground truth.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from m2f_core.masks.rle import decode, decode_counts
from pipeline.coco.ground_truth import GtImage, check_size
from pipeline.coco.ground_truth_png import panoptic_classes, panoptic_records, read_label_png, read_panoptic_png
from pipeline.commit.receipt import PartRecord
from pipeline.errors import RunError
from pipeline.evaluate.metrics import (
    Category,
    Record,
    confusion_matrix,
    instance_quality,
    instance_state,
    panoptic_sums,
)
from pipeline.tables.finished_run import read_part

INSTANCE_KINDS = ("segm", "bbox")
_MOST_MISTAKEN = 8  # pairs of classes of an image
_COLUMNS = ["image_key", "segment_id", "category_id", "category_name", "isthing", "score", "bbox", "segmentation"]


@dataclass(frozen=True)
class ScoreSpec:
    """The settings that all parts share. Categories are None for a metric that is not wanted."""

    tables: str
    panoptic: tuple[Category, ...] | None  # categories for PQ
    semantic: tuple[Category, ...] | None  # categories for mIoU
    instances: tuple[Category, ...] | None  # categories for AP
    semantic_by_labels: bool  # mIoU by label PNGs, otherwise by the panoptic ground truth
    reduce_zero_label: bool
    ignore_label: int
    things_only: bool  # for AP of a panoptic run
    # Ids of the categories whose segments the run has written, because of its --classes; None: all
    written: frozenset[int] | None = None
    by_image: bool = False  # also score each image of a panoptic or instances ground truth

    def counts(self, category: Category) -> bool:
        """Whether a category is scored. The ground truth of others matters still: a segment there is a false one."""
        return self.written is None or category["id"] in self.written


@dataclass(frozen=True)
class ImageScore:
    """One image against the ground truth.

    pq: panoptic quality over all segments of the image, whatever their category; None without any segment.
    ap: average precision of masks, as the mean over the true categories of the image; None without any object.
    mistaken: the (true class, predicted class, pixels) that are most often mistaken there; classes are indices into the
        categories of the ground truth, and the predicted class may be their number: no segment.
    """

    pq: float | None = None
    ap: float | None = None
    mistaken: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class ImageTask:
    """An image to score, in each ground truth that contains it. Without a key, it is scored as if nothing was found."""

    image_key: str | None
    panoptic: GtImage | None = None
    instances: GtImage | None = None
    semantic: GtImage | None = None


@dataclass(frozen=True)
class PartTask:
    """Images of one part, or (part None) images without a key."""

    part: PartRecord | None
    images: tuple[ImageTask, ...]


@dataclass
class Sums:
    """The sums over parts."""

    panoptic: NDArray[np.float64]  # [C, 4] metrics.panoptic_sums
    confusion: NDArray[np.int64]  # [C, C + 1] metrics.confusion_matrix
    instances: dict[str, list[bytes]]  # metrics.instance_state, by kind
    images: dict[str, ImageScore] = field(default_factory=dict)  # by image_key, if the spec wants them

    @classmethod
    def zero(cls, spec: ScoreSpec) -> "Sums":
        num_classes = len(spec.semantic or ())
        confusion = np.zeros((num_classes, num_classes + 1), np.int64)
        return cls(np.zeros((len(spec.panoptic or ()), 4)), confusion, {kind: [] for kind in INSTANCE_KINDS})

    def add(self, other: "Sums") -> None:
        self.panoptic += other.panoptic
        self.confusion += other.confusion
        self.images |= other.images
        for kind, states in other.instances.items():
            self.instances[kind] += states


@dataclass
class Records:
    """hotcoco's input: images, and segments of the ground truth and of the run, in COCO's form."""

    images: list[Record] = field(default_factory=list)
    truth: list[Record] = field(default_factory=list)
    predicted: list[Record] = field(default_factory=list)

    def add(self, image: GtImage, truth: Iterable[Record], predicted: list[Record]) -> None:
        assert image.size is not None
        height, width = image.size
        self.images.append({"id": image.number, "file_name": image.name, "height": height, "width": width})
        for records, added in ((self.truth, truth), (self.predicted, predicted)):
            before = len(records)  # records of an instances file keep their ids, for messages
            records.extend({"id": before + n, "image_id": image.number, **r} for n, r in enumerate(added, 1))


def score_part(spec: ScoreSpec, task: PartTask) -> Sums:
    """Sums over the images of `task`. RunError if something cannot be read or does not fit together.

    Masks are kept as RLE until the part is done; the pixels of one image at a time are in memory.
    """
    sums = Sums.zero(spec)
    panoptic, instances = Records(), Records()
    segments = _segments_by_image(spec.tables, task)
    for image in task.images:
        rows = segments.get(image.image_key, [])
        if image.panoptic is not None:
            runs = read_panoptic_png(image.panoptic)
            of_image = Sums.zero(spec)
            if spec.panoptic is not None:
                _check_categories(rows, spec.panoptic)
                records = Records() if spec.by_image else panoptic
                records.add(image.panoptic, panoptic_records(image.panoptic, runs), rows)
                if spec.by_image:
                    of_image.panoptic += panoptic_sums(records.images, records.truth, records.predicted, spec.panoptic)
            if spec.semantic is not None and not spec.semantic_by_labels:
                truth_HW = panoptic_classes(image.panoptic, runs, _class_of(spec.semantic))
                of_image.confusion += _confusion(truth_HW, rows, spec.semantic)
            if spec.by_image and image.image_key is not None:
                of_image.images[image.image_key] = _score_of(of_image, spec)
            sums.add(of_image)
        if image.semantic is not None and spec.semantic is not None:
            truth_HW = read_label_png(image.semantic, len(spec.semantic), spec.reduce_zero_label, spec.ignore_label)
            _check_rows_size(rows, image.semantic, truth_HW)
            sums.confusion += _confusion(truth_HW, rows, spec.semantic)
        if image.instances is not None and spec.instances is not None:
            things = [row for row in rows if row["isthing"] or not spec.things_only]
            _check_categories(things, spec.instances)
            scored = {category["id"] for category in spec.instances if spec.counts(category)}
            truth = [record for record in image.instances.annotations if record["category_id"] in scored]
            instances.add(image.instances, truth, things)
            if spec.by_image and image.image_key is not None:
                score = sums.images.get(image.image_key, ImageScore())
                ap = _ap_of(image.instances, truth, things, spec.instances)
                sums.images[image.image_key] = replace(score, ap=ap)
    if spec.panoptic is not None:
        sums.panoptic += panoptic_sums(panoptic.images, panoptic.truth, panoptic.predicted, spec.panoptic)
    if spec.instances is not None:
        categories = tuple(filter(spec.counts, spec.instances))
        parts = instances.images, instances.truth, instances.predicted, categories, "--instances-gt"
        sums.instances = {kind: [instance_state(kind, *parts)] for kind in INSTANCE_KINDS}
    return sums


def _ap_of(image: GtImage, truth: list[Record], rows: list[Record], categories: tuple[Category, ...]) -> float | None:
    """AP of masks of one image, computed over its true categories alone, as others have none."""
    true = {record["category_id"] for record in truth}
    records = Records()
    records.add(image, truth, [row for row in rows if row["category_id"] in true])
    known = tuple(category for category in categories if category["id"] in true)
    parts = records.images, records.truth, records.predicted, known, "--instances-gt"
    return instance_quality(instance_state("segm", *parts)) if known else None


def _score_of(sums: Sums, spec: ScoreSpec) -> ImageScore:
    counts = [spec.counts(category) for category in spec.panoptic or ()]
    iou, tp, fp, fn = sums.panoptic[counts].sum(axis=0)
    denominator = tp + 0.5 * fp + 0.5 * fn
    mistaken = sums.confusion.copy()
    np.fill_diagonal(mistaken, 0)
    places = np.argsort(mistaken, axis=None)[::-1][:_MOST_MISTAKEN]
    cells = [(*map(int, np.unravel_index(place, mistaken.shape)), int(mistaken.flat[place])) for place in places]
    pq = float(iou / denominator) if denominator else None
    return ImageScore(pq=pq, mistaken=tuple((truth, found, pixels) for truth, found, pixels in cells if pixels))


def _confusion(truth_HW: NDArray[np.int32], rows: list[Record], categories: tuple[Category, ...]) -> NDArray[np.int64]:
    """Count pixels by class of the ground truth and class of the segment that covers them."""
    _check_categories(rows, categories)
    class_of = _class_of(categories)
    predicted_HW = np.full(truth_HW.shape, len(categories), np.int32, order="F")  # no segment: no class
    for row in rows:
        mask_HW = decode(row["segmentation"]["counts"].encode(), *truth_HW.shape)
        predicted_HW[mask_HW] = class_of[row["category_id"]]
    return confusion_matrix(truth_HW, predicted_HW, len(categories))


def _class_of(categories: tuple[Category, ...]) -> dict[int, int]:
    return {category["id"]: index for index, category in enumerate(categories)}


def _check_categories(rows: list[Record], categories: tuple[Category, ...]) -> None:
    """As in panopticapi, a segment whose category the ground truth does not list is an error, not a miss."""
    known = _class_of(categories)
    for row in rows:
        if row["category_id"] not in known:
            raise RunError(
                f"{row['image_key']}: a segment has category {row['category_id']} ({row['category_name']}), which the "
                "ground truth does not list; use ground truth with the categories of the model"
            )


def _check_rows_size(rows: list[Record], image: GtImage, truth_HW: NDArray[np.int32]) -> None:
    for row in rows[:1]:
        height, width = row["segmentation"]["size"]
        check_size(row["image_key"], (height, width), image, (truth_HW.shape[0], truth_HW.shape[1]))


def _check_row(row: Record, part: PartRecord) -> None:
    """Raise RunError if the row cannot be one that this program wrote: whoever may write parts could crash a scorer."""
    try:
        if any(value is None for value in row.values()) or len(row["bbox"]) != 4:
            raise ValueError("it has no value in a column, or no box")
        height, width = row["segmentation"]["size"]
        total = int(decode_counts(row["segmentation"]["counts"].encode()).sum())
        if height < 1 or width < 1 or total != height * width:
            raise ValueError(f"its mask has {total} pixels, but its size is {height} x {width}")
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{part.path}: segment {row['segment_id']} of {row['image_key']} is damaged: {error}") from None


def _segments_by_image(tables: str, task: PartTask) -> dict[str | None, list[Record]]:
    """Rows of `segments` by image; rows with equal image and segment_id (from `--postprocess hf`) are merged."""
    if task.part is None:
        return {}
    table = read_part(tables, "segments", task.part, _COLUMNS)
    wanted = pa.array([image.image_key for image in task.images], pa.string())
    by_image: dict[str | None, dict[int, Record]] = defaultdict(dict)
    for row in table.filter(pc.is_in(table.column("image_key"), value_set=wanted)).to_pylist():
        _check_row(row, task.part)
        by_image[row["image_key"]][row["segment_id"]] = row
    return {key: list(rows.values()) for key, rows in by_image.items()}
