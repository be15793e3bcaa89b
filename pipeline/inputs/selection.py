"""Which listed names a run takes: patterns of an input, --include, --exclude."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.input_spec import LEFT_BY_PROGRAMS, InputSpec, Source
from pipeline.store.filesystem import SCHEMES, WEB_SCHEMES, full_uri
from pipeline.text.patterns import any_literal, any_regex

# Objects with these endings hold images; the format `auto` looks into them. A compressed tar is a row that says what to
# do.
CONTAINERS = {
    "tar": (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    "parquet": (".parquet",),
}


@dataclass(frozen=True)
class Selection:
    """The keys that one source of an InputSpec gives."""

    spec: InputSpec
    source: Source

    @cached_property
    def below(self) -> str:
        """The prefix of all keys of the source: the folder with its slash, spelled as a listing spells keys."""
        uri = full_uri(self.source.uri)
        return uri if uri.endswith("/") else f"{uri}/"

    def in_scope(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each key, whether a complete listing of the source would hold the key if its object existed.

        An object that is named as the source, beside the folder of that name, is in no listing of the folder.
        """
        there = pc.starts_with(keys, self.below)
        if self.may_be_container:
            there = pc.or_(there, pc.starts_with(keys, f"{self.below[:-1]}#"))
        if self.source.pattern:
            behind = "(?:#.*)?" if self.may_hold_containers else ""
            there = pc.and_(
                there, pc.match_substring_regex(keys, any_regex((f"/{self.source.pattern}",), self.below, behind))
            )
        return pc.and_(there, self.takes_images(keys))

    @property
    def may_be_container(self) -> bool:
        """Whether the source may be one object that holds images, whose keys begin with `<source>#`."""
        return self.spec.format in CONTAINERS or any(
            self.below[:-1].lower().endswith(endings) for endings in CONTAINERS.values()
        )

    @property
    def may_hold_containers(self) -> bool:
        return self.spec.format == "auto" or self.spec.format in CONTAINERS

    def takes_objects(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each key of an object below the source, whether the pattern of the source takes the object."""
        return self._matches(keys, (f"/{self.source.pattern}",) if self.source.pattern else (), without=True)

    def left_by_programs(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each key, whether its name is one that programs leave in folders."""
        return self._matches(keys, LEFT_BY_PROGRAMS, without=False)

    def excludes(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each key, whether --exclude names the object or image."""
        return self._matches(keys, self.spec.exclude, without=False)

    def takes_images(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each key of an image, whether --include and --exclude leave the image in."""
        return pc.and_(self._matches(keys, self.spec.include, without=True), pc.invert(self.excludes(keys)))

    def _matches(self, keys: pa.ChunkedArray, patterns: tuple[str, ...], *, without: bool) -> pa.ChunkedArray:
        """For each key, whether one of the patterns matches the path below the source; if the source is one object, its
        name. `without`: the answer without patterns.
        """
        if not patterns:
            return _same(without, len(keys))
        if self.spec.names_its_images:  # by URIs of any bucket: a path is one in its bucket
            return pc.match_substring_regex(_in_buckets(keys), any_regex(patterns))
        # Most pages hold no name like these, and texts are found ten times as fast as patterns.
        if not pc.any(pc.match_substring_regex(keys, any_literal(patterns))).as_py():
            return _same(False, len(keys))
        is_below = pc.starts_with(keys, self.below)
        below = pc.match_substring_regex(keys, any_regex(patterns, self.below))
        if pc.all(is_below).as_py():
            return below
        folder = f"{self.below[:-1].rpartition('/')[0]}/"
        return pc.if_else(is_below, below, pc.match_substring_regex(keys, any_regex(patterns, folder)))


def _in_buckets(uris: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(uris, r"(?s)^[a-z0-9+.-]+://[^/]*/+", "")


def _same(value: bool, number: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(np.full(number, value))])


def are_containers(kind: str, keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """For each key of an object, whether the object is named as a container of this kind."""
    lower = pc.ascii_lower(keys)
    named = pc.ends_with(lower, CONTAINERS[kind][0])
    for ending in CONTAINERS[kind][1:]:
        named = pc.or_(named, pc.ends_with(lower, ending))
    return named


def readable_schemes(spec: InputSpec) -> frozenset[str]:
    """The schemes of objects that a list may name: those of stores, that of the list itself, and --allow-scheme.

    A manifest that lies in a bucket cannot make the machines of the cluster read their own files, nor what their
    network answers to them alone: the web must be allowed, also to a list that a web server sends.
    """
    own = {full_uri(source.uri).partition("://")[0] for source in spec.sources}.difference(WEB_SCHEMES)
    return frozenset(SCHEMES) - {"file", "memory"} | own | set(spec.allow_schemes)
