"""Tars as inputs of the whole job: what is damaged is a row each, nothing is lost, and the rest is as from files."""

import io
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import ray
from PIL import Image

from pipeline.inputs import container
from pipeline.layout import Output
from tests.jobs.test_exactly_once import visible
from tests.jobs.test_segment_bucket import run
from tests.support.tables import read_report, read_table
from tests.support.tars import member, tar_of

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("ray_session")]

NUM_IMAGES, PER_SHARD = 300, 16
CORRUPT = {index: "cut" if index % 2 else "noise" for index in range(50, NUM_IMAGES, 100)}  # 1 %


def scene(index: int) -> bytes:
    """A small JPEG that no other is like."""
    pixels = np.random.default_rng(index).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def content(index: int) -> bytes:
    data = scene(index)
    kind = CORRUPT.get(index)
    return data[: len(data) // 2] if kind == "cut" else random.Random(index).randbytes(900) if kind == "noise" else data


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The same images as loose files, and in a tar with labels that ends inside of the last image."""
    base = tmp_path_factory.mktemp("tars")
    loose, tars = base / "loose", base / "tars"
    loose.mkdir()
    tars.mkdir()
    members = []
    for index in range(NUM_IMAGES):
        (loose / f"{index:05d}.jpg").write_bytes(content(index))
        members += [member(f"{index:05d}.json", b'{"label": 1}'), member(f"{index:05d}.jpg", content(index))]
    whole = tar_of(members)
    (tars / "scenes.tar").write_bytes(whole[: whole.rindex(content(NUM_IMAGES - 1)) + 100])
    return loose, tars


def flags(folder: Path, output: Path, model: Path) -> list:
    places = ["--input", folder, "--output", output, "--model", model, "--image-size", "64:86"]
    return [*places, "--images-per-shard", PER_SHARD, "--max-failure-rate", 0.1]


@pytest.fixture(scope="module")
def clean(folders, tiny_checkpoint, tmp_path_factory, ray_session) -> Path:
    """The output of a run over the tar that nothing disturbed."""
    output = tmp_path_factory.mktemp("clean")
    assert run(*flags(folders[1], output, tiny_checkpoint)) == 0
    return output


def name_of(row: dict) -> str:
    return row["image_key"].replace("#", "/").rpartition("/")[2]


def test_every_readable_image_of_a_damaged_tar_is_ok_and_each_other_is_a_row(clean, folders):
    rows = {name_of(row): row for row in read_table(clean, "images")}
    assert len(rows) == read_report(clean)["num_images"] == NUM_IMAGES
    failed = {name: row["error_code"] for name, row in rows.items() if row["status"] != "ok"}
    corrupt = {f"{i:05d}.jpg": {"cut": "decode_failed", "noise": "unsupported"}[kind] for i, kind in CORRUPT.items()}
    assert failed == {**corrupt, f"{NUM_IMAGES - 1:05d}.jpg": "damaged_container"}
    assert {row["image_key"].partition("#")[0] for row in rows.values()} == {f"file://{folders[1]}/scenes.tar"}
    assert len({row["shard"] for row in rows.values()}) == -(-NUM_IMAGES // PER_SHARD), "the tar was not divided"


def test_the_segments_are_those_of_loose_files(clean, folders, tiny_checkpoint, tmp_path):
    assert run(*flags(folders[0], tmp_path, tiny_checkpoint)) == 0

    def segments(output: Path) -> list[tuple]:
        rows = read_table(output, "segments")
        found = [(name_of(r), r["segment_id"], r["category_id"], r["score"], str(r["segmentation"])) for r in rows]
        return sorted(row for row in found if row[0] != f"{NUM_IMAGES - 1:05d}.jpg")

    assert segments(clean) and segments(tmp_path) == segments(clean)


def test_a_killed_run_over_a_tar_that_is_continued_is_the_undisturbed_run(
    drivers, clean, folders, tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)  # these drivers join a cluster
    process = drivers.start(*flags(folders[1], tmp_path, tiny_checkpoint))
    process.wait_until(lambda: list(tmp_path.glob("_runs/*/journal/*.jsonl")))
    assert process.kill() and process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    [killed] = (path.parent for path in tmp_path.glob("_runs/*/run.json"))
    assert not (killed / "report.json").exists()
    process = drivers.start(*flags(folders[1], tmp_path, tiny_checkpoint))
    log = process.finish()
    assert process.returncode == 0, log
    report = read_report(tmp_path)
    assert report["run_id"] == killed.name and report["num_shards_done_before"] > 0
    for table in ("images", "segments"):
        assert visible(tmp_path, table) == visible(clean, table) and visible(clean, table)


def test_the_next_night_has_nothing_to_do_and_reads_no_header(clean, folders, tiny_checkpoint, monkeypatch):
    with Output.open(str(clean)).errors():
        assert len(Output.open(str(clean)).list_indexes()) == 1

    requests, read_part = [], container.read_part
    monkeypatch.setattr(container, "read_part", lambda *args: (requests.append(args[3:5]), read_part(*args))[1])
    assert run(*flags(folders[1], clean, tiny_checkpoint)) == 0
    # One block shows that the tar holds images; the listing itself comes from the index.
    assert requests == [(0, 65536)]
