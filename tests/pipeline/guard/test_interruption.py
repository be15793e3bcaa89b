"""Another thread interrupts the main thread, at a terminal and in the background; Ctrl-C keeps its meaning."""

import os
import signal
import threading
import time

import pytest

from pipeline.guard.interruption import interrupt_main, interruptible

HANDLERS = pytest.mark.parametrize(
    "ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"]
)


@pytest.fixture
def sigint(ctrl_c):
    before = signal.signal(signal.SIGINT, ctrl_c)
    yield ctrl_c
    signal.signal(signal.SIGINT, before)


def is_interrupted() -> bool:
    thread = threading.Thread(target=interrupt_main)
    try:
        thread.start()
        for _ in range(3000):
            time.sleep(0.01)
    except KeyboardInterrupt:
        return True
    finally:
        thread.join()
    return False


@HANDLERS
def test_each_call_interrupts_the_main_thread_once(sigint):
    with interruptible():
        assert is_interrupted()
        with interruptible():  # one within another, as a lease and a limit of one run
            assert is_interrupted()
        assert is_interrupted()
    assert signal.getsignal(signal.SIGINT) is sigint


@pytest.mark.parametrize("ctrl_c", [signal.SIG_IGN])
def test_ctrl_c_stays_ignored_before_and_after_an_interrupt(sigint):
    with interruptible():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            assert time.monotonic()  # a handler of Python runs between two instructions
            assert is_interrupted()
    assert signal.getsignal(signal.SIGINT) is sigint
