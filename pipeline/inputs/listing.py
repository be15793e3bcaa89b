"""List the images of the inputs: tables of schema.LISTED.

Each kind of input has a file of its own. A kind that holds many images in one object (a *container*) has a function in
`_CONTAINERS`; a kind of file that names images one by one has a function in `_LISTS`.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ErrorCode, RunError
from pipeline.input_spec import InputSpec, Source
from pipeline.inputs.container import Container, Fitting, KeptIndexes, LeftOut, fault_of, with_all_columns
from pipeline.inputs.lists.inventory import list_inventory
from pipeline.inputs.lists.manifest import list_manifest
from pipeline.inputs.objects import list_objects
from pipeline.inputs.parquet.listing import list_parquet
from pipeline.inputs.selection import CONTAINERS, Selection, are_containers
from pipeline.inputs.tar.images import list_tar
from pipeline.look_ahead import look_ahead
from pipeline.store.filesystem import facts_of, one_line, path_of, store_errors_as
from pipeline.store.other.answer import NoPartsError
from pipeline.store.other.opening import open_input

logger = logging.getLogger(__name__)

_CONTAINERS_AHEAD = 16  # containers whose images are listed at a time

_LEFT_BY_PROGRAMS = "were left by programs, or are excluded by --exclude"
_OTHER_FORMAT = "are not of --input-format"
_WITHOUT_ETAG = "images come without an ETag, so that later runs see changes of them only by their size, if it is known"
_MARKERS = "are marks of folders"


# By kind: the images of one container. ValueError or ArrowException if the object is not of this kind.
_CONTAINERS: dict[str, Callable[[Container], list[pa.Table]]] = {
    "tar": list_tar,
    "parquet": list_parquet,
}
# By kind: the objects that the files of one source name.
_LISTS: dict[str, Callable[[InputSpec, Source], Iterator[pa.Table]]] = {
    "manifest": list_manifest,
    "inventory": list_inventory,
}


def list_inputs(
    spec: InputSpec,
    most: int | None = None,
    kept: KeptIndexes | None = None,
    stopped: threading.Event | None = None,
) -> Iterator[pa.Table]:
    """Every image of the inputs, as tables of LISTED with at least one row. Afterwards, a warning counts names that are
    left out.

    An image of two overlapping inputs is listed twice. A caller that wants no more than `most` images gets them in the
    order of the inputs, and of the names in each, and is spared the reading of whole containers; else the images come
    as fast as the store answers. `kept` spares the reading of containers that were listed before. Once `stopped` is
    set, the reading of containers ends. Raises RunError if an input does not exist, or if permission to list it is
    missing.
    """
    for source in spec.sources:
        with store_errors_as(
            RunError,
            f"--input {source} cannot be listed",
            denied=f"no permission to list --input {source}",
            missing=f"--input {source} does not exist",
        ):
            for table in _list_source(spec, source, most, kept, stopped or threading.Event()):
                if table.num_rows:
                    yield table


def refuse_empty(spec: InputSpec) -> None:
    """Raise RunError if an input has no images: a wrong name is more likely than a bucket that lost everything."""
    for source in spec.sources:
        if next(list_inputs(replace(spec, sources=(source,)), most=1), None) is None:
            raise RunError(f"--input {source} {_nothing(spec)}")


def _nothing(spec: InputSpec) -> str:
    if spec.names_its_images:
        return "names no images"
    return f"holds no {'objects' if spec.format == 'auto' else 'images'}"


def first_images(spec: InputSpec, number: int) -> pa.Table:
    """The first `number` images of the listing, fewer if there are fewer."""
    tables, found = [], 0
    for table in list_inputs(spec, number):
        tables.append(table.slice(0, number - found))
        found += tables[-1].num_rows
        if found == number:
            break
    return pa.concat_tables(tables) if tables else with_all_columns({}, 0)


def _list_source(
    spec: InputSpec, source: Source, most: int | None, kept: KeptIndexes | None, stopped: threading.Event
) -> Iterator[pa.Table]:
    selection, left_out, noted, fitting = Selection(spec, source), LeftOut(), LeftOut(), Fitting()

    def container_of(row: dict[str, Any]) -> Container:
        uri = row["object_uri"] or row["image_key"]
        is_enough = None if most is None else _count_taken(selection, most)
        filesystem, _ = open_input(uri, spec.access)
        place = (uri, row["etag"], row["size_bytes"] or 0)
        return Container(filesystem, *place, spec, left_out, noted, fitting, kept, is_enough, stopped)

    with ThreadPoolExecutor(_CONTAINERS_AHEAD, thread_name_prefix="containers") as threads, _set_on_break(stopped):
        for table in _objects(selection, left_out, in_order=most is not None):
            table = _without(table, selection.left_by_programs(_object(table)), _LEFT_BY_PROGRAMS, left_out)
            table = _without(table, selection.excludes(_object(table)), _LEFT_BY_PROGRAMS, left_out)
            for images in _images(table, selection, left_out, container_of, threads):
                if not spec.names_columns and pc.any(pc.is_null(images["fault"])).as_py():
                    fitting.accept()
                yield images
                without_etag = images.filter(pc.equal(images["etag"], ""))["image_key"]
                if len(without_etag):
                    noted.add(_WITHOUT_ETAG, without_etag[0].as_py(), len(without_etag))
    fitting.check(source)
    for counted, words in ((left_out, "names are left out, because they "), (noted, "")):
        for what, number in counted.number.items():
            logger.warning(f"--input {source}: {number:,} {words}{what}, for example {counted.example[what]!a}")


@contextlib.contextmanager
def _set_on_break(event: threading.Event) -> Iterator[None]:
    """Set `event` if the body breaks off. At a usual end no thread works any more, and another source may follow."""
    try:
        yield
    except BaseException:
        event.set()
        raise


def _objects(selection: Selection, left_out: LeftOut, *, in_order: bool) -> Iterator[pa.Table]:
    """The objects of the source, which a list names or a listing finds."""
    spec, source = selection.spec, selection.source
    if spec.format in _LISTS:
        for table in _LISTS[spec.format](spec, source):
            is_empty = pc.equal(pc.fill_null(table["size_bytes"], 0), 0)
            is_marker = pc.and_(pc.ends_with(_object(table), "/"), is_empty)
            yield _without(table, is_marker, _MARKERS, left_out)
        return
    filesystem, path = open_input(source.uri, spec.access)
    for table in list_objects(filesystem, path, left_out, in_order=in_order):
        yield table.filter(selection.takes_objects(table["image_key"]))


def _object(table: pa.Table) -> pa.ChunkedArray:
    """The URIs of the objects to read."""
    return pc.coalesce(table["object_uri"], table["image_key"])


def _without(table: pa.Table, left: pa.ChunkedArray, cause: str, left_out: LeftOut) -> pa.Table:
    number = pc.sum(left).as_py() or 0
    if not number:
        return table
    left_out.add(cause, table.filter(left)["image_key"][0].as_py(), number)
    return table.filter(pc.invert(left))


def _images(
    objects: pa.Table,
    selection: Selection,
    left_out: LeftOut,
    container_of: Callable[[dict[str, Any]], Container],
    threads: ThreadPoolExecutor,
) -> Iterator[pa.Table]:
    """The images of a page of objects: the objects themselves, or the images in them."""
    spec = selection.spec
    containers: list[tuple[str, Container]] = []
    for kind in _CONTAINERS:
        if spec.format in ("auto", kind) or spec.names_its_images:
            # A source that is one object has the format of the flag, whatever its name is.
            keys = _object(objects)
            is_named = pc.equal(keys, selection.below[:-1]) if spec.format == kind else False
            of_kind = pc.or_(are_containers(kind, keys), is_named)
            for row in objects.filter(of_kind).to_pylist():
                if row["object_uri"] is not None:
                    raise RunError(
                        f"--input {selection.source}: {row['object_uri']} is a tar or Parquet file, whose images have "
                        "keys of their own; leave out its key"
                    )
                containers.append((kind, container_of(row)))
            objects = objects.filter(pc.invert(of_kind))
    if spec.format not in CONTAINERS:
        yield objects.filter(selection.takes_images(_object(objects)))
    elif objects.num_rows:
        left_out.add(f"{_OTHER_FORMAT} {spec.format}", objects["image_key"][0].as_py(), objects.num_rows)

    for tables in look_ahead(lambda one: threads.submit(_list_container, *one), containers, _CONTAINERS_AHEAD):
        for table in tables:
            # The row of a container that cannot be read has the key of an object, which was taken before.
            of_container = pc.and_(pc.is_valid(table["fault"]), pc.is_null(table["object_uri"]))
            yield table.filter(pc.or_(of_container, selection.takes_images(table["image_key"])))


def _count_taken(selection: Selection, most: int) -> Callable[[str], bool]:
    """A function that returns True as soon as it was called with `most` keys of images that the selection takes."""
    left = most

    def is_enough(key: str) -> bool:
        nonlocal left
        left -= selection.takes_images(pa.chunked_array([[key]]))[0].as_py()
        return left <= 0

    return is_enough


def _list_container(kind: str, container: Container) -> list[pa.Table]:
    """The images of a container; if it cannot be read as one, a row of the container that says why."""
    try:
        if container.spec.names_its_images and not (container.etag and container.size_bytes):  # the list need not say
            path = path_of(container.filesystem, container.uri)
            etag, size_bytes = facts_of(container.filesystem, path)
            container = replace(container, etag=container.etag or etag, size_bytes=size_bytes)
        return _CONTAINERS[kind](container)
    except FileNotFoundError:
        if not container.spec.names_its_images:  # deleted since it was listed
            return []
        return [fault_of(container, ErrorCode.NOT_FOUND, "the list names it, but it does not exist")]
    except PermissionError as error:
        return [fault_of(container, ErrorCode.ACCESS_DENIED, one_line(error))]
    except NoPartsError as error:
        return [fault_of(container, ErrorCode.UNSUPPORTED, one_line(error))]
    except (ValueError, pa.ArrowException) as error:
        return [fault_of(container, ErrorCode.DAMAGED_CONTAINER, one_line(error))]
