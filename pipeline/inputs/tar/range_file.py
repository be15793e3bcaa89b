"""A file over range requests, for a reader that looks at headers and skips most of the data between them."""

from pipeline.errors import RunError
from pipeline.inputs.container import Container
from pipeline.inputs.verified import LASTING, CorruptError
from pipeline.store.filesystem import store_errors_as

# S3 takes 30 ms to answer a request and sends 80 MB/s: where the next header is nearer than the bytes of 30 ms, one
# long request is quicker than two short ones.
_NEAR_BYTES = 2 * 2**20
_LEAST_BLOCK, _MOST_BLOCK = 64 * 2**10, 8 * 2**20
_TIMES_LARGER, _TIMES_SMALLER = 2, 4


class TooLongError(ValueError):
    """A header asks for more bytes than headers have."""


class RangeFile:
    """The bytes of a container as a seekable file, read in blocks.

    The block doubles as long as the next header is near, so that small members are streamed through. The block shrinks
    if the next header is far away, so that the data of large members is not read.

    Errors that may pass are retried, then they are a RunError that names the container. Other errors are
    FileNotFoundError, PermissionError, and ChangedError if the store holds another object by now.
    """

    def __init__(self, container: Container):
        self.container = container
        self.size = container.size_bytes
        self._position = self._end_of_read = 0
        self._start, self._data = 0, b""
        self._block_bytes = _LEAST_BLOCK // _TIMES_LARGER
        self._allowed = 0

    def allow(self, num_bytes: int) -> None:
        """From now on, `read` raises TooLongError after `num_bytes` bytes: headers say themselves how long they are."""
        self._allowed = num_bytes

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        """Go to a byte, counted from the start. Nothing is read."""
        if position < 0:
            raise ValueError(f"there is no byte {position}")
        self._position = position
        return position

    def read(self, num_bytes: int) -> bytes:
        """The next bytes; fewer than `num_bytes` only at the end of the file."""
        if not 0 <= num_bytes <= self._allowed:
            raise TooLongError("it asks for more bytes than headers have")
        self._allowed -= num_bytes
        data = self.peek(num_bytes)
        self._position = self._end_of_read = self._position + len(data)
        return data

    def peek(self, num_bytes: int) -> bytes:
        """As `read`, of any number of bytes, but the position stays."""
        end = min(self._position + num_bytes, self.size)
        if end <= self._position:
            return b""
        if not self._start <= self._position <= end <= self._start + len(self._data):
            self._load(end - self._position)
        first = self._position - self._start
        return self._data[first : first + end - self._position]

    def _load(self, least_bytes: int) -> None:
        is_near = self._position - self._end_of_read <= _NEAR_BYTES
        wanted = self._block_bytes * _TIMES_LARGER if is_near else self._block_bytes // _TIMES_SMALLER
        self._block_bytes = min(max(wanted, _LEAST_BLOCK), _MOST_BLOCK)
        length = min(max(least_bytes, self._block_bytes), self.size - self._position)
        self._start, self._data = self._position, self._request(self._position, length)

    def _request(self, first: int, length: int) -> bytes:
        lasting: Exception
        with store_errors_as(RunError, f"--input: {self.container.uri} cannot be read", also=(CorruptError,)):
            try:
                return self.container.read(first, length)
            except LASTING as error:
                lasting = error
        raise lasting
