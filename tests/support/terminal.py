"""A program on a real terminal: its output as it comes, keys that it is sent, its exit code."""

import os
import pty
import re
import select
import time
from collections.abc import Mapping, Sequence

CTRL_C = b"\x03"


class Terminal:
    """`command` with a pseudo-terminal as its stdin, stdout and stderr."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] = os.environ, columns: int = 200):
        self.output = ""
        environment = {**environment, "TERM": "xterm", "COLUMNS": str(columns)}
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execvpe(command[0], list(command), environment)

    def wait_for(self, words: str, seconds: float = 300) -> None:
        """Until the output holds `words`."""
        end = time.monotonic() + seconds
        while words not in self.output:
            assert time.monotonic() < end, f"waited too long for {words!r}: {self.output}"
            assert self._read(1.0), f"the program ended without {words!r}: {self.output}"

    def press(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def exit_code(self) -> int:
        """Once the program has ended, and with it what writes to the terminal."""
        while self._read(60.0):
            pass
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def lines(self) -> list[str]:
        """What was written between line breaks and clearings of a line, without colours and cursor movements.

        Nor `^C`, which the terminal itself shows where the key is pressed.
        """
        pieces = re.split(r"\r\n|\r|\n|\x1b\[2K", self.output.replace("^C", ""))
        plain = (re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", piece).strip() for piece in pieces)
        return [piece for piece in plain if piece]

    def _read(self, seconds: float) -> bool:
        """Take what comes; False once nothing can come any more."""
        ready, _, _ = select.select([self.descriptor], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self.descriptor, 65536)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.output += data.decode(errors="replace")
        return bool(data)
