"""The verdict on a store: of a real one, and of the same one behind a proxy with the faults that gateways have."""

import re
import uuid
from pathlib import Path

import pytest

from jobs.check_store import main
from pipeline.drill.fault_proxy import FaultProxy, Rule

BUCKET = "m2f-check-store"
QUICK = ["--objects", "30", "--rounds", "1"]


@pytest.fixture
def uri(s3, fresh_s3) -> str:
    """A new prefix in a bucket."""
    if BUCKET not in [bucket["Name"] for bucket in s3.client.list_buckets()["Buckets"]]:
        s3.bucket(BUCKET)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


def keys_below(s3, uri: str) -> list[str]:
    pages = s3.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{uri.rpartition('/')[2]}/")
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def rows(printed: str) -> dict[str, tuple[str, str]]:
    """Property -> (found, verdict), from the printed table."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    return {row[0]: (row[1], row[2]) for row in cells if len(row) == 3 and row[0]}


def verdict(printed: str) -> str:
    [line] = re.findall("^verdict: (.*)", printed, flags=re.MULTILINE)
    return line


def test_a_store_that_does_everything_is_fit_and_left_as_it_was(s3, uri, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["--output", uri, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert verdict(printed).startswith("fit")
    found = rows(printed)
    assert len(found) == 18 and set(found.values()) <= {("yes", "ok"), ("hold", "ok"), ("not 'a//b'", "note")}
    assert "PUT with a condition" in printed
    assert keys_below(s3, uri) == []
    assert not s3.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_a_local_folder_is_fit_and_left_as_it_was(tmp_path, capsys):
    assert main(["--output", str(tmp_path / "out"), *QUICK]) == 0
    assert verdict(capsys.readouterr().out).startswith("fit")
    assert [path for path in Path(tmp_path).rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [("ignore_conditions", "the condition is ignored"), ("refuse_conditions", "NotImplemented")],
)
def test_a_store_without_conditional_writes_is_unsafe_or_useless(s3, uri, capsys, monkeypatch, fault, said):
    """Useless where it refuses them: then no Delta table can be committed."""
    monkeypatch.setenv("COLUMNS", "200")
    code, word, line = (1, "UNSAFE", "unsafe") if fault == "ignore_conditions" else (2, "UNUSABLE", "cannot be used")
    with FaultProxy(s3.url, [Rule("^(PUT|POST) ", fault)], sign=True) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        assert main(["--output", uri, *QUICK]) == code
    printed = capsys.readouterr().out
    assert verdict(printed).startswith(line) and said in printed
    bad = {what: end for what, (_, end) in rows(printed).items() if end not in ("ok", "note")}
    assert bad["the proofs at the start of a run"] == bad["a second create is refused"] == word
    assert bad["of 8 creates at once one wins"] == bad["a stale replace is refused"] == "UNSAFE"
    assert keys_below(s3, uri) == []


@pytest.mark.thorough
def test_a_store_that_forgets_removals_cannot_be_used(s3, uri, capsys, monkeypatch):
    with FaultProxy(s3.url, [Rule("^DELETE ", "forget", times=3)], sign=True) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        assert main(["--output", uri, *QUICK]) == 2
    assert verdict(capsys.readouterr().out).startswith("cannot be used")
    assert keys_below(s3, uri) == []


@pytest.mark.parametrize("place", ["s3://m2f-no-such-bucket/x", "nothing://x"])
def test_a_place_that_cannot_be_written_is_one_line(s3, fresh_s3, capsys, place):
    with pytest.raises(SystemExit) as stop:
        main(["--output", place])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    [line] = captured.err.splitlines()
    assert line.startswith("check_store.py: error: ") and place in line
