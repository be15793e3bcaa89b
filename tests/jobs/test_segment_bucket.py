"""The main job, whole, on real photographs: exit codes, invariance, odd input, resumption; beside test_nights.py."""

import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from jobs import segment_bucket
from pipeline.commit.journal import Journal
from pipeline.drill.processes import processes_below
from pipeline.errors import ErrorCode
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from pipeline.schema import TABLES
from pipeline.telemetry.costs import ON_DEVICE, STEPS
from pipeline.telemetry.metrics import ALL, RETRIES, RUN_DEADLINE, STORE_ERRORS
from tests.support.metrics_page import wait_for_values
from tests.support.otlp_collector import collector
from tests.support.tables import read_report, read_table, results_by_image

SMALL = ["--image-size", "160:267"]
JOURNALS = "_runs/*/journal/*.jsonl"


def run(*flags) -> int:
    return segment_bucket.main([str(flag) for flag in flags])


def places(input_folder, output, model) -> list:
    return ["--input", input_folder, "--output", output, "--model", model]


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_metrics_and_the_trace_say_what_the_report_says(photographs, tiny_checkpoint, tmp_path):
    with collector() as traces:
        flags = ["--images-per-shard", 4, "--otlp-endpoint", traces.endpoint]
        assert run(*places(photographs, tmp_path, tiny_checkpoint), *SMALL, *flags) == 0
    report = read_report(tmp_path)
    assert_metrics_say_what_the_report_says(report, read_table(tmp_path, "images"), tmp_path)
    assert_the_trace_is_whole(report, traces)


def assert_the_trace_is_whole(report, traces) -> None:
    """run -> shard -> stage -> step, each within the span above it, in time and place."""
    spans = traces.wait_for(lambda spans: any(span.name.startswith("attempt") for span in spans))
    assert len({span.trace_id for span in spans}) == 1
    [root] = [span for span in spans if not span.parent_id]
    assert (root.name, root.attributes["m2f.images"]) == (f"run {report['run_id']}", report["num_images"])
    below = {span.id: sorted(s.name for s in spans if s.parent_id == span.id) for span in spans}
    shards = [span for span in spans if span.name.startswith("shard ")]
    assert below[root.id] == sorted(["attempt 1", *(f"shard {n}" for n in range(report["num_shards"]))])
    assert sum(span.attributes["m2f.images"] for span in shards) == report["num_images"]
    steps = {
        "reading": ["read"],
        "segmenting": ["decode", "encode", "model", "reduce", "resize"],
        "writing": ["encode", "write"],
    }
    for shard in shards:
        assert below[shard.id] == list(steps)
        for visit in (span for span in spans if span.parent_id == shard.id):
            assert below[visit.id] == steps[visit.name]
            assert shard.began <= visit.began <= visit.ended and not visit.error
            for step in (span for span in spans if span.parent_id == visit.id):
                assert visit.began <= step.began <= step.ended <= visit.ended


def assert_metrics_say_what_the_report_says(report, images, output) -> None:
    absent = {RUN_DEADLINE, RETRIES, STORE_ERRORS}  # of a run in which nothing goes wrong
    suffix = {"histogram": "_count"}
    values = wait_for_values(report["run_id"], *(m.name + suffix.get(m.kind, "") for m in ALL if m not in absent))
    num_images = report["num_images"]
    assert values["m2f_images_total"] == {"ok,": num_images}
    assert values["m2f_segments_total"][""] == report["num_segments"]
    assert values["m2f_receipts_committed_total"][""] == report["num_shards"]
    assert values["m2f_runs_total"] == {f"file://{output},finished": 1}
    assert (values["m2f_run_images"][""], values["m2f_run_images_left"][""]) == (num_images, 0)
    stages = ("reading", "segmenting", "writing")
    assert values["m2f_stage_images_total"] == {f"{stage},ok,": num_images for stage in stages}
    assert values["m2f_shard_seconds_count"] == dict.fromkeys(stages, report["num_shards"])
    assert values["m2f_read_bytes_total"][""] == sum(row["size_bytes"] for row in images)
    sizes = {table: sum(f.stat().st_size for f in output.glob(f"{table}/run=*/*.parquet")) for table in TABLES}
    assert values["m2f_written_bytes_total"] == sizes
    for step, ms in report["step_ms"].items():
        assert values["m2f_step_seconds_total"][step] == pytest.approx(ms * num_images / 1000, abs=0.01)
    on_device = sum(report["step_ms"][step] for step in ON_DEVICE) * num_images / 1000
    assert values["m2f_device_busy_seconds_total"]["cpu"] == pytest.approx(on_device, abs=0.01)


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_a_finished_run_is_left_as_it_is(photographs, tiny_checkpoint, tmp_path):
    flags = [*places(photographs, tmp_path, tiny_checkpoint), *SMALL, "--limit", 2, "--run-id", "night-1"]
    assert run(*flags) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert run(*flags) == 0
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    [record] = after.keys() - before.keys()
    assert record.parent.parent == tmp_path / "_runs" / "_nights" and after.items() > before.items()


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("budget", "code"), [("0.34", 0), ("0.3", 1)])
def test_failures_beyond_the_budget_give_exit_code_1(photographs, tiny_checkpoint, tmp_path, budget, code):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("coffee.png", "rocket.jpg"):
        shutil.copy(photographs / name, folder)
    (folder / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    assert run(*places(folder, output, tiny_checkpoint), *SMALL, "--max-failure-rate", budget) == code
    assert read_report(output)["failed_by_code"] == {"unsupported": 1}


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_hf_modes_run_through_the_job(photographs, tiny_checkpoint, tmp_path):
    flags = [*places(photographs, tmp_path, tiny_checkpoint), *SMALL, "--limit", 3]
    assert run(*flags, "--preprocess", "hf", "--postprocess", "hf") == 0
    step_ms = read_report(tmp_path)["step_ms"]
    assert list(step_ms) == list(STEPS) and all(ms > 0 for ms in step_ms.values())
    assert [0 < share <= 1 for share in read_report(tmp_path)["device_busy"].values()] == [True]
    assert all(row["status"] == "ok" for row in read_table(tmp_path, "images"))


@pytest.fixture(scope="module")
def many_photographs(photographs, tmp_path_factory) -> Path:
    """The 31 photographs beside the checkout where they are, else scikit-image's eleven."""
    from tests.support.places import SHARED_DATA

    return SHARED_DATA / "photos" if SHARED_DATA.is_dir() else photographs


@pytest.fixture(scope="module")
def one_by_one(ray_session, many_photographs, tiny_checkpoint, tmp_path_factory):
    """Results of batch size 1 in shards of 8, by file name."""
    output = tmp_path_factory.mktemp("one_by_one")
    assert run(*places(many_photographs, output, tiny_checkpoint), *SMALL, "--images-per-shard", 8) == 0
    return results_by_image(output)


@pytest.mark.thorough
def test_order_and_shards_change_no_rle(one_by_one, many_photographs, tiny_checkpoint, tmp_path):
    """Other names, so another order and other shard-mates: the same rows for the same photograph."""
    folder = tmp_path / "in"
    files = sorted(many_photographs.iterdir())
    random.Random(1).shuffle(files)
    for number, file in enumerate(files):  # a folder each, named in the new order
        (folder / f"{number:03d}").mkdir(parents=True)
        shutil.copy(file, folder / f"{number:03d}")
    output = tmp_path / "out"
    assert run(*places(folder, output, tiny_checkpoint), *SMALL, "--images-per-shard", 5) == 0
    assert results_by_image(output) == one_by_one
    assert sum(len(segments) for _, segments in one_by_one.values()) > 2 * len(files)


@pytest.mark.thorough
@pytest.mark.parametrize("batch_size", [2, pytest.param(5, marks=pytest.mark.thorough)])
def test_batch_size_changes_results_by_rounding_alone(
    one_by_one, many_photographs, tiny_checkpoint, tmp_path, batch_size
):
    flags = ["--batch-size", batch_size, "--images-per-shard", 100]
    assert run(*places(many_photographs, tmp_path, tiny_checkpoint), *SMALL, *flags) == 0
    results = results_by_image(tmp_path)
    assert results.keys() == one_by_one.keys()
    changed, total = changed_pixels(results, one_by_one)
    assert changed <= total / 10_000


@pytest.mark.slow
def test_swin_t_depends_neither_on_order_nor_shards_nor_batches(many_photographs, ray_session, tmp_path):
    """The tests above at the size of a published model: Swin-T, 133 classes, 320:533. Ten minutes on two cores."""
    from m2f_core.checkpoints.checkpoint import save_checkpoint
    from m2f_core.config.mask2former import Mask2FormerConfig
    from tests.support.seeded_model import seeded_model

    model = tmp_path / "swin-t"
    save_checkpoint(seeded_model(Mask2FormerConfig.swin_tiny(num_labels=133), seed=0), model)
    shuffled = tmp_path / "shuffled"
    files = sorted(many_photographs.iterdir())
    random.Random(2).shuffle(files)
    for number, file in enumerate(files):
        (shuffled / f"{number:03d}").mkdir(parents=True)
        shutil.copy(file, shuffled / f"{number:03d}")
    results = {}
    for name, folder, batch_size, per_shard in (
        ("alone", many_photographs, 1, 8),
        ("regrouped", shuffled, 1, 5),
        ("batches of 2", many_photographs, 2, 100),
        ("batches of 5", many_photographs, 5, 100),
    ):
        flags = ["--image-size", "320:533", "--batch-size", batch_size, "--images-per-shard", per_shard]
        assert run(*places(folder, tmp_path / name, model), *flags, "--score-threshold", 0.5) == 0
        results[name] = results_by_image(tmp_path / name)
    assert sum(len(segments) for _, segments in results["alone"].values()) > len(files)
    assert results["regrouped"] == results["alone"]
    for name in ("batches of 2", "batches of 5"):
        changed, total = changed_pixels(results[name], results["alone"])
        print(f"{name}: {changed} of {total} pixels changed")
        assert changed <= total / 10_000


def changed_pixels(results, others) -> tuple[int, int]:
    """Pixels whose segment or category differs, and all pixels."""
    changed = total = 0
    for name, (image, _) in results.items():
        maps = [category_map(image, found[name][1]) for found in (results, others)]
        changed += int((maps[0] != maps[1]).sum())
        total += maps[0].size
    return changed, total


def category_map(image, segments) -> np.ndarray:
    """[H, W] of category ids x 1000 + segment id, 0 where there is none."""
    label_map = np.zeros((image["height"], image["width"]), np.int64)
    for row in segments:
        label_map[coco.decode(row["segmentation"]) > 0] = row["category_id"] * 1000 + row["segment_id"]
    return label_map


class PeakMemory(threading.Thread):
    """Highest resident memory, in bytes, of each process below `pid` by the name of its command line."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.peaks, self.ended = pid, {}, threading.Event()

    def run(self):
        while not self.ended.wait(0.2):
            for pid in [self.pid, *(process.pid for process in processes_below([self.pid]))]:
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                    command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:60]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if "VmHWM:" in status:
                    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
                    self.peaks[pid, command] = max(peak, self.peaks.get((pid, command), 0))


@pytest.mark.thorough
def test_every_odd_file_has_a_row_and_no_process_grows(drivers, shared_data, tiny_checkpoint, tmp_path):
    folder = shared_data / "odd_images"
    process = drivers.start(*places(folder, tmp_path, tiny_checkpoint), *SMALL, "--max-failure-rate", 1)
    memory = PeakMemory(process.pid)
    memory.start()
    log = process.finish()
    memory.ended.set()
    assert process.returncode == 0, log
    files = {f"file://{path}" for path in folder.resolve().rglob("*") if path.is_file()}
    rows = read_table(tmp_path, "images")
    assert len(rows) == len(files) > 350
    assert {row["image_key"].replace(str(folder), str(folder.resolve())) for row in rows} == files
    assert read_report(tmp_path)["num_shards"] == -(-len(files) // 16), "on CPUs a shard is 16 images by default"
    codes = {code.value for code in ErrorCode}
    for row in rows:
        if row["status"] == "ok":
            assert row["error_code"] is None and row["height"] > 0 and row["width"] > 0
        else:
            assert row["error_code"] in codes and len(row["error_message"]) > 10, row
    by_name = {Path(row["image_key"]).name: row for row in rows}
    bombs = [row for name, row in by_name.items() if name.startswith("bomb")]
    assert bombs and {row["error_code"] for row in bombs} <= {"too_large", "decode_failed", "unsupported"}
    python = {who: peak for who, peak in memory.peaks.items() if "ray" in who[1] or "python" in who[1]}
    assert python and max(python.values()) < 2 * 2**30, sorted(python.items(), key=lambda item: -item[1])[:3]


BREAKING = """
import dataclasses, sys
from pipeline.cluster.environment import set_ray_environment
set_ray_environment()
import pipeline.run
right = pipeline.run.segment_spec
pipeline.run.segment_spec = lambda *args: dataclasses.replace(right(*args), weights_sha256="0" * 64)
from jobs import segment_bucket
sys.exit(segment_bucket.main(sys.argv[1:]))
"""


@pytest.mark.thorough
def test_a_run_that_breaks_says_why_and_goes_on_later(drivers, photographs, tiny_checkpoint, tmp_path):
    """An actor that finds other weights than the driver's will not find better ones when it is started again."""
    flags = [*map(str, places(photographs, tmp_path, tiny_checkpoint)), *SMALL, "--limit", "2"]
    broken = subprocess.run([sys.executable, "-c", BREAKING, *flags], capture_output=True, text=True)
    assert broken.returncode == 1
    [line] = [line for line in broken.stderr.splitlines() if line.startswith("segment_bucket.py: error: run ")]
    cause, _, traceback_file = line.removesuffix(")").partition(
        "; 0 of 2 images are done and kept; run the same command again to continue (traceback: "
    )
    assert "give every node the same checkpoint" in cause
    assert "BrokenRunError" not in broken.stderr and "BrokenRunError" in Path(traceback_file).read_text()
    Path(traceback_file).unlink()
    process = drivers.start(*flags)
    log = process.finish()
    assert process.returncode == 0, log
    assert len(list((tmp_path / "_runs").glob("2*"))) == 1, "it went on with the same run"
    nights = seen_nights(Output.open(str(tmp_path)))
    assert [night.outcome for night in nights] == ["broke", "finished"]
    assert "give every node the same checkpoint" in nights[0].reason
    assert len({night.record.run_id for night in nights}) == 1


def local_journal(run_folder: Path) -> Journal:
    return Journal(Output.open(str(run_folder.parent.parent)).run(run_folder.name))


@pytest.mark.thorough
def test_sigterm_commits_what_is_done(drivers, photographs, tiny_checkpoint, tmp_path):
    """`ray job stop` sends SIGTERM: exit code 143, and the same command finishes the run."""
    flags = [*places(photographs, tmp_path, tiny_checkpoint), *SMALL, "--images-per-shard", 1]
    process = drivers.start(*flags)
    process.wait_until(lambda: len(list(tmp_path.glob("images/*/*.parquet"))) >= 3)
    process.kill(signal.SIGTERM)
    log = process.finish()
    assert process.returncode == 143, log
    [run_folder] = (tmp_path / "_runs").glob("2*")
    committed = len(list(local_journal(run_folder).read()))  # an image each
    kept = f"{committed} of {len(list(photographs.iterdir()))} images are done and kept"
    assert (
        log.splitlines()[-1] == f"segment_bucket.py: stopped by SIGTERM; {kept}; run the same command again to continue"
    )
    assert committed >= 1, "three shards were written, at most two receipts were on their way"
    [night] = seen_nights(Output.open(str(tmp_path)))
    assert (night.outcome, night.record.exit_code) == ("stopped", 143)
    assert kept in night.reason and night.record.counts["done"] >= committed
    process = drivers.start(*flags)
    log = process.finish()
    assert process.returncode == 0, log
    assert read_report(tmp_path)["num_shards_done_before"] == committed
    assert len(read_table(tmp_path, "images")) == len(list(photographs.iterdir()))
