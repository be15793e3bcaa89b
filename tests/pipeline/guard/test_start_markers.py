"""Starts are counted once each, whoever counts; a shard that was started before runs alone."""

import threading
import time

import pytest

from pipeline.drill.fault_proxy import FaultProxy, Rule
from pipeline.errors import RunError
from pipeline.guard.start_markers import Starts
from pipeline.layout import Output
from pipeline.store.filesystem import open_filesystem
from tests.support.waiting import PATIENCE_SECONDS


@pytest.fixture(params=["local", "s3"])
def output(request, tmp_path):
    if request.param == "local":
        return str(tmp_path)
    server = request.getfixturevalue("s3")
    return server.bucket(f"starts-{time.monotonic_ns()}") + "/out"


def test_a_start_is_counted_by_whoever_comes_next(output):
    for before in range(4):
        with Starts(Output.open(output).run("night-1")).start(42) as starts_before:
            assert starts_before == before
    with Starts(Output.open(output).run("night-1")).start(43) as starts_before:
        assert starts_before == 0
    filesystem, root = open_filesystem(output)
    names = sorted(path.rsplit("/", 1)[1] for path in filesystem.ls(f"{root}/_runs/night-1/started", detail=False))
    assert names == ["000042-1", "000042-2", "000042-3", "000042-4", "000043-1"]


def test_starts_are_counted_on_a_store_that_ignores_conditions(s3, fresh_s3, monkeypatch):
    uri = s3.bucket(f"starts-{time.monotonic_ns()}")
    with FaultProxy(s3.url, [Rule("^PUT ", "ignore_conditions")], sign=True) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        for before in range(3):
            with Starts(Output.open(uri, has_conditions=False).run("night-1")).start(42) as starts_before:
                assert starts_before == before


def test_a_first_start_costs_one_request(s3):
    starts = Starts(Output.open(s3.bucket("one-request")).run("night-1"))
    requests = []
    starts.run.filesystem.connect()
    starts.run.filesystem.s3.meta.events.register(
        "before-send.s3", lambda request, **_: requests.append(request.method)
    )
    with starts.start(1):
        pass
    assert requests == ["PUT"]


def test_a_shard_that_was_started_before_has_the_process_to_itself(tmp_path):
    starts = Starts(Output.open(str(tmp_path)).run("night-1"))
    with starts.start(1):
        pass
    inside, most = [], {}
    two_together = threading.Barrier(3)  # shards 2 and 3, and this test: only then does shard 1 want to be alone

    def run(shard):
        with starts.start(shard):
            inside.append(shard)
            if shard in (2, 3):
                two_together.wait(PATIENCE_SECONDS)
            time.sleep(0.05)
            for other in inside:
                most[other] = max(most.get(other, 0), len(inside))
            inside.remove(shard)

    threads = [threading.Thread(target=run, args=(shard,)) for shard in (2, 3, 1, 4, 5)]
    for thread in threads[:2]:
        thread.start()
    two_together.wait(PATIENCE_SECONDS)
    for thread in threads[2:]:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[1] == 1 and most[2] > 1 and most[3] > 1
    assert sorted(most) == [1, 2, 3, 4, 5]


def test_an_output_that_turns_read_only_is_named(tmp_path, monkeypatch):
    def refuses(*args):
        raise PermissionError("Access Denied")

    monkeypatch.setattr("pipeline.guard.start_markers.create_new", refuses)
    with (
        pytest.raises(RunError, match=r"--output cannot be written: .*000001-1: Access Denied"),
        Starts(Output.open(str(tmp_path)).run("night-1")).start(1),
    ):
        pass
