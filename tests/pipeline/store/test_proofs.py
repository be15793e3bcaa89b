"""What a store does not do as a run needs it is found, and the objects that it was tried with are gone afterwards."""

import logging
import os
import time
import uuid
from collections.abc import Iterator

import fsspec
import pytest

from pipeline.drill.fault_proxy import FaultProxy, Rule
from pipeline.store.filesystem import open_filesystem, put_object
from pipeline.store.proofs import Fault, find_faults, store_name

BUCKET = "m2f-proofs"


@pytest.fixture
def folder(s3) -> str:
    """A new folder of a bucket, as a path of s3fs."""
    if BUCKET not in [bucket["Name"] for bucket in s3.client.list_buckets()["Buckets"]]:
        s3.bucket(BUCKET)
    return f"{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def proxy(s3, folder, fresh_s3, monkeypatch) -> Iterator[FaultProxy]:
    """A store in front of the S3 server that has the faults of the proxy's rules."""
    with FaultProxy(s3.url, sign=True) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        yield running


def names_in(folder: str) -> list[str]:
    """Names of the objects below `folder`; s3fs would also name an empty folder of this server, which is no object."""
    filesystem, _ = open_filesystem(f"s3://{folder}")
    bucket, prefix = folder.split("/")
    listed = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])
    return sorted(entry["Key"].removeprefix(f"{prefix}/") for entry in listed)


def faults_behind(proxy: FaultProxy, folder: str, *rules: Rule) -> list[Fault]:
    """What is found at the store with these faults. Nothing must be left there, except by a store that forgets."""
    filesystem, path = open_filesystem(f"s3://{folder}")
    proxy.set_rules(rules)
    faults = find_faults(filesystem, path)
    proxy.set_rules([])
    if not any(rule.fault == "forget" for rule in rules):
        assert names_in(folder) == []
    return faults


def test_a_store_that_does_everything_has_no_faults_and_is_left_as_it_was(proxy, folder):
    assert faults_behind(proxy, folder) == []
    assert proxy.num_requests <= 12 + 1, "twelve requests, and the test's own listing"


def test_a_local_folder_has_no_faults_and_is_left_as_it_was(tmp_path):
    assert find_faults(*open_filesystem(str(tmp_path / "_runs"))) == []
    assert list((tmp_path / "_runs").iterdir()) == []


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule("^PUT ", "ignore_conditions"), "accepts a second conditional create"),
        (Rule("^PUT ", "ignore_conditions", after=2), "accepts a conditional replace of an object that has changed"),
        (Rule("^PUT ", "refuse_conditions", after=2), "has no conditional replaces (PUT with If-Match): "),
    ],
)
def test_conditions_that_are_ignored_are_found(proxy, folder, rule, words):
    [fault] = faults_behind(proxy, folder, rule)
    assert fault.is_usable and fault.words.startswith(words)


def test_a_store_without_conditional_creates_is_found_and_useless(proxy, folder):
    """No Delta table can be committed there."""
    [fault] = faults_behind(proxy, folder, Rule("^PUT ", "refuse_conditions"))
    assert not fault.is_usable and "has no conditional creates" in fault.words and "NotImplemented" in fault.words


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule("^PUT ", "forget", after=4), "does not show an object that was just overwritten"),
        (Rule("^DELETE ", "forget", times=1), "refuses to create an object that was just removed"),
    ],
)
def test_a_store_that_shows_what_it_confirmed_only_later_is_found(proxy, folder, rule, words):
    [fault] = faults_behind(proxy, folder, rule)
    assert (fault.words, fault.is_usable) == (words, False)


def test_a_store_that_lists_only_later_is_found(proxy, folder, monkeypatch):
    monkeypatch.setattr("pipeline.store.proofs.list_folder", lambda filesystem, folder: [])
    [fault] = faults_behind(proxy, folder)
    assert (fault.words, fault.is_usable) == ("does not list an object that was just written", False)


def test_what_makes_a_store_useless_comes_before_its_conditions(proxy, folder):
    rules = [Rule("^DELETE ", "forget", times=1), Rule("^PUT ", "ignore_conditions")]
    words = [fault.words for fault in faults_behind(proxy, folder, *rules)]
    assert words[0] == "still shows an object that was just removed"
    assert words[1].startswith("accepts a second conditional create")


def test_a_refusal_for_another_reason_is_not_taken_for_a_lack_of_conditions(proxy, folder):
    with pytest.raises(PermissionError):
        faults_behind(proxy, folder, Rule("^PUT ", "access_denied"))


def test_an_identity_that_may_not_remove_objects_is_warned(proxy, folder, caplog):
    filesystem, path = open_filesystem(f"s3://{folder}")
    proxy.set_rules([Rule("^DELETE ", "access_denied")])
    with caplog.at_level(logging.WARNING):
        assert find_faults(filesystem, path) == []
    assert "objects of --output may not be removed" in caplog.text


def test_left_overs_are_removed_when_nobody_can_be_using_them(folder):
    filesystem, path = open_filesystem(f"s3://{folder}")
    old, young = (f"proof-{int(time.time()) - age}-{uuid.uuid4().hex}.json" for age in (100_000, 3_600))
    stays = [young, "lease.json", f"proof-1-{'x' * 32}.json"]
    for name in (old, *stays):
        put_object(filesystem, f"{path}/{name}", b"x")
    assert find_faults(filesystem, path) == []
    assert names_in(folder) == sorted(stays)


def test_a_disk_without_hard_links_has_no_conditional_writes(tmp_path, monkeypatch):
    """As FAT and some FUSE file systems answer."""

    def link(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    [fault] = find_faults(*open_filesystem(str(tmp_path)))
    assert fault == Fault("has no conditional creates (link): hard links: Operation not permitted", False)


def test_a_protocol_without_conditional_writes_has_none():
    [fault] = find_faults(fsspec.filesystem("memory"), "/proofs")
    assert fault == Fault("has no conditional writes that this program knows", True)
    assert fsspec.filesystem("memory").find("/proofs") == []


def test_the_name_of_a_store_says_where_it_is_and_holds_no_credentials(fresh_s3, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://key:secret@127.0.0.1:9000")
    assert store_name(*open_filesystem("s3://bucket/x")) == "the store at http://127.0.0.1:9000"
    assert store_name(fsspec.filesystem("memory"), "/x") == "the store memory://"
    assert store_name(fsspec.filesystem("file"), str(tmp_path)).startswith("the file system at /")
