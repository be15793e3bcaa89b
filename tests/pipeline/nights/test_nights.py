"""The record of a night, whatever ends it, and what is read from records: in order, few at a time, never trusted."""

import json
import multiprocessing
import os
import socket
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.commit.lease import Lease
from pipeline.errors import RunError
from pipeline.layout import Output
from pipeline.nights import record as records
from pipeline.nights.night import Night
from pipeline.nights.record import NightRecord, newest_names, read_record, write_record
from pipeline.nights.seen import lacks_good_night, seen_nights
from pipeline.nights.settings import NightsSettings

COMMAND = ("segment_bucket.py", "--input", "in")
NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def output(tmp_path) -> Output:
    return Output.open(str(tmp_path))


def a_record(start: datetime = NOW, **facts: object) -> NightRecord:
    fields = {"started_at": start, "host": "h", "pid": 1, "process": "", "version": "0", "command": COMMAND}
    return NightRecord(**{**fields, **facts})


def put(output: Output, start: datetime = NOW, **facts: object) -> str:
    name = records.new_name(start)
    write_record(output, name, a_record(start, **facts))
    return name


def ended(start: datetime, end: str = "finished", after: timedelta = timedelta(hours=1)) -> dict[str, object]:
    return {"end": end, "ended_at": start + after, "seconds": after.total_seconds(), "exit_code": 0}


# --- writing ----------------------------------------------------------------------------------------------------------


def test_a_night_is_one_object_from_its_start_to_its_end(output):
    night = Night(COMMAND)
    night.start(output)
    [name] = newest_names(output)
    started = read_record(output, name)
    assert (started.command, started.pid, started.host) == (COMMAND, os.getpid(), socket.gethostname())
    assert (started.end, started.ended_at, started.exit_code, started.run_id) == (None, None, None, None)
    night.tell(lease="token")
    night.tell(run_id="night-1")
    assert (read_record(output, name).lease, read_record(output, name).run_id) == ("token", "night-1")
    night.end("broke", 1, "run night-1 broke", {"images": 7, "done": 3})
    assert list(newest_names(output)) == [name]
    read = read_record(output, name)
    assert (read.end, read.exit_code, read.reason) == ("broke", 1, "run night-1 broke")
    assert read.counts == {"images": 7, "done": 3} and read.started_at <= read.ended_at and read.seconds >= 0


def test_a_night_that_found_nothing_says_why(output):
    night = Night(COMMAND)
    night.start(output)
    night.tell(nothing_to_do="11 unchanged")
    night.end("finished", 0, "", {})
    [seen] = seen_nights(output)
    assert (seen.outcome, seen.reason) == ("nothing to do", "11 unchanged")


def test_a_night_that_never_started_leaves_nothing(output, tmp_path):
    Night(COMMAND).end("refused", 2, "--output is a file", {})
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_refuses_the_night(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be used"):
        Night(COMMAND).start(Output.open(str(tmp_path / "file" / "x")))


def test_a_store_that_fails_at_the_end_is_a_warning(output, tmp_path, caplog):
    night = Night(COMMAND)
    night.start(output)
    for path in sorted((tmp_path / "_runs").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "_runs").rmdir()
    (tmp_path / "_runs").touch()
    night.end("finished", 0, "", {})
    assert "the record of this night cannot be written" in caplog.text


def test_a_record_holds_no_secret_and_stays_small(output, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET-of-the-environment")
    night = Night(
        ("segment_bucket.py", "s3://K:SECRET@b/x", "SECRET-of-the-environment", "\x1b[2J", *["x" * 9999] * 999)
    )
    night.start(output)
    night.end("broke", 1, "lost http://u:SECRET@h/x?sig=SECRET SECRET-of-the-environment\n\x1b]0;" + "y" * 9999, {})
    [name] = newest_names(output)
    text = Path(output.night(name)).read_text()
    assert "SECRET" not in text and "\\u001b" not in text and len(text) < 500_000
    assert read_record(output, name).command[1:4] == ("s3://***@b/x", "***", r"\x1b[2J")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_the_newest_come_first_and_older_months_are_not_listed(output, monkeypatch):
    starts = [datetime(2026, month, day, 2, tzinfo=UTC) for month in (9, 10, 11) for day in (1, 2, 30)]
    names = [put(output, start) for start in starts]
    for odd in (
        "notes.txt",
        "2026-11/x.json",
        "2026-11/20261130T020000.000Z-1a2b3c4d.json.tmp",
        "2026-11/20261199T020000.000Z-1a2b3c4d.json",
    ):
        (Path(output.nights) / odd).touch()
    listed = []
    real = records.list_folder
    monkeypatch.setattr(records, "list_folder", lambda f, p: listed.append(p.rpartition("/")[2]) or real(f, p))
    newest = newest_names(output)
    assert [next(newest), next(newest)] == [names[-1], names[-2]]
    assert listed == ["_nights", "2026-11"], "only what is needed"
    assert list(newest_names(output, date(2026, 10, 2))) == names[:3:-1]
    assert [night.name for night in seen_nights(output, last=2)] == names[-2:]
    assert len(seen_nights(output, since=date(2026, 11, 2))) == 2
    assert output.list_runs() == [], "no run is taken for one of these"


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        {"record_version": 2},
        {"pid": "7"},
        {"counts": {"images": -1}},
        {"host": "x" * 3000},
        {"run_id": ["../.."]},
        {"end": "won"},
        {"unknown": 1},
        {"started_at": "2026-11-29T02:00:00"},
    ],
)
def test_a_damaged_record_is_a_night_that_cannot_be_read(output, damage):
    name = put(output)
    if isinstance(damage, dict):
        damage = json.dumps({**json.loads(a_record().model_dump_json()), **damage}).encode()
    Path(output.night(name)).write_bytes(damage)
    put(output, NOW + timedelta(seconds=1), **ended(NOW))
    damaged, good = seen_nights(output)
    assert damaged.outcome == "unreadable" and name in damaged.reason and "\n" not in damaged.reason
    assert good.outcome == "finished"
    assert damaged.to_dict()["outcome"] == "unreadable"


def test_a_record_reads_as_it_was_written():
    record = a_record(**ended(NOW), counts={"images": 1})
    assert NightRecord.model_validate_json(record.model_dump_json()) == record
    with pytest.raises(ValidationError):
        a_record(counts={"images": "1"})


def test_secrets_in_a_record_of_another_hand_are_not_printed(output):
    put(output, command=("s3://K:SECRET@b",), run_id="http://u:SECRET@h")
    assert "SECRET" not in json.dumps(seen_nights(output)[0].to_dict())


@pytest.mark.parametrize("link", ["_runs/_nights", f"_runs/_nights/{NOW:%Y-%m}"])
def test_a_link_out_of_the_output_is_followed_neither_to_write_nor_to_read(tmp_path, link):
    elsewhere = tmp_path / "elsewhere"
    name = put(Output.open(str(elsewhere)), **ended(NOW))
    planted = tmp_path / "out" / link
    planted.parent.mkdir(parents=True)
    month = Path(Output.open(str(elsewhere)).night(name)).parent
    planted.symlink_to(month.parent if link.endswith("_nights") else month)
    before = sorted(elsewhere.rglob("*"))
    for use in (Night(COMMAND).start, seen_nights):
        with pytest.raises(RunError, match="leads out of the output"):
            use(Output.open(str(tmp_path / "out")))
    assert sorted(elsewhere.rglob("*")) == before


def test_a_link_that_appears_during_the_night_is_a_warning(output, tmp_path, caplog):
    night = Night(COMMAND)
    night.start(output)
    Path(output.nights).rename(tmp_path / "moved")
    (tmp_path.parent / "elsewhere").mkdir()
    Path(output.nights).symlink_to(tmp_path.parent / "elsewhere")
    night.end("finished", 0, "", {})
    assert "leads out of the output" in caplog.text and not list((tmp_path.parent / "elsewhere").iterdir())


# --- without an end ---------------------------------------------------------------------------------------------------


def _die(output: Output) -> None:
    Night(COMMAND).start(output)
    os._exit(9)


def outcome(output: Output) -> str:
    [night] = seen_nights(output)
    return night.outcome


def test_a_process_of_this_machine_runs_or_has_died(output):
    process = multiprocessing.get_context("fork").Process(target=_die, args=(output,))
    process.start()
    process.join()
    assert outcome(output) == "died"
    Night(COMMAND).start(output)
    assert [night.outcome for night in seen_nights(output)] == ["died", "running"]


def test_elsewhere_the_lease_says_whether_it_runs(output):
    with Lease(output.filesystem, output.lease_json, 60.0) as lease:
        put(output, lease=lease.token)
        assert outcome(output) == "running"
    assert outcome(output) == "died", "the lease is released and the record has no end"
    with Lease(output.filesystem, output.lease_json, 60.0):
        assert outcome(output) == "died", "another one holds the lease"


def test_elsewhere_a_lease_that_was_not_renewed_is_gone(output):
    with Lease(output.filesystem, output.lease_json, 60.0) as lease:
        put(output, lease=lease.token)
        os.utime(output.lease_json, (1, 1))
        assert outcome(output) == "died"


@pytest.mark.parametrize(("ago", "said"), [(timedelta(minutes=5), "running"), (timedelta(hours=2), "died")])
def test_elsewhere_before_the_lease_the_time_says(output, ago, said):
    put(output, NOW - ago)
    assert outcome(output) == said


def test_a_claim_on_a_store_without_conditional_writes_cannot_say():
    """Nothing but the next driver finds out whether the driver behind a claim lives."""
    output = Output.open("memory://nights-with-claims")
    token = "0123456789abcdef" * 2
    put(output, NOW - timedelta(hours=2), process="elsewhere/1/2/3", lease=token)
    assert outcome(output) == "died", "the claim is released and the record has no end"
    output.filesystem.pipe_file(f"{output.runs}/holder-{token}.json", b"{}")
    assert outcome(output) == "no end"


# --- a watchdog -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["finished", "nothing to do"])
def test_a_good_night_is_enough_whatever_came_after(output, end):
    start = NOW - timedelta(hours=30)
    put(output, start, **ended(start, end, timedelta(hours=28)))
    put(output, NOW - timedelta(hours=1), **ended(NOW, "broke"))
    assert lacks_good_night(output, timedelta(hours=26), NOW) is None, "it ended two hours ago"
    assert "broke" in lacks_good_night(output, timedelta(hours=1), NOW)


@pytest.mark.parametrize("end", ["refused", "stopped", "broke"])
def test_other_ends_are_not(output, end):
    start = NOW - timedelta(hours=2)
    put(output, start, **ended(start, end))
    assert f": {end}" in lacks_good_night(output, timedelta(hours=26), NOW)


def test_a_night_that_did_not_run_has_no_record(output):
    assert lacks_good_night(output, timedelta(hours=26), NOW) == "no night has left a record"
    start = NOW - timedelta(days=30)
    put(output, start, **ended(start))
    assert f"started at {start:%Y-%m-%d}" in lacks_good_night(output, timedelta(hours=26), NOW)


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["26", "h", "-1h", "0h", "1.5.2h", "26 h", "99999d", "26h\n", "٢h"])
def test_durations_that_are_none(words):
    with pytest.raises(RunError, match="--expect-within"):
        NightsSettings("out", expect_within=words)


def test_durations_and_days():
    assert NightsSettings("out", expect_within="90m").expected() == timedelta(minutes=90)
    assert NightsSettings("out", expect_within="1.5d").expected() == timedelta(hours=36)
    assert NightsSettings("out", since="2026-11-29").first_day() == date(2026, 11, 29)
    assert (NightsSettings("out").most(), NightsSettings("out", since="2026-11-29").most()) == (14, None)
    with pytest.raises(RunError, match="--since"):
        NightsSettings("out", since="yesterday")
