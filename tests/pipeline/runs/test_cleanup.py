"""What a finished run leaves behind: what its journal names stays, nothing else of its tables does."""

from types import SimpleNamespace

from m2f_core.whole_files import temporary_beside
from pipeline.layout import Output, parts_folder
from pipeline.runs.cleanup import sweep


def test_parts_without_a_receipt_and_half_written_files_go(tmp_path):
    folder, other = (tmp_path / parts_folder("images", run) for run in ("mine", "other"))
    for path in (folder, other):
        path.mkdir(parents=True)
    named, orphan, stays = folder / "shard-000000-a.parquet", folder / "shard-000000-b.parquet", folder / "notes.txt"
    of_other = other / "shard-000000-a.parquet"
    for path in (named, orphan, stays, of_other):
        path.write_bytes(b"")
    receipt = SimpleNamespace(parts={"images": SimpleNamespace(path=named.relative_to(tmp_path).as_posix())})
    journal = SimpleNamespace(read=lambda: [receipt])
    output = Output.open(str(tmp_path))
    run = SimpleNamespace(output=output, folder=output.run("mine"), run_id="mine", journal=journal)
    with temporary_beside(folder / "shard-000001-a.parquet") as half:
        half.write_bytes(b"")
        assert sweep(run) == 2
        assert not half.exists()
    assert sorted(folder.iterdir()) == [stays, named] and of_other.exists()
