"""The settings of inference, by task. Nothing heavy is imported here: a driver reads settings and runs no model."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from m2f_core.config.labels import LabelMap, Task

PanopticMode = Literal["reference", "hf"]
InstanceMode = Literal["reference", "hf"]
SemanticMode = Literal["reference", "hf"]
SemanticResize = Literal["masks", "scores"]


@dataclass(frozen=True)
class FamilyRules:
    """What the post-processing of a family of models has of its own; the rest is the same for all families.

    `hf_grid_hw`: in hf mode, the size to which every mask is enlarged first, whatever the size of the input; None: the
    masks are used as they are. `winners_keep_all`: in reference mode, a pixel belongs to the query that wins it even
    outside of the query's mask. `hf_antialias`: in hf mode, the masks of segments that compete for pixels are resized
    with a filter against aliasing. `hf_exclusive`: in hf mode, a pixel belongs to one instance at most; the highest
    class score x mask logit wins it, and an instance that keeps too little of its mask is dropped, as in panoptic
    segmentation.

    In reference mode, `score_thresholds` are those of panoptic segmentation, by a dataset that has the checkpoint's
    classes, where they are not 0.8, and `top_k` is how many instances are kept, None for the number of queries.

    `hf_unpads`: in hf mode, mask logits go the way of reference mode, which cuts the padding off, and each query is at
    most one instance, of its best class. `hf_score_threshold`: transformers' default. `semantic_resize`: what the
    authors resize for semantic segmentation; None: scores with a checkpoint that was trained for it, else masks.
    """

    hf_grid_hw: tuple[int, int] | None = None
    winners_keep_all: bool = False
    hf_antialias: bool = False
    hf_exclusive: bool = False
    score_thresholds: tuple[tuple[str, float], ...] = ()
    top_k: int | None = 100
    hf_unpads: bool = False
    hf_score_threshold: float = 0.5
    semantic_resize: SemanticResize | None = None


# For Mapillary Vistas every query is kept (OBJECT_MASK_THRESHOLD in configs/mapillary-vistas/... of the original).
MASK2FORMER_RULES = FamilyRules(hf_grid_hw=(384, 384), score_thresholds=(("mapillary-panoptic", 0.0),))


@dataclass(frozen=True)
class PanopticSettings:
    """Thresholds; `PanopticSettings.defaults` gives each mode's own thresholds."""

    task: ClassVar[Task] = "panoptic"
    mode: PanopticMode
    score_threshold: float  # a query is kept if its class score is above this
    overlap_threshold: float  # a kept query is a segment if it wins at least (hf: more than) this share of its mask
    mask_threshold: float  # a pixel is inside a query's mask if its probability is at least this
    fuse_class_ids: frozenset[int] = frozenset()  # classes ("stuff") whose segments are merged into one per image
    # The segments of other classes take part in the competition for pixels, but are not results; None: all are
    wanted_class_ids: frozenset[int] | None = None
    rules: FamilyRules = MASK2FORMER_RULES

    def __post_init__(self) -> None:
        if self.mode not in ("reference", "hf"):
            raise ValueError(f"mode must be 'reference' or 'hf', got {self.mode!r}")
        for name in ("score_threshold", "overlap_threshold", "mask_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, got {getattr(self, name)}")

    @classmethod
    def defaults(
        cls,
        mode: PanopticMode,
        fuse_class_ids: frozenset[int] = frozenset(),
        rules: FamilyRules = MASK2FORMER_RULES,
    ) -> "PanopticSettings":
        """The original's thresholds for COCO, or transformers' thresholds."""
        score_threshold = rules.hf_score_threshold if mode == "hf" else 0.8
        return cls(mode, score_threshold, 0.8, mask_threshold=0.5, fuse_class_ids=fuse_class_ids, rules=rules)

    @classmethod
    def for_labels(
        cls, mode: PanopticMode, labels: LabelMap, rules: FamilyRules = MASK2FORMER_RULES
    ) -> "PanopticSettings":
        """The defaults for a checkpoint's classes: stuff is fused, and thresholds come from the original's configs."""
        settings = cls.defaults(mode, labels.stuff_class_ids, rules)
        for dataset, threshold in rules.score_thresholds if mode == "reference" else ():
            if labels.has_classes_of(dataset):
                return replace(settings, score_threshold=threshold)
        return settings


@dataclass(frozen=True)
class InstanceSettings:
    """Which instances are kept; `InstanceSettings.defaults` gives each mode's own settings."""

    task: ClassVar[Task] = "instance"
    mode: InstanceMode
    score_threshold: float  # an instance is kept if its score is at least this
    # Keep this number of best (query, class) pairs by class score (of queries, where each is at most one instance);
    # None: number of queries
    top_k: int | None
    wanted_class_ids: frozenset[int] | None = None  # drop pairs of other classes afterwards; None: drop none
    rules: FamilyRules = MASK2FORMER_RULES

    def __post_init__(self) -> None:
        if self.mode not in ("reference", "hf"):
            raise ValueError(f"mode must be 'reference' or 'hf', got {self.mode!r}")
        if not 0 <= self.score_threshold <= 1:
            raise ValueError(f"score_threshold must be from 0 to 1, got {self.score_threshold}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")

    @property
    def exclusive(self) -> bool:
        """Whether a pixel belongs to one instance at most."""
        return self.mode == "hf" and self.rules.hf_exclusive

    @classmethod
    def defaults(
        cls,
        mode: InstanceMode,
        wanted_class_ids: frozenset[int] | None = None,
        rules: FamilyRules = MASK2FORMER_RULES,
    ) -> "InstanceSettings":
        """The original's settings for COCO, or those of transformers.

        The original drops stuff only for panoptic checkpoints, transformers never does.
        """
        if mode == "hf":
            return cls(mode, rules.hf_score_threshold, None, wanted_class_ids=wanted_class_ids, rules=rules)
        return cls(mode, 0.0, top_k=rules.top_k, wanted_class_ids=wanted_class_ids, rules=rules)


def goes_as_reference(settings: "PanopticSettings | InstanceSettings | SemanticSettings") -> bool:
    """Whether mask logits go the way of reference mode: always there, and in hf mode if the family's rules say so."""
    return settings.mode == "reference" or settings.rules.hf_unpads


@dataclass(frozen=True)
class SemanticSettings:
    """The variant; `SemanticSettings.defaults` gives the usual variant of each mode."""

    task: ClassVar[Task] = "semantic"
    mode: SemanticMode
    resize: SemanticResize  # the values that are resized to the original size
    # The pixels of other classes are in no segment; None: all classes are results
    wanted_class_ids: frozenset[int] | None = None
    rules: FamilyRules = MASK2FORMER_RULES

    def __post_init__(self) -> None:
        if self.mode not in ("reference", "hf"):
            raise ValueError(f"mode must be 'reference' or 'hf', got {self.mode!r}")
        if self.resize not in ("masks", "scores"):
            raise ValueError(f"resize must be 'masks' or 'scores', got {self.resize!r}")
        if self.mode == "hf" and self.resize == "masks":
            raise ValueError("resize 'masks' is not possible in hf mode: transformers resizes scores")

    @classmethod
    def defaults(cls, mode: SemanticMode, resize: SemanticResize = "masks") -> "SemanticSettings":
        """By default resize masks, as the original does for panoptic checkpoints; hf mode always resizes scores."""
        return cls(mode, "scores" if mode == "hf" else resize)
