"""What a verdict says of how much was checked is true, and a store that fails is no finding."""

import errno
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError
from fsspec.implementations.local import LocalFileSystem

from jobs.verify import main
from pipeline.errors import StoreUnavailableError
from pipeline.layout import Output
from pipeline.tables.publish import compact
from pipeline.verify.file import read
from pipeline.verify.findings import Kind
from pipeline.verify.settings import VerifySettings
from pipeline.verify.verify import Verdict, verify
from tests.pipeline.verify.conftest import quarters, write_night
from tests.support.run_books import Found, part_of


def check(output: object, **options: Any) -> Verdict:
    return verify(VerifySettings(str(output), workers=1, **options))


def last_line(capsys: pytest.CaptureFixture[str], output: object, *flags: str) -> str:
    main(["--tables", str(output), "--workers", "1", *flags])
    return capsys.readouterr().out.splitlines()[-1]


# --- counts -----------------------------------------------------------------------------------------------------------


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(2**21))


@pytest.mark.parametrize("harm", [lose, cut, lengthen])
@pytest.mark.parametrize(("table", "counted"), [("images", "3 images and 8"), ("segments", "6 images and 3")])
def test_a_part_that_cannot_be_read_does_not_count_as_checked(output, capsys, table, counted, harm):
    harm(part_of(output, table))
    line = last_line(capsys, output)
    what = "1 of 2 shards and merged files (50.0%); 1 could not be read"
    assert line.endswith(f"{counted} segments of 1 runs checked, {what}")
    verdict = check(output).to_dict()
    assert (verdict["checked"], verdict["not_read"]) == (1, 1)


def test_rows_of_runs_that_are_not_checked_do_not_count(output):
    """In a merged file, rows of several runs lie side by side."""
    shards = [[Found("s3://b/z.jpg", quarters(1, 2, 2, 1), (0, 1))]]
    write_night(str(output), "now", shards=shards, finished=False, published=True)
    compact(Output.open(str(output)))
    assert check(output).num_rows == {"images": 6, "segments": 8}
    write_night(str(output), "then", shards=shards)
    compact(Output.open(str(output)))
    assert check(output).num_rows == {"images": 7, "segments": 10}
    assert check(output, run_id="then").num_rows == {"images": 1, "segments": 2}


def test_a_sample_says_of_how_many_runs_it_has_seen_rows(output, capsys):
    write_night(str(output), "second")
    assert "12 images and 16 segments of 2 runs checked, 4 of 4 shards" in last_line(capsys, output)
    assert "3 images and 5 segments of 1 of 2 runs checked, 1 of 4 shards" in last_line(capsys, output, "--sample", "1")
    assert check(output, sample=1).to_dict()["runs_with_rows"] == ["night"]


def test_null_as_the_name_of_a_run_is_counted_by_row():
    import pyarrow as pa

    from pipeline.verify.facts import Context, TableFile
    from pipeline.verify.file.rows import by_run
    from pipeline.verify.findings import Findings

    findings = Findings()
    batch = pa.table({"run_id": ["night", None, "night", None], "image_key": ["a", "b", "c", "d"]})
    context = Context("x", {}, frozenset(["night"]))
    assert list(by_run(batch, context, TableFile(0, "images", "x", 1, None), findings)) == []
    assert [(one.kind, one.field, one.count) for one in findings] == [(Kind.NO_VALUE, "run_id", 2)]


# --- a store that fails -----------------------------------------------------------------------------------------------

FAILURES: list[Callable[[], Exception]] = [
    lambda: PermissionError(errno.EACCES, "Access Denied"),
    lambda: OSError(errno.EBUSY, "Please reduce your request rate. (503)"),
    lambda: TimeoutError("Read timed out"),
    lambda: ConnectTimeoutError(endpoint_url="http://store"),
]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_store_that_refuses_a_part_ends_the_check(output, monkeypatch, failure):
    def refuse(*_: object) -> bytes:
        raise failure()

    monkeypatch.setattr(read, "read_object", refuse)
    assert_refused(output)


@pytest.mark.parametrize("failing_read", [1, 2, 4])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_store_that_fails_in_the_middle_of_a_large_file_ends_the_check(output, monkeypatch, failure, failing_read):
    """Whether it fails while the hash is computed, at the footer or at a row group."""
    number = 0

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal number
            number += 1
            if number == failing_read:
                raise failure()
            return super().read(size)

    def open_failing(self: LocalFileSystem, path: str, mode: str = "rb", **_: object) -> Any:
        opened = Failing(Path(path).read_bytes())
        opened.size = len(opened.getvalue())  # type: ignore[attr-defined]
        return opened

    monkeypatch.setattr(read, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(LocalFileSystem, "open", open_failing)
    assert_refused(output)


def assert_refused(output: Path) -> None:
    with pytest.raises(StoreUnavailableError) as error:
        check(output)
    line = str(error.value)
    assert line.startswith(f"--tables {output}: images/run=night/shard-000000-") and "cannot be read: " in line
    assert len(line.splitlines()) == 1
