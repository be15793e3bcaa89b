"""The end of a job's process."""

import atexit
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def leave_with(main: Callable[[], int]) -> NoReturn:
    """End the process with the code that `main` returns or raises, without the interpreter's own tear-down.

    The tear-down of PyTorch and Ray takes three seconds in which a terminal has no prompt. All that counts has happened
    by then: blocks have been left, threads have been joined, and functions of `atexit` have run, such as ray.shutdown.
    """
    code = 1  # of an exception that nobody caught: Python prints it before the functions of atexit run

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

    atexit.register(end)  # before any import of Ray or PyTorch registers one: the first registered runs last
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    sys.exit(code)
