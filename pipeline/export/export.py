"""The export: sort the rows by image, convert them in processes, put the documents together.

Memory does not grow with the number of images: rows are sorted on disk, a few batches are on their way at a time, and
lines of documents wait in the folder of the state (`state.py`).
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from pipeline.errors import RunError
from pipeline.export.conditions import check_classes
from pipeline.export.convert import BatchTask, Converter, find_overlap
from pipeline.export.format import Census
from pipeline.export.registry import FORMATS
from pipeline.export.rows import open_rows, take_census
from pipeline.export.settings import ExportSettings
from pipeline.export.state import BatchDone, Begun, Converted, State
from pipeline.export.target import Target
from pipeline.guard.worker_pool import worker_pool
from pipeline.layout import Output
from pipeline.look_ahead import look_ahead
from pipeline.store.filesystem import whole_path
from pipeline.tables.rows_by_image import IMAGES_PER_BATCH, RowsByImage
from pipeline.tables.spill_database import out_of_room

_R = TypeVar("_R")
# These change how an export is made, not what it holds.
_NOT_OF_THE_REQUEST = ("to", "workers")
_BYTES_ON_THEIR_WAY = 256 * 2**20  # of batches, each in this process and in a worker


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
    output, state = Output.open(settings.tables, "--tables"), State(Target.open(settings.to))
    request = _request(settings)
    begun = state.begun(request)
    with closing(open_rows(output, settings, None if begun is None else begun.version)) as rows:
        census = take_census(output, rows)
        check_classes(settings, census.categories)
        form = FORMATS[settings.format](settings, census)
        if not census.num_images:
            raise RunError(f"{output.name} has no image with a result for which all flags hold: nothing to export")
        form.check()
        if begun is None:
            if form.one_segment_per_pixel and not census.disjoint:
                _refuse_overlaps(settings, census, rows)
            begun = Begun(request, rows.version, form.images_per_batch, None)
            state.write(begun)
        if begun.converted is None:
            done = state.batches_done()
            num_done_before = len(done)
            done |= _convert(settings, census, rows, begun.images_per_batch, done)
            counts = sum((Counter(one.counts) for one in done.values()), Counter())
            for document in form.documents(counts):
                state.write_document(document, done, form.streams)
            state.write(replace(begun, converted=Converted(len(done), dict(counts))))
        else:
            counts, num_done_before = Counter(begun.converted.counts), begun.converted.batches
        state.remove()
        return Exported(
            census.num_images,
            census.num_segments,
            rows.num_current - rows.num_in_question,
            rows.num_in_question - census.num_images,
            num_done_before,
            time.monotonic() - began,
            list(form.summary(counts)),
        )


def _request(settings: ExportSettings) -> dict[str, Any]:
    """The settings that decide what an export holds, as JSON would give them back."""
    absolute = replace(settings, tables=whole_path(settings.tables))  # the next attempt may start in another folder
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(absolute).items()
        if name not in _NOT_OF_THE_REQUEST
    }


def _convert(
    settings: ExportSettings, census: Census, rows: RowsByImage, images_per_batch: int, done: Mapping[int, BatchDone]
) -> dict[int, BatchDone]:
    """Convert all batches but those that are done already."""
    tasks = (task for task in _tasks(rows, images_per_batch) if task.number not in done)
    with _processes(settings, census) as call, out_of_room():
        return {one.number: one for one in _each(settings, partial(call, _convert_one), _shown(tasks, "exporting"))}


def _refuse_overlaps(settings: ExportSettings, census: Census, rows: RowsByImage) -> None:
    """RunError if segments of an image overlap."""
    with _processes(settings, census) as call, out_of_room():
        tasks = _shown(_tasks(rows, IMAGES_PER_BATCH), "looking for overlaps")
        for found in _each(settings, partial(call, find_overlap), tasks):
            if found is not None:
                raise RunError(
                    f"--format {settings.format} gives a pixel to one segment, but {found}, which would be lost; "
                    "use coco-instances, or leave segments out by --min-score or --where"
                )


def _tasks(rows: RowsByImage, images_per_batch: int) -> Iterator[BatchTask]:
    first_annotation = 1
    for number, batch in enumerate(rows.batches(images_per_batch)):
        yield BatchTask.of(number, batch, first_annotation)
        first_annotation += batch.segments.num_rows


def _shown(tasks: Iterator[BatchTask], what: str) -> Iterator[BatchTask]:
    console = Console(file=sys.stderr)
    yield from track(tasks, description=what, console=console, disable=not console.is_terminal)


# --- in parallel ------------------------------------------------------------------------------------------------------

_converter: Converter | None = None


def _num_workers(settings: ExportSettings) -> int:
    return settings.workers or os.cpu_count() or 1


def _each(
    settings: ExportSettings, submit: Callable[[BatchTask], "Future[_R]"], tasks: Iterator[BatchTask]
) -> Iterator[_R]:
    """The result of each task, in order. What is on its way is bounded by number and by bytes."""
    ahead = 2 * _num_workers(settings)
    return look_ahead(submit, tasks, ahead, size=lambda task: task.num_bytes, most_size=_BYTES_ON_THEIR_WAY)


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


def _convert_one(task: BatchTask) -> BatchDone:
    assert _converter is not None, "the process has started"
    return _converter.convert(task)
