"""A lease for a store whose conditional writes do not hold: drivers write claims, and each driver looks at all of them.

The lease in `lease.py` needs a store that refuses the second of two writers. Here, a driver that wants the lease

1. watches the holders, `_runs/holder-<token>.json`. If one changes, its driver is alive, and this driver is refused. A
   holder that has not changed for its `seconds` and two periods more counts as dead.
2. writes a claim, `_runs/claim-<token>.json`, waits for a period, and lists the folder. If there is a holder that does
   not count as dead, or a claim with a lower token, the driver withdraws its claim and begins again.
3. writes its own holder object, and renews it four times in `seconds`.

A period is five seconds. Each step has a limit of whole periods, measured with the driver's own clock; a driver that
was slower withdraws. So of two drivers that claim at the same moment, each lists after both claims are visible, or
after the other's holder object is visible: one of them withdraws. No clocks are compared, only their speed.

Three things are needed that nobody can prove. First, the store shows every write to everybody at once, also after the
proofs (`store/proofs.py`). Second, no request takes effect after its sender was told that it had failed. Third, a
driver that was suspended between its last look at the lease and a write does not wake up after another driver took
over: without conditional writes, the store takes such a late write, and a late commit to a Delta table may hide a
commit of the new driver. The time from that look to the end of the write is the window in which a second driver can do
harm; everything else that an old driver writes is ignored, as with the other lease.
"""

import contextlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.commit.held_lease import MOST_LEASE_BYTES, RENEWALS, HeldLease
from pipeline.commit.process_identity import is_gone
from pipeline.errors import RunError
from pipeline.guard.kill_points import reached
from pipeline.shown_text import shown
from pipeline.store.filesystem import STORE_ERRORS, list_folder, one_line, put_object
from pipeline.store.json_records import parse_json
from pipeline.store.objects import read_once

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 5.0
_TRIES = 5
_CLAIM = re.compile(r"claim-([0-9a-f]{32})\.json")
_PROCESS = re.compile(r"[0-9a-f-]+/\d+/\d+/\d+")
_HOLDER = re.compile(r"holder-([0-9a-f]{32})\.json")


@dataclass(frozen=True)
class _Content:
    """What a claim or a holder object says, as far as other drivers read it."""

    who: str
    since: str
    process: str  # as `process_identity` writes it, or empty
    seconds: float
    replaces: frozenset[str]  # tokens


class TooSlowError(Exception):
    """A step took longer than its limit, so that another driver may not have seen it in time."""


class ClaimLease(HeldLease):
    """A lease of claims. `folder`: where claims and holders lie. The token is new for each claim."""

    def __init__(
        self,
        filesystem: fsspec.AbstractFileSystem,
        folder: str,
        seconds: float,
        on_loss: Callable[[], None] = lambda: None,
    ):
        super().__init__(filesystem, seconds, on_loss)
        self.folder = folder
        self.dead: set[str] = set()  # tokens of holders that this driver has replaced
        self.seen: dict[str, tuple[bytes, float]] = {}  # of claims and holders: content, and since when we see it

    def __enter__(self) -> "ClaimLease":
        """Raises RunError if another driver holds the lease, or the store is too slow."""
        try:
            self._take()
            reached("lease taken")
            self.thread.start()
        except BaseException:
            self._remove([self._holder(self.token)])
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.ended.set()
        self.thread.join()
        self._remove([self._holder(self.token)])

    # --- taking the lease -------------------------------------------------------------------------------------------

    def _take(self) -> None:
        for _ in range(_TRIES):
            self._wait_for_holders()
            try:
                if self._claim():
                    return
            except TooSlowError as error:
                logger.warning("the lease on --output has to be claimed again: %s", error)
        raise RunError(f"the lease on --output could not be had in {_TRIES} tries; run the same command again")

    def _wait_for_holders(self) -> None:
        """Return when no holder is left, or only dead ones. RunError if a holder renews its lease."""
        # `sum` and not `any`, so that all holders are watched from the start.
        while sum(not self._is_dead(token) for token in _tokens(_HOLDER, self._names())):
            time.sleep(1.0)

    def _is_dead(self, token: str) -> bool:
        """Whether the driver with this token holds no more. RunError if it has renewed its lease while we watched."""
        path = self._holder(token)
        is_new = path not in self.seen
        unchanged_for, content = self._watch(path)
        if content is None or token in self.dead:  # released since the listing, or replaced by us
            return True
        if not is_new and unchanged_for == 0:
            raise RunError(f"--output is in use by {content.who} since {content.since}, whose lease is {path}")
        if is_gone(content.process):
            logger.warning("the lease on --output names %s, which no longer exists", content.who)
        elif unchanged_for <= content.seconds + 2 * PERIOD_SECONDS:
            if is_new:
                logger.warning("waiting to see whether %s renews its lease on --output", content.who)
            return False
        self.dead.add(token)
        return True

    def _claim(self) -> bool:
        """Claim the lease. False if the lease is another driver's, or may become so."""
        self.token = uuid.uuid4().hex
        claim = self._claim_of(self.token)
        try:
            started = time.monotonic()
            put_object(self.filesystem, claim, self._content(replaces=sorted(self.dead)))
            _limit("the claim was written", started, 1)
            time.sleep(PERIOD_SECONDS)
            listed = time.monotonic()
            _limit("the claims were listed", started, 3)
            # One listing for both: a driver writes its holder object before it removes its claim, so a driver shows in
            # a listing of claims and then holders, which is how their names sort.
            names = self._names()
            if any(token not in self.dead for token in _tokens(_HOLDER, names)):
                return False
            if lower := [token for token in _tokens(_CLAIM, names) if token < self.token]:
                self._remove([claim])
                self._wait_for_claims(lower)
                return False
            self.renewed_at = time.monotonic()
            try:
                put_object(self.filesystem, self._holder(self.token), self._content(replaces=sorted(self.dead)))
                _limit("the lease was written", listed, 1)
            except BaseException:
                self._remove([self._holder(self.token)])
                raise
            self._remove(map(self._holder, self.dead))
            return True
        finally:
            self._remove([claim])

    def _wait_for_claims(self, tokens: Iterable[str]) -> None:
        """Wait until these claims are gone. A claim that stays for four periods has no driver, and is removed."""
        left = set(map(self._claim_of, tokens))
        while left:
            left -= {path for path in left if self._is_gone_claim(path)}
            if left:
                time.sleep(1.0)

    def _is_gone_claim(self, path: str) -> bool:
        """Whether the claim is gone, or was removed now because it has no driver."""
        unchanged_for, content = self._watch(path)
        if content is None:
            return True
        if unchanged_for > 4 * PERIOD_SECONDS or is_gone(content.process):
            self._remove([path])
            return True
        return False

    # --- keeping the lease ------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        while self.lost is None and not self.ended.wait(self.seconds / RENEWALS):
            self._renew()

    def _renew(self) -> None:
        """Renew the lease, then look whether another driver holds it."""
        if time.monotonic() - self.renewed_at > self.seconds:
            self._lose(f"the lease was not renewed for {self.seconds:g} s")
            return
        self.renewals += 1
        started = time.monotonic()
        try:
            put_object(self.filesystem, self._holder(self.token), self._content(replaces=sorted(self.dead)))
            names = self._names()
            others = [token for token in _tokens(_HOLDER, names) if token != self.token]
            self._remove(self._holder(token) for token in others if token in self.dead)
            for token in _tokens(_CLAIM, names):
                self._is_gone_claim(self._claim_of(token))
            conflict = next((token for token in others if token not in self.dead and self._wins(token)), None)
        except STORE_ERRORS as error:
            if time.monotonic() - self.renewed_at > self.seconds * (1 - 1 / RENEWALS):
                self._lose(f"the lease could not be renewed: {one_line(error)}")
            return
        if conflict is not None:
            self._lose("another driver took the lease")
        elif time.monotonic() - self.renewed_at > self.seconds:
            self._lose(f"the lease was not renewed for {self.seconds:g} s")
        else:
            self.renewed_at = started

    def _wins(self, token: str) -> bool:
        """Whether the driver with this token keeps the lease, and this driver loses it: it took over, or is lower."""
        _, content = self._watch(self._holder(token))
        return content is not None and (self.token in content.replaces or token < self.token)

    # --- objects ----------------------------------------------------------------------------------------------------

    def _claim_of(self, token: str) -> str:
        return f"{self.folder}/claim-{token}.json"

    def _holder(self, token: str) -> str:
        return f"{self.folder}/holder-{token}.json"

    def _names(self) -> list[str]:
        return [path.rpartition("/")[2] for path in list_folder(self.filesystem, self.folder)]

    def _watch(self, path: str) -> tuple[float, "_Content | None"]:
        """For how long we have seen the object at `path` with this content, and the content; None if it is gone.

        The time runs from the answer to the first request to the sending of this one: the object had this content then.
        """
        asked = time.monotonic()
        try:
            data = read_once(self.filesystem, path, MOST_LEASE_BYTES)
        except FileNotFoundError:
            self.seen.pop(path, None)
            return 0.0, None
        before, since = self.seen.get(path, (b"", 0.0))
        if before != data:
            since = time.monotonic()
            self.seen[path] = (data, since)
        return max(0.0, asked - since), _parse(data, self.seconds)

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            with contextlib.suppress(*STORE_ERRORS):  # a later driver removes it
                self.filesystem.rm_file(path)


def claims_to_hold(filesystem: fsspec.AbstractFileSystem, folder: str, token: str) -> bool:
    """Whether a driver with this token has taken the lease below `folder` and has not released it; it may be dead."""
    name = f"holder-{token}.json"
    return _HOLDER.fullmatch(name) is not None and bool(filesystem.exists(f"{folder}/{name}"))


def _tokens(kind: re.Pattern[str], names: Iterable[str]) -> list[str]:
    """The tokens in the names of this kind, sorted."""
    return sorted(match[1] for name in names if (match := kind.fullmatch(name)))


def _limit(what: str, since: float, periods: int) -> None:
    """Raise TooSlowError if more than `periods` periods have passed since `since`."""
    passed = time.monotonic() - since
    if passed > periods * PERIOD_SECONDS:
        raise TooSlowError(f"{what} after {passed:.1f} s, more than {periods * PERIOD_SECONDS:g} s")


def _parse(data: bytes, seconds: float) -> "_Content":
    """The content of a claim or a holder object. Fields that no driver writes get defaults: the object runs out."""
    try:
        found = parse_json(data)
    except ValueError:
        found = None
    fields: dict[str, Any] = found if isinstance(found, dict) else {}
    lasts, replaces, process = fields.get("seconds"), fields.get("replaces"), str(fields.get("process"))
    return _Content(
        who=f"process {shown(str(fields.get('pid')))} on {shown(str(fields.get('host')))}",
        since=shown(str(fields.get("since"))),
        process=process if _PROCESS.fullmatch(process) else "",
        seconds=float(lasts) if isinstance(lasts, int | float) and 0 < lasts <= 86_400 else seconds,
        replaces=frozenset(map(str, replaces)) if isinstance(replaces, list) else frozenset(),
    )
