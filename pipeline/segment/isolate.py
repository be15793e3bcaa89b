"""Segment images one by one in a child process, so that an image that kills or blocks the process is identified and no
other image is lost.

The parent sends one image at a time and waits for the result, so it always knows which image the child is working on.
Meanwhile the child says after each batch that it goes on, because an image of many tiles takes longer than a step may.
The child is a fresh interpreter, not a fork, because a fork of a process with threads or with CUDA hangs or breaks.
"""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pipeline.errors import ErrorCode, ImageError, RunError
from pipeline.guard.memory import MemoryBound
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentedImage, SegmentSpec

_LOOK_SECONDS = 0.05  # how often the parent looks at the child's memory and at the clock
_START_SECONDS = 600.0  # to load PyTorch and the model, even from a cold disk
_GOES_ON = "a batch is done"  # the child's message before the result


def segment_one_by_one(spec: SegmentSpec, encoded: Sequence[bytes | None]) -> list[SegmentedImage | ImageError | None]:
    """Like Segmenter.segment, but an image that crashes, fills the memory or never returns gets an ImageError.

    Codes: crashed_worker, timed_out (after spec.step_timeout seconds without a result or a finished batch). Raises
    RunError if the child cannot start, and the exceptions of Segmenter.
    """
    results: list[SegmentedImage | ImageError | None] = []
    child: _Child | None = None
    try:
        for data in encoded:
            if data is None:
                results.append(None)
                continue
            if child is None or not child.alive():  # it may have ended between two images: no image's fault
                child = _Child(spec)
            results.append(child.segment(data))
    finally:
        if child is not None:
            child.end()
    return results


class _Child:
    """The parent's side: a process with a Segmenter of its own."""

    def __init__(self, spec: SegmentSpec):
        self.spec = spec
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.segment.isolate", str(theirs.fileno()), str(os.getpid())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
            )
        ready = self._answer(_START_SECONDS, bound=None) if self._send(spec) else self._death()
        if isinstance(ready, ImageError):
            raise RunError(f"the process that segments images one by one cannot start: {ready.message}")
        self.bound: MemoryBound = ready

    def alive(self) -> bool:
        return self.process.poll() is None

    def segment(self, data: bytes) -> SegmentedImage | ImageError:
        if not self._send(data):
            return self._death()
        answer: SegmentedImage | ImageError = self._answer(self.spec.step_timeout, self.bound)
        return answer

    def end(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _send(self, message: Any) -> bool:
        """Return False if the child died before it had received the whole message."""
        try:
            self.connection.send(message)
        except OSError:
            return False
        return True

    def _answer(self, seconds: float, bound: MemoryBound | None) -> Any:
        """The child's result, or an ImageError if the child ended. Raises the exception that the child raised."""
        answer = _GOES_ON
        while isinstance(answer, str):
            answer = self._message(seconds, bound)
        if isinstance(answer, Exception) and not isinstance(answer, ImageError):
            raise answer
        return answer

    def _message(self, seconds: float, bound: MemoryBound | None) -> Any:
        """The child's next message, within `seconds`, or an ImageError if the child ended."""
        end = time.monotonic() + seconds
        while not self.connection.poll(_LOOK_SECONDS):
            if time.monotonic() > end:
                self.end()
                return ImageError(ErrorCode.TIMED_OUT, f"alone in a process, not done after {seconds:g} s")
            if bound is not None and (breach := bound.breach(self.process.pid)):
                self.end()
                return ImageError(ErrorCode.CRASHED_WORKER, f"alone in a process, which was ended because {breach}")
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            return self._death()

    def _death(self) -> ImageError:
        self.connection.close()
        return ImageError(ErrorCode.CRASHED_WORKER, f"a child process of its own ended: {_how(self.process.wait())}")


def _how(returncode: int) -> str:
    """Describe a process's end: exit code or signal."""
    if returncode >= 0:
        return f"exit code {returncode}"
    name = signal.Signals(-returncode).name
    hint = "; the kernel sends it when memory runs out" if name == "SIGKILL" else ""
    return f"{name}{hint}"


def _serve(connection: Connection) -> None:
    """The child's side: receive a spec, then images; answer each with its result or the exception that it raised."""
    try:
        segmenter = Segmenter(connection.recv())
    except Exception as error:
        connection.send(_picklable(error))
        return
    connection.send(segmenter.memory_bound(decoding=1, batch_size=1))
    while True:
        try:
            data = connection.recv()
        except EOFError:  # the parent has closed its end
            return
        answer: Any
        try:
            [answer] = segmenter.segment([data], batch_done=lambda: connection.send(_GOES_ON))
        except Exception as error:
            answer = _picklable(error)
        connection.send(answer)


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _be_first_to_go(parent: int) -> None:
    """End when the parent ends, and be the first process that the kernel kills when memory runs out. Linux only."""
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before the line above
        sys.exit(1)
    Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    _be_first_to_go(parent=int(sys.argv[2]))
    _serve(Connection(int(sys.argv[1])))
