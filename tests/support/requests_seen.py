"""What is sent to S3 by the file systems of the program, as the client prepared it: method, address and headers."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.input_spec import OWN_ACCESS, Access
from pipeline.store.filesystem import open_filesystem


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    headers: dict[str, str]


@contextlib.contextmanager
def requests_seen(access: Access = OWN_ACCESS) -> Iterator[list[Request]]:
    """A list that each request to S3 with this access is added to."""
    seen: list[Request] = []

    def note(request: Any, **_: Any) -> None:
        headers = {
            name.lower(): value.decode() if isinstance(value, bytes) else str(value)
            for name, value in request.headers.items()
        }
        seen.append(Request(request.method, request.url, headers))

    events = open_filesystem("s3://any", access)[0].s3.meta.events
    events.register_first("before-send.s3", note)
    try:
        yield seen
    finally:
        events.unregister("before-send.s3", note)
