"""One bucket, night after night: what `make test` proves of the main job, with as few runs as that takes.

The first night has a Ray of its own. Its plan grows: the listing goes on once a receipt is committed. It meets
photographs, a file that is no image, and an image that aborts its process; the first tests only read what that night
left. A night without changes follows, and one that is killed. The further cases of each promise are `thorough`:
test_segment_bucket.py, test_process_killers.py, test_growing_plan.py, test_evaluate_job.py and test_increments.py.
"""

import json
import os
import random
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import ray
from pycocotools import mask as coco

from jobs import evaluate
from jobs import nights as list_nights
from pipeline.guard import planted_faults
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from pipeline.telemetry.log_lines import show_log_lines
from tests.jobs.test_increments import Nights
from tests.jobs.test_segment_bucket import JOURNALS, local_journal
from tests.support import gated_listing
from tests.support.drivers import CHANGED_BY
from tests.support.evaluation_oracles import coco_api, coco_results, panoptic_counts
from tests.support.evaluation_runs import MadeImage, Place, bitten, coco_instances, found_by_run, write_panoptic
from tests.support.gated_listing import GATE, LISTED, TOGETHER
from tests.support.tables import latest_run, read_report, read_table, results_by_image

TWIN = "sub/twin of coins.png"  # coins.png is in the shard of the image that aborts
ONE_THREAD = ("--cpus-per-actor", 1, "--gpu-actors", "1:1")  # else rounding depends on the CPUs of the cluster
PER_SHARD, NUM_SHARDS = 4, 4  # astronaut .. coffee, coins .. killer, motorcycle_left .. retina, rocket and the twin
LISTED_FIRST = 2 * PER_SHARD  # images that are listed before the first receipt


@dataclass
class FirstNight(Nights):
    """The bucket after its first night: what lay there, and how the run ended."""

    names: list[str]  # keys below the bucket, sorted
    code: int
    said: str
    run_id: str


@pytest.fixture(scope="module")
def first(drivers, photographs, tiny_checkpoint, tmp_path_factory) -> FirstNight:
    """Two of the fourteen images fail, which is more than --max-failure-rate allows."""
    folder = tmp_path_factory.mktemp("nights")
    bucket = folder / "in"
    shutil.copytree(photographs, bucket)
    (bucket / "killer.jpg").write_bytes((bucket / "rocket.jpg").read_bytes() + planted_faults.marker("abort"))
    (bucket / "notes.jpg").write_text("no image")
    (bucket / "sub").mkdir()
    shutil.copy(bucket / "coins.png", bucket / TWIN)
    names = sorted(path.relative_to(bucket).as_posix() for path in bucket.rglob("*") if path.is_file())
    nights = Nights(bucket, folder / "out", tiny_checkpoint)
    gated = {
        CHANGED_BY: gated_listing.__name__,
        LISTED: str(LISTED_FIRST),
        TOGETHER: "1",
        GATE: f"{nights.output}/{JOURNALS}",
    }
    flags = nights.flags(*ONE_THREAD, "--max-failure-rate", 0.1)
    driver = drivers.start(*flags, **gated, **{planted_faults.VARIABLE: "1"})
    said = driver.finish_alone()
    return FirstNight(bucket, nights.output, nights.model, names, driver.wait(), said, latest_run(nights.output))


def test_every_photograph_has_its_rows_and_the_books_close(first):
    assert first.code == 1, "more images failed than allowed, and the tables are published all the same"
    images = read_table(first.output, "images", first.run_id)
    assert [row["image_key"] for row in images] == [f"file://{first.bucket}/{name}" for name in first.names]
    failed = {Path(row["image_key"]).name for row in images if row["status"] != "ok"}
    assert failed == {"killer.jpg", "notes.jpg"}, first.said
    report = read_report(first.output, first.run_id)
    num_images = len(first.names)
    assert (report["num_images"], report["num_ok"], report["num_shards"]) == (num_images, num_images - 2, NUM_SHARDS)
    assert report["failed_by_code"] == {"crashed_worker": 1, "unsupported": 1}
    segments = read_table(first.output, "segments", first.run_id)
    assert len(segments) == report["num_segments"] == sum(row["num_segments"] for row in images)
    assert len(segments) >= 2 * len(images), "the tiny model should find something, or these tests prove little"
    for row in segments:
        mask = coco.decode(row["segmentation"])
        assert mask.sum() == row["area"]
        assert coco.toBbox(row["segmentation"]).tolist() == row["bbox"]
    assert f"{first.output}/segments (Delta table, version 1)" in first.said
    [night, *_] = seen_nights(Output.open(str(first.output)))
    assert (night.outcome, night.record.exit_code) == ("finished", 1)
    assert night.record.run_id == first.run_id
    assert night.record.counts == {
        **{"images": num_images, "done": num_images, "failed": 2, "removed": 0},
        "segments": len(segments),
    }


def test_the_first_shard_is_finished_before_the_listing_ends(first):
    """The record of the run has the plan as far as it was then; plan.json has the whole."""
    folder = first.output / "_runs" / first.run_id
    begun, planned = (json.loads((folder / name).read_text()) for name in ("run.json", "plan.json"))
    assert not begun["plan_is_complete"]
    assert (begun["plan"]["num_images"], planned["plan"]["num_images"]) == (LISTED_FIRST, len(first.names))
    assert begun["plan"]["num_shards"] < planned["plan"]["num_shards"] == NUM_SHARDS
    assert f"{LISTED_FIRST} images in 2 shards so far, and the listing goes on" in first.said


def test_an_image_that_aborts_its_process_costs_one_row(first):
    """Its shard-mates have the rows that they have in a shard where nobody died."""
    words = r"shard 1 was started [23] times and never finished; trying its images one by one"
    assert re.search(rf"Z WARNING: {words} \[SegmentImages \d+\]", first.said), first.said
    assert "constructor arguments in the object store" not in first.said, "Ray can restart these actors"
    results = results_by_image(first.output, first.run_id)
    assert results["killer.jpg"][0]["error_code"] == "crashed_worker"
    assert results["coins.png"] == results[Path(TWIN).name] and results["coins.png"][1]


def test_a_run_of_segment_bucket_is_scored(first, tmp_path):
    """Ground truth made of what the run found is found; of the same, bitten into, as much as the oracles say."""
    categories, found = found_by_run(first.output, first.bucket)
    made = [image for image in found if image.name in ("coffee.png", "rocket.jpg", TWIN)]
    place = Place(str(tmp_path), categories=categories)
    assert len(made) == 3 and len({s.category_id for i in made for s in i.truth}) > 1

    def scored(truth: list[MadeImage]) -> dict:
        instances = place.put("instances.json", json.dumps(coco_instances(truth, categories)).encode())
        ground_truths = ["--panoptic-gt", write_panoptic(place, truth), "--instances-gt", instances]
        flags = ["--tables", first.output, "--run-id", first.run_id, *ground_truths, "--workers", 1]
        assert evaluate.main([*map(str, flags), "--report", f"{tmp_path}/report.json"]) == 0
        return json.loads((tmp_path / "report.json").read_text())

    exact = scored(made)
    assert exact["panoptic"]["all"]["PQ"] == exact["semantic"]["mIoU"] == 1
    assert exact["ground_truth"]["panoptic"]["images"]["ignored"] == len(first.names) - 3
    broken = [MadeImage("notes.jpg", (4, 4)), MadeImage("killer.jpg", (4, 4))]
    failed = scored([*made, *broken])["ground_truth"]["panoptic"]["images"]["failed_by_code"]
    assert failed == {"unsupported": 1, "crashed_worker": 1}
    truth = bitten(np.random.default_rng(0), made)
    report = scored(truth)
    counts = panoptic_counts(truth)
    for entry in report["panoptic"]["per_class"]:
        expected = counts.get(entry["category_id"], {"tp": 0, "fp": 0, "fn": 0, "iou_sum": 0})
        assert {name: entry[name] for name in expected} == pytest.approx(expected)
    things = [category["id"] for category in categories if category["isthing"]]
    expected = coco_api(coco_instances(truth, categories), coco_results(truth, things), "segm")
    assert report["segm"]["AP"] == pytest.approx(expected["AP"], abs=1e-9) and 0 < expected["AP"] < 1


def test_a_night_without_changes_does_nothing_and_alarms_nobody(first, capsys):
    before = set(first.files())
    try:
        assert first.run() == {}, "nothing had changed"
        assert first.run("--run-id", first.run_id) == {}, "this run is finished"
    finally:
        show_log_lines()  # main() lets the log write to the stderr of this test
    assert set(first.files()) == before
    seen = seen_nights(Output.open(str(first.output)))[1:]
    assert [(night.outcome, night.record.exit_code) for night in seen] == [("nothing to do", 0)] * 2
    unchanged = f"{len(first.names)} unchanged"
    assert [night.reason for night in seen] == [unchanged, f"run {first.run_id} is already finished"]
    said = capsys.readouterr().err
    assert f"INFO: nothing to do: {len(first.names)} unchanged" in said
    assert f"INFO: run {first.run_id} is already finished. " in said
    assert "WARNING" not in said and "ERROR" not in said, "a quiet night alarms nobody"
    assert list_nights.main(["--output", str(first.output), "--json", "--last", "2", "--expect-within", "90m"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [night["outcome"] for night in listed] == ["nothing to do"] * 2
    assert listed[0]["reason"] == unchanged and listed[0]["seconds"] > 0
    assert list_nights.main(["--output", str(first.output)]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 3 + 3 + 1 and f"{len(first.names)}/{len(first.names)}" in table


def test_a_killed_night_does_what_is_new_or_changed_and_goes_on_where_it_stopped(
    first, ray_session, drivers, photographs, monkeypatch
):
    """kill -9 after a random number of commits; what was committed is not read again: its images are gone by then. This
    test is the last of the file, because it changes the bucket.
    """
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # these drivers join a cluster
    os.utime(first.bucket / "camera.png", (1, 1))
    (first.bucket / "ihc.png").unlink()
    new = set()
    for copy in range(3):
        (first.bucket / "new" / str(copy)).mkdir(parents=True)
        for photograph in photographs.iterdir():
            new.add(f"{copy}-{photograph.name}")
            shutil.copy(photograph, first.bucket / "new" / str(copy) / f"{copy}-{photograph.name}")

    flags = first.flags(*ONE_THREAD, "--images-per-shard", 2)
    process = drivers.start(*flags)
    after = random.randint(1, 5)
    journals = JOURNALS.replace("*", "2*", 1)

    def committed_lines() -> int:
        paths = (path for path in first.output.glob(journals) if first.run_id not in path.parts)
        return sum(len(path.read_bytes().splitlines()) for path in paths)

    process.wait_until(lambda: committed_lines() >= after)
    assert process.kill(), "the run was over before it could be killed"
    assert process.wait() == -signal.SIGKILL

    [run_folder] = (path for path in (first.output / "_runs").glob("2*") if path.name != first.run_id)
    committed = {receipt.shard for receipt in local_journal(run_folder).read()}
    assert committed, "the kill came before the first commit"
    written = ds.dataset(first.output / "images" / f"run={run_folder.name}")
    rows = written.to_table(columns=["shard", "image_key"]).to_pylist()
    for path in {row["image_key"].removeprefix("file://") for row in rows if row["shard"] in committed}:
        Path(path).unlink()
    night = seen_nights(Output.open(str(first.output)))[-1]
    assert (night.outcome, night.record.run_id) == ("died", run_folder.name)

    process = drivers.start(*flags)
    log = process.finish()
    assert process.returncode == 0, log
    images = read_table(first.output, "images", run_folder.name)
    reasons = {Path(row["image_key"]).name: row["reason"] for row in images}
    assert reasons == {"camera.png": "changed", **dict.fromkeys(new, "new")}
    results = results_by_image(first.output, run_folder.name)
    before = results_by_image(first.output, first.run_id)
    for name in new:
        segments = results[name][1]
        assert segments == before[name[2:]][1], f"killed after {after} commits: {name} is not as on the first night"
    report = read_report(first.output)
    assert report["run_id"] == run_folder.name
    assert report["counts"] == {"changed": 1, "new": len(new), "removed": 1, "unchanged": len(first.names) - 2}
    assert report["num_shards_done_before"] == len(committed)
    receipts = [receipt.shard for receipt in local_journal(run_folder).read()]
    assert sorted(receipts) == list(range(report["num_shards"])), "a shard has two receipts"
    names = {Path(name).name for name in first.names}
    assert set(first.current()) == names | new, "without being asked, nothing is taken out"
    assert len(before) == len(names), "the first night stays as it was"
