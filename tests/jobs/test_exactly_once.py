"""Whatever dies, each image is visible once: kills at steps of the commit, two drivers, a store that gives out."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.guard.kill_points import POINTS, VARIABLE
from pipeline.layout import Output
from pipeline.tables.current_view import open_table
from tests.jobs.test_segment_bucket import SMALL, places
from tests.support.last_line import last_line
from tests.support.tables import OF_THE_RUN, latest_run, read_report, read_table

IMAGES_PER_SHARD = 2
# One in an actor and one in the driver; the rest takes minutes.
OF_EACH_KIND = ("images part written", "between segments and images published")


def visible(output: Path, table: str) -> list[dict]:
    """Rows of a published table without what belongs to the run, sorted; none where nothing is published."""
    delta = open_table(Output.open(str(output)), table)
    rows = [] if delta is None else delta.to_pyarrow_dataset().to_table().to_pylist()
    bare = [{name: value for name, value in row.items() if name not in OF_THE_RUN} for row in rows]
    return sorted(bare, key=lambda row: (row["image_key"], row.get("segment_id", 0)))


@pytest.fixture(scope="module")
def clean(drivers, photographs, tiny_checkpoint, tmp_path_factory) -> Path:
    """The output of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("clean")
    process = drivers.start(
        *places(photographs, output, tiny_checkpoint), *SMALL, "--images-per-shard", IMAGES_PER_SHARD
    )
    log = process.finish()
    assert process.returncode == 0, log
    return output


@pytest.mark.parametrize(
    "point",
    [
        pytest.param(
            point,
            marks=pytest.mark.thorough if point in OF_EACH_KIND else pytest.mark.slow,
            id=point.replace(" ", "_"),
        )
        for point in POINTS
    ],
)
def test_a_process_killed_at_a_step_of_the_commit_costs_nothing(
    drivers, point, clean, photographs, tiny_checkpoint, tmp_path, monkeypatch
):
    flags = [*places(photographs, tmp_path, tiny_checkpoint), *SMALL, "--images-per-shard", IMAGES_PER_SHARD]
    monkeypatch.setenv(VARIABLE, f"{point}:2" if point.endswith("part written") else point)
    process = drivers.start(*flags)
    log = process.finish()
    assert process.returncode != 0 or point.endswith("part written"), "nothing was killed"
    if point == "between segments and images published":
        assert visible(tmp_path, "segments") and not visible(tmp_path, "images")
    monkeypatch.delenv(VARIABLE)
    process = drivers.start(*flags)
    log = process.finish()
    assert process.returncode == 0, log
    for table in ("images", "segments"):
        assert visible(tmp_path, table) == visible(clean, table)
        assert len(read_table(tmp_path, table)) == len(visible(tmp_path, table)), "a part without a receipt was left"
    assert read_report(tmp_path)["num_images"] == len(visible(clean, "images"))


@pytest.mark.thorough
def test_of_two_drivers_one_is_refused_and_takes_over_when_the_first_is_dead(
    drivers, clean, photographs, tiny_checkpoint, tmp_path
):
    flags = [*places(photographs, tmp_path, tiny_checkpoint), *SMALL, "--images-per-shard", 1]
    first = drivers.start(*flags)
    first.wait_until(lambda: (tmp_path / "_runs" / "lease.json").exists())
    second = drivers.start(*flags)
    log = second.finish()
    assert second.returncode == 2 and f"--output is in use by process {first.pid}" in last_line(log)
    first.wait_until(lambda: list(tmp_path.glob("images/*/*.parquet")))
    first.kill()
    first.wait()
    third = drivers.start(*flags)
    log = third.finish()
    assert third.returncode == 0 and "which no longer exists" in log, log
    assert visible(tmp_path, "images") == visible(clean, "images")


@pytest.mark.thorough
def test_a_driver_that_was_suspended_while_another_took_over_stops(
    drivers, clean, photographs, tiny_checkpoint, tmp_path
):
    """As a virtual machine that is moved: it wakes up in the middle of a run that is no longer its own."""
    flags = [*places(photographs, tmp_path, tiny_checkpoint), *SMALL, "--images-per-shard", 1, "--lease-seconds", 30]
    first = drivers.start(*flags)
    first.wait_until(lambda: list(tmp_path.glob("images/*/*.parquet")))
    first.kill(signal.SIGSTOP)
    try:
        second = drivers.start(*flags)
        log = second.finish()
        while second.returncode == 2:  # it came too early
            assert "is in use" in log, log
            time.sleep(0.5)
            second = drivers.start(*flags)
            log = second.finish()
        assert second.returncode == 0, log
    finally:
        first.kill(signal.SIGCONT)
    log = first.finish()
    assert first.returncode == 1 and "lost the lease" in log, log
    assert visible(tmp_path, "images") == visible(clean, "images")
    assert visible(tmp_path, "segments") == visible(clean, "segments")


@pytest.mark.slow
def test_a_run_can_be_published_while_it_goes_on(drivers, clean, photographs, tiny_checkpoint, tmp_path):
    flags = [*places(photographs, tmp_path, tiny_checkpoint), *SMALL, "--images-per-shard", 1]
    process = drivers.start(*flags, "--publish-every", 0, "--compact")
    log = process.finish()
    assert process.returncode == 0, log
    assert open_table(Output.open(str(tmp_path)), "images").version() > 3
    for table in ("images", "segments"):
        assert visible(tmp_path, table) == visible(clean, table)


@pytest.mark.thorough
def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_when_there_is_room(
    drivers, clean, photographs, tiny_checkpoint, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        flags = [*places(photographs, disk, tiny_checkpoint), *SMALL, "--images-per-shard", 1]
        process = drivers.start(*flags)
        log = process.finish()
        [line] = [line for line in log.splitlines() if line.startswith("segment_bucket.py: error: ")]
        assert process.returncode == 1 and "No space left on device" in line, log
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        process = drivers.start(*flags)
        log = process.finish()
        assert process.returncode == 0, log
        assert visible(disk, "images") == visible(clean, "images")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.thorough
def test_too_many_failures_stop_the_run_and_more_allowance_goes_on(drivers, photographs, tiny_checkpoint, tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text("no image")
    shutil.copy(photographs / "rocket.jpg", folder)
    flags = [*places(folder, output, tiny_checkpoint), *SMALL, "--images-per-shard", 1, "--max-failure-rate", 1]
    process = drivers.start(*flags, "--max-failures", 3)
    log = process.finish()
    assert process.returncode == 1 and "more than --max-failures 3 allows; run" in log, log
    assert open_table(Output.open(str(output)), "images") is None
    process = drivers.start(*flags, "--max-failures", 6)
    log = process.finish()
    assert process.returncode == 0, log
    assert len(visible(output, "images")) == 7
    assert len(os.listdir(output / "images" / f"run={latest_run(output)}")) == 7
