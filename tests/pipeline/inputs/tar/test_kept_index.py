"""An index of a tar is read in place of the tar, if it is the index of this tar and says what a tar can hold."""

import io
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RunError
from pipeline.input_spec import InputSpec
from pipeline.inputs import verified
from pipeline.inputs.container import KeptIndexes
from pipeline.inputs.listing import list_inputs
from pipeline.layout import Output
from tests.support.tars import member, tar_of

NAMES = ("a.jpg", "b.jpg", "b.jpg", "c.png")


@dataclass
class Night:
    """A folder with a tar, an output, and the requests that its listings make."""

    folder: str
    output: Output
    requests: list[tuple[int, int]] = field(default_factory=list)

    def list(self, may_write: bool = True) -> pa.Table:
        self.requests.clear()
        return pa.concat_tables(list_inputs(InputSpec.of(self.folder), kept=KeptIndexes(self.output, may_write)))


@pytest.fixture
def night(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    found = Night(str(tmp_path / "in"), Output.open(str(tmp_path / "out")))
    write_tar(found, *NAMES)
    read_range = verified.read_range

    def counted(filesystem, path, etag, first, length, seconds):
        found.requests.append((first, length))
        return read_range(filesystem, path, etag, first, length, seconds)

    monkeypatch.setattr(verified, "read_range", counted)
    return found


def write_tar(night, *names, cut=None):
    data = tar_of(member(name, name.encode()) for name in (*names, "x.json"))
    Path(night.folder, "t.tar").write_bytes(data[:cut])


def test_the_next_night_reads_no_header(night, caplog):
    first = night.list()
    assert night.requests and first["image_key"].to_pylist()[-1] == f"file://{night.folder}/t.tar#c.png"
    said = [record.message for record in caplog.records]
    caplog.clear()
    assert night.list().equals(first) and not night.requests
    assert [record.message for record in caplog.records] == said and len(said) == 2


def test_a_tar_that_cannot_be_read_to_its_end_has_an_index_too(night):
    write_tar(night, *NAMES, cut=3 * 1024 + 100)
    first = night.list()
    assert first["fault"].to_pylist()[3].startswith("damaged_container: the header at byte 3072 is damaged")
    assert night.list().equals(first) and not night.requests


def test_another_tar_under_the_same_name_is_read(night):
    night.list()
    write_tar(night, "other.jpg")
    assert night.list()["image_key"].to_pylist() == [f"file://{night.folder}/t.tar#other.jpg"] and night.requests
    with night.output.errors():
        assert len(night.output.list_indexes()) == 2


def test_a_dry_run_reads_an_index_and_writes_none(night, tmp_path):
    first = night.list(may_write=False)
    assert not (tmp_path / "out").exists()
    assert night.list() == first
    assert night.list(may_write=False) == first and not night.requests


def test_who_wants_a_few_images_writes_no_index(night, tmp_path):
    table = pa.concat_tables(
        list_inputs(InputSpec.of(night.folder), most=1, kept=KeptIndexes(night.output, may_write=True))
    )
    assert table["image_key"].to_pylist() == [f"file://{night.folder}/t.tar#a.jpg"]
    assert not (tmp_path / "out").exists()


def with_column(table, name, values):
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def with_record(table, old, new):
    [record] = table.schema.metadata.values()
    assert old in record
    return table.replace_schema_metadata({b"m2f_tar": record.replace(old, new)})


def without_name(table):
    columns = dict(zip(table.column_names, table.columns, strict=True)) | {"name": pa.array([None, "a", "b", "c"])}
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


CHANGES = [
    ("its columns are not", lambda t: t.drop_columns(["fault"])),
    ("its columns are not", lambda t: t.set_column(1, "position", t["position"].cast(pa.int32()))),
    ("its columns are not", without_name),
    ("it is not JSON", lambda t: t.replace_schema_metadata({})),
    ("it is not JSON", lambda t: t.replace_schema_metadata({b"m2f_tar": b"{"})),
    ("belongs to another tar", lambda t: with_record(t, b"t.tar", b"u.tar")),
    ("belongs to another tar", lambda t: with_record(t, b'"size_bytes":', b'"size_bytes":1')),
    ("size_bytes is '1'", lambda t: with_record(t, b'"size_bytes":', b'"size_bytes":"1","x":')),
    ("should be greater than or equal to 1", lambda t: with_record(t, b'"twice":[1', b'"twice":[0')),
    ("it counts ['thrice']", lambda t: with_record(t, b'"twice"', b'"thrice"')),
    ("names an image twice", lambda t: with_column(t, "name", ["a.jpg"] * 4)),
    ("more than the tar has blocks", lambda t: pa.concat_tables([t] * 9)),
    ("outside of the tar", lambda t: with_column(t, "position", [-512, 1536, 2560, 3584])),
    ("outside of the tar", lambda t: with_column(t, "position", [0, 1536, 2560, 3584])),
    ("outside of the tar", lambda t: with_column(t, "position", [2**62, 1536, 2560, 3584])),
    ("outside of the tar", lambda t: with_column(t, "size_bytes", [10240, 1, 1, 1])),
    ("not begin at a block", lambda t: with_column(t, "position", [513, 1536, 2560, 3584])),
    ("a size that the tar does not have", lambda t: with_column(t, "size_bytes", [-1, 1, 1, 1])),
    ("a size that the tar does not have", lambda t: with_column(t, "size_bytes", [2**62, 1, 1, 1])),
    ("the fault 'solved: x'", lambda t: with_column(t, "fault", ["solved: x", None, None, None])),
    ("the fault 'not_found: x'", lambda t: with_column(t, "fault", ["not_found: x", None, None, None])),
    (
        "the fault 'unsupported: xxx",
        lambda t: with_column(t, "fault", [f"unsupported: {'x' * 2000}", None, None, None]),
    ),
]


@pytest.mark.parametrize(("said", "change"), CHANGES)
def test_a_damaged_index_is_said_and_the_tar_is_read_again(night, caplog, said, change):
    first = night.list()
    path = Path(*night.output.list_indexes())
    whole = path.read_bytes()
    pq.write_table(change(pq.read_table(path)), path)
    caplog.clear()
    assert night.list().equals(first) and night.requests
    [line] = [
        record.message for record in caplog.records if "is damaged, or another program wrote it" in record.message
    ]
    assert str(path) in line and said in line and "\n" not in line
    assert f"the headers of file://{night.folder}/t.tar are read again" in line
    assert path.read_bytes() == whole


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 100])
def test_an_index_that_is_no_parquet_file_is_read_again(night, data, caplog):
    first = night.list()
    [path] = night.output.list_indexes()
    Path(path).write_bytes(data)
    assert night.list().equals(first) and "is damaged, or another program wrote it" in caplog.text


def test_an_index_does_not_grow_in_memory_beyond_its_texts(night):
    """A text that stands in the file once and is meant a million times."""
    night.list()
    [path] = night.output.list_indexes()
    table, rows = pq.read_table(path), 10
    buffer = io.BytesIO()
    long = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 2**20]))
    columns = [
        long.cast(pa.string()),
        *(pa.array([512] * rows, pa.int64()) for _ in range(2)),
        pa.nulls(rows, pa.string()),
    ]
    pq.write_table(pa.table(columns, schema=table.schema), buffer)
    assert buffer.tell() < 2**20
    Path(path).write_bytes(buffer.getvalue())
    before = pa.total_allocated_bytes()
    assert night.list().num_rows == 4 and pa.total_allocated_bytes() - before < 2**20


def test_an_output_that_cannot_be_written_ends_the_listing(night, tmp_path):
    (tmp_path / "out" / "_runs").mkdir(parents=True)
    (tmp_path / "out" / "_runs" / "_indexes").write_text("a file where the folder belongs")
    with pytest.raises(RunError, match=r"--output .*out cannot be used"):
        night.list()


def test_a_tar_without_an_etag_has_no_index(night, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.inputs.objects.local_etag", lambda stat: "")
    assert night.list().num_rows == 4 and night.list().num_rows == 4 and night.requests
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_indexes_is_no_link_out_of_the_output(night, tmp_path):
    (tmp_path / "out" / "_runs").mkdir(parents=True)
    (tmp_path / "out" / "_runs" / "_indexes").symlink_to(tmp_path / "in")
    with pytest.raises(RunError, match="link that leads out of the output"):
        Output.open(str(tmp_path / "out"))
    with pytest.raises(RunError, match="link that leads out of the output"):
        night.list()
