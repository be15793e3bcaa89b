"""The record of a night, one small object: what a command of segment_bucket.py did, or that it did nothing.

`_runs/_nights/2026-11/20261129T020000.123Z-1a2b3c4d.json` is written when the night starts, and replaced when it has a
run and when it ends. A process that is killed leaves its record without an end. Names sort by time and lie in a folder
for each month, so that the newest can be found without listing or reading all of them.
"""

import re
import secrets
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, TypeAdapter

from pipeline.errors import JobEnd
from pipeline.layout import Output
from pipeline.shown_text import shown
from pipeline.store.filesystem import list_folder, put_object
from pipeline.store.json_records import STRICT

End = JobEnd | Literal["nothing to do"]

_MONTH = re.compile("[0-9]{4}-[0-9]{2}")
_NAME = re.compile(r"([0-9]{8}T[0-9]{6}\.[0-9]{3})Z-[0-9a-f]{8}\.json")
_STAMP = "%Y%m%dT%H%M%S.%f"
_LONGEST_TEXT, _MOST_WORDS = 2000, 200  # of a record, so that it stays a small object

Text = Annotated[str, Field(max_length=_LONGEST_TEXT)]


class NightRecord(BaseModel):
    """The fields of a record. Times are UTC; texts are as people may see them, without secrets."""

    model_config = ConfigDict(**STRICT, frozen=True, extra="forbid")

    record_version: Literal[1] = 1
    started_at: AwareDatetime
    ended_at: AwareDatetime | None = None
    seconds: NonNegativeFloat | None = None
    host: Text
    pid: NonNegativeInt
    process: Text  # identity of the process on its machine: see commit/lease.py; empty if unknown
    version: Text  # of this program
    command: Annotated[tuple[Text, ...], Field(max_length=_MOST_WORDS)]
    lease: Text | None = None  # token of the lease on the output, once the night has taken the lease
    run_id: Text | None = None  # once the night works on a run
    end: End | None = None
    exit_code: int | None = None
    reason: Text | None = None  # one line
    # images in the run; of these, with those of earlier nights, done, failed and removed; segments found
    counts: dict[Text, NonNegativeInt] = {}


_RECORD = TypeAdapter(NightRecord)


def short(text: str) -> str:
    """`text` as a record may hold it."""
    return shown(text)[:_LONGEST_TEXT]


def short_command(words: tuple[str, ...]) -> tuple[str, ...]:
    """A command line as a record may hold it."""
    return tuple(map(short, words[:_MOST_WORDS]))


def new_name(started_at: datetime) -> str:
    """The name of a new record, with its folder. Two nights may start at the same moment, hence the random end."""
    return f"{started_at:%Y-%m}/{_stamp(started_at)}Z-{secrets.token_hex(4)}.json"


def write_record(output: Output, name: str, record: NightRecord) -> None:
    """Write or replace a record. Raises errors of STORE_ERRORS; RunError if a link there leads out of the output."""
    put_object(output.filesystem, output.inside(output.night(name)), record.model_dump_json(indent=1).encode())


def read_record(output: Output, name: str) -> NightRecord | None:
    """The record of this name, or None if there is none. RunError if it is damaged or cannot be read."""
    return output.read_record(_RECORD, output.night(name))


def newest_names(output: Output, since: date | None = None) -> Iterator[str]:
    """Names of records, the newest first, none older than `since`. Lists one month at a time, and reads no record.

    RunError if the output cannot be listed, or if a link there leads out of the output.
    """
    for month in reversed(_below(output, output.nights)):
        if not _MONTH.fullmatch(month) or (since is not None and month < f"{since:%Y-%m}"):
            continue
        for name in reversed(_below(output, f"{output.nights}/{month}")):
            if (start := _start_in(name)) is not None and (since is None or start.date() >= since):
                yield f"{month}/{name}"


def started_at(name: str) -> datetime:
    """When the night of this record started, from the name that `newest_names` gave."""
    start = _start_in(name.rpartition("/")[2])
    assert start is not None
    return start


def _start_in(name: str) -> datetime | None:
    match = _NAME.fullmatch(name)
    try:
        return match and datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC)
    except ValueError:  # the 99th of a month
        return None


def _stamp(time: datetime) -> str:
    return time.strftime(_STAMP)[:-3]  # milliseconds


def _below(output: Output, folder: str) -> list[str]:
    with output.errors():
        paths = list_folder(output.filesystem, output.inside(folder))
    return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)
