"""The evaluation: match a run's images with the ground truth, score parts in parallel, add up the sums.

Masks and pixels are in memory for one part at a time. Memory grows with the number of images only by the ground truth's
own JSON and, for AP, 1 KB per image.
"""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console
from rich.progress import track

from m2f_core.config.labels import name_keys
from pipeline.coco.ground_truth import Census, GroundTruth, read_instances, read_panoptic, read_semantic
from pipeline.errors import RunError
from pipeline.evaluate.metrics import instance_summary, panoptic_summary, semantic_summary
from pipeline.evaluate.score import ImageTask, PartTask, ScoreSpec, Sums, score_part
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.guard.worker_pool import worker_pool
from pipeline.look_ahead import look_ahead
from pipeline.store.filesystem import store_errors_as, write_uri
from pipeline.tables.finished_run import FinishedRun, find_finished_run, read_part

# Task of a run -> kinds of ground truth that can score the run.
SCORED_BY = {
    "panoptic": {"panoptic", "instances", "semantic"},
    "instance": {"instances"},
    "semantic": {"panoptic", "semantic"},
}
IMAGES_PER_TASK = 64  # for images that are in no part of the run
READ_AHEAD = 16  # number of parts of `images`, which are small objects


def evaluate(settings: EvaluationSettings) -> dict[str, Any]:
    """All metrics, in the report's form. RunError with one line if something is missing or does not fit together."""
    return evaluate_images(settings, by_image=False)[0]


def evaluate_images(settings: EvaluationSettings, by_image: bool = True) -> tuple[dict[str, Any], Sums]:
    """The report of `evaluate`, and the sums behind it: with the score of each image but of label PNGs."""
    run = find_finished_run(settings.tables, settings.run_id)
    truths = _read_ground_truths(settings, run)
    censuses = {kind: Census(truth) for kind, truth in truths.items()}
    tasks = _part_tasks(run, censuses)
    tasks += _tasks_without_results(censuses)
    spec = replace(_score_spec(settings, run, truths), by_image=by_image)
    total = Sums.zero(spec)
    for sums in _score(spec, tasks, settings.workers or os.cpu_count() or 1):
        total.add(sums)
    report: dict[str, Any] = {
        "run_id": run.run_id,
        "tables": settings.tables,
        "task": run.task,
        "fingerprint": run.fingerprint,
        "ground_truth": {
            kind: {"place": truth.place, "images": censuses[kind].counts(), "warning": _names_warning(run, truth)}
            for kind, truth in truths.items()
        },
    }
    if spec.panoptic is not None:
        report["panoptic"] = panoptic_summary(total.panoptic, spec.panoptic, spec.counts)
    if spec.semantic is not None:
        report["semantic"] = semantic_summary(total.confusion, spec.semantic, spec.counts)
    if spec.instances is not None:
        for kind, states in total.instances.items():
            report[kind] = instance_summary(states, tuple(filter(spec.counts, spec.instances)))
    return report, total


def write_report(place: str, report: dict[str, Any]) -> None:
    """Write the report as JSON to a path or URI."""
    with store_errors_as(RunError, f"--report {place} cannot be written"):
        write_uri(place, json.dumps(report, indent=1).encode())


def _read_ground_truths(settings: EvaluationSettings, run: FinishedRun) -> dict[str, GroundTruth]:
    """Ground truths by kind. RunError if one cannot be read or cannot score a run of this task."""
    given = {
        "panoptic": settings.panoptic_gt,
        "instances": settings.instances_gt,
        "semantic": settings.semantic_gt,
    }
    for kind, place in given.items():
        if place is not None and kind not in SCORED_BY.get(run.task, ()):
            raise RunError(
                f"--{kind}-gt cannot score run {run.run_id}, whose task is {run.task}; such a run is scored by "
                f"{' or '.join(f'--{scored}-gt' for scored in sorted(SCORED_BY.get(run.task, ()))) or 'nothing here'}"
            )
    truths = {}
    if settings.panoptic_gt is not None:
        truths["panoptic"] = read_panoptic(settings.panoptic_gt, settings.panoptic_pngs)
    if settings.instances_gt is not None:
        truths["instances"] = read_instances(settings.instances_gt)
    if settings.semantic_gt is not None:
        truths["semantic"] = read_semantic(settings.semantic_gt, run.categories)
    return truths


def _names_warning(run: FinishedRun, truth: GroundTruth) -> str | None:
    """Categories are compared by id. Warn if names show that the ids are guessed or belong to another data set."""
    of_run = {category["id"]: category["name"] for category in run.categories}
    common = [(c["id"], c["name"], of_run[c["id"]]) for c in truth.categories if c["id"] in of_run]
    others = min(([one for one in common if key(one[1]) != key(one[2])] for key in name_keys()), key=len)
    if not others:
        return None
    number, name, found = others[0]
    return (
        f"{len(others)} of {len(common)} categories have other names in the run: {number} is {name} in the ground "
        f"truth and {found} in the run. Categories are compared by id: --model should use the ids of this ground truth"
    )


def _score_spec(settings: EvaluationSettings, run: FinishedRun, truths: dict[str, GroundTruth]) -> ScoreSpec:
    categories = {kind: truth.categories for kind, truth in truths.items()}
    return ScoreSpec(
        tables=settings.tables,
        panoptic=categories.get("panoptic") if run.task == "panoptic" else None,
        semantic=categories.get("semantic") or categories.get("panoptic"),
        instances=categories.get("instances"),
        semantic_by_labels="semantic" in truths,
        reduce_zero_label=settings.reduce_zero_label,
        ignore_label=settings.ignore_label,
        things_only=run.task == "panoptic",
        written=_written(run),
    )


def _written(run: FinishedRun) -> frozenset[int] | None:
    if not run.classes:
        return None
    return frozenset(category["id"] for category in run.categories if category["name"] in run.classes)


# --- which images -----------------------------------------------------------------------------------------------------


def _part_tasks(run: FinishedRun, censuses: dict[str, Census]) -> list[PartTask]:
    """The parts that hold images of the ground truth; the segments of other parts are not read."""
    read = partial(read_part, run.tables, "images", columns=["image_key", "status", "error_code", "height", "width"])
    tasks = []
    with ThreadPoolExecutor(READ_AHEAD) as threads:
        tables = look_ahead(
            lambda path: threads.submit(read, path), [parts["images"] for parts in run.parts], READ_AHEAD
        )
        for parts, table in zip(run.parts, tables, strict=True):
            images = []
            for row in table.to_pylist():
                found = {kind: census.add(row) for kind, census in censuses.items()}
                if any(image is not None for image in found.values()):
                    images.append(ImageTask(row["image_key"], **found))
            if images:
                tasks.append(PartTask(parts["segments"], tuple(images)))
    return tasks


def _tasks_without_results(censuses: dict[str, Census]) -> list[PartTask]:
    """Images that are missing in the run or failed there: they are scored as if the run had found nothing in them."""
    images = [
        ImageTask(None, **{kind: image}) for kind, census in censuses.items() for image in census.without_result()
    ]
    return [PartTask(None, tuple(images[i : i + IMAGES_PER_TASK])) for i in range(0, len(images), IMAGES_PER_TASK)]


# --- in parallel ------------------------------------------------------------------------------------------------------


def _score(spec: ScoreSpec, tasks: list[PartTask], workers: int) -> Iterator[Sums]:
    """Sums of the tasks in their order, so that float sums do not depend on the number of workers."""
    console = Console(file=sys.stderr)
    shown = partial(track, description="scoring", total=len(tasks), console=console, disable=not console.is_terminal)
    workers = min(workers, len(tasks))
    if workers == 1:
        yield from shown(score_part(spec, task) for task in tasks)
        return
    with worker_pool(workers, _one_thread_each) as pool:
        yield from shown(look_ahead(lambda task: pool.submit(score_part, spec, task), tasks, 2 * workers))


def _one_thread_each() -> None:
    os.environ["RAYON_NUM_THREADS"] = "1"  # hotcoco reads this when it first computes
