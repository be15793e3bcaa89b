"""A run whose plan grows: its first shards run while the listing goes on, and no image is lost or doubled.

The plan of the first night of test_nights.py grows, too.
"""

import glob
import json
import signal

import pytest

from pipeline.guard.kill_points import POINTS_OF_A_GROWING_PLAN, VARIABLE
from pipeline.plan import spool
from pipeline.runs import preview
from tests.jobs.test_exactly_once import visible
from tests.jobs.test_segment_bucket import SMALL, places, run
from tests.support.drivers import CHANGED_BY
from tests.support.gated_listing import BREAKS, GATE, LISTED, gated
from tests.support.last_line import last_line
from tests.support.tables import read_report, read_table

PER_SHARD = ["--images-per-shard", 2]
GATED = {CHANGED_BY: "tests.support.gated_listing"}


@pytest.fixture(scope="module")
def clean(drivers, photographs, tiny_checkpoint, tmp_path_factory):
    """The output of a run that listed everything first."""
    output = tmp_path_factory.mktemp("clean")
    process = drivers.start(*places(photographs, output, tiny_checkpoint), *SMALL, *PER_SHARD)
    log = process.finish()
    assert process.returncode == 0 and not list(output.glob("_runs/*/plan.json")), log
    return output


def check_same(output, clean):
    for table in ("images", "segments"):
        assert visible(output, table) == visible(clean, table) and visible(clean, table)
        assert len(read_table(output, table)) == len(visible(output, table))
    report = read_report(output)
    assert report["num_images"] == report["num_ok"] == report["counts"]["new"] == len(visible(clean, "images"))
    return report


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_the_first_shard_is_finished_before_the_listing_ends(photographs, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_ROWS_A_FILE", 1)
    journal = f"{tmp_path}/_runs/*/journal/*.jsonl"
    monkeypatch.setattr(preview, "list_inputs", gated(5, lambda: glob.glob(journal)))
    assert run(*places(photographs, tmp_path, tiny_checkpoint), *SMALL, *PER_SHARD) == 0
    [record] = tmp_path.glob("_runs/*/run.json")
    content, plan = json.loads(record.read_text()), json.loads((record.parent / "plan.json").read_text())
    keys = [row["image_key"] for row in read_table(tmp_path, "images")]
    assert sorted(keys) == sorted(f"file://{path}" for path in photographs.iterdir())
    assert not content["plan_is_complete"]
    assert 0 < content["plan"]["num_images"] <= 5 < plan["plan"]["num_images"] == read_report(tmp_path)["num_ok"]
    # The next night knows all of them.
    assert run(*places(photographs, tmp_path, tiny_checkpoint), *SMALL, *PER_SHARD) == 0
    assert len(list(tmp_path.glob("_runs/*/run.json"))) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("point", [*POINTS_OF_A_GROWING_PLAN, "run.json written", "after journal"])
def test_a_driver_killed_while_the_plan_grows_costs_nothing(
    drivers, clean, photographs, tiny_checkpoint, tmp_path, point
):
    flags = [*places(photographs, tmp_path, tiny_checkpoint), *SMALL, *PER_SHARD]
    gate = f"{tmp_path}/_runs/*/journal/*.jsonl"
    process = drivers.start(*flags, **GATED, **{LISTED: "5", GATE: gate, VARIABLE: point})
    log = process.finish()
    assert process.returncode == -signal.SIGKILL, log
    [killed] = tmp_path.glob("_runs/*/run.json")
    process = drivers.start(*flags)
    log = process.finish()
    assert process.returncode == 0, log
    assert check_same(tmp_path, clean)["run_id"] == killed.parent.name


@pytest.mark.thorough
def test_a_listing_that_breaks_off_keeps_what_is_done(drivers, clean, photographs, tiny_checkpoint, tmp_path):
    """The gate never opens, and in the end the listing raises."""
    flags = [*places(photographs, tmp_path, tiny_checkpoint), *SMALL, *PER_SHARD]
    process = drivers.start(*flags, **GATED, **{LISTED: "4", GATE: f"{tmp_path}/_runs/*/journal/*.jsonl", BREAKS: "1"})
    log = process.finish()
    assert process.returncode == 1 and "broke while its input was being listed: the store went away" in last_line(log)
    process = drivers.start(*flags)
    log = process.finish()
    assert process.returncode == 0, log
    assert check_same(tmp_path, clean)["num_shards_done_before"] >= 1
