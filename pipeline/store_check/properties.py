"""What a store is tried for: each function tries one property in a Trial and says what it found.

A store that lacks a property that every run needs is UNUSABLE. A store whose conditional writes do not hold is UNSAFE:
only the exclusion of a second driver depends on them. Other findings are a NOTE for those whom they concern.
"""

import hashlib
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import DeltaError

from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs.listing import list_inputs
from pipeline.store.conditional_writes import (
    create_object,
    read_stored,
    replace_object,
    supports_conditions,
)
from pipeline.store.filesystem import STORE_ERRORS, list_folder, put_object
from pipeline.store.objects import md5_of
from pipeline.store_check.trial import Trial, within
from pipeline.tables.current_view import delta_options, table_uri
from pipeline.tables.stream_table import plain

_RACERS = 8
_NAME_SECONDS = 30.0  # for an object of an odd name
_PART_BYTES = 5 * 2**20  # the least size of a part but the last, on AWS
# A lease is taken over when it is too old by the store's clock; the shortest lease lasts a second.
_MOST_AGE_SECONDS = 30.0
_ODD_NAMES = (
    "with space",
    "plus+plus",
    "percent%20",
    "é-ö-日本",
    "question?mark",
    "hash#mark",
    "quote'\"quote",
    "a//b",
    "tilde~(brackets)[]&=;:@,$!*",
)


class Verdict(IntEnum):
    """How bad a finding is. The worst finding is the verdict on the store."""

    OK = 0
    NOTE = 1
    UNSAFE = 2
    UNUSABLE = 3


@dataclass(frozen=True)
class Finding:
    """What a store does: one row of the report."""

    what: str
    found: str
    verdict: Verdict


@dataclass(frozen=True)
class Property:
    """A property of a store: `lacking` is the verdict if the store does not have it, or answers with an error."""

    what: str
    lacking: Verdict
    try_it: Callable[[Trial], str | None]  # None if the store has the property, else what it does instead
    only_s3: bool = False
    failing: Verdict | None = None  # the verdict if the store answers with an error; default: `lacking`
    seconds: float = 300.0  # the time for all requests

    def of(self, trial: Trial) -> Finding:
        """Try it. An error of the store is a finding, too."""
        if self.only_s3 and not trial.is_s3:
            return Finding(self.what, "only on S3", Verdict.OK)
        try:
            fault = within(self.seconds, lambda: self.try_it(trial))
        except Exception as error:  # the client may raise anything at an answer that it does not understand
            is_answer = isinstance(error, (*STORE_ERRORS, DeltaError, RunError))
            words = f"{'an error' if is_answer else type(error).__name__}: {plain(error)}"
            return Finding(self.what, words, self.lacking if self.failing is None else self.failing)
        return Finding(self.what, fault or "yes", self.lacking if fault else Verdict.OK)


def properties(objects: int, rounds: int) -> Iterator[Property]:
    """All properties, in the order of the report. `objects`: for the listing; `rounds`: of each race."""
    yield Property("reads and listings show each write", Verdict.UNUSABLE, _shows_writes)
    yield Property("what was removed is gone", Verdict.UNUSABLE, _shows_removals)
    # Without conditional creates, the library of the Delta tables refuses to commit.
    fails = Verdict.UNUSABLE
    yield Property("a second create is refused", Verdict.UNSAFE, _refuses_second_create, failing=fails)
    yield Property("a stale replace is refused", Verdict.UNSAFE, _refuses_stale_replace)
    yield Property("a replace of no object is refused", Verdict.NOTE, _refuses_replace_of_nothing)
    yield Property(f"of {_RACERS} creates at once one wins", Verdict.UNSAFE, lambda trial: _race(trial, rounds, False))
    yield Property(f"of {_RACERS} replaces at once one wins", Verdict.UNSAFE, lambda trial: _race(trial, rounds, True))
    yield Property(
        f"of {_RACERS} Delta commits at once one wins", Verdict.UNSAFE, _refuses_other_commits, failing=fails
    )
    yield Property("the store tells an object's age", Verdict.UNSAFE, _tells_age)
    yield Property("ranges of bytes", Verdict.UNUSABLE, _reads_ranges)
    yield Property("multipart uploads", Verdict.UNUSABLE, _uploads_in_parts, only_s3=True)
    yield Property("one ETag in listing, HEAD and GET", Verdict.UNUSABLE, _has_one_etag, only_s3=True)
    yield Property("the ETag is the MD5 of the bytes", Verdict.NOTE, _has_md5, only_s3=True)
    yield Property("wrong checksums are refused", Verdict.NOTE, _refuses_wrong_md5, only_s3=True)
    yield Property("odd names", Verdict.NOTE, _keeps_odd_names)
    if objects:
        whole = f"a listing of {objects:,} objects is whole"
        yield Property(whole, Verdict.UNUSABLE, lambda t: _lists_all(t, objects), seconds=300.0 + objects)
        yield Property("listings are sorted by name", Verdict.NOTE, _lists_in_order)


def _unique() -> bytes:
    return uuid.uuid4().hex.encode()


def _shows_writes(trial: Trial) -> str | None:
    for number in range(10):
        path, last = trial.put(f"shows/{number}", _unique()), _unique()
        trial.put(f"shows/{number}", last)
        if trial.get(path) != last:
            return "a read shows an older object"
        with trial.timed("LIST"):
            listed = list_folder(trial.filesystem, trial.output.at("shows"))
        if path not in listed:
            return "a listing does not show a new object"
    data = bytes(range(256)) * 4096
    return None if trial.get(trial.put("shows/MiB", data)) == data else "a MiB of bytes is read back as other bytes"


def _shows_removals(trial: Trial) -> str | None:
    for number in range(5):
        path = trial.put(f"removed/{number}", b"x")
        trial.delete(path)
        if trial.get(path) is not None:
            return "a read shows an object that was removed"
        if path in list_folder(trial.filesystem, trial.output.at("removed")):
            return "a listing shows an object that was removed"
        if trial.get(trial.put(f"removed/{number}", b"again")) != b"again":
            return "an object that was removed cannot be written again"
    return None


def _refuses_second_create(trial: Trial) -> str | None:
    path, first = trial.path("created"), _unique()
    if not supports_conditions(trial.filesystem):
        return "this program knows no conditional writes for this protocol"
    with trial.timed("PUT with a condition"):
        version = create_object(trial.filesystem, path, first)
    if version is None:
        return "a first create is refused, too"
    if create_object(trial.filesystem, path, _unique()) is not None or trial.get(path) != first:
        return "accepted: the condition is ignored, and the first object overwritten"
    trial.delete(path)
    return None if create_object(trial.filesystem, path, first) else "a create after a removal is refused"


def _refuses_stale_replace(trial: Trial) -> str | None:
    path = trial.put("replaced", _unique())
    if not supports_conditions(trial.filesystem):
        return "this program knows no conditional writes for this protocol"
    stored = read_stored(trial.filesystem, path)
    if stored is None:
        return "the object is not there"
    new = _unique()
    with trial.timed("PUT with a condition"):
        version = replace_object(trial.filesystem, path, new, stored.version)
    if version is None:
        return "the replace of an unchanged object is refused, too"
    if replace_object(trial.filesystem, path, _unique(), stored.version) is not None or trial.get(path) != new:
        return "accepted: the condition is ignored, and the newer object overwritten"
    return None


def _refuses_replace_of_nothing(trial: Trial) -> str | None:
    """MinIO accepted this before September 2025. The lease does not need it, because nothing removes lease.json."""
    if not supports_conditions(trial.filesystem):
        return "this program knows no conditional writes for this protocol"
    version = hashlib.md5(_unique(), usedforsecurity=False).hexdigest()
    there = replace_object(trial.filesystem, trial.path("never"), _unique(), version)
    return None if there is None else "accepted"


def _race(trial: Trial, rounds: int, replaces: bool) -> str | None:
    if not supports_conditions(trial.filesystem):
        return "this program knows no conditional writes for this protocol"
    for number in range(rounds):
        path = trial.path(f"race-{'replace' if replaces else 'create'}-{number}")
        version = create_object(trial.filesystem, path, _unique()) if replaces else None
        winners = _racers(trial, path, version)
        if len(winners) != 1:
            return f"{len(winners)} of {_RACERS} won in round {number + 1}"
        if trial.get(path) != winners[0]:
            return f"in round {number + 1} the object is not the winner's"
    return None


def _racers(trial: Trial, path: str, version: str | None) -> list[bytes]:
    """The contents of the racers that succeeded: they create `path`, or replace `version`, at the same moment."""
    barrier = threading.Barrier(_RACERS)

    def run(content: bytes) -> bytes | None:
        barrier.wait()
        if version is None:
            done = create_object(trial.filesystem, path, content)
        else:
            done = replace_object(trial.filesystem, path, content, version)
        return None if done is None else content

    found = trial.together(run, [_unique() for _ in range(_RACERS)])
    return [content for content in found if content is not None]


def _refuses_other_commits(trial: Trial) -> str | None:
    """As `pipeline/tables/publish.py` commits: writers that have read the same version of a table."""
    uri, options = table_uri(trial.output, "delta"), delta_options(trial.output)
    rows = pa.table({"n": [1]})
    write_deltalake(uri, rows, storage_options=options)
    once = CommitProperties(app_transactions=[Transaction("check", 1)], max_commit_retries=0)
    barrier = threading.Barrier(_RACERS)

    def commits(table: DeltaTable) -> bool:
        barrier.wait()
        try:
            write_deltalake(table, rows, mode="append", commit_properties=once)
        except DeltaError:
            return False
        return True

    won = sum(trial.together(commits, [DeltaTable(uri, storage_options=options) for _ in range(_RACERS)]))
    there = DeltaTable(uri, storage_options=options).to_pyarrow_table().num_rows
    return (
        None if (won, there) == (1, 2) else f"{won} of {_RACERS} were accepted, and {there - 1} of their rows are there"
    )


def _tells_age(trial: Trial) -> str | None:
    if not supports_conditions(trial.filesystem):
        return "this program knows no way to ask for it"
    stored = read_stored(trial.filesystem, trial.put("age", b"x"))
    if stored is None or not -2 <= stored.age_seconds < _MOST_AGE_SECONDS:
        return "no object" if stored is None else f"{stored.age_seconds:.0f} s for an object that was just written"
    return None


def _reads_ranges(trial: Trial) -> str | None:
    data = bytes(range(256)) * 64
    path = trial.put("range", data)
    for start, end in ((0, 1), (1000, 5000), (len(data) - 8, len(data))):
        with trial.timed("GET of a range"):
            found = trial.filesystem.cat_file(path, start=start, end=end)
        if found != data[start:end]:
            return f"bytes {start} to {end} are others, {len(found)} of {end - start}"
    return None


def _uploads_in_parts(trial: Trial) -> str | None:
    path, parts = trial.path("parts"), (b"a" * _PART_BYTES, b"b" * 1000)
    upload = trial.s3("create_multipart_upload", path)["UploadId"]
    try:
        etags = [
            trial.s3("upload_part", path, UploadId=upload, PartNumber=number, Body=part)["ETag"]
            for number, part in enumerate(parts, 1)
        ]
        named = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        trial.s3("complete_multipart_upload", path, UploadId=upload, MultipartUpload={"Parts": named})
    except BaseException:
        trial.s3("abort_multipart_upload", path, UploadId=upload)
        raise
    return None if trial.get(path) == b"".join(parts) else "the object is not its parts"


def _has_one_etag(trial: Trial) -> str | None:
    path = trial.put("etags/one", b"x")
    [listed] = trial.filesystem.ls(trial.output.at("etags"), detail=True)
    etags = [listed["ETag"], *(trial.s3(method, path)["ETag"] for method in ("head_object", "get_object"))]
    return None if len({etag.strip('"') for etag in etags}) == 1 else f"{', '.join(etags)}: all images seem changed"


def _has_md5(trial: Trial) -> str | None:
    data = _unique()
    answer = trial.s3("head_object", trial.put("md5", data))
    if md5_of(answer) == hashlib.md5(data, usedforsecurity=False).hexdigest():
        return None
    return f"no: {answer['ETag']}. Reads are checked by their length alone"


def _refuses_wrong_md5(trial: Trial) -> str | None:
    try:
        trial.s3("put_object", trial.path("wrong-md5"), Body=b"x", ContentMD5="AAAAAAAAAAAAAAAAAAAAAA==")
    except OSError:
        return None
    return "no: a write whose bytes were damaged on the way is accepted"


def _keeps_odd_names(trial: Trial) -> str | None:
    lost = [name for name in _ODD_NAMES if not _keeps(trial, name)]
    return f"not {', '.join(map(repr, lost))}" if lost else None


def _keeps(trial: Trial, name: str) -> bool:
    """Whether an object of this name is found under its name, and under no other."""
    folder = f"odd-{uuid.uuid4().hex[:8]}"
    content = _unique()

    def keeps() -> bool:
        path = trial.put(f"{folder}/{name}", content)
        keys = _listed_keys(f"{trial.output.uri}/{folder}")
        return [key.partition(f"/{folder}/")[2] for key in keys] == [name] and trial.get(path) == content

    try:
        return within(_NAME_SECONDS, keeps)
    except Exception:  # a name may break the client or the answer in any way
        return False


def _lists_all(trial: Trial, objects: int) -> str | None:
    names = {f"{number % 7}/{number:06d}" for number in range(objects)}
    paths = [trial.path(f"many/{name}") for name in names]
    trial.together(lambda path: put_object(trial.filesystem, path, b"x"), paths)
    with trial.timed(f"LIST of {objects:,} objects"):
        # A server that ignores where a page begins sends the first page for ever.
        listed = list(itertools.islice(_many(trial), 2 * objects + 1))
    if len(listed) != len(set(listed)):
        return f"{len(listed) - len(set(listed)):,} objects are listed twice"
    return None if set(listed) == names else f"{len(names - set(listed)):,} objects are missing"


def _lists_in_order(trial: Trial) -> str | None:
    listed = list(itertools.islice(_many(trial), 10_000))
    return None if listed == sorted(listed) else "no: --limit takes other images"


def _many(trial: Trial) -> Iterator[str]:
    return (key.partition("/many/")[2] for key in _listed_keys(f"{trial.output.uri}/many"))


def _listed_keys(uri: str) -> Iterator[str]:
    inputs = replace(InputSpec.of(uri), format="images")
    return (key for table in list_inputs(inputs, most=2**62) for key in table["image_key"].to_pylist())
