"""What a finished run leaves behind: what its journal names stays, nothing else of its tables does."""

import contextlib
import shutil

import pytest

from m2f_core.whole_files import temporary_beside
from pipeline.config import Settings
from pipeline.layout import RUNS, parts_folder
from pipeline.runs.cleanup import sweep
from pipeline.schema import TABLES
from tests.pipeline.tables.test_publish import publisher, rows, write_shard
from tests.support.planning import planned


@pytest.fixture
def run(tmp_path, tiny_checkpoint):
    """A run of one shard, which is committed."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"a")
    run = planned(Settings(input=str(folder), output=str(tmp_path / "out"), model=str(tiny_checkpoint)))
    run.journal.append([write_shard(run.settings.output, run.run_id, 0)])
    return run


def files(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_parts_without_a_receipt_half_written_files_and_markers_of_starts_go(run, tmp_path):
    """Of each table, and of this run alone."""
    output = tmp_path / "out"
    for table in TABLES:
        (output / parts_folder(table, run.run_id) / "notes.txt").write_text("mine")
        shutil.copytree(output / parts_folder(table, run.run_id), output / parts_folder(table, "other"))
    for run_id in (run.run_id, "other"):
        (output / RUNS / run_id / "started").mkdir(parents=True)
        (output / RUNS / run_id / "started" / "000000-1").write_bytes(b"")
    stays = files(output) - {f"{RUNS}/{run.run_id}/started/000000-1"}
    with contextlib.ExitStack() as writers:
        for table in TABLES:
            folder = output / parts_folder(table, run.run_id)
            [part] = folder.glob("*.parquet")
            shutil.copy(part, folder / "shard-000000-b.parquet")
            half = writers.enter_context(temporary_beside(folder / "shard-000001-a.parquet"))
            half.write_bytes(b"PAR1")
        assert len(files(output) - stays) == 5
        assert sweep(run.journal) == 4
        assert files(output) == stays


def test_what_cannot_be_deleted_is_named_and_ends_nothing(run, tmp_path, monkeypatch, caplog):
    folder = tmp_path / "out" / parts_folder("images", run.run_id)
    (folder / "shard-000000-b.parquet").write_bytes(b"")
    (folder / "shard-000000-c.parquet").write_bytes(b"")

    def refuses_b(filesystem, path):
        if path.endswith("-b.parquet"):
            raise PermissionError("not yours")
        filesystem.rm(path)

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.rm_file", refuses_b)
    assert sweep(run.journal) == 2
    assert "shard-000000-b.parquet, but the file cannot be deleted" in caplog.text
    assert not (folder / "shard-000000-c.parquet").exists() and (folder / "shard-000000-b.parquet").exists()


def test_a_part_that_readers_see_stays_though_the_journal_has_lost_its_receipt(run, tmp_path):
    publisher(run.settings.output, run.run_id, 1, run.journal).publish()
    [journal] = (tmp_path / "out" / RUNS / run.run_id / "journal").iterdir()
    journal.write_bytes(b"")
    parts = {path for path in files(tmp_path / "out") if path.endswith(".parquet")}
    assert sweep(run.journal) == 0
    assert parts == {path for path in files(tmp_path / "out") if path.endswith(".parquet")}
    assert len(rows(run.settings.output, "images")) == 2
