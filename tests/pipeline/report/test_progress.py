"""The line people watch."""

import time
from dataclasses import replace

import pytest

from pipeline.cluster.in_flight_actor import start_board
from pipeline.commit.receipt import PartRecord, Receipt, Totals
from pipeline.report.progress import Progress
from pipeline.telemetry.in_flight import UnderWay

PARTS = {table: PartRecord("path", 3, 1, "", "a", "b") for table in ("images", "segments")}


def test_the_line_counts_images_failures_and_time_left(monkeypatch):
    totals = Totals()
    totals.add(Receipt(0, 10, 0, {"decode_failed": 1}, PARTS, 0, 0))  # by an earlier driver: no part of the rate
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(100, totals, 10)
    assert progress.rest() == "0.00 images/s, 1 failed, time left unknown"
    now[0] += 20
    totals.add(Receipt(1, 40, 0, {"not_found": 2}, PARTS, 0, 0))
    assert progress.rest() == "2.00 images/s, 3 failed, 0:00:25 left"


def test_without_a_terminal_there_is_a_line_per_interval(capfd):
    totals = Totals()
    with Progress(2, totals, 0.05) as progress:
        totals.add(Receipt(0, 2, 0, {}, PARTS, 0, 0))
        progress.update()
        time.sleep(0.3)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(line.startswith("2/2 images, ") for line in lines[1:])


def test_a_shard_that_takes_long_is_named():
    oldest = UnderWay(42, "segmenting", "s3://b/x.jpg", "gpu-3", time.time() - 310)
    progress = Progress(100, Totals(), 10, lambda: oldest)
    assert progress.straggler() == "; shard 42 (from s3://b/x.jpg on) is segmenting on gpu-3 since 0:05:10"
    young = replace(oldest, since=time.time() - 5)
    assert Progress(100, Totals(), 10, lambda: young).straggler() == ""
    assert Progress(100, Totals(), 10).straggler() == ""


@pytest.mark.usefixtures("ray_session")
def test_the_board_knows_the_oldest_shard_that_a_stage_has_in_hand():
    board = start_board()
    assert board.oldest() is None
    with board.in_hand(1, "reading", "a"), board.in_hand(2, "reading", "b"):
        assert (board.oldest().shard, board.oldest().stage, board.oldest().first_key) == (1, "reading", "a")
    assert board.oldest() is None, "a shard that waits for the next stage is no straggler"
    with board.in_hand(3, "segmenting", "c"):
        with board.in_hand(1, "segmenting", "a"):
            assert board.oldest().shard == 3
        with pytest.raises(OSError), board.in_hand(4, "segmenting", "d"):
            raise OSError
    since = board.oldest().since
    assert board.oldest().shard == 4, "its worker has failed: it is in trouble until it has a receipt"
    with board.in_hand(4, "segmenting", "d"):
        assert board.oldest().since == since
    with pytest.raises(OSError), board.in_hand(5, "writing", "e"):
        raise OSError
    board.done(5)
    assert board.oldest() is None
