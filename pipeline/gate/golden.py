"""Golden images: images whose results are known, and which a run has to find again before it begins.

    GOLDEN/images/                          the images
    GOLDEN/panoptic.json GOLDEN/panoptic/   what a panoptic or a semantic run must find there, in COCO's format
    GOLDEN/instances.json                   what an instance run must find there

jobs/export.py writes such files from a run that somebody has looked at. The golden images pass the graph of the run,
with its settings, on its devices, into a folder of their own below the folder of the run, which is removed at the end.
So a swapped label map, a broken checkpoint or a broken device is seen after minutes, not after a night.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from pipeline.errors import BrokenRunError, HeldByGateError, RunError, StoreUnavailableError
from pipeline.gate.bounds_file import GateBounds
from pipeline.gate.figures import Figures
from pipeline.gate.record import GateRecord, GoldenRecord, read_gate_record
from pipeline.inputs.sources import input_spec
from pipeline.layout import Output
from pipeline.runs.begin import Run
from pipeline.runs.check import Checked, resolved_results
from pipeline.store.filesystem import full_uri, is_local, open_filesystem, store_errors_as, uri_of, whole_path
from pipeline.store.listed import objects_below
from pipeline.store.temporary_folders import remove_scratch_place

logger = logging.getLogger(__name__)

_MOST_NAMED = 5  # images in a message; gate.json has all


class _Truth(NamedTuple):
    file: str
    setting: str  # of an evaluation
    metric: str
    path: tuple[str, ...]  # of the metric in the report of an evaluation


_TRUTHS = {
    "panoptic": _Truth("panoptic.json", "panoptic_gt", "PQ", ("panoptic", "all", "PQ")),
    "semantic": _Truth("panoptic.json", "panoptic_gt", "mIoU", ("semantic", "mIoU")),
    "instance": _Truth("instances.json", "instances_gt", "AP", ("segm", "AP")),
}


def check_golden(bounds: GateBounds, task: str) -> None:
    """RunError if the gate file names golden images that are not there, or without expected results of this task."""
    if bounds.golden is not None:
        _version(bounds.golden, _TRUTHS[task])


def pass_golden(bounds: GateBounds, run: Run, segment: Callable[[Checked], str]) -> None:
    """Segment the golden images, and compare the result with the expected one. gate.json says what was found.

    `segment` runs all images of an input with the devices of the run, and returns the name of that run. Golden images
    that the run has passed in an earlier attempt are not segmented again. HeldByGateError if they score too low.
    """
    if bounds.golden is None:
        return
    truth = _TRUTHS[run.settings.task]
    version = _version(bounds.golden, truth)
    before = read_gate_record(run.output, run.folder)
    if before is not None and before.golden is not None and before.golden.passed(version, bounds.golden_least):
        return
    golden = _score(bounds, run, truth, version, segment)
    logger.info("%s", golden)
    record = before or GateRecord([], Figures([], [], {}), None)
    if golden.passed(version, bounds.golden_least):
        replace(record, golden=golden).write(run.folder)
        return
    replace(record, golden=golden, violations=[str(golden)]).write(run.folder)
    worst = [f"{name} {score:.2f}" for name, score in list(golden.images.items())[:_MOST_NAMED]]
    raise HeldByGateError(
        f"run {run.run_id} is held back by --gate before its first image: {golden}{'; worst: ' if worst else ''}"
        f"{', '.join(worst)}; to go on after a repair, or with another gate file, repeat the command"
    )


def _version(golden: str, truth: _Truth) -> str:
    """Changes with every object of the golden images. RunError if images or expected results are missing."""
    filesystem, root = open_filesystem(whole_path(golden))
    with store_errors_as(RunError, f"--gate: golden images {golden} cannot be read"):
        found = sorted((one.path.removeprefix(f"{root}/"), one) for one in objects_below(filesystem, root))
    names = [name for name, _ in found]
    if truth.file not in names or not any(name.startswith("images/") for name in names):
        raise RunError(f"--gate: golden {golden} must hold the folder images and the file {truth.file}")
    facts = [f"{name} {one.size_bytes} {one.written_at}" for name, one in found]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def below(golden: str, name: str) -> str:
    """The place of an object or folder among the golden images, whose place may end in a slash."""
    return f"{golden.rstrip('/')}/{name}"


def _score(
    bounds: GateBounds, run: Run, truth: _Truth, version: str, segment: Callable[[Checked], str]
) -> GoldenRecord:
    # Imported only now: every night checks its gate file, and a night that finds nothing new scores nothing.
    from pipeline.evaluate.evaluate import evaluate_images
    from pipeline.evaluate.settings import EvaluationSettings

    filesystem, path = run.output.filesystem, run.folder.golden
    place = path if is_local(filesystem) else uri_of(filesystem, path)
    golden = whole_path(str(bounds.golden))
    settings = run.settings.of_own_run(
        input=(below(golden, "images"),),
        output=place,
        **dict.fromkeys(
            ("run_id", "limit", "max_failures", "publish_every", "image_column", "key_column", "keep_logits")
        ),
        **dict.fromkeys(("include", "exclude", "allow_scheme", "keep_columns"), ()),
        **dict.fromkeys(("anonymous", "requester_pays", "tombstone_removed", "compact"), False),
        input_format="images",
        mode="incremental",
    )
    output = Output.open(place, has_conditions=run.output.has_conditions)
    results = resolved_results(settings, run.model)
    checked = Checked(settings, input_spec(settings), output, run.model, results, run.fingerprint)
    remove = partial(_remove, place)
    remove()  # what a driver has left that was killed
    try:
        run_id = segment(checked)
        ground_truth: dict[str, Any] = {truth.setting: below(golden, truth.file)}
        report, sums = evaluate_images(EvaluationSettings(place, run_id=run_id, workers=1, **ground_truth))
    except StoreUnavailableError:
        raise
    except BrokenRunError as error:
        raise BrokenRunError(f"--gate: golden images {golden} cannot be segmented: {error}") from error
    except RunError as error:
        raise RunError(f"--gate: golden images {golden} cannot be compared: {error}") from None
    finally:
        remove()
    score: Any = report
    for name in truth.path:
        score = score[name]
    if score is None:
        raise RunError(f"--gate: golden {golden} has no segments in {truth.file}, so there is no {truth.metric}")
    images = {key.removeprefix(f"{full_uri(below(golden, 'images'))}/"): one.pq for key, one in sums.images.items()}
    by_score = sorted(((name, pq) for name, pq in images.items() if pq is not None), key=lambda one: (one[1], one[0]))
    return GoldenRecord(version, truth.metric, float(score), bounds.golden_least, dict(by_score))


def _remove(place: str) -> None:
    if error := remove_scratch_place(place):
        logger.warning("the results of the golden images, %s, cannot be removed: %s", place, error)
