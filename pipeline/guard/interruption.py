"""Interrupt the main thread from another thread, as Ctrl-C does, also in a process that ignores Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_wanted = threading.Event()


def interrupt_main() -> None:
    """Raise KeyboardInterrupt in the main thread, which must know by other means that it was not Ctrl-C."""
    _wanted.set()
    # A signal ends also a wait in the operating system; `_thread.interrupt_main` does not.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let `interrupt_main` interrupt the main thread even if the process ignores Ctrl-C.

    A shell script starts `command &` with Ctrl-C ignored, and then the signal would do nothing. Ctrl-C
    itself stays ignored.
    """

    def interrupt_if_wanted(number: int, frame: FrameType | None) -> None:
        if _wanted.is_set():
            _wanted.clear()
            raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        yield
        return
    _wanted.clear()
    signal.signal(signal.SIGINT, interrupt_if_wanted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
