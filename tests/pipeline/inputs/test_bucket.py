"""A bucket that is listed in many ranges at once: each key once, whatever its keys are; a store that cannot do so."""

import itertools
import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inputs import bucket
from pipeline.inputs.bucket import list_bucket
from pipeline.store.s3_pages import ANSWER, PageObjects

TEXTS = st.text("a/0~é\U0001f408", min_size=1, max_size=5)


class Bucket:
    """Answers as S3 does, from a set of keys, `page` of them at a time."""

    protocol = "s3"

    def __init__(self, keys, page=3, ignores=(), seconds=0.0):
        self.keys, self.page, self.ignores = sorted(keys, key=str.encode), page, ignores
        self.seconds = seconds
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()

    def call_s3(self, method, **asked):
        asked = {name: value for name, value in asked.items() if name not in self.ignores}
        with self.lock:
            self.asked.append(asked)
        time.sleep(self.seconds)
        after = asked.get("ContinuationToken", asked.get("StartAfter", ""))
        prefix, most = asked["Prefix"], min(self.page, asked.get("MaxKeys", self.page))
        keys = [key for key in self.keys if key.startswith(prefix) and key > after]
        folders = []
        if "Delimiter" in asked:
            inside = {
                key.removeprefix(prefix).partition("/")[0] + "/" for key in keys if "/" in key.removeprefix(prefix)
            }
            folders, keys = sorted(prefix + name for name in inside)[:most], []
        more = {"NextContinuationToken": keys[most - 1]} if len(keys) > most else {}
        objects = PageObjects.of(keys[:most], ["e"] * len(keys[:most]), [len(key) for key in keys[:most]])
        return {"IsTruncated": bool(more), ANSWER: objects, "CommonPrefixes": [{"Prefix": f} for f in folders], **more}

    def exists(self, path):
        return False


def backwards(page):
    objects = page[ANSWER]
    return {**page, ANSWER: replace(objects, keys=objects.keys[::-1])}


@pytest.fixture(autouse=True)
def few_pages(monkeypatch):
    monkeypatch.setattr(bucket, "_PAGES_ALONE", 1)
    monkeypatch.setattr(bucket, "_PAGES_BEFORE_DIVIDING", 1)
    monkeypatch.setattr(bucket, "RANGES", 4)


def keys_of(store, path="b", **options):
    return [key for table in list_bucket(store, path, **options) for key in table["image_key"].to_pylist()]


@given(st.sets(TEXTS, max_size=60), st.integers(1, 7))
def test_ranges_hold_each_key_once(names, page):
    store = Bucket({f"in/{name}" for name in names} | {"in2/x", "i"}, page)
    listed = keys_of(store, "b/in")
    assert len(listed) == len(set(listed))
    assert set(listed) == {f"s3://b/in/{name}" for name in names}
    assert keys_of(store, "b/in", in_order=True) == sorted(listed, key=str.encode)


@pytest.mark.parametrize(
    "keys",
    [
        [f"{number:06d}.jpg" for number in range(3000)],  # one flat folder
        [f"a/{number:06d}.jpg" for number in range(3000)],  # in one folder
        [f"{hash((number,)) & 0xFFFFFFFF:08x}" for number in range(3000)],
    ],
    ids=["numbers", "one folder", "hashes"],
)
def test_a_range_is_divided_wherever_its_keys_lie(keys):
    store = Bucket(keys, 10, seconds=0.005)  # while a thread waits, others look for work
    listed = keys_of(store)
    assert sorted(listed) == sorted(f"s3://b/{key}" for key in set(keys))
    begun = {asked["StartAfter"] for asked in store.asked if "StartAfter" in asked and "MaxKeys" not in asked}
    assert len(begun) >= 4


@pytest.mark.parametrize("ignored", ["StartAfter", "MaxKeys"])
def test_a_store_that_ignores_what_is_asked_for_is_listed_by_one_thread_or_not_twice(ignored):
    keys = [f"{number:03d}" for number in range(50)]
    assert sorted(keys_of(Bucket(keys, 5, ignores=(ignored,)))) == sorted(f"s3://b/{key}" for key in keys)


def test_a_store_that_sorts_otherwise_is_listed_by_one_thread():
    class Backwards(Bucket):
        def call_s3(self, method, **asked):
            page = super().call_s3(method, **asked)
            return backwards(page)

    store = Backwards([f"{number:03d}" for number in range(50)], 5)
    assert sorted(keys_of(store)) == [f"s3://b/{number:03d}" for number in range(50)]
    assert not [asked for asked in store.asked if "StartAfter" in asked]


def test_an_error_of_one_range_is_raised_and_ends_the_others():
    class Breaks(Bucket):
        def call_s3(self, method, **asked):
            if len(self.asked) > 40:
                raise PermissionError("no more")
            return super().call_s3(method, **asked)

    with pytest.raises(PermissionError, match="no more"):
        keys_of(Breaks([f"{number:05d}" for number in range(3000)], 10))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("listing")]


def test_a_reader_that_leaves_ends_the_threads():
    listing = list_bucket(Bucket([f"{number:05d}" for number in range(3000)], 10), "b")
    assert len(list(itertools.islice(listing, 3))) == 3  # of 300 pages, of which a table has 64 at most
    listing.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("listing")]


def test_pages_out_of_order_are_an_error():
    class Mixed(Bucket):
        def call_s3(self, method, **asked):
            page = super().call_s3(method, **asked)
            is_first = "StartAfter" not in asked or "MaxKeys" in asked
            return page if is_first else backwards(page)

    with pytest.raises(OSError, match="does not list its keys in order"):
        keys_of(Mixed([f"{number:05d}" for number in range(300)], 10))
