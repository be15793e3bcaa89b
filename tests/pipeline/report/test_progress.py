"""What people see while a job runs: phases, then counts; on a terminal one live line and nothing else."""

import io
import logging
import time
from dataclasses import replace

import pytest
from ray.exceptions import GetTimeoutError

from pipeline.cluster.in_flight_actor import Board
from pipeline.commit.receipt import PartRecord, Receipt
from pipeline.commit.run_record import PlanSummary
from pipeline.commit.totals import Totals
from pipeline.plan.growing import GrowingPlan
from pipeline.report import progress as progress_module
from pipeline.report.progress import Progress
from pipeline.telemetry.in_flight import InFlight, UnderWay
from pipeline.telemetry.log_lines import show_log_lines
from tests.support.boards import answering_board
from tests.support.waiting import wait_until

PARTS = {table: PartRecord("path", 3, 1, "", "a", "b") for table in ("images", "segments")}
READING = InFlight(None, frozenset({"reading"}))
SEGMENTING = InFlight(None, frozenset({"reading", "segmenting"}))


@pytest.fixture(autouse=True)
def log_lines():
    """As a job has them; taken away again."""
    log = logging.getLogger("pipeline")
    before = log.handlers[:], log.level, log.propagate
    show_log_lines()
    yield
    log.handlers[:], log.level, log.propagate = before


def plan_of(num_images: int, *, is_complete: bool = True) -> GrowingPlan:
    return GrowingPlan(PlanSummary((), num_images, 0, 0), {}, is_complete)


def receipt(shard: int, num_images: int, **failed: int) -> Receipt:
    return Receipt(shard, num_images, 0, failed, PARTS, 0, 0, {"decode": 0.5, "model": 2.0})


def test_the_line_counts_images_failures_time_left_and_names_the_slowest_step(monkeypatch):
    totals = Totals()
    totals.add(receipt(0, 10, decode_failed=1))  # by an earlier driver: no part of the rate
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(10)
    progress.follow(plan_of(100), totals)
    now[0] += 20
    assert progress.line() == "loading the model, for 0:00:20 now"
    totals.add(receipt(1, 40, not_found=2))
    assert progress.line() == ("50/100 images, 2.00 images/s, 3 failed, 0:00:25 left, slowest: model 80.0 ms per image")


def test_while_the_plan_grows_no_time_is_foretold(monkeypatch):
    now, totals, plan = [100.0], Totals(), plan_of(4, is_complete=False)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(10)
    progress.follow(plan, totals)
    totals.add(receipt(0, 4))
    now[0] += 8
    assert progress.line().startswith("4/4 images listed so far, 0.50 images/s, 0 failed, time unknown, ")
    assert progress.kept() == "4 of 4 images that are listed so far are done and kept"
    plan.grow(PlanSummary((), 8, 0, 0))
    plan.complete({})
    assert progress.line().startswith("4/8 images, 0.50 images/s, 0 failed, 0:00:08 left, ")


def test_the_rate_does_not_count_the_loading_of_the_model(monkeypatch):
    now, totals, seen = [100.0], Totals(), [READING]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress(10)
    progress.follow(plan_of(100), totals, look=lambda: seen[0])
    progress._notice_first_shard(now[0])
    now[0], seen[0] = 150.0, SEGMENTING
    progress._notice_first_shard(149.0)
    now[0] = 159.0
    totals.add(receipt(0, 20))
    assert "20/100 images, 2.00 images/s" in progress.line()


def test_without_a_terminal_each_phase_and_each_interval_is_a_line(capsys):
    totals, seen = Totals(), [READING]
    said = ""

    def is_said(words: str) -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return words in said

    with Progress(0.05) as progress:
        progress.phase("starting Ray")
        wait_until(lambda: is_said("INFO: starting Ray, for 0:00:00 now"))
        progress.follow(plan_of(4), totals, look=lambda: seen[0])
        wait_until(lambda: is_said("INFO: loading the model, for"))
        seen[0] = SEGMENTING
        wait_until(lambda: is_said("INFO: first shard, for"))
        totals.add(receipt(0, 2))
        wait_until(lambda: is_said("INFO: 2/4 images, "))
        totals.add(receipt(1, 2))
        progress.phase("publishing")
        wait_until(lambda: is_said("INFO: publishing, for"))
    assert "0/4" not in said


def test_a_run_with_nothing_left_loads_no_model(capsys):
    totals = Totals()
    totals.add(receipt(0, 4))
    Progress(10).follow(plan_of(4), totals)
    assert capsys.readouterr().err == ""


def test_a_stop_says_what_is_kept():
    totals = Totals()
    progress = Progress(10)
    assert progress.kept() == "no image was started"
    totals.add(receipt(0, 1200))
    totals.add(receipt(1, 40))
    progress.follow(plan_of(5000), totals, waiting=lambda: 40)
    assert progress.kept() == "1,200 of 5,000 images are done and kept"


def test_a_shard_that_takes_long_is_named():
    oldest = UnderWay(42, "segmenting", "s3://b/x.jpg", "gpu-3", time.time() - 310)

    def line(one: UnderWay | None) -> str:
        totals = Totals()
        progress = Progress(10)
        progress.follow(plan_of(100), totals, look=lambda: InFlight(one, frozenset({"segmenting"})))
        totals.add(receipt(0, 1))
        return progress.line()

    assert line(oldest).endswith("; shard 42 (from s3://b/x.jpg on) has been segmenting on gpu-3 for 0:05:10")
    assert "shard" not in line(replace(oldest, since=time.time() - 5))
    assert "shard" not in line(None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_log_line_stands_above_the_live_line(monkeypatch):
    """Both end up whole: a line is written between a cleared live line and the next one."""
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress_module.sys, "stderr", terminal)
    with Progress(10) as progress:
        assert progress.live
        progress.phase("starting Ray")
        logging.getLogger("pipeline.run").warning("a line of the log")
        wait_until(lambda: "starting Ray" in terminal.getvalue())
    written = terminal.getvalue()
    assert "INFO: starting Ray" not in written, "the live line says it"
    before, after = written.split("a line of the log")
    assert before.rpartition("\x1b[2K")[2].rstrip().endswith("WARNING:"), "the live line was not cleared first"
    assert after.startswith(("\n", "\r\n"))


@pytest.mark.usefixtures("ray_session")
def test_the_board_knows_the_oldest_shard_that_a_stage_has_in_hand():
    board = answering_board()
    assert board.look().stages == frozenset()
    assert board.look().oldest is None
    with board.in_hand(1, "reading", "a"), board.in_hand(2, "reading", "b"):
        assert (board.look().oldest.shard, board.look().oldest.stage, board.look().oldest.first_key) == (
            1,
            "reading",
            "a",
        )
    assert board.look().oldest is None, "a shard that waits for the next stage is no straggler"
    assert (board.look().working, board.look().waiting) == ({}, {"segmenting": 2})
    with board.in_hand(3, "segmenting", "c"):
        with board.in_hand(1, "segmenting", "a"):
            assert board.look().oldest.shard == 3
            assert (board.look().working, board.look().waiting) == ({"segmenting": 2}, {"segmenting": 1})
        with pytest.raises(OSError), board.in_hand(4, "segmenting", "d"):
            raise OSError
    since = board.look().oldest.since
    assert board.look().oldest.shard == 4, "its worker has failed: it is in trouble until it has a receipt"
    with board.in_hand(4, "segmenting", "d"):
        assert board.look().oldest.since == since
    with pytest.raises(OSError), board.in_hand(5, "writing", "e"):
        raise OSError
    board.done(5)
    assert board.look().oldest is None
    assert board.look().stages == {"reading", "segmenting", "writing"}


def test_receipts_reach_the_board_with_the_next_look_and_not_by_a_call_each(monkeypatch):
    calls = []
    monkeypatch.setattr(Board, "_call", lambda board, *call: calls.append(call))
    monkeypatch.setattr("ray.get", lambda reference, timeout: InFlight(None, frozenset()))
    board = Board("of a run")
    for shard in range(3):
        board.done(shard)
    assert calls == []
    board.look()
    board.look()
    assert calls == [("look", [0, 1, 2]), ("look", [])]


def test_receipts_of_a_look_without_an_answer_are_told_with_the_next(monkeypatch):
    calls, answers = [], iter([GetTimeoutError("no answer"), InFlight(None, frozenset())])

    def answer(reference: object, timeout: float) -> InFlight:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(Board, "_call", lambda board, *call: calls.append(call))
    monkeypatch.setattr("ray.get", answer)
    board = Board("of a run")
    board.done(7)
    assert board.look() is None
    board.done(8)
    assert board.look() is not None
    assert calls == [("look", [7]), ("look", [7, 8])]


@pytest.mark.usefixtures("ray_session")
def test_a_board_that_stops_lets_no_model_begin_and_knows_what_was_begun():
    board = answering_board()
    with board.in_hand(1, "reading", "a") as first, board.in_hand(2, "reading", "b") as second:
        assert not first and not second
    with board.in_hand(3, "segmenting", "c") as third, board.in_hand(4, "writing", "d") as fourth:
        assert not third and not fourth
        board.stop()
        assert board.look().num_begun == 2
    assert board.look().num_begun == 2, "they have no receipts yet"
    with board.in_hand(1, "segmenting", "a") as stops:
        assert stops and board.look().num_begun == 2
    with board.in_hand(5, "reading", "e") as stops:
        assert stops
    with board.in_hand(3, "writing", "c") as stops:
        assert not stops, "a shard that a model has done is written"
    assert (board.look().working, board.look().waiting) == ({}, {"segmenting": 1, "receipt": 2})
    for shard in (3, 4):
        board.done(shard)
    assert board.look().num_begun == 0
    board.hold("NVIDIA L4", 5.0)
    board.hold("NVIDIA L4", 2.5)
    assert board.look().held == {"NVIDIA L4": 7.5}
