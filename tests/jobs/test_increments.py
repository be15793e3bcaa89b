"""Night after night over one bucket: only what is new or changed is done again, and every row says why it is there."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from jobs import nights as list_nights
from jobs import plan_bucket, segment_bucket
from jobs.roll_back import main as roll_back
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from pipeline.tables.current_view import current_images, current_segments
from pipeline.telemetry.log_lines import show_log_lines
from tests.jobs.test_segment_bucket import SMALL
from tests.support.tables import latest_run, read_report, read_table

pytestmark = pytest.mark.usefixtures("ray_session")


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
def nights(photographs, tiny_checkpoint, tmp_path) -> Nights:
    bucket = tmp_path / "in"
    shutil.copytree(photographs, bucket)
    return Nights(bucket, tmp_path / "out", tiny_checkpoint)


def test_nights_of_a_bucket(nights, capsys, tmp_path):
    names = sorted(os.listdir(nights.bucket))
    assert nights.run() == dict.fromkeys(names, "new")
    first = latest_run(nights.output)

    capsys.readouterr()
    before = set(nights.files())
    try:
        assert nights.run() == {}, "nothing had changed"
        assert nights.run("--run-id", first) == {}, "this run is finished"
    finally:
        show_log_lines()  # main() lets the log write to the stderr of this test
    assert set(nights.files()) == before
    seen = seen_nights(Output.open(str(nights.output)))
    assert [night.outcome for night in seen] == ["finished", "nothing to do", "nothing to do"]
    assert [night.record.exit_code for night in seen] == [0, 0, 0]
    assert [night.reason for night in seen[1:]] == [f"{len(names)} unchanged", f"run {first} is already finished"]
    said = capsys.readouterr().err
    assert f"INFO: nothing to do: {len(names)} unchanged" in said
    assert f"INFO: run {first} is already finished. " in said
    assert "WARNING" not in said and "ERROR" not in said, "a quiet night alarms nobody"
    assert list_nights.main(["--output", str(nights.output), "--json", "--last", "2", "--expect-within", "90m"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [night["outcome"] for night in listed] == ["nothing to do"] * 2
    assert listed[0]["reason"] == f"{len(names)} unchanged" and listed[0]["seconds"] > 0
    assert list_nights.main(["--output", str(nights.output)]) == 0
    table = capsys.readouterr().out
    assert len(table.splitlines()) == 3 + 3 + 1 and f"{len(names)}/{len(names)}" in table

    os.utime(nights.bucket / names[3], (1, 1))
    shutil.copy(nights.bucket / names[0], nights.bucket / "newcomer.png")
    (nights.bucket / names[5]).unlink()
    assert nights.run() == {names[3]: "changed", "newcomer.png": "new"}
    assert read_report(nights.output)["counts"] == {
        "changed": 1,
        "new": 1,
        "removed": 1,
        "unchanged": len(names) - 2,
    }
    assert latest_run(nights.output) != first
    assert set(nights.current()) == {*names, "newcomer.png"}, "without being asked, nothing is taken out"
    assert len(read_table(nights.output, "images", first)) == len(names), "the first night stays as it was"


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


def test_a_plan_of_nothing_is_refused_like_a_run_of_nothing(nights, tmp_path, capsys):
    nights.bucket = tmp_path / "empty"
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
