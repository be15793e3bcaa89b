"""Which listed names a run takes: patterns of an input, --include, --exclude."""

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.input_spec import LEFT_BY_PROGRAMS, InputSpec, Source
from pipeline.patterns import any_regex
from pipeline.store.filesystem import SCHEMES, full_uri

# Objects with these endings hold images; the format `auto` looks into them.
CONTAINERS = {"tar": ".tar", "parquet": ".parquet"}


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
        objects = pc.replace_substring_regex(keys, r"(?s)#.*$", "") if self.may_hold_containers else keys
        wanted = pc.or_(self.takes_objects(objects), self.takes_objects(keys))
        return pc.and_(there, pc.and_(wanted, self.takes_images(keys)))

    @property
    def may_be_container(self) -> bool:
        """Whether the source may be one object that holds images, whose keys begin with `<source>#`."""
        return self.spec.format in CONTAINERS or self.below[:-1].endswith(tuple(CONTAINERS.values()))

    @property
    def may_hold_containers(self) -> bool:
        return self.spec.format == "auto" or self.spec.format in CONTAINERS

    def takes_objects(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each key of an object below the source, whether the pattern of the source takes the object."""
        return _matches(self._inside(keys), (f"/{self.source.pattern}",) if self.source.pattern else ())

    def left_by_programs(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each key, whether its name is one that programs leave in folders."""
        return _matches(self._inside(keys), LEFT_BY_PROGRAMS)

    def excludes(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each key, whether --exclude names the object or image."""
        return _matches(self._inside(keys), self.spec.exclude, without=False)

    def takes_images(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """For each key of an image, whether --include and --exclude leave the image in."""
        included = _matches(self._inside(keys), self.spec.include)
        return pc.and_(included, pc.invert(self.excludes(keys)))

    def _inside(self, keys: pa.ChunkedArray) -> pa.ChunkedArray:
        """The paths below the source; the name, if the source is one object."""
        start = len(self.below)
        name = self.below[:-1].rpartition("/")[2]
        is_below = pc.starts_with(keys, self.below)
        alone = pc.binary_join_element_wise(name, pc.utf8_slice_codeunits(keys, start - 1), "")
        return pc.if_else(is_below, pc.utf8_slice_codeunits(keys, start), alone)


def _matches(paths: pa.ChunkedArray, patterns: tuple[str, ...], without: bool = True) -> pa.ChunkedArray:
    """For each path, whether one of the patterns matches the whole path; `without`: the answer without patterns."""
    if not patterns:
        return pa.chunked_array([pa.repeat(pa.scalar(without), len(paths))])
    return pc.match_substring_regex(paths, any_regex(patterns))


def readable_schemes(spec: InputSpec) -> frozenset[str]:
    """The schemes of objects that a manifest may name: those of other stores, of the manifest itself, --allow-schemes.

    A manifest that lies in a bucket cannot make the machines of the cluster read their own files.
    """
    own = {full_uri(source.uri).partition("://")[0] for source in spec.sources}
    return frozenset(SCHEMES) - {"file", "memory"} | own | set(spec.allow_schemes)
