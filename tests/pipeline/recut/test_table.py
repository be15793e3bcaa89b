"""The table `logits` goes with the rows of its images: published with them, rolled back and tidied with them."""

from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipeline.commit import write
from pipeline.commit.journal import Journal
from pipeline.errors import ErrorCode
from pipeline.layout import Output
from pipeline.recut.source import find_source
from pipeline.runs.roll_back import roll_back
from pipeline.runs.settings import RollBackSettings, TidySettings
from pipeline.schema import LOGITS
from pipeline.tables import publish
from pipeline.tables.publish import compact
from pipeline.tidy.tidy import tidy
from tests.support.kept_runs import FLOOR, KeptRun
from tests.support.run_books import created_at
from tests.support.segmenting import encoded


@pytest.fixture
def run(tiny_checkpoint):
    return KeptRun({f"file:///in/{n}.png": encoded(seed=n) for n in range(6)}, model=str(tiny_checkpoint))


def rows(place, table="logits"):
    found = DeltaTable(str(place / table)).to_pyarrow_dataset().to_table(columns=["image_key", "run_id"]).to_pylist()
    return sorted((row["image_key"].rpartition("/")[2], row["run_id"]) for row in found)


def test_each_image_with_a_result_has_a_row(run, tmp_path):
    run.write(tmp_path / "out", keep_logits=FLOOR, failed={"file:///in/x.png": (ErrorCode.DECODE_FAILED, "broken")})
    assert rows(tmp_path / "out") == [(f"{n}.png", "night") for n in range(6)]
    table = DeltaTable(str(tmp_path / "out" / "logits")).to_pyarrow_dataset().to_table()
    assert table.schema.names == LOGITS.names
    of_images = DeltaTable(str(tmp_path / "out" / "images")).to_pyarrow_dataset().to_table().to_pylist()
    sizes = {row["image_key"]: (row["height"], row["width"]) for row in of_images}
    for row in table.to_pylist():
        assert (row["height"], row["width"]) == sizes[row["image_key"]]
        [one] = row["inputs"]
        assert tuple(one["original_hw"]) == sizes[row["image_key"]]
        assert one["queries"] == sorted(set(one["queries"])) and 1 <= len(one["queries"]) <= one["num_queries"]


def test_a_run_without_the_flag_makes_no_table(run, tmp_path):
    run.write(tmp_path / "out")
    assert not (tmp_path / "out" / "logits").exists()
    compact(Output.open(str(tmp_path / "out")))


def test_rows_are_in_small_row_groups(run, tmp_path, monkeypatch):
    """Whoever reads a row reads its row group."""
    monkeypatch.setattr(write, "_BYTES_OF_LOGITS", 1)
    run.write(tmp_path / "out", keep_logits=FLOOR)
    for path in (tmp_path / "out" / "logits").rglob("shard-*.parquet"):
        file = pq.ParquetFile(path)
        assert file.num_row_groups == file.metadata.num_rows


def test_a_roll_back_takes_the_rows_out(run, tmp_path):
    run.write(tmp_path / "out", "first", keep_logits=FLOOR, created=created_at(days_ago=2))
    run.write(tmp_path / "out", "second", keep_logits=FLOOR)
    done = roll_back(RollBackSettings(str(tmp_path / "out"), "second", yes=True))
    assert done.rows["logits"] == 6
    assert {run_id for _, run_id in rows(tmp_path / "out")} == {"first"}
    assert [record.run_id for record in find_source(str(tmp_path / "out"), None).records] == ["first"]


def test_tidying_drops_files_whose_rows_are_all_old(run, tmp_path):
    """Rows of `logits` are large: a file in which one row is current stays whole."""
    out = tmp_path / "out"
    run.write(out, "first", keep_logits=FLOOR, created=created_at(days_ago=90), in_a_shard=2)
    later = KeptRun(dict(list(run.images.items())[:3]), model=run.model)
    later.write(out, "second", keep_logits=FLOOR, created=created_at(days_ago=60), in_a_shard=2)
    before = find_source(str(out), None)
    found = tidy(TidySettings(str(out), yes=True, keep_versions=1), datetime.now(UTC) + timedelta(days=400))
    assert sum(found.rows["logits"].by_reason.values()) == 2
    assert {name for name, run_id in rows(out) if run_id == "first"} == {"2.png", "3.png", "4.png", "5.png"}
    after = find_source(str(out), None)
    assert [record.run_id for record in after.records] == [record.run_id for record in before.records]
    tidy(TidySettings(str(out), yes=True, keep_versions=1), datetime.now(UTC) + timedelta(days=800))
    there = {path.name for path in (out / "logits").rglob("shard-*.parquet")}
    assert there == {row["object_uri"].rpartition("/")[2] for t in after.images() for row in t.to_pylist()}


def test_a_publication_that_stops_between_the_tables_goes_on(run, tmp_path, monkeypatch):
    def stops(point):
        if point == "between logits and segments published":
            raise RuntimeError(point)

    monkeypatch.setattr(publish, "reached", stops)
    with pytest.raises(RuntimeError, match="between logits"):
        run.write(tmp_path / "out", keep_logits=FLOOR)
    assert (tmp_path / "out" / "logits").exists() and not (tmp_path / "out" / "segments" / "_delta_log").exists()
    monkeypatch.undo()
    output = Output.open(str(tmp_path / "out"))
    journal = Journal(output.run("night"), attempt=1)
    publish.Publisher(output, "night", lambda: 2, journal, tables=lambda: ("images", "segments", "logits")).publish()
    assert rows(tmp_path / "out") == rows(tmp_path / "out", "images")
