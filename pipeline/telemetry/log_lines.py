"""The pipeline's own messages, one line each, on stderr."""

import logging
import sys


def show_log_lines() -> None:
    """The pipeline's own messages, one line each, on stderr. May be called again."""
    log = logging.getLogger("pipeline")
    if log.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
