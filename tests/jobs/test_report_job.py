"""jobs/report.py as people start it, and the page that the main job writes: places, bad input, a page that fails."""

import json
import logging
import os
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import segment_bucket
from jobs.common import run_page
from jobs.common.run_page import write_run_page
from jobs.report import PROG, main
from pipeline.drill.processes import look_at
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from pipeline.page import extra
from tests.support.drivers import drivers
from tests.support.evaluation_runs import Place, write_run
from tests.support.page_runs import drawn_images, page_run
from tests.support.run_records import report
from tests.support.tables import read_report
from tests.support.waiting import PATIENCE_SECONDS, wait_until
from tests.support.without_pages import without_pages


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("report")
    page_run(root, root / "images", drawn_images(root / "images", number=3), "night", 28)
    return root / "tables"


def refusal(capsys, *flags) -> str:
    """What the job says on its only line."""
    with pytest.raises(SystemExit) as stop:
        main([str(flag) for flag in flags])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    return said.err.removeprefix(f"{PROG}: ").strip()


def test_the_page_goes_to_the_run_or_to_another_place(tables, tmp_path, capsys):
    assert main(["--tables", str(tables)]) == 0
    folder = tables / "_runs" / "night" / "page"
    assert capsys.readouterr().out == f"report: {folder}/report.html\n"
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    assert read_report(tables, "night")["num_images"] == 8  # the record of the run is as before
    assert main(["--tables", str(tables), "--to", str(tmp_path / "there"), "--images", "folder"]) == 0
    pictures = list((tmp_path / "there" / "images").iterdir())
    html = (tmp_path / "there" / "report.html").read_text()
    assert len(pictures) == 8 and all(f"images/{path.name}" in html for path in pictures)
    assert "data:image" not in html


def test_without_pictures_no_pixel_of_an_image_is_copied(tmp_path, capsys):
    """Neither of an image with a result nor of one that failed; the gallery shows masks."""
    folder = tmp_path / "images"
    images = drawn_images(folder, number=1)
    failed = replace(images[-1], found=None, error="out of memory", code="inference_failed")
    page_run(tmp_path, folder, [*images[:-1], failed], "night", 28)
    html = tmp_path / "tables/_runs/night/page/report.html"
    for images_flag, is_inside, are_beside in (("folder", True, True), ("embed", True, False), ("none", False, False)):
        assert main(["--tables", str(tmp_path / "tables"), "--images", images_flag]) == 0
        assert ("data:image" in html.read_text()) == is_inside  # of the failed image, always
        assert bool(list(html.parent.glob("images/*"))) == are_beside
    assert all(one["drawn"] for one in json.loads((html.parent / "report.json").read_text())["gallery"]["images"])


def test_a_page_in_a_bucket(tables, s3, capsys):
    bucket = s3.bucket("m2f-page")
    assert main(["--tables", str(tables), "--to", f"{bucket}/pages"]) == 0
    assert capsys.readouterr().out == f"report: {bucket}/pages/report.html\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--run-id", "other"], "holds no run other; its runs: night"),
        (["--against", "night"], "--against names run night itself"),
        (["--against", "other"], "holds no run other"),
        (["--against", "night", "--no-compare"], "exclude each other"),
        (["--against-tables", "x"], "--against-tables needs --against"),
        (["--where", "true"], "--where needs --overlays"),
        (["--sample", "5000"], "it must lie in 0 .. 2,000"),
        (["--to", "ftp://x/y"], "ftp:// is no store that this program uses"),
    ],
)
def test_bad_input_gets_one_line(tables, capsys, flags, said):
    assert said in refusal(capsys, "--tables", tables, *flags)
    assert not (tables / "_runs" / "night" / "images").exists()


def test_a_run_that_is_not_finished_or_not_published_is_refused(tmp_path, capsys):
    images = drawn_images(tmp_path / "images", number=0)
    write_run(Place(str(tmp_path)), images[:1], run_id="night", finished_at=None)
    assert "run night is not finished" in refusal(capsys, "--tables", tmp_path / "tables", "--run-id", "night")
    write_run(Place(str(tmp_path)), images[:1], run_id="late")
    assert "has no published table images" in refusal(capsys, "--tables", tmp_path / "tables")


def test_without_the_extra_one_line_says_what_to_install(tables, capsys, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    assert refusal(capsys, "--tables", tables).endswith("pip install 'm2f-pipeline[report]'")


def test_images_that_are_gone_are_shown_as_masks(tmp_path, capsys):
    folder = tmp_path / "images"
    page_run(tmp_path, folder, drawn_images(folder, number=2), "night", 28)
    shutil.rmtree(folder)
    assert main(["--tables", str(tmp_path / "tables")]) == 0
    figures = json.loads((tmp_path / "tables/_runs/night/page/report.json").read_text())
    assert {one["missing"] is None for one in figures["gallery"]["images"]} == {False}
    assert figures["totals"]["ok"] == 7


# --- the page that the main job writes --------------------------------------------------------------------------------


def test_the_page_of_a_finished_run_is_written_and_named(tables, capfd):
    shutil.rmtree(tables / "_runs" / "night" / "page", ignore_errors=True)
    assert write_run_page(str(tables), "night")
    assert capfd.readouterr().out == f"report: {tables}/_runs/night/page/report.html\n"
    assert "data:image" in (tables / "_runs/night/page/report.html").read_text()


def test_the_process_of_the_page_is_told_which_images_to_take(tmp_path, capfd, monkeypatch):
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert write_run_page("tables", "night", "none")
    assert "-m jobs.report --tables tables --run-id night --images none" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("run_id", "seconds", "why"), [("other", 600.0, "holds no run other"), ("night", 0.01, "it was not done in 0.01 s")]
)
def test_a_page_that_fails_is_a_warning_and_no_module_of_the_working_folder_is_run(
    tables, tmp_path, caplog, monkeypatch, run_id, seconds, why
):
    for name in ("jobs/__init__.py", "jobs/report.py", "queue.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not write_run_page(str(tables), run_id, seconds=seconds)
    [record] = caplog.records
    assert record.name == run_page.__name__ and why in record.getMessage()


@pytest.mark.parametrize(
    ("flags", "images"), [([], "embed"), (["--page-images", "none"], "none"), (["--no-page"], None)]
)
@pytest.mark.parametrize("num_failed", [0, 1])
def test_the_main_job_asks_for_the_page_of_its_run_once_the_night_has_ended(
    tmp_path, monkeypatch, flags, images, num_failed
):
    """Whatever ends the page then, the night is finished, with the exit code of its run."""
    counts = {"num_images": 2, "num_ok": 2 - num_failed, "num_failed": num_failed}
    counts["failed_by_code"] = {"decode_failed": 1} if num_failed else {}
    done = report("night", table_versions={"images": 1, "segments": 1}, **counts)
    monkeypatch.setattr("pipeline.segment_bucket.segment_bucket", lambda *args: done)
    (tmp_path / "in").mkdir()
    output = str(tmp_path / "out")
    with without_pages(segment_bucket) as asked:
        code = segment_bucket.main(["--input", str(tmp_path / "in"), "--output", output, *flags])
    assert code == num_failed and asked == ([] if images is None else [(output, "night", images)])
    [night] = seen_nights(Output.open(output))
    assert (night.outcome, night.record.exit_code) == ("finished", num_failed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_page_and_not_the_job(tmp_path, caplog, monkeypatch, number):
    """The signal comes once the page has a process, here one that never ends by itself."""
    python, pid = tmp_path / "python", tmp_path / "pid"
    python.write_text(f"#!/bin/sh\necho $$ >{pid}.new && mv {pid}.new {pid}\nexec sleep {PATIENCE_SECONDS:g}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    def send() -> None:
        wait_until(pid.exists)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    # Where a shell started the tests in its background, SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sender.start()
        with caplog.at_level(logging.WARNING):
            assert not write_run_page("tables", "night")
        sender.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert "it was interrupted" in caplog.text
    wait_until(lambda: look_at(int(pid.read_text())) is None, "for the end of the page's process")


def test_without_the_extra_a_night_says_so_in_one_line_and_is_no_warning(tables, caplog, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert not write_run_page(str(tables), "night")
    [record] = caplog.records
    assert record.levelno == logging.INFO and "pip install 'm2f-pipeline[report]'" in record.getMessage()


@pytest.mark.thorough
def test_the_main_job_ends_with_a_page(photographs, tiny_checkpoint, tmp_path):
    """And with --no-page without one."""
    flags = ["--input", photographs, "--model", tiny_checkpoint, "--image-size", "160:267"]
    with drivers(tmp_path, None) as forking:
        for name, more in (("with", []), ("without", ["--no-page"])):
            output = tmp_path / name
            said = forking.start(*flags, "--output", output, *more, M2F_TEST_PAGES="1").finish()
            pages = list(output.glob("_runs/*/page/report.html"))
            assert len(pages) == (name == "with"), said
            assert ("report: " in said) == (name == "with")
