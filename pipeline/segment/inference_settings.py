"""The core's inference settings for a run: its task's flags, with defaults that depend on mode and checkpoint."""

from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from m2f_core.config.labels import LabelMap, Task
from m2f_core.inference.settings import FamilyRules, InstanceSettings, PanopticSettings, SemanticSettings
from pipeline.config import Settings
from pipeline.errors import RunError

InferenceSettings = PanopticSettings | InstanceSettings | SemanticSettings


def inference_settings(
    settings: Settings, labels: LabelMap, trained_for: Task | None, rules: FamilyRules
) -> InferenceSettings:
    """The core's settings for `settings.task`; `rules` are those of the checkpoint's family.

    Raises RunError if the task makes no sense for these labels.
    """
    chosen = _chosen_classes(settings, labels)
    if settings.task == "panoptic":
        panoptic = replace(PanopticSettings.for_labels(settings.postprocess, labels, rules), wanted_class_ids=chosen)
        if settings.label_ids_to_fuse is not None:
            panoptic = replace(panoptic, fuse_class_ids=frozenset(settings.label_ids_to_fuse))
        return replace(panoptic, **_given(settings, "score_threshold", "overlap_threshold", "mask_threshold"))
    if settings.task == "instance":
        wanted = _instances_to_keep(settings.postprocess, labels, chosen)
        instance = InstanceSettings.defaults(settings.postprocess, wanted, rules)
        return replace(instance, **_given(settings, "score_threshold", "top_k"))
    # As in the original, whose semantic checkpoints resize scores. There is no flag: 1 pixel in 10,000 changes.
    resize = rules.semantic_resize or ("scores" if trained_for == "semantic" else "masks")
    semantic = SemanticSettings.defaults(settings.postprocess, resize)
    return replace(semantic, wanted_class_ids=chosen, rules=rules)


def results_of(inference: InferenceSettings) -> dict[str, Any]:
    """The parts of these settings that change results: as explicit flags, and the choices that the checkpoint made."""
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
    """The checkpoint's label map; if it does not say which classes are stuff, those of --label-ids-to-fuse are."""
    given = settings.label_ids_to_fuse
    if given is None:
        return labels
    if unknown := sorted(set(given) - labels.class_ids):
        last = len(labels.categories) - 1
        raise RunError(f"--label-ids-to-fuse holds {unknown}, but the checkpoint has classes 0 .. {last}")
    return labels if labels.known else labels.with_stuff(given)


def task_warnings(settings: Settings, labels: LabelMap, trained_for: Task | None) -> list[str]:
    """Warnings for the use of this checkpoint for this task."""
    warnings = []
    if not labels.known:
        warnings.append(
            "the checkpoint does not list the dataset's category ids, so category_id in the tables is the class id of "
            "the model; add `categories` to the checkpoint's config.json to change this"
        )
    if settings.label_ids_to_fuse is not None:  # a user who lists the stuff knows the classes
        return warnings
    # The original evaluates its panoptic checkpoints in all three tasks, and the others only in their own task.
    if trained_for not in (None, "panoptic", settings.task):
        warnings.append(
            f"the name or the classes of the checkpoint say that it was trained for {trained_for} segmentation; "
            f"--task {settings.task} may give poor results, so use --task {trained_for}"
        )
    if not labels.known:
        unknown = "the checkpoint does not say which of its classes are stuff, so all classes"
        if settings.task == "panoptic":
            warnings.append(f"{unknown} count as things and none is fused; list stuff classes with --label-ids-to-fuse")
        else:
            warnings.append(f"{unknown} count as things; add `categories` to its config.json to change this")
    return warnings


def _chosen_classes(settings: Settings, labels: LabelMap) -> frozenset[int] | None:
    """The classes that --classes names, or None without the flag. RunError if the model has no class of a name."""
    if not settings.classes:
        return None
    names = [category.name for category in labels.categories]
    for name in settings.classes:
        if name not in names:
            like = get_close_matches(name, names, n=3) or [*names[:3], "..."]
            raise RunError(f"--classes: the model has no class {name!r}; it has {', '.join(like)}")
    return frozenset(category.class_id for category in labels.categories if category.name in settings.classes)


def _instances_to_keep(postprocess: str, labels: LabelMap, chosen: frozenset[int] | None) -> frozenset[int] | None:
    """The classes that become instances: the things, as in the original, or all (None), as in transformers; of these
    only the chosen ones.
    """
    if postprocess == "hf":
        return chosen
    things = labels.class_ids - labels.stuff_class_ids
    if not things:
        raise RunError(f"--task instance finds things, but all {len(labels.categories)} classes of --model are stuff")
    if chosen is not None and not things & chosen:
        raise RunError("--task instance finds things, but all --classes are stuff")
    return things if chosen is None else things & chosen


def _given(settings: Settings, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(settings, name)) is not None}
