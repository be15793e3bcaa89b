"""Receipts survive the journal, count once, and add up."""

import fsspec
from hypothesis import given
from hypothesis import strategies as st

from pipeline.journal import Journal, PartRecord, Receipt, Totals

PARTS = st.builds(PartRecord, st.text(max_size=20), st.integers(0, 999), st.integers(0, 10**12), st.text(max_size=8))
RECEIPTS = st.builds(
    Receipt,
    shard=st.integers(0, 20),
    num_images=st.integers(0, 512),
    failed_by_code=st.dictionaries(st.sampled_from(["decode_failed", "not_found"]), st.integers(1, 9)),
    parts=st.fixed_dictionaries({"images": PARTS, "segments": PARTS}),
    started=st.floats(0, 2e9),
    finished=st.floats(0, 2e9),
)


@given(RECEIPTS)
def test_a_receipt_is_its_json_line(receipt):
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert "\n" not in receipt.to_json()


@given(st.lists(st.lists(RECEIPTS, max_size=3), max_size=4))
def test_what_is_appended_is_read_also_by_the_next_driver(batches):
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    for batch in batches:
        Journal(filesystem, "/run/journal").append(batch)  # a driver of its own each time
    assert list(Journal(filesystem, "/run/journal").read()) == [r for batch in batches for r in batch]


@given(st.lists(RECEIPTS))
def test_totals_count_each_shard_once_and_the_first_receipt_wins(receipts):
    totals = Totals()
    counted = [receipt for receipt in receipts if totals.add(receipt)]
    assert len({receipt.shard for receipt in counted}) == len(counted) == len(totals.shards)
    assert totals.num_images == sum(receipt.num_images for receipt in counted)
    assert totals.num_failed == sum(receipt.num_failed for receipt in counted)
    assert totals.num_segments == sum(receipt.parts["segments"].num_rows for receipt in counted)


def test_a_journal_that_is_not_there_is_empty(tmp_path):
    assert list(Journal(fsspec.filesystem("file"), str(tmp_path / "none")).read()) == []
