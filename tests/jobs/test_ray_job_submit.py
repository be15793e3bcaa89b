"""The way into a cluster, `ray job submit` to a head: what goes wrong, and a job that is stopped.

A job that succeeds is the run from S3 to S3 in test_s3.py.
"""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.dataset
import pytest

from pipeline.drill.fault_proxy import FaultProxy, Rule
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from tests.support.prometheus import metrics_of, prometheus, queries, rules
from tests.support.ray_head import Head, make_working_dir, ray_head
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the processes of the cluster in /proc"),
]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("working_dir")
    make_working_dir(folder)
    return folder


@pytest.fixture
def folder(tmp_path, photographs) -> Path:
    """Three of the photographs."""
    (tmp_path / "photographs").mkdir()
    for path in sorted(photographs.iterdir())[:3]:
        shutil.copy(path, tmp_path / "photographs")
    return tmp_path / "photographs"


def outcomes(output: Path) -> list[tuple[str, int | None]]:
    """Outcome and exit code of each night, the oldest first."""
    nights = seen_nights(Output.open(str(output)))
    return [(night.outcome, night.record and night.record.exit_code) for night in nights]


def test_a_submission_with_wrong_arguments_fails_with_its_line(head, working_dir, folder, tmp_path, tiny_checkpoint):
    output = tmp_path / "tables"
    job = head.submit(
        "bad",
        working_dir,
        *("--input", folder, "--output", output, "--model", tiny_checkpoint, "--gpu-actors", "3:1"),
    )
    assert (job.returncode, job.status) == (1, "FAILED")
    errors = [line for line in job.logs.splitlines() if "error" in line.lower()]
    assert errors == ["segment_bucket.py: error: --gpu-actors is '3:1'; it needs 1 <= MIN <= MAX"]
    assert "Traceback" not in job.logs
    assert not list(output.rglob("*.parquet"))


def test_a_submission_that_asks_for_more_than_the_cluster_has_fails(
    head, working_dir, folder, tmp_path, tiny_checkpoint
):
    """Known only after joining the cluster."""
    output = tmp_path / "tables"
    job = head.submit(
        "greedy",
        working_dir,
        *("--input", folder, "--output", output, "--model", tiny_checkpoint, "--cpus-per-actor", "500"),
    )
    assert (job.returncode, job.status) == (1, "FAILED")
    assert head.listed("greedy") == "FAILED" and outcomes(output) == [("refused", 2)]
    [error] = [line for line in job.logs.splitlines() if line.startswith("segment_bucket.py: error: ")]
    assert "--cpus-per-actor" in error and "3" in error
    assert "Traceback" not in job.logs
    assert not list(output.rglob("*.parquet"))


def test_a_job_that_is_stopped_goes_on_where_it_was(head, working_dir, photographs, tmp_path, tiny_checkpoint):
    """`ray job stop` sends SIGTERM, and SIGKILL three seconds later. Then: a night without work, and a killed one."""
    output = tmp_path / "tables"
    (tmp_path / "many").mkdir()
    for copy in range(24):  # 12 s of work, of which the start of `ray job stop` takes up to 4
        for path in photographs.iterdir():
            shutil.copy(path, tmp_path / "many" / f"{copy}-{path.name}")
    args = [
        *("--input", tmp_path / "many", "--output", output, "--model", tiny_checkpoint, "--run-id", "stopped"),
        *("--image-size", "96:160", "--images-per-shard", "4"),
    ]
    head.submit("stopped", working_dir, *args, wait=False, OMP_NUM_THREADS="1")
    journal = output / "_runs" / "stopped" / "journal"

    def has_committed() -> bool:
        job = head.get("/api/jobs/stopped")
        assert job["status"] in ("PENDING", "RUNNING"), head.get("/api/jobs/stopped/logs")["logs"]
        return any(journal.glob("*.jsonl"))

    wait_until(has_committed)
    stop = head.ray_job("stop", "stopped")
    assert stop.returncode == 0, stop.stderr
    assert head.get("/api/jobs/stopped")["status"] == "STOPPED" == head.listed("stopped")
    assert outcomes(output) == [("stopped", 143)]
    logs = head.get("/api/jobs/stopped/logs")["logs"]
    assert "segment_bucket.py: stopped by SIGTERM" in logs
    assert not (output / "images" / "_delta_log").exists(), "it was to be stopped in the middle"
    receipts = "".join(path.read_text() for path in journal.glob("*.jsonl")).splitlines()

    job = head.submit("again", working_dir, *args, OMP_NUM_THREADS="1")
    assert (job.returncode, job.status) == (0, "SUCCEEDED"), job.said
    assert "Traceback" not in job.logs
    done_before = int(re.search(r" shards, (\d+) done before", job.logs)[1])
    assert done_before == len(receipts) > 0
    assert outcomes(output) == [("stopped", 143), ("finished", 0)]

    without_name = [arg for arg in args if arg not in ("--run-id", "stopped")]
    nothing = head.submit("nothing", working_dir, *without_name, OMP_NUM_THREADS="1")
    assert (nothing.status, head.listed("nothing")) == ("SUCCEEDED", "SUCCEEDED"), nothing.said
    assert outcomes(output)[-1] == ("nothing to do", 0)

    head.submit("killed", working_dir, *without_name, "--mode", "overwrite", wait=False, OMP_NUM_THREADS="1")
    wait_until(lambda: outcomes(output)[-1] == ("running", None))
    [driver] = [night.record.pid for night in seen_nights(Output.open(str(output))) if night.outcome == "running"]
    os.kill(driver, signal.SIGKILL)
    wait_until(lambda: head.get("/api/jobs/killed")["status"] not in ("PENDING", "RUNNING"))
    assert head.listed("killed") == "FAILED" and outcomes(output)[-1] == ("died", None)
    images = pyarrow.dataset.dataset(output / "images" / "run=stopped").to_table(columns=["image_key"])
    keys = images.column("image_key").to_pylist()
    assert sorted(keys) == sorted(f"file://{path}" for path in (tmp_path / "many").iterdir())


def test_prometheus_finds_every_metric_of_the_dashboard_and_the_rules(
    head, working_dir, photographs, tiny_checkpoint, tmp_path, s3
):
    """It scrapes what Ray's discovery file names, while a job reads from a store that is not well."""
    bucket = s3.bucket("watched")
    for path in photographs.iterdir():
        s3.client.upload_file(str(path), bucket.removeprefix("s3://"), path.name)
    faults = [Rule("^GET /watched/[a-z]", "slow_down", times=3), Rule("^GET /watched/[a-z]", "truncate", times=3)]
    discovery = head.folder / "prom_metrics_service_discovery.json"
    with FaultProxy(s3.url, faults) as proxy, prometheus(tmp_path, discovery) as running:
        wait_until(lambda: running.has("ray_node_mem_used"), "for the first scrape of the node")
        args = ["--input", bucket, "--output", tmp_path / "tables", "--model", tiny_checkpoint]
        args += [
            "--image-size",
            "96:160",
            "--images-per-shard",
            "2",
            "--deadline",
            f"{datetime.now(UTC) + timedelta(hours=8):%Y-%m-%dT%H:%M:%SZ}",
        ]
        environment = {**s3.environment, "AWS_ENDPOINT_URL": proxy.url, "OMP_NUM_THREADS": "1"}
        job = head.submit("watched", working_dir, *args, "--run-id", "watched", **environment)
        assert (job.returncode, job.status) == (0, "SUCCEEDED"), job.said
        names = {name for text in (*queries(), *(rule["expr"] for rule in rules())) for name in metrics_of(text)}
        missing = {name for name in names if not running.has(f'last_over_time({name}{{run_id="watched"}}[1h])')}
        assert len(names) > 25 and missing == set()
        # Gauges go when the driver goes, counters stay: the alert for a night without a run relies on that.
        wait_until(lambda: not running.has('ray_m2f_run_images{run_id="watched"}'), "for the gauges to go")
        assert running.has('ray_m2f_runs_total{run_id="watched",outcome="finished"} == 1')
        assert running.has('sum(ray_m2f_images_total{run_id="watched",status="ok"}) == 11')
        job = head.submit("nothing-new", working_dir, *args, **environment)
        assert (job.returncode, job.status) == (0, "SUCCEEDED") and "nothing to do" in job.logs, job.said
        wait_until(lambda: running.has('ray_m2f_runs_total{outcome="nothing_to_do"} == 1'), "for the second night")
        loaded = [rule for group in running.get("rules")["groups"] for rule in group["rules"]]
        assert len(loaded) == len(rules()) and {rule["health"] for rule in loaded} == {"ok"}
