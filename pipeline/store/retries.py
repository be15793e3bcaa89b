"""How patiently each kind of work on a store is repeated: one table of every retry policy of the program.

`S3_CLIENT` is the patience of the S3 client with a single request. The policies below come on top, for faults that the
client does not repeat: bodies that are cut, bytes that are flipped, conflicts between writers. Pauses are drawn at
random between 0 and a longest pause, which doubles after each attempt, so that writers that collided part.
"""

import math
from dataclasses import dataclass
from time import sleep
from typing import Any

from tenacity import RetryCallState, Retrying, stop_after_attempt, stop_after_delay, stop_never, wait_random_exponential
from tenacity.retry import retry_base

# Measured against injected faults: s3fs repeats each of botocore's rounds up to five times, so five attempts here
# survive long 503 storms; its own default read time-out of 15 s is too short for large objects on a busy store, and
# a minute would hold everything up where one connection falls asleep.
S3_CLIENT: dict[str, Any] = {
    "retries": {"mode": "standard", "total_max_attempts": 5},
    "connect_timeout": 5,
    "read_timeout": 30,
}


@dataclass(frozen=True)
class RetryPolicy:
    """`attempts` in all; before the second one a pause of up to `first_pause` seconds, later up to `longest_pause`."""

    attempts: int
    first_pause: float
    longest_pause: float = math.inf

    def retrying(self, retry: retry_base, *, give_up_after: float | None = None, before_sleep: Any = None) -> Retrying:
        """What repeats a call (or a `with` block) as long as `retry` says so, and then raises the last error.

        `give_up_after` that many seconds no new attempt begins. `before_sleep(state)` is called before each pause.
        """
        return Retrying(
            stop=stop_after_attempt(self.attempts)
            | (stop_never if give_up_after is None else stop_after_delay(give_up_after)),
            wait=wait_random_exponential(multiplier=self.first_pause, max=self.longest_pause),
            retry=retry,
            before_sleep=before_sleep,
            sleep=_pause,
            reraise=True,
        )


def _pause(seconds: float) -> None:
    sleep(seconds)  # looked up at each call, so that tests replace it for all policies at once


# One image of the input. Few attempts, because each request may take three times as long as the one before
# (`pipeline/inputs/verified.py`), and an image that cannot be read is a row and not the end of a run.
IMAGE = RetryPolicy(attempts=4, first_pause=0.25)
# One small object that the run cannot do without: run.json, the journal, the lease.
OBJECT = RetryPolicy(attempts=5, first_pause=0.25)
# One file of a published table, or its log. A failed attempt is logged, because thousands of files are read in a row.
TABLE_READ = RetryPolicy(attempts=4, first_pause=0.25)
# A conditional write that met another one at the same moment (409). The other one ends in milliseconds, so pauses are
# short; attempts are many, because with several writers the next attempt may meet a third.
CONDITIONAL_WRITE = RetryPolicy(attempts=8, first_pause=0.1, longest_pause=2)
# A commit to a table. Another publisher may commit in between again and again, and what fails ends the run: the most
# patient policy, some 36 s of pauses at most.
TABLE_COMMIT = RetryPolicy(attempts=8, first_pause=0.5, longest_pause=10)


def last_error(state: RetryCallState) -> BaseException | None:
    """What the attempt of `before_sleep` raised."""
    return state.outcome.exception() if state.outcome is not None else None
