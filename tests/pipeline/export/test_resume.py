"""An export that is stopped goes on, and never leaves half a file; a folder of others is left alone."""

import json
import subprocess
import sys

import pytest

from pipeline.errors import RunError
from pipeline.export import export as exporting
from pipeline.export.convert import Converter
from pipeline.export.export import export
from pipeline.export.settings import ExportSettings
from pipeline.export.target import Target
from pipeline.store.filesystem import open_filesystem
from pipeline.tables.rows_by_image import RowsByImage
from tests.support import exports
from tests.support.places import ROOT
from tests.support.published_tables import image_row, publish_run, segment_row


class StopError(Exception):
    pass


def settings_for(tables: str, to, form="coco-panoptic") -> ExportSettings:
    return ExportSettings(tables=tables, to=str(to), format=form, workers=1)


def content(folder) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def stop_at_batch(number: int, settings: ExportSettings, monkeypatch) -> None:
    """An export that ends where it would convert this batch."""
    convert = Converter.convert

    def stopping(self, task):
        if task.number == number:
            raise StopError
        return convert(self, task)

    with monkeypatch.context() as patched, pytest.raises(StopError):
        patched.setattr(Converter, "convert", stopping)
        export(settings)


@pytest.fixture
def small_batches(monkeypatch):
    whole = RowsByImage.batches
    monkeypatch.setattr(RowsByImage, "batches", lambda rows: whole(rows, images_per_batch=3))


@pytest.mark.parametrize("stop_at", range(12))
def test_wherever_it_stops_the_same_command_goes_on(tables, tmp_path, monkeypatch, small_batches, stop_at):
    export(settings_for(tables, tmp_path / "whole"))
    puts, converted = [], []
    put_all, convert = Target.put_all, Converter.convert

    def stopping(target, files):
        if len(puts) == stop_at:
            raise StopError
        puts.append(list(files))
        put_all(target, files)

    monkeypatch.setattr(Target, "put_all", stopping)
    ended = False
    try:
        export(settings_for(tables, tmp_path / "out"))
        ended = True
    except StopError:
        pass
    monkeypatch.setattr(Target, "put_all", put_all)
    monkeypatch.setattr(Converter, "convert", lambda self, task: converted.append(task.number) or convert(self, task))
    if not ended:
        done = export(settings_for(tables, tmp_path / "out"))
        assert len(converted) == 4 - done.num_done_before
        assert sorted(converted) == list(range(done.num_done_before, 4))
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_it_goes_on_with_the_tables_of_its_beginning(tmp_path, monkeypatch, small_batches):
    tables = str(tmp_path / "tables")
    keys = [f"s3://in/{number}.jpg" for number in range(7)]
    publish_run(tables, "first", [image_row(k, "first", 0) for k in keys], [segment_row(k, "first") for k in keys])
    stop_at_batch(1, settings_for(tables, tmp_path / "out", "csv"), monkeypatch)
    publish_run(
        tables, "second", [image_row("s3://in/new.jpg", "second", 1)], [segment_row("s3://in/new.jpg", "second")]
    )
    done = export(settings_for(tables, tmp_path / "out", "csv"))
    assert (done.num_done_before, done.num_images) == (1, 7)
    assert export(settings_for(tables, tmp_path / "later", "csv")).num_images == 8


def test_a_process_that_is_killed_leaves_no_half_file(tables, tmp_path):
    """The job is killed while it writes a document; a file that is there is whole, and the next command ends."""
    code = (
        "import os, sys; from pipeline.export.target import Target; whole = Target._copy\n"
        "def dying(self, stream, *rest):\n"
        "    if stream == 'annotations': os.kill(os.getpid(), 9)\n"
        "    whole(self, stream, *rest)\n"
        "Target._copy = dying; from jobs.export import main; main(sys.argv[1:])"
    )
    flags = ["--tables", tables, "--to", str(tmp_path / "out"), "--format", "coco-instances", "--workers=1"]
    killed = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "out" / "instances.json").exists() and (tmp_path / "out" / ".m2f-export").is_dir()
    exports.export(tables, tmp_path / "out", "coco-instances")
    assert [name for name in content(tmp_path / "out") if not name.startswith(".")] == ["instances.json"]
    json.loads((tmp_path / "out" / "instances.json").read_text())


def test_a_folder_that_is_not_empty_is_left_alone(tables, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "is not empty; give an empty folder" in exports.refused(tables, tmp_path / "full", "csv")
    out = exports.export(tables, tmp_path / "out", "csv")
    before = content(out)
    assert "is not empty" in exports.refused(tables, out, "csv")
    assert content(out) == before
    assert content(tmp_path / "full") == {"mine.txt": b"mine"}


def test_the_state_of_another_export_is_left_alone(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_convert", lambda *args: (_ for _ in ()).throw(StopError))
    with pytest.raises(StopError):
        export(settings_for(tables, tmp_path / "out", "csv"))
    line = exports.refused(tables, tmp_path / "out", "coco-results", "--min-score=0.5")
    assert "holds an unfinished export with another format, min_score" in line


def test_to_a_bucket_and_on_after_a_stop(s3, tables, tmp_path, monkeypatch, small_batches):
    """The same files as in a folder; what is not done is done by the next command; other objects are left alone."""
    local = exports.export(tables, tmp_path / "out", "coco-panoptic")
    bucket = s3.bucket("m2f-export")
    stop_at_batch(2, settings_for(tables, f"{bucket}/out"), monkeypatch)
    assert export(settings_for(tables, f"{bucket}/out")).num_done_before == 2
    filesystem, root = open_filesystem(f"{bucket}/out")
    found = {path.removeprefix(f"{root}/"): filesystem.cat_file(path) for path in filesystem.find(root)}
    assert found == content(local)
    with pytest.raises(RunError, match="is not empty; give an empty folder"):
        export(settings_for(tables, f"{bucket}/out"))
