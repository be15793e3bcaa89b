"""Places in the commit protocol where a drill may kill the process, as a power cut would.

`M2F_KILL_AT="images part written:3"` in a process's environment kills the process (SIGKILL) when it reaches that place
for the third time. Without the variable, `reached` does nothing.
"""

import os
import signal

VARIABLE = "M2F_KILL_AT"
# In the order of a run. The two `part written` are places in a writing actor, all others in the driver.
POINTS = (
    "lease taken",
    "plan written",
    "run.json written",
    "attempt written",
    "segments part written",
    "images part written",
    "before journal",
    "after journal",
    "before segments published",
    "between segments and images published",
    "after images published",
    "after report",
)

# Of a run with --keep-logits.
POINTS_OF_LOGITS = ("logits part written", "between logits and segments published")

# Of a run whose plan is not complete when its first shards run.
POINTS_OF_A_GROWING_PLAN = ("plan extended", "plan.json written")

# In the order of jobs/tidy.py.
POINTS_OF_TIDY = (
    "runs marked",
    "files removed",
    "rows written anew",
    "between images and segments tidied",
    "rows removed",
    "runs removed",
    "nights removed",
    "files merged",
    "checkpoint written",
)

_reached: dict[str, int] = {}


def reached(point: str) -> None:
    """Record that this process has reached `point`, one of the points above."""
    assert point in (*POINTS, *POINTS_OF_LOGITS, *POINTS_OF_A_GROWING_PLAN, *POINTS_OF_TIDY), point
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    name, _, count = wanted.partition(":")
    if name == point:
        _reached[point] = _reached.get(point, 0) + 1
        if _reached[point] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)
