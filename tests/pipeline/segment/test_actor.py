"""The model actor around its Segmenter: what ends the run, which shard is taken apart, which rows pass through."""

from contextlib import nullcontext

import pyarrow as pa
import pytest

from m2f_core.checkpoints.checkpoint import CheckpointError
from pipeline.errors import ErrorCode, ImageError, RunError, StoreUnavailableError
from pipeline.schema import FETCHED, costs_of, pack_shard, unpack_shard
from pipeline.segment.actor import SegmentImages, segmented_table
from pipeline.segment.spec import SegmentedImage
from tests.support.segmenting import encoded, small_spec


def fetched(*rows):
    """The table between reading and the model; a row is (data, error_code, reason)."""
    names = [f"file:///{number}" for number in range(len(rows))]
    return pa.table(
        {
            "image_key": names,
            "etag": names,
            "size_bytes": [1] * len(rows),
            "reason": [reason for _, _, reason in rows],
            "attributes": pa.nulls(len(rows), pa.string()),
            "error_code": [code for _, code, _ in rows],
            "error_message": [code for _, code, _ in rows],
            "data": [data for data, _, _ in rows],
        },
        schema=FETCHED,
    )


@pytest.fixture
def actor(tiny_checkpoint, tmp_path, monkeypatch):
    # The process is pytest's: it shall not be ended.
    monkeypatch.setattr("pipeline.segment.actor.start_watchdog", lambda *args: None)
    return SegmentImages(small_spec(tiny_checkpoint), str(tmp_path), "night-1")


def test_images_that_are_gone_or_failed_before_pass_untouched(actor):
    images = fetched((encoded(), None, "new"), (None, None, "removed"), (None, "not_found", "new"))
    row = actor(pack_shard(7, images, costs={"read": 0.5}))
    shard, table = unpack_shard(row)
    assert shard == 7
    costs = costs_of(row)
    assert list(costs) == ["read", "decode", "resize", "model", "reduce", "encode"]
    assert costs["read"] == 0.5 and all(seconds > 0 for seconds in costs.values())
    assert table.column("error_code").to_pylist() == [None, None, "not_found"]
    assert [segments is not None for segments in table.column("segments").to_pylist()] == [True, False, False]
    assert table.column("reason").to_pylist() == ["new", "removed", "new"]


@pytest.mark.parametrize(
    ("row", "result"),
    [
        ((b"", None, "new"), None),
        ((None, None, "removed"), SegmentedImage(1, 1, ())),
        ((None, "not_found", "new"), ImageError(ErrorCode.DECODE_FAILED, "x")),
    ],
)
def test_a_row_has_one_outcome(row, result):
    with pytest.raises(AssertionError, match="one outcome"):
        segmented_table(fetched(row), [result])


def test_from_the_third_start_on_a_shard_is_done_image_by_image(actor, monkeypatch):
    ways = []
    usual = actor.segmenter.segment
    [result] = usual([encoded()])
    monkeypatch.setattr(actor.segmenter, "segment", lambda *args: ways.append("together") or usual(*args))

    def one_by_one(spec, data):
        assert actor.segmenter.network.lock.locked(), "the device is the child's meanwhile"
        ways.append("one by one")
        assert data == [encoded()]
        return [result]

    monkeypatch.setattr("pipeline.segment.isolate.segment_one_by_one", one_by_one)
    row = pack_shard(7, fetched((encoded(), None, "new")))
    tables = [unpack_shard(actor(row))[1] for _ in range(4)]
    assert ways == ["together", "together", "one by one", "one by one"]
    assert all(table.equals(tables[0]) for table in tables)
    actor(pack_shard(8, fetched((encoded(), None, "new"))))
    assert ways[4:] == ["together"]


def test_a_model_begins_no_shard_if_the_run_stops_and_only_then(actor, monkeypatch):
    row = pack_shard(7, fetched((encoded(), None, "new")))
    answers = [None, False, True]  # None: of a Tell that says nothing
    actor.tell = lambda *args: nullcontext(answers.pop(0))
    done = [actor(row) for _ in range(2)]
    assert [unpack_shard(one)[1].column("segments").null_count for one in done] == [0, 0]
    monkeypatch.setattr(actor, "starts", None)  # a start would be counted against the shard
    left = actor(row)
    assert left.num_rows == 0 and left.schema.equals(done[0].schema)


def test_an_actor_reports_its_device_with_each_shard_and_decodes_with_the_threads_of_its_node(
    tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.segment.actor.start_watchdog", lambda *args: None)
    held = []
    spec, hold = small_spec(tiny_checkpoint), lambda *report: held.append(report)
    actor = SegmentImages(spec, str(tmp_path), "night-1", hold=hold, threads=lambda: 3)
    assert actor.segmenter.spec.threads == 3
    for shard in range(2):
        before = len(held)
        actor(pack_shard(shard, fetched((encoded(), None, "new"))))
        assert len(held) > before
    assert {name for name, _ in held} == {"cpu"} and all(seconds > 0 for _, seconds in held)


@pytest.mark.parametrize("lasting", [RunError("other weights"), CheckpointError("cut off")])
def test_what_will_not_pass_is_raised_by_the_call_so_that_ray_does_not_repeat_the_constructor(
    tiny_checkpoint, tmp_path, monkeypatch, lasting
):
    monkeypatch.setattr("pipeline.segment.segmenter.Segmenter", raises(lasting))
    actor = SegmentImages(small_spec(tiny_checkpoint), str(tmp_path), "night-1")
    with pytest.raises(type(lasting), match=str(lasting)):
        actor(None)


def test_a_store_that_does_not_answer_is_tried_again_by_ray(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.segment.segmenter.Segmenter", raises(StoreUnavailableError("503")))
    with pytest.raises(StoreUnavailableError):
        SegmentImages(small_spec(tiny_checkpoint), str(tmp_path), "night-1")


def raises(error):
    def constructor(*args):
        raise error

    return constructor
