"""Night after night over one bucket: only what is new or changed is done again, and every row says why it is there.

The first nights are those of test_nights.py; here are further reasons, modes and the plan.
"""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from jobs import plan_bucket, segment_bucket
from jobs.roll_back import main as roll_back
from pipeline.tables.current_view import current_images, current_segments
from tests.jobs.test_segment_bucket import SMALL
from tests.support.tables import latest_run, read_report, read_table


@dataclasses.dataclass
class Nights:
    """A bucket that is segmented again and again into one output."""

    bucket: Path
    output: Path
    model: Path

    def flags(self, *more) -> list[str]:
        places = ["--input", self.bucket, "--output", self.output, "--model", self.model, "--images-per-shard", 4]
        return [str(flag) for flag in [*places, *SMALL, *more]]

    def run(self, *more) -> dict[str, str]:
        """One night: file name -> reason of the rows that it wrote; none where it had nothing to do."""
        before = {path.name for path in (self.output / "_runs").glob("2*")}
        assert segment_bucket.main(self.flags("--max-failure-rate", 1, *more)) == 0
        if {path.name for path in (self.output / "_runs").glob("2*")} == before:
            return {}
        rows = read_table(self.output, "images")
        report = read_report(self.output)
        assert report["num_images"] == len(rows)
        return {Path(row["image_key"]).name: row["reason"] for row in rows}

    def files(self) -> list[Path]:
        """All files of the output except the records of nights."""
        return [path for path in self.output.rglob("*") if path.is_file() and "_nights" not in path.parts]

    def current(self) -> dict[str, str]:
        """File name -> status of the current view."""
        rows = current_images(str(self.output)).read_all().to_pylist()
        names = [Path(row["image_key"]).name for row in rows]
        assert len(set(names)) == len(names)
        return {name: row["status"] for name, row in zip(names, rows, strict=True)}


@pytest.fixture
def nights(ray_session, photographs, tiny_checkpoint, tmp_path) -> Nights:
    bucket = tmp_path / "in"
    shutil.copytree(photographs, bucket)
    return Nights(bucket, tmp_path / "out", tiny_checkpoint)


@pytest.mark.thorough
def test_settings_that_change_results_do_all_again_and_others_none(nights, tmp_path):
    names = sorted(os.listdir(nights.bucket))
    nights.run()
    assert nights.run("--batch-size", 2, "--images-per-shard", 3, "--device", "cpu", "--gpu-actors", "1:1") == {}
    assert nights.run("--score-threshold", 0.5) == dict.fromkeys(names, "settings_changed")
    segments = current_segments(str(nights.output)).read_all().to_pylist()
    assert {row["run_id"] for row in segments} == {latest_run(nights.output)}

    from tests.support.inputs import make_model

    make_model(tmp_path / "other", seed=1)
    nights.model = tmp_path / "other"
    assert nights.run() == dict.fromkeys(names, "model_changed")
    assert nights.run("--mode", "overwrite") == dict.fromkeys(names, "overwrite")


@pytest.mark.thorough
def test_failed_images_are_tried_again_when_the_reason_may_pass_or_when_asked(nights, monkeypatch):
    (nights.bucket / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (nights.bucket / "secret.png").symlink_to(nights.bucket / "gone.png")  # listed, as a link, and not there
    shutil.copy(nights.bucket / "coins.png", nights.bucket / "gone.png")
    nights.run()
    assert nights.current()["broken.jpg"] == "failed"
    assert nights.run() == {}, "a file that does not decode will not do so tomorrow"
    assert nights.run("--mode", "retry-failed") == {"broken.jpg": "retry"}
    shutil.copy(nights.bucket / "coins.png", nights.bucket / "broken.jpg")
    (nights.bucket / "late.png").write_bytes((nights.bucket / "coins.png").read_bytes())
    assert nights.run("--mode", "retry-failed") == {"broken.jpg": "retry"}
    assert nights.current()["broken.jpg"] == "ok"
    assert nights.run() == {"late.png": "new"}


@pytest.mark.thorough
def test_what_is_gone_gets_a_row_that_says_so_when_asked(nights):
    names = sorted(os.listdir(nights.bucket))
    nights.run()
    (nights.bucket / names[2]).unlink()
    assert nights.run("--tombstone-removed") == {names[2]: "removed"}
    [row] = read_table(nights.output, "images")
    assert (row["status"], row["error_code"], row["num_segments"]) == ("removed", None, 0)
    assert read_report(nights.output)["num_removed"] == 1
    assert set(nights.current()) == {*names} - {names[2]}
    segments = current_segments(str(nights.output)).read_all().to_pylist()
    assert names[2] not in {Path(row["image_key"]).name for row in segments}
    assert names[2] not in {
        Path(r["image_key"]).name for r in current_segments(str(nights.output)).read_all().to_pylist()
    }
    assert nights.run("--tombstone-removed") == {}, "it is said once"


@pytest.mark.thorough
def test_the_plan_says_what_the_job_will_do_and_writes_nothing(nights, capsys):
    names = sorted(os.listdir(nights.bucket))
    assert plan_bucket.main(nights.flags()) == 0
    assert f"{len(names)} images would be segmented" in capsys.readouterr().out
    assert not nights.output.exists()
    nights.run()
    os.utime(nights.bucket / names[0], (1, 1))
    before = sorted(nights.output.rglob("*"))
    capsys.readouterr()
    assert plan_bucket.main(nights.flags()) == 0
    out = capsys.readouterr().out
    assert "1 images would be segmented" in out and "changed" in out and "unchanged" in out
    assert sorted(nights.output.rglob("*")) == before


def test_a_plan_of_nothing_is_refused_like_a_run_of_nothing(tiny_checkpoint, tmp_path, capsys):
    nights = Nights(tmp_path / "empty", tmp_path / "out", tiny_checkpoint)
    nights.bucket.mkdir()
    with pytest.raises(SystemExit) as stop:
        plan_bucket.main(nights.flags())
    assert stop.value.code == 2 and "holds no objects" in capsys.readouterr().err


@pytest.mark.thorough
def test_a_night_that_is_rolled_back_is_done_again(nights, capsys):
    names = sorted(os.listdir(nights.bucket))
    nights.run("--limit", 3)
    shutil.copy(nights.bucket / names[0], nights.bucket / "newcomer.png")
    assert nights.run() == {**dict.fromkeys(names[3:], "new"), "newcomer.png": "new"}
    second = latest_run(nights.output)
    assert roll_back(["--output", str(nights.output), "--run-id", second, "--yes"]) == 0
    assert set(nights.current()) == set(names[:3])
    with pytest.raises(SystemExit) as stop:
        nights.run("--run-id", second)
    assert stop.value.code == 2
    assert "that run is rolled back; give another --run-id or leave it out" in capsys.readouterr().err
    assert nights.run() == {**dict.fromkeys(names[3:], "new"), "newcomer.png": "new"}
    assert set(nights.current()) == {*names, "newcomer.png"}
