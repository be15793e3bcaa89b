"""The export: sort the rows by image, convert them in processes, put the documents together.

Memory does not grow with the number of images: rows are sorted on disk, a few batches are on their way at a time, and
lines of documents wait in the folder of the state (`target.py`).
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from pipeline.errors import RunError
from pipeline.export.convert import BatchTask, Converter, find_overlap
from pipeline.export.format import Census
from pipeline.export.registry import FORMATS
from pipeline.export.rows import open_rows, take_census
from pipeline.export.settings import ExportSettings
from pipeline.export.target import Target
from pipeline.guard.worker_pool import worker_pool
from pipeline.layout import Output
from pipeline.look_ahead import look_ahead
from pipeline.tables.rows_by_image import RowsByImage
from pipeline.tables.spill_database import out_of_room

_R = TypeVar("_R")
# These change how an export is made, not what it holds.
_NOT_OF_THE_REQUEST = ("to", "workers")


@dataclass(frozen=True)
class Exported:
    """What was written."""

    num_images: int
    num_segments: int
    num_failed: int  # images without a result, which no format holds
    num_left_out: int  # images for whose rows --where does not hold
    num_done_before: int  # batches that an earlier attempt had converted
    seconds: float
    notes: list[str]


def export(settings: ExportSettings) -> Exported:
    """Write an export, or go on with one. RunError, before anything is written, if that is not possible."""
    began = time.monotonic()
    output, target = Output.open(settings.tables, "--tables"), Target.open(settings.to)
    request = {name: value for name, value in _plain(settings).items() if name not in _NOT_OF_THE_REQUEST}
    state = target.begun(request)
    with closing(open_rows(output, settings, None if state is None else state["version"])) as rows:
        census = take_census(output, rows)
        form = FORMATS[settings.format](settings, census)
        if not census.num_images:
            raise RunError(f"{output.name} has no image with a result for which all flags hold: nothing to export")
        form.check()
        done = {} if state is None else target.batches_done()
        if state is None or not state["converted"]:
            if state is None:
                if form.one_segment_per_pixel and not census.disjoint:
                    _refuse_overlaps(settings, census, rows)
                state = {"request": request, "version": rows.version, "converted": False}
                target.write_state(state)
            counts, num_batches = _convert(settings, census, rows, done)
            for document in form.documents(counts):
                target.write_document(document, num_batches, form.streams)
            target.write_state({**state, "converted": True})
        else:
            counts = sum(done.values(), Counter())
        target.remove_state()
        return Exported(
            census.num_images,
            census.num_segments,
            rows.num_current - rows.num_in_question,
            rows.num_in_question - census.num_images,
            len(done),
            time.monotonic() - began,
            list(form.summary(counts)),
        )


def _plain(settings: ExportSettings) -> dict[str, Any]:
    """The settings as JSON would give them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def _convert(
    settings: ExportSettings, census: Census, rows: RowsByImage, done: dict[int, Counter[str]]
) -> tuple[Counter[str], int]:
    """Convert all batches that are not done; what all images counted, and the number of batches."""
    counts: Counter[str] = sum(done.values(), Counter())
    number = -1

    def tasks() -> Iterator[BatchTask]:
        nonlocal number
        for number, task in enumerate(_tasks(rows)):
            if number not in done:
                yield task

    with _processes(settings, census) as call, out_of_room():
        for one in look_ahead(lambda task: call(_convert_one, task), _shown(tasks(), "exporting"), _ahead(settings)):
            counts.update(one)
    return counts, number + 1


def _refuse_overlaps(settings: ExportSettings, census: Census, rows: RowsByImage) -> None:
    """RunError if segments of an image overlap."""
    with _processes(settings, census) as call, out_of_room():
        tasks = _shown(_tasks(rows), "looking for overlaps")
        for found in look_ahead(lambda task: call(find_overlap, task), tasks, _ahead(settings)):
            if found is not None:
                raise RunError(
                    f"--format {settings.format} gives a pixel to one segment, but {found}, which would be lost; "
                    "use coco-instances, or leave segments out by --min-score or --where"
                )


def _tasks(rows: RowsByImage) -> Iterator[BatchTask]:
    first_annotation = 1
    for number, batch in enumerate(rows.batches()):
        yield BatchTask.of(number, batch, first_annotation)
        first_annotation += batch.segments.num_rows


def _shown(tasks: Iterator[BatchTask], what: str) -> Iterator[BatchTask]:
    console = Console(file=sys.stderr)
    yield from track(tasks, description=what, console=console, disable=not console.is_terminal)


# --- in parallel ------------------------------------------------------------------------------------------------------

_converter: Converter | None = None


def _num_workers(settings: ExportSettings) -> int:
    return settings.workers or os.cpu_count() or 1


def _ahead(settings: ExportSettings) -> int:
    return 2 * _num_workers(settings)


@contextmanager
def _processes(
    settings: ExportSettings, census: Census
) -> Iterator[Callable[[Callable[[BatchTask], _R], BatchTask], "Future[_R]"]]:
    """A function that calls another one in a process; in this one, if one worker is wanted."""
    if _num_workers(settings) == 1:
        _start(settings, census)
        yield _called
        return
    with worker_pool(_num_workers(settings), _start, (settings, census)) as pool:
        yield pool.submit


def _called(function: Callable[[BatchTask], _R], task: BatchTask) -> "Future[_R]":
    done: Future[_R] = Future()
    done.set_result(function(task))
    return done


def _start(settings: ExportSettings, census: Census) -> None:
    global _converter
    _converter = Converter(settings, census)


def _convert_one(task: BatchTask) -> Counter[str]:
    assert _converter is not None, "the process has started"
    return _converter.convert(task)
