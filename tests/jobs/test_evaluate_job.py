"""jobs/evaluate.py as people start it: S3, what is printed, and bad input; a run of the main job in test_nights.py."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from jobs.common.command_line import parse
from jobs.evaluate import PROG, main
from pipeline.evaluate.report import print_evaluation
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.setting_fields import help_texts
from tests.support.command_line_page import PAGE, page
from tests.support.evaluation_oracles import COCO_FIGURES
from tests.support.evaluation_runs import (
    CATEGORIES,
    MadeImage,
    Place,
    Segment,
    coco_instances,
    png_bytes,
    write_labels,
    write_panoptic,
    write_run,
)
from tests.support.places import ROOT

FLAGS = (
    "--ignore-label",
    "--instances-gt",
    "--panoptic-gt",
    "--panoptic-pngs",
    "--reduce-zero-label",
    "--report",
    "--run-id",
    "--semantic-gt",
    "--tables",
    "--workers",
)


def columns(first: int, last: int, size: tuple[int, int] = (6, 12)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[:, first:last] = True
    return mask


def images(count: int = 5) -> list[MadeImage]:
    """Each with a cat of which the run found more and more, and a sky of which it found the rest."""
    return [
        MadeImage(
            f"val/{n}.jpg",
            (6, 12),
            [Segment(columns(0, 6), 7), Segment(columns(6, 12), 92)],
            [Segment(columns(0, 2 + n), 7, score=0.9), Segment(columns(2 + n, 12), 92, score=0.8)],
        )
        for n in range(count)
    ]


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(str(tmp_path))


def run(*args) -> int:
    return main([*map(str, args), "--workers", "1"])


def refusal(capsys, *args) -> str:
    """The one line of an evaluation that must not start."""
    with pytest.raises(SystemExit) as stop:
        run(*args)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith(f"{PROG}: error: ")
    return line


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_flags_are_those_that_people_know():
    assert tuple(sorted("--" + field.name.replace("_", "-") for field in fields(EvaluationSettings))) == FLAGS


@pytest.mark.parametrize("name", [field.name for field in fields(EvaluationSettings)])
def test_every_setting_has_a_help_text_and_a_place_in_the_docs(name):
    text = help_texts(EvaluationSettings)[name]
    assert len(text) > 10 and text.endswith(".")
    assert text in PAGE.read_text() and f"`--{name.replace('_', '-')}`" in PAGE.read_text()


def test_the_page_is_the_one_that_the_settings_make():
    assert PAGE.read_text() == page(), "write it again: python -m tests.support.command_line_page"


def test_help_shows_all_and_loads_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "jobs/evaluate.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    shown = " ".join(re.sub("[╭╮╰╯│─]", " ", done.stdout).split())
    assert all(flag in shown for flag in FLAGS)
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "ray", "numpy", "pyarrow", "numba", "fsspec", "hotcoco", "PIL"}


def test_a_yaml_file_and_flags_mean_the_same(tmp_path):
    file = tmp_path / "evaluation.yaml"
    file.write_text("tables: out\nsemantic_gt: labels\nreduce_zero_label: true\nworkers: 3\n")
    flags = ["--tables", "out", "--semantic-gt", "labels", "--reduce-zero-label", "--workers", "3"]
    assert parse(EvaluationSettings, ["--config", str(file)], prog=PROG) == parse(EvaluationSettings, flags, prog=PROG)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--panoptic-gt", "p.json"], ["--tables"]),
        (["--tables", "out"], ["--panoptic-gt", "--instances-gt", "--semantic-gt"]),
        (["--tables", " ", "--panoptic-gt", "p.json"], ["--tables is empty"]),
        (["--tables", "out", "--panoptic-gt", ""], ["--panoptic-gt is empty"]),
        (["--tables", "out", "--semantic-gt", "l", "--panoptic-pngs", "p"], ["--panoptic-pngs", "--panoptic-gt"]),
        (["--tables", "out", "--panoptic-gt", "p", "--reduce-zero-label"], ["--reduce-zero-label", "--semantic-gt"]),
    ],
)
def test_flags_that_make_no_sense_are_named(capsys, args, named):
    line = refusal(capsys, *args)
    assert all(word in line for word in named), line


@pytest.mark.parametrize("workers", ["0", "-1", "x"])
def test_workers_are_a_number_of_processes(capsys, workers):
    with pytest.raises(SystemExit) as stop:
        main(["--tables", "out", "--panoptic-gt", "p.json", "--workers", workers])
    assert stop.value.code == 2
    assert "--workers" in capsys.readouterr().err


# --- figures ----------------------------------------------------------------------------------------------------------


def test_tables_are_printed_in_percent_and_written_as_fractions(place, capsys):
    """Of image n the run found 2 + n of the cat's 6 columns, and the sky from there on: IoU by hand."""
    write_run(place, [*images(), MadeImage("new.jpg", (1, 1))])
    missing = replace(images()[0], name="val/gone.jpg")
    panoptic = write_panoptic(place, [*images(), missing])
    report_path = Path(place.root) / "reports" / "metrics.json"
    assert run("--tables", place.tables, "--panoptic-gt", panoptic, "--report", report_path) == 0
    # cat: 2/6, 3/6, 4/6, 5/6, 6/6 of which three are above 1/2; sky: 6/10, 6/9, 6/8, 6/7, 6/6
    cat_sq, sky_sq = (4 / 6 + 5 / 6 + 1) / 3, (6 / 10 + 6 / 9 + 6 / 8 + 6 / 7 + 1) / 5
    cat_rq, sky_rq = 3 / (3 + 2 / 2 + 3 / 2), 5 / (5 + 1 / 2)
    report = json.loads(report_path.read_text())
    assert report["panoptic"]["things"]["PQ"] == pytest.approx(cat_sq * cat_rq)
    assert report["panoptic"]["stuff"]["PQ"] == pytest.approx(sky_sq * sky_rq)
    assert report["panoptic"]["all"]["PQ"] == pytest.approx((cat_sq * cat_rq + sky_sq * sky_rq) / 2)
    out = capsys.readouterr().out
    assert re.search(rf"things\W+{100 * cat_sq * cat_rq:.2f}\W+{100 * cat_sq:.2f}\W+{100 * cat_rq:.2f}\W+1\b", out)
    miou = (20 / 36 + 30 / (36 + 10)) / 2  # of 6 columns in 6 images; the sky was said of 10 columns of cat
    assert report["semantic"]["mIoU"] == pytest.approx(miou)
    assert f"{100 * miou:.2f}" in out
    assert "6 images, 5 with a result; 1 not in the run count as images in which nothing was found" in out
    assert "1 images of the run are not in the ground truth and were ignored" in out


def test_every_figure_is_whole_on_a_terminal_of_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    names = COCO_FIGURES
    figures = {kind: {name: (1 + n) / 12 for n, name in enumerate(names)} for kind in ("segm", "bbox")}
    print_evaluation({"run_id": "20261123-020000-1a2b", "ground_truth": {}, **figures})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 and "…" not in out
    for n, name in enumerate(names):
        assert re.search(rf"\b{name}\b", out) and out.count(f" {100 * (1 + n) / 12:.2f} ") == 2, name


def test_the_run_that_finished_last_is_scored_unless_another_is_named(place, capsys):
    """Not the last by name, nor the last written."""
    panoptic = write_panoptic(place, images())
    right = [replace(image, found=image.truth) for image in images()]
    write_run(place, right, run_id="a", finished_at="2026-11-23T10:00:01+00:00")
    write_run(place, images(), run_id="b", finished_at="2026-11-23T10:00:00+00:00")
    write_run(place, images(), run_id="c", finished_at=None)
    for flags, run_id, pq in (([], "a", True), (["--run-id", "b"], "b", False)):
        report = Path(place.root) / "report.json"
        assert run("--tables", place.tables, "--panoptic-gt", panoptic, "--report", report, *flags) == 0
        scored = json.loads(report.read_text())
        assert (scored["run_id"], scored["panoptic"]["all"]["PQ"] == 1) == (run_id, pq)
    capsys.readouterr()
    unfinished = refusal(capsys, "--tables", place.tables, "--panoptic-gt", panoptic, "--run-id", "c")
    assert "run c is not finished" in unfinished


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        ({}, None),
        ({7: "CAT", 92: "sky-other-merged, heaven"}, None),  # spellings
        (
            {92: "sea"},
            "1 of 4 categories have other names in the run: 92 is sea in the ground truth and sky in the run",
        ),
        (
            {7: "sky", 92: "cat"},
            "2 of 4 categories have other names in the run: 7 is sky in the ground truth and cat in the run",
        ),
    ],
)
def test_ids_that_may_be_those_of_another_data_set_are_said(place, capsys, names, warned):
    """The figures stay: ids decide."""
    write_run(place, images())
    categories = [{**c, "name": names.get(c["id"], c["name"])} for c in place.categories]
    panoptic = write_panoptic(replace(place, categories=categories), images())
    report = Path(place.root) / "report.json"
    assert run("--tables", place.tables, "--panoptic-gt", panoptic, "--report", report) == 0
    warning = json.loads(report.read_text())["ground_truth"]["panoptic"]["warning"]
    assert (warning is None) == (warned is None) and (warned or "") in (warning or "")
    assert ("WARNING" in capsys.readouterr().out) == (warned is not None)


def test_synonyms_of_a_known_data_set_are_no_other_names(place, capsys):
    """ADE20K's files say "window " and "tub" of what its published models call windowpane and bathtub."""
    of_run = {7: "windowpane", 92: "bathtub"}
    place = replace(place, categories=[{**c, "name": of_run.get(c["id"], c["name"])} for c in place.categories])
    write_run(place, images())
    of_files = {7: "window ", 92: "tub"}
    categories = [{**c, "name": of_files.get(c["id"], c["name"])} for c in place.categories]
    panoptic = write_panoptic(replace(place, categories=categories), images())
    assert run("--tables", place.tables, "--panoptic-gt", panoptic) == 0
    assert "WARNING" not in capsys.readouterr().out


def test_parts_that_the_journal_does_not_name_are_not_read(place):
    """A part of a shard that was never committed, and one of another plan, lie in the run's folder."""
    write_run(place, images(), per_shard=2)
    for table in ("images", "segments"):
        folder = Path(place.tables) / table / "run=night"
        [part] = folder.glob("shard-000000-*.parquet")
        shutil.copy(part, folder / "shard-000007-0123456789abcdef.parquet")
        (folder / "shard-000008.parquet").write_bytes(b"half a file")
    report = Path(place.root) / "report.json"
    assert run("--tables", place.tables, "--panoptic-gt", write_panoptic(place, images()), "--report", report) == 0
    assert json.loads(report.read_text())["ground_truth"]["panoptic"]["images"]["with_result"] == 5


@pytest.mark.thorough
def test_tables_ground_truth_and_report_may_lie_in_a_bucket(s3, tmp_path, capsys):
    """The script, with processes of its own, on S3; the same figures as from folders."""
    reports = []
    for place in (Place(s3.bucket("m2f-evaluation") + "/nightly"), Place(str(tmp_path))):
        write_run(place, images(), per_shard=2)
        instances = place.put("instances.json", json.dumps(coco_instances(images(), CATEGORIES)).encode())
        place.put("metrics/report.json", b"{}")
        flags = ["--tables", place.tables, "--panoptic-gt", write_panoptic(place, images())]
        flags += ["--instances-gt", instances, "--semantic-gt", write_labels(place, images())]
        flags += ["--report", f"{place.root}/metrics/report.json"]
        done = subprocess.run(
            [sys.executable, "jobs/evaluate.py", *flags, "--workers", "2"],
            cwd=ROOT,
            env=os.environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        if place.root.startswith("s3://"):
            body = s3.client.get_object(Bucket="m2f-evaluation", Key="nightly/metrics/report.json")["Body"].read()
        else:
            body = (tmp_path / "metrics" / "report.json").read_bytes()
        reports.append(json.loads(body.decode().replace(place.root, "PLACE")))
    assert reports[0] == reports[1]
    assert reports[0]["panoptic"]["all"]["PQ"] > 0


def test_a_bucket_that_is_not_there_is_named(s3, capsys):
    line = refusal(capsys, "--tables", "s3://m2f-no-such-bucket/x", "--panoptic-gt", "p.json")
    assert "m2f-no-such-bucket" in line and "no run" in line


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def ready(place) -> Place:
    """A run and ground truth with nothing wrong."""
    write_run(place, images())
    write_panoptic(place, images())
    return place


def test_a_run_that_is_not_there_is_named(ready, capsys):
    panoptic = f"{ready.root}/panoptic.json"
    line = refusal(capsys, "--tables", ready.root + "/elsewhere", "--panoptic-gt", panoptic)
    assert "elsewhere holds no run" in line and "--output" in line
    line = refusal(capsys, "--tables", ready.tables, "--panoptic-gt", panoptic, "--run-id", "day")
    assert "holds no run day; its runs: night" in line


def test_a_run_that_is_not_finished_is_named(place, capsys):
    write_run(place, images(), finished_at=None)
    args = ["--tables", place.tables, "--panoptic-gt", write_panoptic(place, images())]
    assert "holds no finished run; unfinished runs: night" in refusal(capsys, *args)
    assert "run night is not finished" in refusal(capsys, *args, "--run-id", "night")


def test_a_journal_with_less_than_the_plan_is_no_finished_run(ready, capsys):
    [journal] = (Path(ready.tables) / "_runs/night/journal").iterdir()
    journal.write_text(journal.read_text().splitlines()[0] + "\n")
    line = refusal(capsys, "--tables", ready.tables, "--panoptic-gt", f"{ready.root}/panoptic.json")
    assert "receipts of 1 shards, but its plan has 2" in line


def test_another_schema_version_is_named(ready, capsys):
    file = Path(ready.tables) / "_runs/night/run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))
    assert "version 99" in refusal(capsys, "--tables", ready.tables, "--panoptic-gt", f"{ready.root}/panoptic.json")


@pytest.mark.parametrize("table", ["images", "segments"])
@pytest.mark.parametrize("how", ["gone", "cut", "other"])
def test_a_part_that_is_not_the_written_one_is_named(ready, capsys, table, how):
    [part] = (Path(ready.tables) / table / "run=night").glob("shard-000001-*.parquet")
    if how == "gone":
        part.unlink()
    elif how == "cut":
        part.write_bytes(part.read_bytes()[:-20])
    else:
        [another] = part.parent.glob("shard-000000-*.parquet")
        shutil.copy(another, part)
    line = refusal(capsys, "--tables", ready.tables, "--panoptic-gt", f"{ready.root}/panoptic.json")
    assert f"{table}/run=night/{part.name}" in line


def json_of_size(height: object) -> bytes:
    image = {"id": 1, "file_name": "a.jpg", "height": height, "width": 5}
    return json.dumps({"images": [image], "annotations": [], "categories": []}).encode()


@pytest.mark.parametrize("flag", ["--panoptic-gt", "--instances-gt"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", "must hold a JSON object, not a list"),
        (b"{}", "images is not a list; is it the right kind of COCO file?"),
        (b'{"images": [], "annotations": [], "categories": []}', "has no images"),
        (b'{"images": [{"id": 1}], "annotations": [], "categories": []}', "images[0] has no 'file_name'"),
        (json_of_size(None), "images[0].height is None; input should be a valid integer"),
        (json_of_size(0), "images[0].height is 0; input should be greater than or equal to 1"),
        (json_of_size("4"), "images[0].height is '4'; input should be a valid integer"),
        (json_of_size(4.5), "images[0].height is 4.5; input should be a valid integer"),
    ],
)
def test_a_wrong_json_is_named(ready, capsys, flag, content, said):
    file = Path(ready.root) / "bad.json"
    if content is not None:
        file.write_bytes(content)
    line = refusal(capsys, "--tables", ready.tables, flag, file)
    assert flag in line and str(file) in line and said in line


def test_the_other_kind_of_coco_file_is_recognised(ready, capsys):
    instances = ready.put("instances.json", json.dumps(coco_instances(images(), CATEGORIES)).encode())
    line = refusal(capsys, "--tables", ready.tables, "--panoptic-gt", instances)
    assert "annotations[0] has no 'file_name'; is it the right kind of COCO file?" in line
    line = refusal(capsys, "--tables", ready.tables, "--instances-gt", f"{ready.root}/panoptic.json")
    assert "annotations[0] has no 'id'; is it the right kind of COCO file?" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"category_id": 55}, "annotation 100 has category 55, which is not in the file's categories"),
        ({"bbox": [1, 2]}, "annotations[0].bbox is [1, 2]; list should have at least 4 items"),
        ({"segmentation": "abc"}, "annotation 100 cannot be used: segmentation must be a list of polygons"),
        (
            {"segmentation": {"size": [3, 3], "counts": "9"}},
            "annotation 100 cannot be used: its RLE has the size [3, 3]",
        ),
        ({"segmentation": {"size": 6, "counts": "9"}}, "annotation 100 cannot be used: its RLE has the size 6"),
        ({"segmentation": {"size": None, "counts": "9"}}, "annotation 100 cannot be used: its RLE has the size None"),
    ],
)
def test_a_wrong_annotation_is_named(ready, capsys, change, said):
    content = coco_instances(images(), CATEGORIES)
    content["annotations"][0].update(change)
    file = ready.put("instances.json", json.dumps(content).encode())
    line = refusal(capsys, "--tables", ready.tables, "--instances-gt", file)
    assert "--instances-gt" in line and said in line


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (None, "does not exist"),
        (b"no image", "cannot be decoded"),
        (png_bytes(np.zeros((6, 12))), "is a L image; it must be an RGB image of segment ids"),
        (png_bytes(np.zeros((5, 12, 3))), "is (5, 12) (height, width), but the JSON says (6, 12)"),
        (png_bytes(np.full((6, 12, 3), 9)), "holds segment 592137, which is not in the image's segments_info"),
    ],
)
def test_a_wrong_panoptic_png_is_named(ready, capsys, pixels, said):
    png = Path(ready.root) / "panoptic" / "3-3.png"
    png.unlink()
    if pixels is not None:
        png.write_bytes(pixels)
    line = refusal(capsys, "--tables", ready.tables, "--panoptic-gt", f"{ready.root}/panoptic.json")
    assert str(png) in line and said in line


def test_a_png_cut_short_is_named(ready, capsys):
    png = Path(ready.root) / "panoptic" / "3-3.png"
    png.write_bytes(png.read_bytes()[:50])
    assert str(png) in refusal(capsys, "--tables", ready.tables, "--panoptic-gt", f"{ready.root}/panoptic.json")


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (
            png_bytes(np.full((6, 12), 4)),
            "holds the value 4, but the 4 classes are numbered from 0, and 255",
        ),
        (png_bytes(np.arange(6 * 12 * 3).reshape(6, 12, 3)), "is in colour; it must be an image of one channel"),
        (png_bytes(np.zeros((6, 12, 4))), "is a RGBA image; it must be an image of one channel"),
        (png_bytes(np.zeros((12, 6))), "EXIF"),
        (png_bytes(np.zeros((6, 13))), "val/3.jpg is 6 x 12 (height x width) in the tables, but val/3 is 6 x 13"),
    ],
)
def test_a_wrong_label_png_is_named(ready, capsys, pixels, said):
    folder = write_labels(ready, images())
    (Path(folder) / "val/3.png").write_bytes(pixels)
    line = refusal(capsys, "--tables", ready.tables, "--semantic-gt", folder)
    assert "val/3" in line and said in line


def test_labels_from_one_need_their_flag(ready, capsys):
    """Without it, ADE20K's last class is beyond the model's; with it, all is one lower."""
    last_first = [replace(image, truth=[Segment(columns(0, 12), 40)]) for image in images()]
    folder = write_labels(ready, last_first, first=1)
    line = refusal(capsys, "--tables", ready.tables, "--semantic-gt", folder)
    assert "holds the value 4" in line
    assert run("--tables", ready.tables, "--semantic-gt", folder, "--reduce-zero-label") == 0


def test_a_folder_without_pngs_is_named(ready, capsys):
    line = refusal(capsys, "--tables", ready.tables, "--semantic-gt", f"{ready.root}/none")
    assert "--semantic-gt" in line and "no .png files" in line


@pytest.mark.parametrize("turned", [True, False])
def test_a_size_that_differs_is_named_before_anything_is_scored(ready, capsys, turned):
    size = (12, 6) if turned else (6, 13)
    other = [*images()[:2], replace(images()[2], size=size, truth=[Segment(columns(0, 3, size), 7)])]
    line = refusal(capsys, "--tables", ready.tables, "--panoptic-gt", write_panoptic(ready, other, "other"))
    assert "s3://photographs/val/2.jpg is 6 x 12 (height x width) in the tables" in line
    assert (f"{size[0]} x {size[1]} in the ground truth" in line) and ("--no-exif" in line) == turned


@pytest.mark.parametrize("flag", ["--panoptic-gt", "--instances-gt"])
def test_a_category_that_the_ground_truth_does_not_know_is_named(place, capsys, flag):
    odd = [replace(images()[0], found=[Segment(columns(0, 3), 55)])]
    write_run(place, odd)
    file = write_panoptic(place, odd)
    if flag == "--instances-gt":
        file = place.put("instances.json", json.dumps(coco_instances(odd, CATEGORIES)).encode())
    line = refusal(capsys, "--tables", place.tables, flag, file)
    assert "s3://photographs/val/0.jpg: a segment has category 55 (unheard of)" in line


@pytest.mark.parametrize(
    ("task", "flag", "instead"),
    [
        ("instance", "--panoptic-gt", "--instances-gt"),
        ("instance", "--semantic-gt", "--instances-gt"),
        ("semantic", "--instances-gt", "--panoptic-gt or --semantic-gt"),
        ("depth", "--panoptic-gt", "nothing here"),
    ],
)
def test_ground_truth_that_cannot_score_the_task_is_refused(place, capsys, task, flag, instead):
    write_run(place, images(), task=task)
    line = refusal(capsys, "--tables", place.tables, flag, write_panoptic(place, images()))
    assert f"{flag} cannot score run night, whose task is {task}" in line and instead in line


def test_a_report_that_cannot_be_written_is_named(ready, capsys):
    (Path(ready.root) / "file").write_text("")
    args = ["--tables", ready.tables, "--panoptic-gt", f"{ready.root}/panoptic.json"]
    with pytest.raises(SystemExit) as stop:
        run(*args, "--report", f"{ready.root}/file/report.json")
    captured = capsys.readouterr()
    assert stop.value.code == 2 and "--report" in captured.err
    assert "panoptic quality" in captured.out, "what was computed is shown all the same"


def test_a_figure_over_one_class_is_said(ready, capsys):
    """Label PNGs of 0 and 255 only."""
    for image in images():
        target = Path(ready.root) / "masks" / Path(image.name).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full(image.size, 255)
        pixels[:, :3] = 0
        target.write_bytes(png_bytes(pixels))
    assert run("--tables", ready.tables, "--semantic-gt", Path(ready.root) / "masks") == 0
    said = capsys.readouterr().out
    assert "WARNING: only 1 of 4 classes has pixels in the ground truth" in said and "--ignore-label" in said
