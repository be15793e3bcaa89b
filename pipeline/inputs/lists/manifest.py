"""Images that manifests name: one file, or all files of a folder or pattern."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa

from pipeline.errors import RunError
from pipeline.input_spec import InputSpec, Source
from pipeline.inputs.container import LeftOut
from pipeline.inputs.lists.manifest_files import ENDINGS, ManifestError, is_manifest, read_rows
from pipeline.inputs.lists.named import NamedObjects, WrongEntryError
from pipeline.inputs.lists.object_stream import open_object
from pipeline.inputs.objects import list_objects
from pipeline.inputs.selection import Selection
from pipeline.inputs.verified import ChangedError
from pipeline.store.filesystem import is_local, one_line, path_of
from pipeline.store.other.opening import open_input


def list_manifest(spec: InputSpec, source: Source) -> Iterator[pa.Table]:
    """What the manifests of a source name, as tables of LISTED. RunError, which names the line, for bad content."""
    filesystem, path = open_input(source.uri, spec.access)
    for uri in _manifests(filesystem, path, spec, source):
        at = path_of(filesystem, uri)
        objects = NamedObjects(spec, str(Path(at).parent) if is_local(filesystem) else None)
        try:
            with open_object(filesystem, at) as file:
                for rows in read_rows(file, at, spec.keep_columns):
                    try:
                        yield objects.table(
                            rows.columns["uri"],
                            rows.columns.get("etag"),
                            rows.columns.get("size"),
                            rows.columns.get("key"),
                            rows.attributes,
                        )
                    except WrongEntryError as error:
                        raise ManifestError(f"{rows.unit} {rows.first + error.place:,} {error.clause}") from None
        except ManifestError as error:
            raise RunError(f"--input {uri}: {error}") from None
        except (
            pa.ArrowInvalid,
            pa.ArrowTypeError,
            pa.ArrowNotImplementedError,
            ChangedError,
            UnicodeDecodeError,  # of the name of a column
        ) as error:
            raise RunError(f"--input {uri} is no manifest that can be read: {one_line(error)}") from None
        except OSError as error:
            if isinstance(error, (FileNotFoundError, PermissionError)):
                raise
            raise RunError(f"--input {uri} cannot be read: {one_line(error)}") from None


def _manifests(filesystem: fsspec.AbstractFileSystem, path: str, spec: InputSpec, source: Source) -> Iterator[str]:
    """The URIs of the manifests, in the order of their names. Jobs that write many leave marks such as _SUCCESS."""
    files = Selection(replace(spec, format="images", include=(), exclude=()), source)
    for page in list_objects(filesystem, path, LeftOut(), in_order=True):
        for uri in page.filter(files.takes_objects(page["image_key"]))["image_key"].to_pylist():
            name = uri.rpartition("/")[2]
            if is_manifest(name):
                yield uri
            elif uri == files.below[:-1] or not name.startswith(("_", ".")):
                raise RunError(f"--input {uri} is no manifest by its name; a manifest ends in {ENDINGS}")
