"""What a run asks the core for: the flags of its task, with what was not given filled in for mode and checkpoint."""

from dataclasses import replace
from typing import Any

from m2f_core.config.labels import LabelMap, Task
from m2f_core.inference.instance import InstanceSettings
from m2f_core.inference.panoptic import PanopticSettings
from m2f_core.inference.semantic import SemanticSettings
from pipeline.config import Settings
from pipeline.errors import RunError

InferenceSettings = PanopticSettings | InstanceSettings | SemanticSettings


def inference_settings(settings: Settings, labels: LabelMap, trained_for: Task | None) -> InferenceSettings:
    """The core's settings for `settings.task`. RunError where it makes no sense for these labels."""
    if settings.task == "panoptic":
        panoptic = PanopticSettings.for_labels(settings.postprocess, labels)
        if settings.label_ids_to_fuse is not None:
            panoptic = replace(panoptic, fuse_class_ids=frozenset(settings.label_ids_to_fuse))
        return replace(panoptic, **_given(settings, "score_threshold", "overlap_threshold", "mask_threshold"))
    if settings.task == "instance":
        instance = InstanceSettings.defaults(settings.postprocess, _things_to_keep(settings.postprocess, labels))
        return replace(instance, **_given(settings, "score_threshold", "top_k"))
    # As the original, whose semantic checkpoints resize scores. No flag: it is a matter of 1 pixel in 10,000.
    return SemanticSettings.defaults(settings.postprocess, "scores" if trained_for == "semantic" else "masks")


def results_of(inference: InferenceSettings) -> dict[str, Any]:
    """What changes results in these settings: the flags that would spell them out, and what a checkpoint decides."""
    if isinstance(inference, PanopticSettings):
        return {
            "score_threshold": inference.score_threshold,
            "overlap_threshold": inference.overlap_threshold,
            "mask_threshold": inference.mask_threshold,
            "label_ids_to_fuse": sorted(inference.fuse_class_ids),
        }
    if isinstance(inference, InstanceSettings):
        return {"score_threshold": inference.score_threshold, "top_k": inference.top_k}
    return {"semantic_resize": inference.resize}


def with_given_stuff(settings: Settings, labels: LabelMap) -> LabelMap:
    """The checkpoint's label map; where that does not say what is stuff, the classes of --label-ids-to-fuse are."""
    given = settings.label_ids_to_fuse
    if given is None:
        return labels
    if unknown := sorted(set(given) - labels.class_ids):
        last = len(labels.categories) - 1
        raise RunError(f"--label-ids-to-fuse holds {unknown}, the checkpoint has classes 0 .. {last}")
    return labels if labels.known else labels.with_stuff(given)


def task_warnings(settings: Settings, labels: LabelMap, trained_for: Task | None) -> list[str]:
    """What somebody should know who asks this checkpoint for this task."""
    warnings = []
    if not labels.known:
        warnings.append(
            "the checkpoint does not say which ids a dataset has for its classes, so category_id in the tables is the "
            "class id of the model; `categories` in its config.json can say it"
        )
    if settings.label_ids_to_fuse is not None:  # who names the stuff has looked at the classes
        return warnings
    # The original evaluates its panoptic checkpoints in all three tasks, the others in their own.
    if trained_for not in (None, "panoptic", settings.task):
        warnings.append(
            f"by its name or its classes, the checkpoint was trained for {trained_for} segmentation: expect little of "
            f"--task {settings.task}, and use --task {trained_for}"
        )
    if not labels.known:
        unknown = "the checkpoint does not say which of its classes are stuff, so"
        if settings.task == "panoptic":
            warnings.append(f"{unknown} none is fused and all count as things; name them with --label-ids-to-fuse")
        else:
            warnings.append(f"{unknown} all count as things; `categories` in its config.json can say it")
    return warnings


def _things_to_keep(postprocess: str, labels: LabelMap) -> frozenset[int] | None:
    """Of a panoptic checkpoint only things become instances, as in the original. None: all, as in transformers."""
    if postprocess == "hf":
        return None
    things = labels.class_ids - labels.stuff_class_ids
    if not things:
        raise RunError(f"--task instance finds things, but all {len(labels.categories)} classes of --model are stuff")
    return things


def _given(settings: Settings, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(settings, name)) is not None}
