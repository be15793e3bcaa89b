"""Conditional writes on a local disk and on a real S3 server: of all who try, one succeeds."""

import hashlib
import threading
import uuid

import boto3
import fsspec
import pytest
from botocore.config import Config

from pipeline.store.conditional_writes import create_object, read_stored, replace_object
from pipeline.store.filesystem import open_filesystem
from pipeline.store.objects import DamagedError, md5_of, read_object
from tests.support.waiting import wait_until

RACERS = 12


@pytest.fixture(params=["local", "s3"])
def place(request, tmp_path):
    """(file system, a path in it where nothing is)."""
    if request.param == "local":
        return fsspec.filesystem("file"), str(tmp_path / "folder" / "object.json")
    server = request.getfixturevalue("s3")
    if "conditional" not in [bucket["Name"] for bucket in server.client.list_buckets()["Buckets"]]:
        server.bucket("conditional")
    filesystem, root = open_filesystem("s3://conditional")
    return filesystem, f"{root}/{uuid.uuid4().hex}/object.json"


def race(attempt) -> list:
    """What `attempt(number)` gives in RACERS threads that start together."""
    results, barrier = [None] * RACERS, threading.Barrier(RACERS)

    def run(number):
        barrier.wait()
        results[number] = attempt(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_an_object_is_created_once(place):
    filesystem, path = place
    assert create_object(filesystem, path, b"mine") is not None
    assert create_object(filesystem, path, b"another's") is None
    assert read_stored(filesystem, path).data == b"mine"


def test_of_many_who_create_one_succeeds(place):
    filesystem, path = place
    versions = race(lambda number: create_object(filesystem, path, b"%d" % number))
    [winner] = [number for number, version in enumerate(versions) if version is not None]
    stored = read_stored(filesystem, path)
    assert (stored.data, stored.version) == (b"%d" % winner, versions[winner])


def test_of_many_who_replace_one_version_one_succeeds(place):
    filesystem, path = place
    first = create_object(filesystem, path, b"first")
    versions = race(lambda number: replace_object(filesystem, path, b"%d" % number, first))
    [winner] = [number for number, version in enumerate(versions) if version is not None]
    stored = read_stored(filesystem, path)
    assert (stored.data, stored.version) == (b"%d" % winner, versions[winner])


def test_what_is_not_there_is_not_replaced(place):
    filesystem, path = place
    assert read_stored(filesystem, path) is None
    assert replace_object(filesystem, path, b"x", "0" * 32) is None
    assert read_stored(filesystem, path) is None


def test_a_repeated_request_whose_answer_was_lost_is_a_success(place):
    """The client asks again by itself; then the condition fails because of its own first request."""
    filesystem, path = place
    if not hasattr(filesystem, "call_s3"):
        pytest.skip("a local disk answers always")
    assert create_object(filesystem, path, b"mine") == create_object(filesystem, path, b"mine") is not None


def test_age_is_measured_by_the_store(place):
    filesystem, path = place
    create_object(filesystem, path, b"x")
    early = read_stored(filesystem, path).age_seconds
    assert -2 < early < 300
    wait_until(lambda: read_stored(filesystem, path).age_seconds > early + 1)


def test_an_identity_that_may_not_write_is_told_so(s3, fresh_s3, monkeypatch):
    from tests.support.s3_server import READ_ONLY_ACCESS_KEY, READ_ONLY_SECRET_KEY

    bucket = s3.bucket(f"read-only-{uuid.uuid4().hex[:8]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READ_ONLY_ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READ_ONLY_SECRET_KEY)
    filesystem, root = open_filesystem(bucket)
    with pytest.raises(PermissionError):
        create_object(filesystem, f"{root}/x", b"x")


@pytest.mark.parametrize("cuts", [2, 99])
def test_a_body_that_is_cut_off_is_read_again_and_then_an_error_of_the_store(s3, monkeypatch, no_pauses, cuts):
    from aiobotocore.response import StreamingBody
    from aiohttp import ClientPayloadError

    filesystem, root = open_filesystem(s3.bucket(f"cut-{uuid.uuid4().hex[:8]}"))
    create_object(filesystem, f"{root}/x", b"whole")
    left, read = [cuts], StreamingBody.read

    async def cut(self, *args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise ClientPayloadError("Response payload is not completed")
        return await read(self, *args, **kwargs)

    monkeypatch.setattr(StreamingBody, "read", cut)
    if cuts == 2:
        assert read_stored(filesystem, f"{root}/x").data == b"whole"
    else:
        with pytest.raises(OSError, match="not completed"):
            read_stored(filesystem, f"{root}/x")


@pytest.mark.parametrize("read", [read_stored, read_object])
@pytest.mark.parametrize("flips", [2, 99])
def test_a_flipped_byte_is_noticed_by_the_etag(s3, monkeypatch, no_pauses, read, flips):
    """Also where the object was stored without a checksum for the client to compare."""
    from aiobotocore.response import StreamingBody

    filesystem, root = open_filesystem(s3.bucket(f"flip-{uuid.uuid4().hex[:8]}"))
    without = boto3.client("s3", config=Config(request_checksum_calculation="when_required"))
    without.put_object(Bucket=root, Key="x", Body=b'{"shard": 12}')
    left, read_body = [flips], StreamingBody.read

    async def flip(self, *args, **kwargs):
        data = await read_body(self, *args, **kwargs)
        left[0] -= 1
        return data.replace(b"12", b"13") if left[0] >= 0 else data

    monkeypatch.setattr(StreamingBody, "read", flip)
    if flips == 2:
        there = read(filesystem, f"{root}/x")
        assert (there if isinstance(there, bytes) else there.data) == b'{"shard": 12}'
    else:
        with pytest.raises(DamagedError, match="do not match ETag"):
            read(filesystem, f"{root}/x")


def test_an_etag_that_is_no_digest_is_not_taken_for_one():
    digest = hashlib.md5(b"x", usedforsecurity=False).hexdigest()
    assert md5_of({"ETag": f'"{digest}"', "ServerSideEncryption": "AES256"}) == digest
    assert md5_of({"ETag": f'"{digest}-3"'}) is None
    assert md5_of({"ETag": f'"{digest}"', "ServerSideEncryption": "aws:kms"}) is None
    assert md5_of({"ETag": f'"{digest}"', "SSECustomerAlgorithm": "AES256"}) is None
