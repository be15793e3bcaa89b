"""Whatever changes in the kept logits of a run is found."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from jobs.verify import main
from pipeline.commit.write import part_bytes
from pipeline.errors import ErrorCode
from pipeline.verify.findings import Kind
from pipeline.verify.settings import VerifySettings
from pipeline.verify.verify import verify
from tests.support.kept_runs import FLOOR, KeptRun
from tests.support.run_books import part_of
from tests.support.segmenting import encoded


@pytest.fixture(scope="module")
def sound(tiny_checkpoint, tmp_path_factory):
    run = KeptRun({f"file:///in/{n}.png": encoded(seed=n) for n in range(4)}, model=str(tiny_checkpoint))
    place = tmp_path_factory.mktemp("kept") / "out"
    broken = {"file:///in/x.png": (ErrorCode.DECODE_FAILED, "broken")}
    run.write(place, keep_logits=FLOOR, in_a_shard=2, failed=broken)
    return place


@pytest.fixture
def output(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "out")


def kinds(output, **options):
    findings = verify(VerifySettings(str(output), workers=1, **options)).findings
    return {(finding.kind, finding.field) for finding in findings}


def test_a_sound_run_is(output, capsys):
    assert main(["--tables", str(output)]) == 0
    assert "5 images and" in (said := capsys.readouterr().out) and "kept logits of 4 images" in said
    assert kinds(output, sample=1) == set()


def changed(output, change, **rows_of):
    """Change the rows of the first part in place, with the file's size and hash."""
    path = part_of(output, "logits")
    rows = pq.read_table(path, partitioning=None).to_pylist()
    change(rows)
    path.write_bytes(part_bytes("logits", pa.Table.from_pylist(rows, schema=pq.read_schema(path))))


ROWS = {
    "inputs are gone": (lambda rows: rows[0].update(inputs=[]), Kind.VALUE, "logits.inputs"),
    "masks are damaged": (lambda rows: rows[0]["inputs"][0].update(masks=b"?"), Kind.VALUE, "logits.inputs"),
    "a logit is gone": (lambda rows: rows[0]["inputs"][0]["class_logits"].pop(), Kind.VALUE, "logits.inputs"),
    "another run": (lambda rows: rows[0].update(run_id="other"), Kind.UNKNOWN_RUN, "logits"),
    "another shard": (lambda rows: rows[0].update(shard=1), Kind.OF_RUN, "logits"),
    "a row is gone": (lambda rows: rows.pop(), Kind.NO_ROW, "logits"),
    "a row comes twice": (lambda rows: rows.append(rows[0]), Kind.SEVERAL_ROWS, "logits"),
    "another image": (lambda rows: rows[0].update(image_key="file:///in/y.png"), Kind.NO_ROW, "logits"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_changed_row_is_found(output, name):
    change, kind, field = ROWS[name]
    changed(output, change)
    found = kinds(output)
    assert (kind, field) in found and (Kind.BYTES, "sha256") in found


def test_files_that_are_gone_cut_or_no_parquet_are_found(output):
    path = part_of(output, "logits")
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    assert {(Kind.BYTES, "size_bytes"), (Kind.UNREADABLE, "logits")} <= kinds(output)
    path.unlink()
    assert {(Kind.LOST, "file"), (Kind.NO_ROW, "logits")} <= kinds(output)


def test_a_table_that_is_gone_is_found(output):
    shutil.rmtree(output / "logits")
    assert (Kind.NO_ROW, "logits") in kinds(output)


def test_a_table_of_other_columns_is_found(output):
    assert DeltaTable(str(output / "logits")).version() >= 0
    path = part_of(output, "logits")
    pq.write_table(pa.table({"image_key": ["a"]}), path)
    assert (Kind.COLUMNS, "logits") in kinds(output)
