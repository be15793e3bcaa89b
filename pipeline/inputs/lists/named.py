"""Objects that a list names one by one: checked, because whoever writes the list chooses what a cluster reads."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from m2f_core.config.fields import excerpt
from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs.attributes import bounded
from pipeline.inputs.container import with_all_columns
from pipeline.inputs.selection import readable_schemes
from pipeline.shown_text import holds_secret
from pipeline.store.filesystem import INPUT_SCHEMES, full_uri, path_of, uri_of

_PLACE = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)(/.*)?", re.DOTALL)
_PLACE_OF_ALL = r"(?s)^(?P<place>[a-z][a-z0-9+.-]*://[^/]+)/.+$"  # the same, of an object in a bucket or host
_WITHOUT_BUCKETS = ("hdfs", "memory")
_MOST_PLACES = 10_000  # buckets and hosts that are remembered
_LOCAL = LocalFileSystem()


class WrongEntryError(Exception):
    """An entry of a list is wrong: its number in the batch, from 0, and a clause that goes on after the entry."""

    def __init__(self, place: int, clause: str):
        super().__init__(place, clause)
        self.place = place
        self.clause = clause


@dataclass
class NamedObjects:
    """Makes tables of LISTED of what one list says. `folder` is the folder of a local list, for paths in it."""

    spec: InputSpec
    folder: str | None = None
    _places: dict[str, str] = field(default_factory=dict)

    @cached_property
    def schemes(self) -> frozenset[str]:
        return readable_schemes(self.spec)

    def table(
        self,
        uris: pa.Array,
        etags: pa.Array | None = None,
        sizes: pa.Array | None = None,
        keys: pa.Array | None = None,
        attributes: pa.Array | None = None,
    ) -> pa.Table:
        """A table of LISTED. WrongEntryError for an entry that cannot be read."""
        uris = self._spelled(uris)
        _refuse_secrets(uris)
        columns: dict[str, Any] = {"image_key": uris}
        if keys is not None:
            has_key = pc.fill_null(pc.not_equal(keys, ""), False)
            columns = {
                "image_key": pc.if_else(has_key, keys, uris),
                "object_uri": pc.if_else(has_key, uris, pa.scalar(None, pa.string())),
            }
        columns["etag"] = pa.repeat("", len(uris)) if etags is None else pc.utf8_trim(pc.fill_null(etags, ""), '"')
        if sizes is not None:
            if (below := pc.index(pc.less(sizes, 0), True).as_py()) >= 0:
                raise WrongEntryError(below, "has a size below 0")
            columns["size_bytes"] = sizes
        if attributes is not None:
            columns["attributes"], columns["fault"] = bounded(attributes)
        return with_all_columns(columns, len(uris))

    def _spelled(self, uris: pa.Array) -> pa.Array:
        """The URIs as a listing spells keys."""
        places = pc.struct_field(pc.extract_regex(uris, _PLACE_OF_ALL), 0)
        if not places.null_count:
            unique = pc.unique(places)
            for place in unique.to_pylist():
                if place not in self._places:
                    first = pc.index(places, place).as_py()
                    self._spelled_place(place, _PLACE.fullmatch(place), first)
            if all(self._places.get(place) == place for place in unique.to_pylist()):
                return uris
        return pa.array([self._spelled_one(number, uri) for number, uri in enumerate(uris.to_pylist())], pa.string())

    def _spelled_one(self, number: int, uri: str | None) -> str:
        if not uri:
            raise WrongEntryError(number, "names no object")
        place = _PLACE.fullmatch(uri)
        if place is None:
            if self.folder is None or "://" in uri:
                raise WrongEntryError(number, f"is {excerpt(uri)}, which is no URI such as s3://bucket/key")
            return _local_uri(uri, number, self.folder)
        scheme, rest = place[1], place[3] or ""
        spelled = self._spelled_place(f"{scheme}://{place[2]}", place, number)
        if scheme == "file":
            return _local_uri(uri.removeprefix("file://"), number, "/")
        if len(rest) < 2 or not (place[2] or scheme in _WITHOUT_BUCKETS):
            raise WrongEntryError(number, f"is {excerpt(uri)}, which names no object")
        return spelled + rest

    def _spelled_place(self, before: str, place: "re.Match[str] | None", number: int) -> str:
        """`scheme://bucket` as a listing spells it. WrongEntryError if its objects may not or cannot be read."""
        if before in self._places:
            return self._places[before]
        assert place is not None
        scheme = place[1]
        if scheme not in INPUT_SCHEMES:
            raise WrongEntryError(number, f"is an object of {scheme}://, which is no store that this program uses")
        if scheme not in self.schemes:
            raise WrongEntryError(
                number, f"is an object of {scheme}://, which this list may name only with --allow-scheme {scheme}"
            )
        if scheme == "file":
            spelled = before
        else:
            try:
                spelled = full_uri(f"{before}/x").removesuffix("/x")
            except RunError as error:
                raise WrongEntryError(number, f"cannot be read: {error}") from None
        if len(self._places) >= _MOST_PLACES:
            self._places.clear()
        self._places[before] = spelled
        return spelled


def _local_uri(path: str, number: int, folder: str) -> str:
    if "\0" in path:
        raise WrongEntryError(number, f"is {excerpt(path)}, which is no path")
    return uri_of(_LOCAL, path_of(_LOCAL, path if path.startswith("~") else str(Path(folder, path))))


def _refuse_secrets(uris: pa.Array) -> None:
    """A URI becomes a key in tables and logs, which more people read than the list."""
    suspects = pc.match_substring_regex(uris, r"[?&]|://[^/]*[@:]")
    if pc.any(suspects).as_py():
        for place in pc.indices_nonzero(suspects).to_pylist():
            if holds_secret(uris[place].as_py()):
                raise WrongEntryError(place, "holds credentials or a query; leave them out of the URI")
