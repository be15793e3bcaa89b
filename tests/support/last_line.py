"""What a job says when it refuses: lines about what it is doing, then one line that says why it ends."""

import re


def last_line(stderr: str) -> str:
    """The last line; the lines before it may only say what the job was doing."""
    assert "Traceback" not in stderr, stderr
    *doing, last = stderr.splitlines()
    assert all(re.match(r"\S+Z INFO: ", line) for line in doing), stderr
    return last
