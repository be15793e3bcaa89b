"""How jobs end: with an exit code for scripts and, if something went wrong, with one line on stderr.

| code | |
|---|---|
| 0, 1 | the job is done; 1: its result is not good enough |
| 1 | the run broke (BrokenRunError); the line names a file with the traceback |
| 2 | the job cannot start or continue (RunError), or its arguments are wrong |
| 3 | the run stopped at --deadline or --max-cost (LimitReachedError); the same command continues it |
| 3 | --gate does not let the run be published (HeldByGateError) |
| 130, 143 | Ctrl-C, SIGTERM |
| 141 | nobody reads what the job prints any more (`| head`) |
"""

import atexit
import contextlib
import logging
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Protocol, TextIO

from pipeline.errors import BrokenRunError, HeldByGateError, JobEnd, LimitReachedError, RunError
from pipeline.shown_text import printable_lines
from pipeline.telemetry.log_lines import last_line

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
_LIMIT_REACHED = 3
_UNREAD = 128 + signal.SIGPIPE


class OnEnd(Protocol):
    """Called once when a job ends, before its last line: how, with which exit code, and why."""

    def __call__(self, end: JobEnd, exit_code: int, reason: str) -> None: ...


def _ignore(end: JobEnd, exit_code: int, reason: str) -> None:
    pass


def run_job(prog: str, work: Callable[[], int], *, kept: str | Callable[[], str] = "", on_end: OnEnd = _ignore) -> int:
    """Run `work`. Returns its exit code, or the code for what ended it. `kept` says what a stopped job has kept."""

    def after() -> str:
        words = kept if isinstance(kept, str) else kept()
        return f"; {words}" if words else ""

    sys.excepthook = _print_stack
    try:
        with sigterm_raises(), unread_output_ends():
            code = work()
    except RunError as error:
        on_end("refused", 2, str(error))
        fail(prog, str(error))
    except BrokenRunError as error:
        on_end("broke", 1, str(error))
        last_line(prog, f"{error}{after()}{_traceback_file(prog, error)}", error=error)
        return 1
    except LimitReachedError as end:
        on_end("stopped", _LIMIT_REACHED, f"{end}{after()}")
        last_line(prog, f"{end}{after()}", level=logging.WARNING)
        return _LIMIT_REACHED
    except HeldByGateError as end:
        on_end("stopped", _LIMIT_REACHED, str(end))
        last_line(prog, str(end), level=logging.WARNING)
        return _LIMIT_REACHED
    except KeyboardInterrupt:
        on_end("stopped", _INTERRUPTED, f"interrupted{after()}")
        last_line(prog, f"interrupted{after()}", level=logging.WARNING)
        if "ray" in sys.modules:  # which not every job needs
            from pipeline.cluster.local_ray import end_own_ray_at_once

            end_own_ray_at_once()
        return _INTERRUPTED
    except SystemExit as stop:
        if stop.code == _UNREAD:
            on_end("stopped", _UNREAD, f"nobody reads what the job prints{after()}")
            return _UNREAD
        # While ray.init runs, Ray's own handler is in place, which exits with the signal's number.
        if stop.code not in (_TERMINATED, signal.SIGTERM):
            on_end("broke", stop.code if isinstance(stop.code, int) else 1, f"the job exits with {stop.code}")
            raise
        on_end("stopped", _TERMINATED, f"stopped by SIGTERM{after()}")
        last_line(prog, f"stopped by SIGTERM{after()}", level=logging.WARNING)
        return _TERMINATED
    except Exception as bug:
        on_end("broke", 1, f"a bug of this program: {type(bug).__name__}: {bug}")
        raise
    on_end("finished", code, "")
    return code


def fail(prog: str, message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    last_line(prog, message)
    raise SystemExit(2)


def _print_stack(kind: type[BaseException], error: BaseException, stack: TracebackType | None) -> None:
    """For an uncaught exception, in place of Python's own hook: its text may quote names and URIs of others."""
    sys.stderr.write(printable_lines("".join(traceback.format_exception(kind, error, stack))))


def _traceback_file(prog: str, error: BaseException) -> str:
    """Write the traceback to a file, and return the words that name the file.

    Bug reports need the traceback, a terminal does not. An error without a cause needs no traceback.
    """
    if error.__cause__ is None:
        return ""
    lines = printable_lines("".join(traceback.format_exception(error)))
    try:
        with tempfile.NamedTemporaryFile("w", prefix=f"{prog}-", suffix=".traceback", delete=False) as file:
            file.write(lines)
    except OSError:  # a full disk may be what broke the run
        sys.stderr.write(lines)
        return ""
    return f" (traceback: {file.name})"


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """SIGTERM exits through all `with` blocks, which clean up. Outside the main thread, nothing changes."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def unread_output_ends() -> Iterator[None]:
    """Exit without a word, with the code of SIGPIPE, when standard output is a pipe that nobody reads any more."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread(sys.stdout):  # another pipe or a socket broke
            raise
        with Path(os.devnull).open("w") as nowhere:  # where the interpreter's last flush goes
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise SystemExit(_UNREAD) from None


def _is_unread(stream: TextIO) -> bool:
    """Whether `stream` writes to a pipe whose reader is gone."""
    try:
        watched = select.poll()
        watched.register(stream.fileno(), 0)
    except OSError:  # no file of the system, as in a test
        return False
    return any(event & select.POLLERR for _, event in watched.poll(0))


def leave_with(main: Callable[[], int]) -> NoReturn:
    """End the process with the code that `main` returns or raises, without the interpreter's own tear-down.

    The tear-down of PyTorch and Ray takes three seconds, in which a terminal has no prompt. Everything that matters has
    happened by then: `with` blocks have been left, threads have been joined, and functions of `atexit`, such as
    ray.shutdown, have run.
    """
    code = 1  # for an uncaught exception, which Python prints before the functions of atexit run

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
