"""Receipts survive the journal, count once, and add up."""

import threading

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commit.journal import Committer, Journal
from pipeline.commit.receipt import Receipt
from pipeline.commit.totals import Totals
from pipeline.layout import Output, RunFolder
from tests.support.run_records import receipt
from tests.support.waiting import PATIENCE_SECONDS, wait_until

RECEIPTS = st.builds(
    receipt,
    st.just("r"),
    shard=st.integers(0, 20),
    num_images=st.integers(18, 512),
    failed_by_code=st.dictionaries(st.sampled_from(["decode_failed", "not_found"]), st.integers(1, 9)),
    started=st.floats(0, 2e9),
    finished=st.floats(0, 2e9),
)
RECEIPT = receipt("r", 7)


def folder_in(filesystem: fsspec.AbstractFileSystem, root: str) -> RunFolder:
    return Output(root, filesystem, root).run("r")


@given(RECEIPTS)
def test_a_receipt_is_its_json_line(one):
    assert Receipt.from_json(one.to_json(), "r") == one
    assert "\n" not in one.to_json()


@given(st.lists(st.lists(RECEIPTS, max_size=3), max_size=4))
def test_what_is_appended_is_read_also_by_the_next_driver(batches):
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    for batch in batches:  # a driver of its own each time
        Journal.start_attempt(folder_in(filesystem, "/out")).append(batch)
    first = {receipt.shard: receipt for batch in reversed(batches) for receipt in reversed(batch)}
    read = list(Journal(folder_in(filesystem, "/out")).read())
    assert {receipt.shard: receipt for receipt in read} == first
    assert len(read) == len(first)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=30), st.randoms(use_true_random=False))
def test_whoever_reads_sees_what_the_last_driver_saw_and_added(steps, random):
    """Drivers start one after the other and never stop appending, as if each had been thought dead."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    drivers, counted = [Journal.start_attempt(folder_in(filesystem, "/out"))], {}
    for action, shard in steps:
        if action == 0:
            drivers.append(Journal.start_attempt(folder_in(filesystem, "/out")))
            continue
        driver = random.choice(drivers)
        driver.append([receipt("r", shard, finished=float(driver.attempt))])
        if driver is drivers[-1]:
            counted.setdefault(shard, float(driver.attempt))
    assert {receipt.shard: receipt.finished for receipt in Journal(folder_in(filesystem, "/out")).read()} == counted


@given(st.lists(RECEIPTS))
def test_totals_count_each_shard_once_and_the_first_receipt_wins(receipts):
    totals = Totals()
    counted = [receipt for receipt in receipts if totals.add(receipt)]
    assert len({receipt.shard for receipt in counted}) == len(counted) == len(totals.shards)
    assert totals.num_images == sum(receipt.num_images for receipt in counted)
    assert totals.num_failed == sum(receipt.num_failed for receipt in counted)
    assert totals.num_segments == sum(receipt.parts["segments"].num_rows for receipt in counted)


def test_a_journal_that_is_not_there_is_empty(tmp_path):
    assert list(Journal(folder_in(fsspec.filesystem("file"), str(tmp_path / "none"))).read()) == []


def test_a_receipt_is_committed_in_time_though_no_other_follows(tmp_path):
    journal = Journal(folder_in(fsspec.filesystem("file"), str(tmp_path)), 1)
    with Committer(journal, seconds=0.05) as committer:
        committer.add(RECEIPT)
        wait_until(lambda: list(journal.read()))
    assert list(journal.read()) == [RECEIPT]


def test_receipts_are_committed_when_the_run_breaks(tmp_path):
    journal = Journal(folder_in(fsspec.filesystem("file"), str(tmp_path)), 1)
    with pytest.raises(SystemExit), Committer(journal, seconds=60) as committer:
        committer.add(RECEIPT)
        raise SystemExit(143)
    assert list(journal.read()) == [RECEIPT]


def test_a_journal_that_cannot_be_written_is_heard_of(tmp_path, monkeypatch):
    journal = Journal(folder_in(fsspec.filesystem("file"), str(tmp_path)), 1)
    tried = threading.Event()

    def full(receipts):
        if receipts:
            tried.set()
            raise OSError("disk full")

    monkeypatch.setattr(journal, "append", full)
    with pytest.raises(OSError, match="disk full"), Committer(journal, seconds=0.01) as committer:
        committer.add(RECEIPT)
        assert tried.wait(PATIENCE_SECONDS)
        committer.add(RECEIPT)
