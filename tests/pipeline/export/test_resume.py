"""An export that is stopped goes on, and never leaves half a file; a folder of others is left alone."""

import contextlib
import gc
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.errors import RunError
from pipeline.export import export as exporting
from pipeline.export import state
from pipeline.export.convert import BatchTask, Converter
from pipeline.export.export import Exported, export
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


def content(folder, hidden=True) -> dict[str, bytes]:
    found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: data for name, data in found.items() if hidden or not name.startswith(".m2f-export/")}


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
    monkeypatch.setattr(RowsByImage, "batches", lambda rows, images_per_batch: whole(rows, images_per_batch=3))


class Steps:
    """Counts what an export changes in --to, and stops it before change `stop_at` (from 0), a file half written."""

    def __init__(self, monkeypatch, stop_at: int | None = None):
        self.names, self.stop_at = [], stop_at
        put_all, writing, remove = Target.put_all, Target.writing, state.remove_objects

        def stopping_put_all(target, files):
            self.step(f"put {', '.join(files)}")
            put_all(target, files)

        @contextlib.contextmanager
        def stopping_writing(target, name):
            with writing(target, name) as file:
                yield file
                self.step(f"write {name}")

        def stopping_remove(filesystem, folder, paths):
            paths = list(paths)
            remove(filesystem, folder, paths[: len(paths) // 2])
            self.step(f"remove {len(paths)}")
            remove(filesystem, folder, paths)

        monkeypatch.setattr(Target, "put_all", stopping_put_all)
        monkeypatch.setattr(Target, "writing", stopping_writing)
        monkeypatch.setattr(state, "remove_objects", stopping_remove)

    def step(self, name: str) -> None:
        if len(self.names) == self.stop_at:
            raise StopError
        self.names.append(name)


def converted_by(monkeypatch) -> list[int]:
    """A list that the number of each batch is added to when it is converted."""
    numbers, convert = [], Converter.convert
    monkeypatch.setattr(Converter, "convert", lambda self, task: numbers.append(task.number) or convert(self, task))
    return numbers


def told(exported: Exported) -> Exported:
    """What is printed at the end, but for the time and for what an earlier attempt had done."""
    return replace(exported, seconds=0.0, num_done_before=0)


@pytest.mark.parametrize(
    ("form", "every"),
    [("yolo", 3), *(pytest.param(form, 1, marks=pytest.mark.thorough) for form in ("yolo", "coco-panoptic"))],
)
def test_wherever_it_stops_the_same_command_goes_on(
    tables, instances, tmp_path, monkeypatch, small_batches, form, every
):
    of = instances if form == "yolo" else tables
    with monkeypatch.context() as patched:
        steps = Steps(patched)
        whole = export(settings_for(of, tmp_path / "whole", form))
    assert len(steps.names) > 30 and steps.names[-1] == "remove 1"
    assert whole.notes or form != "yolo"
    for stop_at, name in list(enumerate(steps.names))[::-every]:  # the last step in any case
        out = tmp_path / str(stop_at)
        with monkeypatch.context() as patched, pytest.raises(StopError):
            Steps(patched, stop_at)
            export(settings_for(of, out, form))
        assert set(content(out, hidden=False).items()) <= set(content(tmp_path / "whole").items()), name
        with monkeypatch.context() as patched:
            converted = converted_by(patched)
            done = export(settings_for(of, out, form))
        assert told(done) == told(whole), name
        assert converted == list(range(done.num_done_before, 4)), name
        assert content(out) == content(tmp_path / "whole"), name
        assert not (out / ".m2f-export").exists()


@pytest.mark.parametrize("damage", ["gone", "shorter", "longer"])
def test_lines_that_are_not_those_that_were_written_are_one_line(tables, tmp_path, monkeypatch, small_batches, damage):
    stop_at_batch(3, settings_for(tables, tmp_path / "out", "csv"), monkeypatch)
    lines = tmp_path / "out" / ".m2f-export" / "000001.segments"
    data = lines.read_bytes()
    lines.unlink() if damage == "gone" else lines.write_bytes(data[:-1] if damage == "shorter" else data + b"x")
    line = exports.refused(tables, tmp_path / "out", "csv")
    assert "000001.segments of " in line and "remove the folder and export again" in line
    assert not (tmp_path / "out" / "segments.csv").exists()


@pytest.mark.parametrize("name", ["state.json", "000001.done"])
def test_a_damaged_state_is_one_line(tables, tmp_path, monkeypatch, small_batches, name):
    stop_at_batch(3, settings_for(tables, tmp_path / "out", "csv"), monkeypatch)
    record = tmp_path / "out" / ".m2f-export" / name
    record.write_text(record.read_text().replace("1", "-1"))
    line = exports.refused(tables, tmp_path / "out", "csv")
    assert name in line and "remove the folder and export again" in line


def test_several_processes_write_what_one_writes(tables, tmp_path, monkeypatch, small_batches):
    whole = export(settings_for(tables, tmp_path / "whole"))
    by_two = replace(settings_for(tables, tmp_path / "out"), workers=2)
    stop_at_batch(1, settings_for(tables, tmp_path / "out"), monkeypatch)
    # An error in a worker is the error of the export, which goes on afterwards.
    blocked = tmp_path / "out" / "panoptic" / "b" / "empty.png"
    blocked.mkdir(parents=True)
    with pytest.raises(RunError, match=r"cannot be written: .*empty\.png"):
        export(by_two)
    blocked.rmdir()
    done = export(by_two)
    assert told(done) == told(whole) and content(tmp_path / "out") == content(tmp_path / "whole")
    assert 1 <= done.num_done_before <= 3


def test_batches_on_their_way_are_bounded_by_bytes(tables, tmp_path, monkeypatch):
    """Batches of large scenes are 32 MiB each; small ones are bounded by number."""
    waiting, most = [], []

    class Waiting:
        def result(self):
            return waiting.remove(self)

        def cancel(self):
            return True

    def submit(task):
        waiting.append(Waiting())
        most.append(len(waiting))
        return waiting[-1]

    settings = replace(settings_for(tables, tmp_path / "out"), workers=8)
    tasks = [BatchTask(number, b"x" * 30, b"x" * 10, [], [], 1) for number in range(40)]
    for num_bytes, expected in ((100, 2), (30, 1), (10_000, 17)):
        monkeypatch.setattr(exporting, "_BYTES_ON_THEIR_WAY", num_bytes)
        most.clear()
        assert len(list(exporting._each(settings, submit, iter(tasks)))) == 40 and max(most) == expected


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
        "import os, sys; from pipeline.export.state import State; whole = State._stream\n"
        "def dying(self, stream, *rest):\n"
        "    if stream == 'annotations': os.kill(os.getpid(), 9)\n"
        "    return whole(self, stream, *rest)\n"
        "State._stream = dying; from jobs.export import main; main(sys.argv[1:])"
    )
    flags = ["--tables", tables, "--to", str(tmp_path / "out"), "--format", "coco-instances", "--workers=1"]
    killed = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert content(tmp_path / "out", hidden=False) == {}
    assert list((tmp_path / "out" / ".m2f-export").glob("*.writing"))
    exports.export(tables, tmp_path / "out", "coco-instances")
    assert list(content(tmp_path / "out")) == ["instances.json"]
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


def test_going_on_in_a_bucket_does_not_list_what_was_written(s3, tables, tmp_path, monkeypatch, small_batches):
    settings = settings_for(tables, f"{s3.bucket('m2f-export-listed')}/out")
    stop_at_batch(2, settings, monkeypatch)
    listed = []
    list_folder = state.list_folder
    monkeypatch.setattr(state, "list_folder", lambda *of: listed.append(of[1]) or list_folder(*of))
    monkeypatch.setattr(Target, "names", lambda self: pytest.fail("--to is listed"))
    export(settings)
    assert {path.rpartition("/")[2] for path in listed} == {".m2f-export"}


@pytest.mark.parametrize("num_bytes", [100, 40 * 2**20])  # one request, and an upload in parts
def test_a_bucket_holds_no_half_object(s3, num_bytes):
    bucket = f"m2f-export-half-{num_bytes}"
    target = Target.open(f"{s3.bucket(bucket)}/out")
    with target.writing("whole.json") as file:
        file.write(b"x" * num_bytes)
    with pytest.raises(StopError), target.writing("half.json") as file:
        file.write(b"x" * num_bytes)
        raise StopError
    del file
    gc.collect()
    assert s3.client.list_objects_v2(Bucket=bucket)["Contents"][0]["Size"] == num_bytes
    assert [one["Key"] for one in s3.client.list_objects_v2(Bucket=bucket)["Contents"]] == ["out/whole.json"]
    assert not s3.client.list_multipart_uploads(Bucket=bucket).get("Uploads")
