"""The published tables as readers see them: every library the same rows, and never an image without its segments."""

import re
import subprocess
import sys
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pytest
from deltalake import DeltaTable, TableFeatures
from deltalake.exceptions import DeltaError

from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.schema import TABLES
from pipeline.store import objects
from pipeline.store.filesystem import open_filesystem
from pipeline.store.retries import TABLE_READ
from pipeline.tables import current_view
from pipeline.tables.current_view import current_images, current_segments, delta_options, open_table, table_uri
from pipeline.tables.stream_table import stream_table
from tests.support.places import ROOT
from tests.support.published_tables import image_row, publish, publish_run, segment_row
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY

DOCS = ROOT / "docs" / "table-format.md"


pytestmark = pytest.mark.usefixtures("no_pauses")


def publish_three_nights(output: str) -> None:
    """a: once. b: again in the second night. c: gone in it. d: gone, and there again. f: failed, so no segments."""
    for night, (images, gone) in enumerate((("abcd", ""), ("b", "cd"), ("df", ""))):
        run_id = f"night{night}"
        rows = [image_row(key, run_id, night, num_segments=2) for key in images if key != "f"]
        rows += [image_row(key, run_id, night, status="removed", num_segments=0) for key in gone]
        if "f" in images:
            rows += [image_row("f", run_id, night, status="failed", error_code="too_large", num_segments=0)]
        segments = [segment_row(key, run_id, number) for key in images if key != "f" for number in (1, 2)]
        publish_run(output, run_id, rows, segments)


NEWEST = {"a": "night0", "b": "night1", "d": "night2", "f": "night2"}
SEGMENTS = [(key, NEWEST[key], number) for key in "abd" for number in (1, 2)]


@pytest.fixture(scope="module")
def local_output(tmp_path_factory) -> str:
    output = str(tmp_path_factory.mktemp("published") / "out")
    publish_three_nights(output)
    return output


@pytest.fixture(scope="module")
def s3_output(s3) -> str:
    output = s3.bucket("m2f-published") + "/nights/out"
    publish_three_nights(output)
    return output


@pytest.fixture(params=["local", "s3"])
def output(request) -> str:
    return request.getfixturevalue(f"{request.param}_output")


def newest(images: pa.RecordBatchReader | pa.Table) -> dict[str, str]:
    table = images.read_all() if isinstance(images, pa.RecordBatchReader) else images
    rows = table.select(["image_key", "run_id"]).to_pylist()
    assert len({row["image_key"] for row in rows}) == len(rows), "an image has two current rows"
    return {row["image_key"]: row["run_id"] for row in rows}


def segments_of(segments: pa.RecordBatchReader | pa.Table) -> list[tuple[str, str, int]]:
    table = segments.read_all() if isinstance(segments, pa.RecordBatchReader) else segments
    return sorted((row["image_key"], row["run_id"], row["segment_id"]) for row in table.to_pylist())


def sorted_rows(table: pa.Table, name: str) -> list[dict[str, Any]]:
    """As plain values in the order of the schema: libraries differ in the widths of string and list types only."""
    rows = table.select(TABLES[name].names).to_pylist()
    return sorted(rows, key=lambda row: (row["image_key"], row["run_id"], row.get("segment_id", 0)))


# --- every library --------------------------------------------------------------------------------------------------


def with_pyarrow(uri: str, options: dict[str, str]) -> pa.Table:
    return DeltaTable(uri, storage_options=options).to_pyarrow_dataset().to_table()


def with_duckdb(uri: str, options: dict[str, str]) -> pa.Table:
    """Through Arrow; its own delta_scan is an extension, which is not there without a network."""
    dataset = DeltaTable(uri, storage_options=options).to_pyarrow_dataset()
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.from_arrow(dataset).to_arrow_table()


def with_polars(uri: str, options: dict[str, str]) -> pa.Table:
    return polars.scan_delta(uri, storage_options=options).collect().to_arrow()


def with_ours(output: str, table: str) -> pa.Table:
    batches = stream_table(Output.open(output), table, open_table(Output.open(output), table), TABLES[table].names)
    return pa.Table.from_batches(batches, TABLES[table])


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("reader", [with_pyarrow, with_duckdb, with_polars])
def test_every_library_reads_the_same_rows(output, reader, table):
    rows = sorted_rows(with_ours(output, table), table)
    assert len(rows) == {"images": 9, "segments": 12}[table]
    assert sorted_rows(reader(table_uri(Output.open(output), table), delta_options(Output.open(output))), table) == rows


# --- the current view -----------------------------------------------------------------------------------------------


def test_the_current_view_is_the_newest_row_of_every_image_that_is_not_gone(output):
    images, segments = current_images(output), current_segments(output)
    assert images.schema.equals(TABLES["images"], check_metadata=True)
    assert segments.schema.equals(TABLES["segments"], check_metadata=True)
    assert newest(images) == NEWEST
    assert segments_of(segments) == SEGMENTS


@pytest.mark.parametrize("store", ["local", "s3"])
def test_an_output_may_have_any_name(tmp_path, s3_output, store):
    """For us; Polars looks for the escaped name."""
    output = f"{tmp_path if store == 'local' else s3_output}/100% #odd? [name] é"
    publish_three_nights(output)
    filesystem, root = open_filesystem(output)
    assert filesystem.exists(f"{root}/images/_delta_log/00000000000000000000.json")
    assert newest(current_images(output)) == NEWEST
    assert segments_of(current_segments(output)) == SEGMENTS


def test_a_view_of_the_past_and_of_some_columns(local_output):
    assert newest(current_images(local_output, version=1)) == dict.fromkeys("abcd", "night0")
    assert len(segments_of(current_segments(local_output, version=2))) == 4
    some = current_segments(local_output, ["score", "image_key"])
    assert some.schema.names == ["score", "image_key"]
    assert some.read_all().num_rows == len(SEGMENTS)


def documented_queries(*, flavour: str) -> tuple[str, str]:
    """The statements of the section "The current view": the images, then the segments."""
    section = DOCS.read_text().split("## The current view", 1)[1].split("\n## ", 1)[0]
    [block] = [
        b for b in re.findall(r"```sql\n(.*?)```", section, re.DOTALL) if ("delta_scan" in b) == (flavour == "delta")
    ]
    images, segments = [statement for statement in block.split(";\n") if "SELECT" in statement]
    return images, segments


@pytest.mark.parametrize("flavour", ["delta", "plain"])
def test_the_documented_queries_give_the_same_view(local_output, flavour):
    images, segments = documented_queries(flavour=flavour)
    with duckdb.connect() as connection:
        for table in TABLES:
            connection.register(table, with_pyarrow(table_uri(Output.open(local_output), table), {}))
            images, segments = (re.sub(rf"delta_scan\('[^']*/{table}'\)", table, q) for q in (images, segments))
        connection.execute(images)
        assert newest(connection.sql("FROM current_images").to_arrow_table()) == NEWEST
        assert segments_of(connection.sql(segments).to_arrow_table()) == SEGMENTS


def test_segments_that_are_published_before_their_images_are_not_seen(tmp_path):
    output = str(tmp_path)
    publish_three_nights(output)
    publish(output, "segments", "night3", [[segment_row(key, "night3") for key in "ag"]])
    assert newest(current_images(output)) == NEWEST
    assert segments_of(current_segments(output)) == SEGMENTS


@pytest.mark.parametrize("what", ["images", "segments"])
def test_a_run_that_is_published_while_we_read_is_seen_whole_or_not_at_all(tmp_path, monkeypatch, what):
    output = str(tmp_path)
    publish_three_nights(output)

    def open_late(*args):
        monkeypatch.undo()
        images = [image_row(key, "night3", 3) for key in "ag"]
        publish_run(output, "night3", images, [segment_row(key, "night3") for key in "ag"])
        return open_table(*args)

    def read():
        return newest(current_images(output)) if what == "images" else segments_of(current_segments(output))

    monkeypatch.setattr(current_view, "open_table", open_late)
    before = read()
    assert before == (NEWEST if what == "images" else SEGMENTS)
    assert read() != before


def test_files_that_were_compacted_read_the_same(tmp_path):
    output = str(tmp_path)
    publish_three_nights(output)
    before = {table: sorted_rows(with_ours(output, table), table) for table in TABLES}
    for table in TABLES:
        DeltaTable(table_uri(Output.open(output), table)).optimize.compact()
        assert len(open_table(Output.open(output), table).file_uris()) == 1
        assert sorted_rows(with_ours(output, table), table) == before[table]
    assert newest(current_images(output)) == NEWEST
    assert segments_of(current_segments(output)) == SEGMENTS


@pytest.mark.parametrize("large_bytes", [0, 2**20])
def test_large_files_read_as_small_ones_do(output, monkeypatch, large_bytes):
    monkeypatch.setattr("pipeline.tables.stream_table._LARGE_BYTES", large_bytes)
    assert segments_of(current_segments(output)) == SEGMENTS


def test_a_reader_that_is_dropped_half_way_lets_the_program_end(tmp_path):
    """With Arrow's reader over a file system in Python it did not: threads waited for a Python that had ended."""
    rows = [image_row(f"{number:06d}", "night0", 0) for number in range(100)]
    publish(str(tmp_path), "images", "night0", [rows] * 60)
    code = (
        f"from pipeline.tables.current_view import current_images as c; r = c({str(tmp_path)!r}); r.read_next_batch()"
    )
    environment = {"TMPDIR": str(tmp_path / "scratch"), "PATH": ""}
    (tmp_path / "scratch").mkdir()
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=DOCS.parents[1], check=True, capture_output=True)
    assert not list((tmp_path / "scratch").iterdir())


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_nothing_published_is_none_for_us_and_an_error_for_a_reader(tmp_path):
    assert open_table(Output.open(str(tmp_path / "none")), "images") is None
    assert not (tmp_path / "none").exists()
    with pytest.raises(RunError, match="no published table images"):
        current_images(str(tmp_path / "none"))


def test_images_without_a_table_of_segments_is_an_error(tmp_path):
    publish(str(tmp_path), "images", "night0", [[image_row("a", "night0", 0)]])
    with pytest.raises(RunError, match="no published table segments"):
        current_segments(str(tmp_path))


def test_nothing_published_in_a_bucket_is_none_and_a_refusal_is_not(s3, s3_output, monkeypatch):
    assert open_table(Output.open(f"{s3_output}/none"), "images") is None
    refused = {**delta_options(Output.open(s3_output)), "AWS_SECRET_ACCESS_KEY": "wrong"}
    monkeypatch.setattr(current_view, "delta_options", lambda uri: refused)
    with pytest.raises(RunError, match=r"the table images below .* cannot be read: [^\x1b↳]*$"):
        open_table(Output.open(s3_output), "images")


def test_a_damaged_log_is_read_again_and_then_one_clear_line(local_output, monkeypatch):
    left = [TABLE_READ.attempts - 1]

    def faulty(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise DeltaError("Kernel error: Json error: whilst decoding field 'add'")
        return DeltaTable(*args, **kwargs)

    monkeypatch.setattr(current_view, "DeltaTable", faulty)
    assert newest(current_images(local_output)) == NEWEST
    left[0] = TABLE_READ.attempts
    with pytest.raises(RunError, match=r"table images below .* cannot be read: Kernel error"):
        open_table(Output.open(local_output), "images")


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_part_that_comes_damaged_is_read_again(local_output, monkeypatch, damage):
    whole, faults = objects.read_file, []

    def damaged(path, most_bytes):
        data = whole(path, most_bytes)
        if path in faults or not path.endswith(".parquet"):
            return data
        faults.append(path)
        return data[:-9] if damage == "cut" else data[:-6] + b"\xff" + data[-5:]

    monkeypatch.setattr(objects, "read_file", damaged)
    assert newest(current_images(local_output)) == NEWEST
    assert faults


def test_a_part_that_is_gone_is_one_clear_line(tmp_path):
    publish_three_nights(str(tmp_path))
    next((tmp_path / "images").glob("run=night1/*.parquet")).unlink()
    with pytest.raises(RunError, match=r"table images below .* cannot be read: .*shard-000000-.*parquet"):
        current_images(str(tmp_path))


def test_a_table_that_asks_more_of_its_readers_is_refused(tmp_path):
    publish_three_nights(str(tmp_path))
    table = DeltaTable(table_uri(Output.open(str(tmp_path)), "images"))
    table.alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
    with pytest.raises(RunError, match=r"requires the Delta features .*eletionVectors"):
        current_images(str(tmp_path))


def test_too_little_memory_is_one_clear_line(local_output):
    with pytest.raises(RunError, match="too little memory"):
        current_images(local_output, memory_mib=1)


# --- the AWS chain --------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_chain(monkeypatch, fresh_s3):
    """The environment is read anew, and what was read of it here is forgotten."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_options_are_those_of_the_environment(s3, s3_output):
    assert delta_options(Output.open(s3_output)) == {
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3.url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    }


def test_options_come_from_a_profile_with_its_endpoint_and_token(fresh_chain, tmp_path):
    (tmp_path / "config").write_text(
        "[profile night]\nregion = eu-west-1\nendpoint_url = https://store.example:9000\n"
        "aws_access_key_id = key\naws_secret_access_key = secret\naws_session_token = token\n"
    )
    fresh_chain.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    fresh_chain.delenv("AWS_DEFAULT_REGION", raising=False)
    fresh_chain.setenv("AWS_PROFILE", "night")
    assert delta_options(Output.open("s3://bucket/out")) == {
        "AWS_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "https://store.example:9000",
        "AWS_ALLOW_HTTP": "false",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_SESSION_TOKEN": "token",
    }


@pytest.mark.parametrize(("bucket_region", "expected"), [("eu-central-1", "eu-central-1"), (None, "us-west-2")])
def test_on_aws_itself_the_region_is_the_buckets(fresh_chain, bucket_region, expected):
    fresh_chain.setenv("AWS_ACCESS_KEY_ID", "key")
    fresh_chain.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    fresh_chain.setenv("AWS_DEFAULT_REGION", "us-west-2")
    fresh_chain.setattr(current_view, "_region_of_bucket", lambda filesystem, bucket: bucket_region)
    options = delta_options(Output.open("s3://bucket/out"))
    assert options["AWS_REGION"] == expected
    assert "AWS_ENDPOINT_URL" not in options


def test_no_credentials_are_one_clear_line(fresh_chain, tmp_path):
    fresh_chain.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    fresh_chain.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(RunError, match="no credentials"):
        delta_options(Output.open("s3://bucket/out"))
