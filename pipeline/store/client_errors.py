"""Count the requests of the S3 client that go wrong, before the client repeats them by itself.

The client hides its own retries. A store that slows all requests down would otherwise show as nothing but a slow run.
"""

from typing import Any

from botocore.exceptions import ConnectionError as ConnectionFailedError
from botocore.exceptions import HTTPClientError, ReadTimeoutError

from pipeline.telemetry.metrics import STORE_ERRORS

_THROTTLED = {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}


def count_errors(client: Any) -> None:
    """Count the errors of all requests of this client (botocore's or aiobotocore's). May be called again."""
    # The event at which the client decides whether it repeats a request; the first handler sees every answer.
    client.meta.events.register_first("needs-retry.s3", _count, unique_id="m2f-count-errors")


def _count(
    response: tuple[Any, dict[str, Any]] | None = None, caught_exception: Exception | None = None, **_: Any
) -> None:
    """Return None, which leaves the decision to the client's own handlers."""
    if caught_exception is not None:
        cause = cause_of_exception(caught_exception)
    else:
        cause = None if response is None else cause_of_answer(response[1])
    if cause is not None:
        STORE_ERRORS.add(cause=cause)


def cause_of_exception(error: BaseException) -> str | None:
    """timed_out or connection; None for an exception that is no fault of store or network."""
    if isinstance(error, (ReadTimeoutError, TimeoutError)) or "timed out" in str(error).lower():
        return "timed_out"
    return "connection" if isinstance(error, (ConnectionFailedError, HTTPClientError, ConnectionError)) else None


def cause_of_answer(answer: dict[str, Any]) -> str | None:
    """throttled, server_error or conflict; None for an answer that is no fault of the store. `answer` as botocore has
    it.
    """
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 200)
    if status in (429, 503) or answer.get("Error", {}).get("Code") in _THROTTLED:
        return "throttled"
    return "conflict" if status == 409 else "server_error" if status >= 500 else None
