"""All retry policies of the program in one table: how each kind of work on a store is repeated.

`S3_CLIENT` sets the retries and time-outs of the S3 client for a single request. The policies below come on top, for
faults that the client does not retry: incomplete bodies, flipped bytes, conflicts between writers. Each pause is
random, between 0 and a limit that doubles after each attempt, so that writers that collided drift apart.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import sleep
from typing import Any

from tenacity import RetryCallState, Retrying, stop_after_attempt, stop_after_delay, stop_never, wait_random_exponential
from tenacity.retry import retry_base

from pipeline.store.client_errors import cause_of_answer, cause_of_exception
from pipeline.telemetry.metrics import RETRIES

# Measured against injected faults: s3fs repeats each of botocore's rounds up to five times, so five attempts here
# survive long 503 storms. s3fs's default read time-out of 15 s is too short for large objects on a busy store, and a
# minute would hold everything up if one connection stalls.
S3_CLIENT: dict[str, Any] = {
    "retries": {"mode": "standard", "total_max_attempts": 5},
    "connect_timeout": 5,
    "read_timeout": 30,
}


@dataclass(frozen=True)
class RetryPolicy:
    """`attempts` in all. The first pause takes up to `first_pause` seconds, later pauses up to `longest_pause`."""

    attempts: int
    first_pause: float
    longest_pause: float = math.inf

    def retrying(self, retry: retry_base, *, give_up_after: float | None = None, before_sleep: Any = None) -> Retrying:
        """An object that repeats a call (or a `with` block) as long as `retry` says so, and then raises the last error.

        After `give_up_after` seconds, no new attempt begins. `before_sleep(state)` is called before each pause.
        """
        return Retrying(
            stop=stop_after_attempt(self.attempts)
            | (stop_never if give_up_after is None else stop_after_delay(give_up_after)),
            wait=wait_random_exponential(multiplier=self.first_pause, max=self.longest_pause),
            retry=retry,
            before_sleep=_counted(before_sleep),
            sleep=_pause,
            reraise=True,
        )


def _counted(before_sleep: Callable[[RetryCallState], None] | None) -> Callable[[RetryCallState], None]:
    def count(state: RetryCallState) -> None:
        RETRIES.add(cause=cause_of_retry(last_error(state)))
        if before_sleep is not None:
            before_sleep(state)

    return count


def cause_of_retry(error: BaseException | None) -> str:
    """The label of an error in m2f_retries_total.

    An error names its label itself (`retry_cause`), or the answer of S3 behind the error tells.
    """
    for one in (error, getattr(error, "__cause__", None)):
        if (named := getattr(one, "retry_cause", None)) is not None:
            return str(named)
        answer = getattr(one, "response", None)
        if isinstance(answer, dict) and (cause := cause_of_answer(answer)) is not None:
            return cause
        if one is not None and (cause := cause_of_exception(one)) is not None:
            return cause
    return "other"


def _pause(seconds: float) -> None:
    sleep(seconds)  # `sleep` is looked up at each call, so that tests can replace it for all policies at once


# One image of the input. There are few attempts, because each request may take three times as long as the request
# before (`pipeline/inputs/verified.py`), and an image that cannot be read becomes a row and does not end the run.
IMAGE = RetryPolicy(attempts=4, first_pause=0.25)
# One small object that the run needs: run.json, the journal, the lease.
OBJECT = RetryPolicy(attempts=5, first_pause=0.25)
# One file of a published table, or its log. A failed attempt is logged, because thousands of files are read in a row.
TABLE_READ = RetryPolicy(attempts=4, first_pause=0.25)
# A conditional write that met another write at the same moment (409). The other write ends in milliseconds, so pauses
# are short. There are many attempts, because with several writers the next attempt may meet a third.
CONDITIONAL_WRITE = RetryPolicy(attempts=8, first_pause=0.1, longest_pause=2)
# A commit to a table. Another publisher may commit in between again and again, and a failure ends the run. So this is
# the most patient policy, with pauses of about 36 s at most.
TABLE_COMMIT = RetryPolicy(attempts=8, first_pause=0.5, longest_pause=10)


def last_error(state: RetryCallState) -> BaseException | None:
    """The error of the attempt that `before_sleep` follows."""
    return state.outcome.exception() if state.outcome is not None else None
