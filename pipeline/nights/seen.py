"""Read the records of nights, and say what became of nights that have no end."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any, Literal

from pipeline.commit.claims import claims_to_hold
from pipeline.commit.lease import holder_of
from pipeline.commit.process_identity import is_alive
from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.nights.record import End, NightRecord, newest_names, read_record, started_at
from pipeline.shown_text import masked
from pipeline.store.conditional_writes import supports_conditions

# died: the record has no end, and the process or its lease is gone; no end: nobody can tell whether it goes on.
Outcome = End | Literal["running", "died", "no end", "unreadable"]

GOOD: tuple[Outcome, ...] = ("finished", "nothing to do")
# What a night may take until it has the lease: to load PyTorch, to check and fetch the checkpoint, to wait for a lease.
_START = timedelta(hours=1)
# No night lasts longer, so that a search for one that ended lately needs no older records.
_LONGEST_NIGHT = timedelta(days=7)


@dataclass(frozen=True)
class SeenNight:
    """A night and what became of it. `record` is None for a record that cannot be read, and `reason` says why."""

    name: str
    outcome: Outcome
    reason: str
    record: NightRecord | None

    @property
    def started_at(self) -> datetime:
        return started_at(self.name)

    def to_dict(self) -> dict[str, Any]:
        """The fields of the record, `outcome` instead of `end`, without secrets."""
        fields = {} if self.record is None else self.record.model_dump(mode="json", exclude={"end", "record_version"})
        seen = {"started_at": f"{self.started_at:%Y-%m-%dT%H:%M:%SZ}", **fields, "reason": self.reason}
        return _masked({"outcome": self.outcome, **seen, "record": self.name})


def seen_nights(output: Output, last: int | None = None, since: date | None = None) -> list[SeenNight]:
    """The last nights, the oldest first: `last` of them at most, none that started before `since`.

    RunError if the output cannot be read. A damaged record is a night too.
    """
    with output.errors():
        holder = _Holder(output)
        nights = [_seen(output, name, holder) for name in islice(newest_names(output, since), last)]
    return [night for night in reversed(nights) if night is not None]


def lacks_good_night(output: Output, within: timedelta, now: datetime) -> str | None:
    """Words on the newest night, unless a night has finished or found nothing to do less than `within` ago.

    RunError if the output cannot be read.
    """
    oldest = now - within
    with output.errors():
        for name in newest_names(output, (oldest - _LONGEST_NIGHT).date()):
            night = _seen(output, name, None)
            record = night.record if night is not None else None
            if record is not None and record.end in GOOD and record.ended_at is not None and record.ended_at >= oldest:
                return None
    newest = seen_nights(output, 1)
    return (
        f"the newest night started at {newest[0].started_at:%Y-%m-%d %H:%M}: {newest[0].outcome}"
        if newest
        else "no night has left a record"
    )


class _Holder:
    """The token of the lease on the output; it is read at most once."""

    def __init__(self, output: Output):
        self.output = output
        self.tokens: list[str | None] = []

    def token(self) -> str | None:
        if not self.tokens:
            self.tokens.append(holder_of(self.output.filesystem, self.output.lease_json))
        return self.tokens[0]


def _seen(output: Output, name: str, holder: _Holder | None) -> SeenNight | None:
    """None for a record that was deleted since it was listed."""
    try:
        record = read_record(output, name)
    except RunError as error:
        return SeenNight(name, "unreadable", str(error), None)
    if record is None:
        return None
    if record.end is not None or holder is None:
        return SeenNight(name, record.end or "no end", record.reason or "", record)
    outcome, reason = _without_end(record, output, holder)
    return SeenNight(name, outcome, reason, record)


def _without_end(record: NightRecord, output: Output, holder: _Holder) -> tuple[Outcome, str]:
    where = f"process {record.pid} on {record.host}"
    alive = is_alive(record.process)
    if alive is not None:
        return ("running", where) if alive else ("died", f"{where} no longer exists")
    if record.lease is not None:
        if claims_to_hold(output.filesystem, output.runs, record.lease):
            return "no end", f"its claim on the output is still there; look for {where}"
        held = supports_conditions(output.filesystem) and holder.token() == record.lease
        return ("running", where) if held else ("died", f"{where} no longer renews its lease")
    if datetime.now(UTC) - record.started_at < _START:
        return "running", f"{where}, without the lease so far"
    return "died", f"{where} never took the lease"


def _masked(value: Any) -> Any:
    """The records lie in the output, where others may write."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {masked(name): _masked(one) for name, one in value.items()}
    return [_masked(one) for one in value] if isinstance(value, list) else value
