"""The trace of a run: ids that later attempts find again, and a collector that is away.

The whole trace of a job is tested in tests/jobs/test_segment_bucket.py.
"""

import time

import pytest

from pipeline.errors import RunError
from pipeline.report.run_trace import RunTrace
from pipeline.telemetry import spans as spans_module
from pipeline.telemetry.costs import Costs
from pipeline.telemetry.in_flight import Visit
from pipeline.telemetry.spans import Spans, check_endpoint, wants_trace
from tests.support.boards import answering_board
from tests.support.otlp_collector import collector
from tests.support.s3_server import free_ports


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


def test_later_attempts_and_repeated_shards_join_the_same_trace():
    with collector() as traces:
        for attempt, host in ((1, "node-1"), (2, "node-2")):
            spans = Spans(traces.endpoint, "s3://b/out", "night-1")
            lost = attempt == 1
            spans.visit(Visit(7, "segmenting", "a.jpg", host, 10.0 * attempt, 10.0 * attempt + 5, lost=lost))
            spans.attempt(attempt, 10.0 * attempt, 10.0 * attempt + 6, "BrokenRunError: x" if lost else None)
            if not lost:
                spans.shard(7, 20.0, 26.0, {})
                spans.run(1.0, 27.0, {})
            spans.close()
        arrived = traces.wait_for(lambda spans: len(spans) >= 6)
    assert len({span.id for span in arrived}) == len(arrived)
    by_name = {span.name: span for span in arrived}
    [first, second] = [span for span in arrived if span.name == "segmenting"]
    assert first.parent_id == second.parent_id == by_name["shard 7"].id
    assert (first.error != "", second.error) == (True, "")
    assert by_name["shard 7"].parent_id == by_name["run night-1"].id == by_name["attempt 1"].parent_id
    assert by_name["attempt 1"].error == "BrokenRunError: x" and not by_name["attempt 2"].error
    assert len({span.trace_id for span in arrived}) == 1
    assert first.resource["service.name"] == "m2f-pipeline" and first.resource["m2f.run_id"] == "night-1"


def test_runs_of_the_same_name_in_two_outputs_are_two_traces():
    with collector() as traces:
        for output in ("s3://b/out", "s3://b/other"):
            spans = Spans(traces.endpoint, output, "night-1")
            spans.run(1.0, 2.0, {})
            spans.close()
        arrived = traces.wait_for(lambda spans: len(spans) == 2)
    assert arrived[0].trace_id != arrived[1].trace_id


def test_no_secret_of_a_uri_leaves_in_a_span():
    with collector() as traces:
        spans = Spans(traces.endpoint, "https://user:hush@store/out", "night-1")
        spans.visit(Visit(7, "reading", "https://user:hush@store/a.jpg", "node-1", 1.0, 2.0))
        spans.attempt(1, 1.0, 2.0, "OSError: https://user:hush@store/a.jpg cannot be read")
        spans.close()
        arrived = traces.wait_for(lambda spans: len(spans) == 2)
    assert "/a.jpg" in repr(arrived) and "hush" not in repr(arrived)


@pytest.mark.usefixtures("ray_session")
def test_a_visit_that_its_process_did_not_end_is_lost_and_the_next_is_whole():
    board = answering_board(traced=True)
    with pytest.raises(OSError), board.in_hand(1, "reading", "a"):
        raise OSError
    costs = Costs()
    with board.in_hand(1, "reading", "a", costs), costs.passing("read"):
        pass
    [lost, whole] = board.drain()
    assert (lost.lost, lost.steps, whole.lost) == (True, {}, False)
    assert lost.began <= lost.ended <= whole.began <= whole.ended
    assert whole.steps["read"] == (*costs.spans["read"], costs.seconds["read"])
    assert board.drain() == []
    untraced = answering_board()
    with untraced.in_hand(1, "reading", "a"):
        pass
    assert untraced.drain() == []


@pytest.mark.parametrize("answer", ["none", "error"])
def test_a_collector_that_is_away_costs_spans_and_one_line(caplog, answer):
    with collector() as traces:
        traces.status = 400
        [nobody] = free_ports(1)
        spans = Spans(traces.endpoint if answer == "error" else f"http://127.0.0.1:{nobody}", "out", "night-1")
        began = time.monotonic()
        for shard in range(20_000):  # more than the queue holds
            spans.shard(shard, 1.0, 2.0, {})
        spans.close()
        seconds = time.monotonic() - began
    ours = [record for record in caplog.records if record.name.startswith("pipeline")]
    assert len(ours) <= 1 and all("the run goes on" in record.message for record in ours)
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
    assert seconds < 60, "the end of a run waits for a collector that is away"


def test_an_error_of_opentelemetry_ends_the_trace_and_not_the_run(caplog):
    class Broken:
        def visit(self, visit):
            raise RuntimeError("no more spans")

    visits = [[Visit(1, "reading", "a", "node-1", 1.0, 2.0)], []]
    trace = RunTrace(Broken(), lambda: visits.pop(0), attempt=1)
    trace.pass_on()
    trace.pass_on()
    assert [record.message for record in caplog.records] == ["the trace of this run ends here, and the run goes on"]


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("localhost:4318", "must be the URL of an OTLP/HTTP collector"),
        ("grpc://collector:4317", "must be the URL of an OTLP/HTTP collector"),
        ("https://user:secret@collector", "must hold no credentials"),
        ("https://collector?key=secret", "must hold no credentials"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_refused(endpoint, said):
    with pytest.raises(RunError, match=said) as refused:
        check_endpoint(endpoint)
    assert "secret" not in str(refused.value)


def test_without_the_extra_the_flag_is_refused_and_the_environment_gets_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(spans_module, "_has_exporter", lambda: False)
    with pytest.raises(RunError, match=r"--otlp-endpoint needs the extra `otel`: pip install 'm2f-pipeline\[otel\]'"):
        check_endpoint("http://localhost:4318")
    assert not wants_trace(None) and not caplog.records
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    assert not wants_trace(None)
    [record] = caplog.records
    assert "needs the extra `otel`" in record.message


def test_the_environment_alone_switches_traces_on_and_off(monkeypatch):
    assert not wants_trace(None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    assert wants_trace(None)
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not wants_trace(None) and not wants_trace("http://localhost:4318")
