"""jobs/recut.py, whole: kept, recut without images and model, killed, continued, and again the next night."""

import json
import shutil

import pytest

from jobs import recut, segment_bucket, verify
from pipeline.guard.kill_points import VARIABLE
from tests.jobs.test_exactly_once import visible
from tests.support.tables import read_report, results_by_image

pytestmark = pytest.mark.thorough

OTHER = ["--score-threshold", "0.3", "--overlap-threshold", "0.5"]


@pytest.fixture(scope="module")
def kept(ray_session, photographs, tmp_path_factory):
    """(input, output) of a run that kept its logits; one image of the input is broken."""
    place = tmp_path_factory.mktemp("kept")
    shutil.copytree(photographs, place / "in")
    (place / "in" / "broken.png").write_bytes((photographs / "coffee.png").read_bytes()[:100_000])
    assert run(place / "in", place / "out", "--keep-logits", "0.05") == 0
    return place / "in", place / "out"


def run(folder, output, *flags):
    places = ["--input", str(folder), "--output", str(output), "--max-failure-rate", "1", "--images-per-shard", "4"]
    return segment_bucket.main([*places, *flags])


def recut_to(tables, output, *flags):
    return ["--tables", str(tables), "--output", str(output), "--max-failure-rate", "1", *flags]


def test_it_is_the_run_with_the_other_settings_and_the_next_night_does_what_is_new(kept, photographs, tmp_path):
    folder, tables = kept
    shutil.copytree(tables, tmp_path / "tables")
    # Nothing is read of the images.
    shutil.move(folder, folder.parent / "away")
    try:
        assert recut.main(recut_to(tmp_path / "tables", tmp_path / "recut", *OTHER)) == 0
    finally:
        shutil.move(folder.parent / "away", folder)
    assert run(folder, tmp_path / "full", *OTHER) == 0
    found, full = results_by_image(tmp_path / "recut"), results_by_image(tmp_path / "full")
    assert found.keys() == full.keys() and len(found) == 12
    for name, (image, segments) in found.items():
        other_image, others = full[name]
        for column in ("status", "error_code", "height", "width", "num_segments", "size_bytes"):
            assert image[column] == other_image[column], (name, column)
        assert [row["category_id"] for row in segments] == [row["category_id"] for row in others]
        for row, other in zip(segments, others, strict=True):
            assert row["score"] == pytest.approx(other["score"], abs=1e-6)
            assert row["area"] == pytest.approx(other["area"], rel=0.05, abs=60)
    assert verify.main(["--tables", str(tmp_path / "recut")]) == 0
    record = json.loads(next((tmp_path / "recut").glob("_runs/*/run.json")).read_text())
    assert record["input"] == [f"file://{folder}"]
    # The next night: nothing to do, then one image more.
    assert recut.main(recut_to(tmp_path / "tables", tmp_path / "recut", *OTHER)) == 0
    assert len(list((tmp_path / "recut").glob("_runs/*/report.json"))) == 1
    shutil.copy(photographs / "coffee.png", folder / "new.png")
    assert run(folder, tmp_path / "tables", "--keep-logits", "0.05") == 0
    assert recut.main(recut_to(tmp_path / "tables", tmp_path / "recut", *OTHER)) == 0
    assert read_report(tmp_path / "recut")["counts"]["new"] == 1


@pytest.mark.parametrize("point", ["after journal", "between segments and images published"])
def test_a_killed_recut_goes_on_where_it_was(kept, drivers, tmp_path, monkeypatch, point):
    _, tables = kept
    assert recut.main(recut_to(tables, tmp_path / "clean", *OTHER, "--images-per-shard", "3")) == 0
    monkeypatch.setenv(VARIABLE, point)
    flags = recut_to(tables, tmp_path / "killed", *OTHER, "--images-per-shard", "3")
    process = drivers.start(*flags, program="recut")
    log = process.finish()
    assert process.returncode == -9, log
    monkeypatch.delenv(VARIABLE)
    process = drivers.start(*flags, program="recut")
    log = process.finish()
    assert process.returncode == 0, log
    for table in ("images", "segments"):
        assert visible(tmp_path / "killed", table) == visible(tmp_path / "clean", table)


def test_bad_input_is_one_line(kept, tmp_path, capsys):
    _, tables = kept
    with pytest.raises(SystemExit) as stop:
        recut.main(recut_to(tables, tmp_path / "recut", "--task", "instance"))
    assert stop.value.code == 2
    assert "give --score-threshold 0.05 or more" in capsys.readouterr().err


def test_an_output_inside_the_tables_is_refused_by_its_flags(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        recut.main(recut_to(tmp_path / "out", tmp_path / "out" / "recut"))
    assert stop.value.code == 2
    assert "--tables" in (said := capsys.readouterr().err) and "must not lie in each other" in said
    assert not (tmp_path / "out").exists()
