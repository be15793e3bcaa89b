"""Errors of the S3 client are counted although the client repeats the request, and by the right cause."""

from collections import Counter

import pytest

from pipeline.drill.fault_proxy import FaultProxy, Rule
from pipeline.store.filesystem import open_filesystem
from pipeline.store.objects import DamagedError, read_object
from pipeline.store.retries import OBJECT, cause_of_retry


@pytest.fixture
def counted(monkeypatch):
    """What m2f_store_errors_total and m2f_retries_total would say, by (metric, cause)."""
    values: Counter[tuple[str, str]] = Counter()
    for name, metric in (("store", "client_errors.STORE_ERRORS"), ("retries", "retries.RETRIES")):
        add = lambda value=1, *, cause, name=name: values.update({(name, cause): value})  # noqa: E731
        monkeypatch.setattr(f"pipeline.store.{metric}.add", add)
    return values


@pytest.mark.usefixtures("fresh_s3", "no_pauses")
@pytest.mark.parametrize(
    ("fault", "causes"),
    [
        ("slow_down", {("store", "throttled"): 2}),
        ("internal_error", {("store", "server_error"): 2}),
        ("reset", {("store", "connection"): 1}),  # aiohttp itself repeats a GET once
        ("access_denied", {}),
        ("truncate", {("retries", "corrupt"): 2}),
    ],
)
def test_each_cause_is_counted(s3, monkeypatch, counted, fault, causes):
    uri = s3.bucket(f"errors-{fault.replace('_', '-')}")
    s3.client.put_object(Bucket=uri.removeprefix("s3://"), Key="x", Body=b"whole" * 1000)
    with FaultProxy(s3.url, [Rule("^GET .*/x", fault, times=2)]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        filesystem, path = open_filesystem(f"{uri}/x")
        open_filesystem(f"{uri}/x")  # does not count twice
        if fault == "access_denied":
            with pytest.raises(PermissionError):
                read_object(filesystem, path)
        else:
            assert read_object(filesystem, path) == b"whole" * 1000
    assert counted == causes


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (DamagedError("half"), "corrupt"),
        (TimeoutError("x was not read within 10 s"), "timed_out"),
        (ConnectionResetError(), "connection"),
        (OSError("a disk"), "other"),
        (None, "other"),
    ],
)
def test_an_error_tells_its_cause(error, cause):
    assert cause_of_retry(error) == cause


@pytest.mark.usefixtures("no_pauses")
def test_each_repetition_of_a_policy_counts_once(counted):
    from tenacity import retry_if_exception_type

    def fail():
        raise TimeoutError

    with pytest.raises(TimeoutError):
        OBJECT.retrying(retry_if_exception_type(OSError))(fail)
    assert counted == {("retries", "timed_out"): OBJECT.attempts - 1}
