"""Let another thread of the driver end what the main thread is waiting for, even if the process ignores Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_wanted = threading.Event()


def interrupt_main_thread() -> None:
    """Raise KeyboardInterrupt in the main thread, within the body of `interruptible` at the latest."""
    _wanted.set()
    # A signal ends also a wait in the operating system; `_thread.interrupt_main` does not.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In the body, `interrupt_main_thread` works also where Ctrl-C is ignored. Ctrl-C itself stays ignored.

    A shell script starts `command &` with Ctrl-C ignored, and then the signal would do nothing.
    """
    _wanted.clear()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt_if_wanted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt_if_wanted(number: int, frame: FrameType | None) -> None:
    if _wanted.is_set():
        raise KeyboardInterrupt
