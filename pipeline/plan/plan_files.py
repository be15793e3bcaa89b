"""Read the plan of a run back, checked: whoever can write to the output could have changed it."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from m2f_core.config.fields import excerpt
from pipeline.commit.run_record import PlanFile, PlanSummary, read_plan_record
from pipeline.errors import ErrorCode
from pipeline.input_spec import InputSpec
from pipeline.inputs.reads import ListedImage
from pipeline.inputs.selection import Selection, readable_schemes
from pipeline.layout import PLAN_FILE, Output, RunFolder, numbered
from pipeline.schema import LISTED, PLAN, REASONS
from pipeline.store.filesystem import canonical, one_line

_MOST_FILE_BYTES = 2**30
_LOOK_AGAIN_SECONDS = 1.0


def read_plan_file(
    output: Output, spec: InputSpec, plan_file: PlanFile, shards: Iterable[int]
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (shard, images of the shard without the column `shard`) for the wanted `shards` of one plan file.

    `spec` names the inputs of the run. RunError if the file is not the one that run.json names, or if it names an
    object outside of the inputs: whoever can write to the output could otherwise have any object read.
    """
    yield from _shards_in(output, spec, plan_file, output.read(plan_file.path, _MOST_FILE_BYTES), shards)


def follow_plan(
    output: Output, spec: InputSpec, folder: RunFolder, numbers: Iterable[int]
) -> Iterator[tuple[int, pa.Table]]:
    """Like `read_plan_file`: every shard of the plan files of these numbers, of a run whose plan still grows.

    Waits for each file. Ends if the plan is complete without the next.
    """
    for number in numbers:
        path = f"{folder.plan}/{numbered(PLAN_FILE, number)}"
        while (data := output.read_or_none(path, _MOST_FILE_BYTES)) is None:
            complete = read_plan_record(output, folder)
            if complete is None:
                time.sleep(_LOOK_AGAIN_SECONDS)
                continue
            if len(complete.plan.files) <= number:
                return
            data = output.read(path, _MOST_FILE_BYTES)  # written since, or RunError: it is gone
            break
        file = _plan_file(output, path, data)
        yield from _shards_in(output, spec, file, data, range(file.first_shard, file.first_shard + file.num_shards))


def planned_so_far(output: Output, folder: RunFolder) -> Iterator[tuple[PlanFile, pa.Table]]:
    """Each plan file of a run whose plan may not be complete, with its images as a table of PLAN, in order.

    RunError if a file is none of a plan, or one before it is missing.
    """
    num_shards = 0
    for number, ((found,), path) in enumerate(output.list_numbered(folder.plan, PLAN_FILE)):
        if found != number:
            raise output.damaged(folder.plan, f"{numbered(PLAN_FILE, number)} is missing")
        data = output.read(path, _MOST_FILE_BYTES)
        file = _plan_file(output, path, data)
        if file.first_shard != num_shards:
            raise output.damaged(path, f"it begins with shard {file.first_shard}; it must begin with {num_shards}")
        num_shards += file.num_shards
        with _as_damage(output, path):
            images = pq.read_table(pa.BufferReader(data))
            _check_columns(images)
        yield file, images


def _plan_file(output: Output, path: str, data: bytes) -> PlanFile:
    """Which shards a plan file holds, by its first shard and the number of its row groups."""
    with _as_damage(output, path):
        file = pq.ParquetFile(pa.BufferReader(data))
        if not file.schema_arrow.equals(PLAN) or not file.num_row_groups:
            raise ValueError("it holds no shards of a plan")
        first = pc.min(file.read_row_group(0, columns=["shard"])["shard"]).as_py()
        if first is None or first < 0:
            raise ValueError(f"it begins with shard {first}")
        return PlanFile(path, first, file.num_row_groups)


def _shards_in(
    output: Output, spec: InputSpec, plan_file: PlanFile, data: bytes, shards: Iterable[int]
) -> Iterator[tuple[int, pa.Table]]:
    inside = _Inside(spec)
    seen: set[str] = set()
    with _as_damage(output, plan_file.path):
        file = pq.ParquetFile(pa.BufferReader(data))
        if file.num_row_groups != plan_file.num_shards:
            raise ValueError(f"it has {file.num_row_groups} shards, but run.json says {plan_file.num_shards}")
        for shard in shards:
            images = file.read_row_group(shard - plan_file.first_shard)
            _check_images(images, shard, inside, seen)
            yield shard, images.drop_columns(["shard"])


@contextlib.contextmanager
def _as_damage(output: Output, path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        raise output.damaged(path, one_line(error)) from None


_NEVER_NULL = [field.name for field in PLAN if not field.nullable]


def _check_images(images: pa.Table, shard: int, inside: "_Inside", seen: set[str]) -> None:
    """ValueError if these are not the images of a shard, or if one of their keys is in `seen`; adds the keys to it."""
    _check_columns(images)
    if images["shard"].unique().to_pylist() != [shard]:
        raise ValueError(f"the column shard holds {excerpt(images['shard'].unique().to_pylist())}, not {shard}")
    if any((pc.min(images[name]).as_py() or 0) < 0 for name in ("size_bytes", "position", "row_group")):
        raise ValueError(f"shard {shard} has a size or a place below 0")
    if not set(images["reason"].unique().to_pylist()) <= set(REASONS):
        raise ValueError(f"shard {shard} has a reason that there is not")
    if not {fault.partition(": ")[0] for fault in images["fault"].drop_null().to_pylist()} <= set(ErrorCode):
        raise ValueError(f"shard {shard} has a fault that there is not")
    is_read = pc.and_(pc.not_equal(images["reason"], "removed"), pc.is_null(images["fault"]))
    names = (images["image_key"], images["object_uri"], is_read)
    for key, uri, reads in zip(*(column.to_pylist() for column in names), strict=True):
        if not inside.holds(key, uri, reads):
            where = excerpt(key if uri is None else uri)
            raise ValueError(f"shard {shard} names {where}, which does not lie below the input")
        if key in seen:
            raise ValueError(f"shard {shard} names {excerpt(key)} a second time")
        seen.add(key)


def _check_columns(images: pa.Table) -> None:
    """ValueError if this is not a table of PLAN with images."""
    if not images.schema.equals(PLAN):
        raise ValueError("its columns are not those of a plan")
    if not images.num_rows or any(images[name].null_count for name in _NEVER_NULL):
        raise ValueError("a shard has no images, or null as a value")


class _Inside:
    """Whether an image lies in the inputs of a run. A list may name objects anywhere, of the schemes of its spec."""

    def __init__(self, spec: InputSpec):
        self.is_of_logits = spec.format == "logits"
        self.schemes = readable_schemes(spec) if spec.names_its_images else None
        self.below = tuple(Selection(spec, source).below for source in spec.sources)

    def holds(self, image_key: str, object_uri: str | None, is_read: bool) -> bool:
        if self.is_of_logits:
            return object_uri is None or self._is_below(object_uri)
        if self.schemes is not None:
            scheme, separator, _ = (object_uri or image_key).partition("://")
            return bool(separator) and scheme in self.schemes
        if object_uri is not None:
            return image_key.startswith(f"{object_uri}#") and self._is_below(object_uri)
        # The row of an image that is gone from a tar or Parquet file names no object.
        names = [image_key] if is_read else [image_key[:end] for end in _ends_of_objects(image_key)]
        return any(map(self._is_below, names))

    def _is_below(self, uri: str) -> bool:
        return any(is_below(uri, below) for below in self.below)


def _ends_of_objects(image_key: str) -> Iterator[int]:
    """Where the URI of an object in this key may end: at each `#`, and at the end of the key."""
    yield len(image_key)
    yield from (place for place, character in enumerate(image_key) if character == "#")


def is_below(uri: str, below: str) -> bool:
    """Whether the object lies below the input with this prefix. An input may also be one object.

    In a local path, `..` would lead out again; a bucket has no folders, and its keys are as they are. A local input may
    be spelled with and without links: the folder of the image must lie in the input, as the listing follows no links to
    folders.
    """
    if uri == below.rstrip("/"):
        return True
    if not below.startswith("file://"):
        return uri.startswith(below)
    if ".." in uri.split("/") or not uri.startswith("file://"):
        return False
    return uri.startswith(below) or f"{_real(uri.rpartition('/')[0])}/".startswith(f"{_real(below)}/")


@lru_cache
def _real(folder: str) -> str:
    return canonical(folder)


def spread_over(output: Output, spec: InputSpec, plan: PlanSummary, number: int) -> list[ListedImage]:
    """One image that can probably be read from each of at most `number` shards, spread evenly over the plan."""
    shards = sorted({place * plan.num_shards // number for place in range(number)}) if plan.num_shards else []
    images = []
    for file in plan.files:
        wanted = [shard for shard in shards if file.first_shard <= shard < file.first_shard + file.num_shards]
        for _, table in read_plan_file(output, spec, file, wanted) if wanted else ():
            passed_over = pc.is_in(table["reason"], pa.array(["removed", "retry"]))
            there = table.filter(pc.and_(pc.invert(passed_over), pc.is_null(table["fault"]))).slice(0, 1)
            images += [ListedImage(**row) for row in there.select(LISTED.names).to_pylist()]
    return images
