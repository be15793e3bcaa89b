"""The fault proxy in front of a real S3 server: without rules nothing differs, with a rule its fault really happens."""

import hashlib
import io
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    FlexibleChecksumError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from pipeline.drill.fault_proxy import WRITES, FaultProxy, Rule
from pipeline.errors import RunError
from pipeline.store.filesystem import open_filesystem, put_object
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY

BUCKET = "m2f-proxy"
BODY = bytes(range(256)) * 1024  # 256 KiB
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture(scope="module")
def bucket(s3) -> Any:
    s3.bucket(BUCKET)
    s3.client.put_object(Bucket=BUCKET, Key="photos/a b+c%.bin", Body=BODY)
    s3.client.put_object(Bucket=BUCKET, Key="photos/é.bin", Body=b"short")
    return s3


@pytest.fixture
def proxy(bucket) -> Iterator[FaultProxy]:
    with FaultProxy(bucket.url, seed=1) as running:
        yield running


def client(proxy: FaultProxy, *, attempts: int = 1, access_key=ACCESS_KEY, secret_key=SECRET_KEY, **options) -> Any:
    """A client that hides nothing: by default one attempt."""
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        s3={"addressing_style": "path"},
        **options,
    )
    return boto3.client(
        "s3",
        endpoint_url=proxy.url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name="us-east-1",
        config=config,
    )


def get(store: Any, key: str = "photos/a b+c%.bin", **options: Any) -> bytes:
    return store.get_object(Bucket=BUCKET, Key=key, **options)["Body"].read()


def code_of(error: "pytest.ExceptionInfo[ClientError]") -> tuple[str, int]:
    answer = error.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


# --- without rules ----------------------------------------------------------------------------------------------------


def test_without_rules_reads_are_those_of_the_store(bucket, proxy):
    store = client(proxy)
    assert get(store) == BODY
    assert get(store, Range="bytes=1000-1999") == BODY[1000:2000]
    assert get(store, Range="bytes=-7") == BODY[-7:]
    assert get(store, "photos/é.bin") == b"short"
    for name in ("ETag", "ContentLength", "LastModified"):
        key = {"Bucket": BUCKET, "Key": "photos/a b+c%.bin"}
        assert store.head_object(**key)[name] == bucket.client.head_object(**key)[name]
    assert store.head_object(Bucket=BUCKET, Key="photos/a b+c%.bin")["ETag"] == f'"{MD5}"'
    pages = store.get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix="photos/", PaginationConfig={"PageSize": 1}
    )
    assert [entry["Key"] for page in pages for entry in page["Contents"]] == ["photos/a b+c%.bin", "photos/é.bin"]
    with pytest.raises(ClientError) as error:
        get(store, "photos/missing")
    assert code_of(error) == ("NoSuchKey", 404)
    assert not proxy.fired


def test_without_rules_writes_are_those_of_the_store(bucket, proxy):
    store = client(proxy)
    assert store.put_object(Bucket=BUCKET, Key="w/one", Body=BODY)["ETag"] == f'"{MD5}"'
    store.put_object(Bucket=BUCKET, Key="w/empty", Body=b"")
    large = BODY * 48  # 12 MiB: three parts
    parts = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
    store.upload_fileobj(io.BytesIO(large), BUCKET, "w/parts", Config=parts)
    head = bucket.client.head_object(Bucket=BUCKET, Key="w/parts")
    assert head["ETag"].endswith('-3"') and head["ContentLength"] == len(large)
    assert get(bucket.client, "w/parts") == get(store, "w/parts") == large
    assert get(bucket.client, "w/one") == BODY and get(bucket.client, "w/empty") == b""
    with pytest.raises(ClientError) as error:  # what commits of logs rest on
        store.put_object(Bucket=BUCKET, Key="w/one", Body=b"other", IfNoneMatch="*")
    assert code_of(error) == ("PreconditionFailed", 412)
    deleted = store.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "w/one"}, {"Key": "w/parts"}]})
    assert {entry["Key"] for entry in deleted["Deleted"]} == {"w/one", "w/parts"}


def test_the_pipelines_own_file_system_goes_through_it(bucket, proxy, fresh_s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    filesystem, path = open_filesystem(f"s3://{BUCKET}/own/x.bin")
    put_object(filesystem, path, BODY)
    assert filesystem.cat_file(path) == BODY
    assert filesystem.cat_file(path, start=10, end=20) == BODY[10:20]
    assert filesystem.ls(f"{BUCKET}/own", detail=False) == [path]
    assert proxy.num_requests >= 4


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("slow_down", ("SlowDown", 503)),
        ("internal_error", ("InternalError", 500)),
        ("access_denied", ("AccessDenied", 403)),
        ("no_space", ("InsufficientStorage", 507)),
    ],
)
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_errors_come_as_a_store_gives_them(bucket, proxy, fault, expected, method):
    proxy.set_rules([Rule(f"^{method} /{BUCKET}/", fault, times=1)])
    store = client(proxy)
    with pytest.raises(ClientError) as error:
        get(store) if method == "GET" else store.put_object(Bucket=BUCKET, Key=f"e/{fault}", Body=BODY)
    assert code_of(error) == expected
    assert proxy.fired == {fault: 1}
    if method == "PUT":
        with pytest.raises(ClientError):
            bucket.client.head_object(Bucket=BUCKET, Key=f"e/{fault}")
        store.put_object(Bucket=BUCKET, Key=f"e/{fault}", Body=BODY)
    assert get(store) == BODY, "the rule is spent"


def test_a_reset_never_reaches_the_store(bucket, proxy):
    proxy.set_rules([Rule("^PUT ", "reset", times=1)])
    with pytest.raises(ConnectionClosedError):
        client(proxy).put_object(Bucket=BUCKET, Key="reset", Body=BODY)
    with pytest.raises(ClientError):
        bucket.client.head_object(Bucket=BUCKET, Key="reset")
    proxy.set_rules([Rule("^PUT ", "reset", times=1)])
    client(proxy, attempts=2).put_object(Bucket=BUCKET, Key="reset", Body=BODY)
    assert get(bucket.client, "reset") == BODY


def test_a_lost_answer_leaves_what_was_written(bucket, proxy):
    """And so the client's own second try of a conditional write is refused by its first."""
    proxy.set_rules([Rule("^PUT ", "lost_answer", times=1)])
    with pytest.raises(ClientError) as error:
        client(proxy, attempts=2).put_object(Bucket=BUCKET, Key="lost", Body=BODY, IfNoneMatch="*")
    assert code_of(error) == ("PreconditionFailed", 412)
    assert get(bucket.client, "lost") == BODY


def test_latency_is_at_least_that_long_and_the_answer_comes(bucket, proxy):
    proxy.set_rules([Rule("^GET ", "latency", times=1, seconds=0.6)])
    started = time.monotonic()
    assert get(client(proxy)) == BODY
    assert time.monotonic() - started >= 0.6


def test_a_stalled_answer_ends_by_the_clients_time_out(bucket, proxy):
    proxy.set_rules([Rule("^GET ", "stall", times=1, seconds=3600)])
    store = client(proxy, read_timeout=10)
    body = store.get_object(Bucket=BUCKET, Key="photos/a b+c%.bin")["Body"]
    with pytest.raises(ReadTimeoutError):  # long before the stall ends
        body.read()
    assert get(store) == BODY


def test_a_stall_may_end_before_the_clients_patience(bucket, proxy):
    proxy.set_rules([Rule("^GET ", "stall", times=1, seconds=0.2)])
    with pytest.raises((ResponseStreamingError, IncompleteReadError)):
        get(client(proxy))


def test_a_truncated_body_promises_more_than_comes(bucket, proxy):
    proxy.set_rules([Rule("^GET .*photos", "truncate", times=1)])
    store = client(proxy)
    answer = store.get_object(Bucket=BUCKET, Key="photos/a b+c%.bin")
    assert answer["ContentLength"] == len(BODY)
    with pytest.raises((ResponseStreamingError, IncompleteReadError)):
        answer["Body"].read()
    assert get(store) == BODY


def test_one_byte_is_flipped(bucket, proxy):
    rule = Rule("^GET ", "flip", times=1)
    proxy.set_rules([rule])
    got = get(client(proxy, response_checksum_validation="when_required"))
    differ = [place for place, (a, b) in enumerate(zip(got, BODY, strict=True)) if a != b]
    assert differ == [len(BODY) // 2]
    bucket.client.put_object(Bucket=BUCKET, Key="sum", Body=BODY, ChecksumAlgorithm="SHA256")
    proxy.set_rules([rule])
    with pytest.raises(FlexibleChecksumError):  # what a client that checks makes of it
        get(client(proxy), "sum")


def test_a_bucket_turns_read_only(bucket, proxy):
    store = client(proxy)
    proxy.set_rules([Rule(WRITES, "access_denied", after=2)])
    for key in ("ro/0", "ro/1"):
        store.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    for _ in range(3):
        with pytest.raises(ClientError) as error:
            store.put_object(Bucket=BUCKET, Key="ro/2", Body=b"x")
        assert code_of(error) == ("AccessDenied", 403)
    with pytest.raises(ClientError):
        store.delete_object(Bucket=BUCKET, Key="ro/0")
    assert get(store, "ro/0") == b"x"
    assert proxy.fired == {"access_denied": 4}


def test_a_seed_gives_the_same_faults_again(bucket):
    def outcomes(seed: int) -> list[bool]:
        with FaultProxy(bucket.url, [Rule("^GET ", "slow_down", probability=0.4)], seed=seed) as proxy:
            store = client(proxy)
            found = []
            for _ in range(30):
                try:
                    found.append(bool(get(store, "photos/é.bin")))
                except ClientError:
                    found.append(False)
            return found

    assert outcomes(3) == outcomes(3) != outcomes(4)
    assert 5 < sum(outcomes(3)) < 29


def test_nobody_behind_it_is_a_bad_gateway():
    with FaultProxy("http://127.0.0.1:9") as proxy, pytest.raises(ClientError) as error:
        get(client(proxy))
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 502


# --- signing again ----------------------------------------------------------------------------------------------------


def test_requests_can_be_signed_again_for_a_store_that_knows_its_own_name_only(bucket, monkeypatch):
    """The client's keys are worthless here, the proxy's are good: only a second signature can let it in."""
    keys = {"access_key": "nobody", "secret_key": "knows"}
    with FaultProxy(bucket.url) as proxy, pytest.raises(ClientError) as error:
        get(client(proxy, **keys))
    assert code_of(error)[1] == 403
    with FaultProxy(bucket.url, sign=True) as proxy:
        store = client(proxy, **keys)
        assert get(store) == BODY
        assert get(store, Range="bytes=5-9") == BODY[5:10]
        store.put_object(Bucket=BUCKET, Key="signed/a b+c%.bin", Body=BODY, ContentType="image/png")
        assert get(bucket.client, "signed/a b+c%.bin") == BODY
        listed = store.list_objects_v2(Bucket=BUCKET, Prefix="signed/a b")
        assert [entry["Key"] for entry in listed["Contents"]] == ["signed/a b+c%.bin"]
        store.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "signed/a b+c%.bin"}]})


def test_without_credentials_there_is_nothing_to_sign_with(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(RunError, match="no AWS credentials"):
        FaultProxy("https://s3.us-east-1.amazonaws.com", sign=True)
