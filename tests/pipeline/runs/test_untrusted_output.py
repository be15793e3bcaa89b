"""Whatever is read back from an output is untrusted: a line that names object and field, and nothing is touched.

A run whose first shard is done lies in an output, beside another run and a folder of somebody else. One thing of it is
changed at a time, in every way; then everything that a driver reads before it starts Ray is read, and what a finished
run leaves is swept.
"""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commit.lease import Lease
from pipeline.config import Settings
from pipeline.errors import RunError
from pipeline.layout import MOST_RECORD_BYTES
from pipeline.plan.plan_files import read_plan_file, spread_over
from pipeline.runs.begin import take_up
from pipeline.runs.check import Checked, check
from pipeline.runs.cleanup import sweep
from pipeline.runs.find import find_report, find_run
from pipeline.runs.places import usable_output
from pipeline.schema import TABLES
from pipeline.tables.finished_run import find_finished_run
from tests.pipeline.tables.test_publish import write_shard
from tests.support.planning import planned
from tests.support.run_records import report

RUN_ID = "night"
FILES = {
    "format.json": "_runs/format.json",
    "lease.json": "_runs/lease.json",
    "run.json": f"_runs/{RUN_ID}/run.json",
    "plan.json": f"_runs/{RUN_ID}/plan.json",
    "attempt": f"_runs/{RUN_ID}/attempts/000001.json",
    "journal": f"_runs/{RUN_ID}/journal/000001-000000.jsonl",
    "report.json": f"_runs/{RUN_ID}/report.json",
}
# No value that is right anywhere in these files. Each is JSON text.
WRONG = (
    '"../../victim"',
    '"/etc"',
    "[]",
    "{}",
    "[[]]",
    "1.5",
    "-1",
    "true",
    "null",
    str(2**70),
    "NaN",
    "1e999",
    '"\\ud800"',
)
SOME_WRONG = ('"../../victim"', "-1", "null", "{}")
# Fields that this program writes for people, and does not read, or compares with what it expects.
UNREAD = {
    "run.json": ("settings", "results", "versions", "model_license", "computed_on", "counts", "name", "fingerprint",
                 "input", "mode", "weights_sha256", "limit", "categories", "model_type"),
    "plan.json": ("counts",),
    "attempt": ("host", "pid", "started"),
    "lease.json": ("host", "since", "pid", "token", "renewals", "released"),
    "journal": ("model_actor", "first_key", "last_key"),
    "report.json": ("computed_on",),
}  # fmt: skip


class Place:
    """An output with something to lose, and what is beside it."""

    def __init__(self, root: Path, checked: Checked):
        self.root = root
        self.output = root / "out"
        self.checked = checked

    def file(self, name: str) -> Path:
        return self.output / FILES[name]

    def write(self, name: str, data: bytes) -> None:
        """A lease that is written now would be held now."""
        self.file(name).write_bytes(data)
        os.utime(self.file(name), (1.8e9, 1.7e9))

    def content(self) -> dict[str, bytes]:
        """Every file of the place, by name."""
        found = {}
        for folder, _, names in os.walk(self.root):
            for path in (Path(folder, name) for name in names):
                if path.is_file() and not path.is_symlink():
                    found[path.relative_to(self.root).as_posix()] = path.read_bytes()
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint) -> Place:
    """The place as it is before a test changes it: `restored` puts it back."""
    root = tmp_path_factory.mktemp("untrusted")
    (root / "in").mkdir()
    for name in "abc":
        (root / "in" / f"{name}.jpg").write_bytes(name.encode())
    settings = Settings(input=str(root / "in"), output=str(root / "out"), model=str(tiny_checkpoint), run_id=RUN_ID)
    run = planned(settings, images_per_shard=2)
    assert run.plan.num_shards == 2
    run.journal.append([write_shard(settings.output, RUN_ID, 0)])
    write_shard(settings.output, "other", 0)
    for folder in (root / "victim", root / "out" / "_runs" / "other", root / "out" / "_runs" / RUN_ID):
        (folder / "started").mkdir(parents=True)
        (folder / "started" / "000000-1").write_bytes(b"mine")
    with Lease(run.output.filesystem, run.output.lease_json, 60.0):
        pass
    shutil.copytree(root, root.parent / "kept")
    return Place(root, check(settings))


@pytest.fixture
def place(made, no_pauses, monkeypatch) -> Place:
    for module in ("m2f_core.whole_files", "pipeline.store.conditional_writes"):
        monkeypatch.setattr(f"{module}.sync_file", lambda path: None)  # thousands of files, none of them precious
    restore(made)
    return made


def restore(place: Place) -> None:
    shutil.rmtree(place.root)
    shutil.copytree(place.root.parent / "kept", place.root)


def drive(place: Place) -> None:
    """What a driver does before and after Ray, on a run of which it may do everything but the images."""
    checked = place.checked
    usable_output(checked.settings)
    if find_report(checked) is not None:
        find_finished_run(checked.settings.output, RUN_ID)
        find_finished_run(checked.settings.output, None)
        return
    record = find_run(checked)
    with checked.output.errors(), Lease(checked.output.filesystem, checked.output.lease_json, 60.0):
        if record is None:
            return
        run = take_up(checked, record)
        spread_over(run.output, checked.inputs, run.plan.summary, 8)
        for file in run.plan.files:
            list(read_plan_file(run.output, checked.inputs, file, range(file.num_shards)))
        sweep(run.journal)


def outcome(place: Place) -> str:
    """The line of a refusal, or an empty text. Nothing of the others has changed, after a refusal nothing at all."""
    before = place.content()
    try:
        drive(place)
    except RunError as error:
        line = str(error)
        assert line and "\n" not in line and line.isprintable() and len(line) < 900, line
        allowed = {FILES["lease.json"], FILES["lease.json"] + ".lock"}
        assert unlike(before, place.content()) <= {f"out/{name}" for name in allowed}, line
        return line
    parts = tuple(f"out/{table}/run={RUN_ID}/" for table in TABLES)  # those of an unfinished shard
    mine = (f"out/_runs/{RUN_ID}/", "out/_runs/lease.json", "out/kept", *parts)
    assert all(name.startswith(mine) for name in unlike(before, place.content()))
    return ""


def unlike(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def places_of(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value, of lists only the first two entries."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from places_of(entry, (*path, key))


def with_value(content: Any, path: tuple, text: str | None) -> str:
    """`content` as JSON with `text` at `path`; without that entry if `text` is None."""
    content, mark = copy.deepcopy(content), "the value that is replaced"
    *front, last = path
    owner = content
    for key in front:
        owner = owner[key]
    if text is None:
        del owner[last]
    else:
        owner[last] = mark
    return json.dumps(content).replace(json.dumps(mark), text or "")


def prepared(place: Place, name: str) -> Any:
    if name == "plan.json":
        record = json.loads(place.file("run.json").read_text())
        place.write("run.json", json.dumps({**record, "plan_is_complete": False}).encode())
        place.write(name, json.dumps({"plan": record["plan"], "counts": {"new": 3}}).encode())
    if name == "report.json":
        write = report(RUN_ID, num_shards=2, num_images=3, num_ok=3, table_versions={"images": 1})
        place.write(name, json.dumps(vars(write)).encode())
    if name == "lease.json":
        content = json.loads(place.file(name).read_text())
        place.write(name, json.dumps({**content, "released": False, "process": ""}).encode())
    return json.loads(place.file(name).read_text())


def test_the_driver_of_these_tests_does_everything(place):
    assert outcome(place) == ""
    names = set(place.content())
    assert f"out/_runs/{RUN_ID}/attempts/000002.json" in names
    assert not any(name.startswith(f"out/_runs/{RUN_ID}/started/") for name in names)
    assert {"victim/started/000000-1", "out/_runs/other/started/000000-1"} <= names


@pytest.mark.parametrize("texts", [SOME_WRONG, pytest.param(WRONG, marks=pytest.mark.thorough)], ids=["some", "all"])
@pytest.mark.parametrize("name", FILES)
def test_every_field_that_is_wrong_is_a_line_or_changes_nothing(name, texts, place):
    content, num_lines = prepared(place, name), 0
    passed: dict[str, set[str | None]] = {}
    for path in places_of(content):
        unread = set(path) & set(UNREAD.get(name, ()))
        if path[-1] not in unread and unread:
            continue
        for text in ('"x"', "5", None) if unread else (*texts, None):
            place.write(name, with_value(content, path, text).encode())
            line = outcome(place)
            num_lines += bool(line)
            if not line:
                restore(place)
                prepared(place, name)
                if not unread:
                    passed.setdefault(".".join(map(str, path)), set()).add(text)
    may_pass = {field: right & {*texts, None} for field, right in MAY_PASS.get(name, {}).items()}
    assert passed == {field: right for field, right in may_pass.items() if right}
    assert num_lines >= 4


# Texts that are right for a field; None: the field may be missing.
MAY_PASS: dict[str, dict[str, set[str | None]]] = {
    "run.json": {"selection": {"{}", None}, "plan_is_complete": {"true", None}},
    "attempt": {"accepted": {"{}"}},
    "lease.json": {"seconds": {"1.5"}},
    "journal": {
        "failed_by_code": {"{}"},
        "seconds": {"{}", None},
        "started": {"1.5"},
        "finished": {"1.5"},
        "model_ended": {"1.5", None},
    },
}


def a_name_twice(text: str) -> bytes:
    return f"{text[:-1]}, {text[1:]}".encode()


BROKEN: dict[str, Callable[[str], bytes]] = {
    "a list 100,000 deep": lambda text: b"[" * 100_000,
    "objects 100,000 deep": lambda text: b'{"a":' * 100_000,
    "a field 100,000 deep": lambda text: f'{text[:-1]}, "zzz": {"[" * 100_000}{"]" * 100_000}}}'.encode(),
    "cut": lambda text: text[: len(text) // 2].encode(),
    "empty": lambda text: b"",
    "no object": lambda text: b"[1, 2]",
    "no UTF-8": lambda text: text.encode().replace(b'"', b'"\xff', 1),
    "a name twice": a_name_twice,
    "a number of 5,000 digits": lambda text: f'{text[:-1]}, "zzz": {"9" * 5000}}}'.encode(),
    "too large": lambda text: text.encode() + b" " * MOST_RECORD_BYTES,
    "binary": lambda text: bytes(range(256)),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("name", FILES)
def test_no_record_is_a_line(name, how, place):
    content = prepared(place, name)
    place.write(name, BROKEN[how](json.dumps(content)))
    line = outcome(place)
    if (name, how) == ("journal", "empty"):
        assert not line  # no receipt: the shard is done again
    else:
        assert line and place.file(name).name in line, line


@pytest.mark.parametrize("name", FILES)
def test_fields_of_later_programs_are_left_out(name, place):
    content = prepared(place, name)
    place.write(name, json.dumps({**content, "of a later program": {"a": [1]}}).encode())
    assert outcome(place) == "" or name == "report.json"


def pointed_at(run_json: Any, path: str) -> None:
    run_json["plan"]["files"][0]["path"] = path


CHANGES: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "a run of another name": ("run.json", lambda c: c.update(run_id="other"), "run_id is 'other'"),
    "a run elsewhere": ("run.json", lambda c: c.update(run_id="../../../victim"), "run_id is '../../../victim'"),
    "a plan of another number": (
        "run.json",
        lambda c: pointed_at(c, "000001.parquet"),
        "it must end in 000000.parquet",
    ),
    "no plan": ("run.json", lambda c: pointed_at(c, "../../victim"), "it must end in 000000.parquet"),
    "shards that no file has": ("run.json", lambda c: c["plan"].update(num_shards=3), "plan.num_shards is 3"),
    "a shard twice": ("run.json", lambda c: c["plan"]["files"][0].update(first_shard=1), "must begin with shard 0"),
    "more shards than images": ("run.json", lambda c: c["plan"].update(num_images=1), "plan.num_images is 1"),
    "another version": ("run.json", lambda c: c.update(schema_version=99), "schema version 99"),
    "a part of another run": (
        "journal",
        lambda c: part(c).update(path=part(c)["path"].replace("night", "other")),
        "path",
    ),
    "a part elsewhere": ("journal", lambda c: part(c).update(path="../victim/started/000000-1"), "parts.images.path"),
    "a part of an absolute path": ("journal", lambda c: part(c).update(path="/etc/passwd"), "parts.images.path"),
    "a part of another bucket": ("journal", lambda c: part(c).update(path="s3a://b/x.parquet"), "parts.images.path"),
    "another shard's part": ("journal", lambda c: c.update(shard=1), "the receipt of shard 1"),
    "a shard that is not planned": ("journal", lambda c: moved(c, 7), "a receipt of shard 7, but the plan has 2"),
    "rows that the images are not": ("journal", lambda c: c.update(num_images=9), "but 9 images"),
    "more failures than images": ("journal", lambda c: c.update(failed_by_code={"x": 3}), "more images removed"),
    "a table too many": ("journal", lambda c: c["parts"].update(passwords=part(c)), "parts"),
    "a table too few": ("journal", lambda c: c["parts"].pop("segments"), "parts"),
    "no hash": ("journal", lambda c: part(c).update(sha256="../" * 20 + "abcd"), "sha256"),
    "a report of another run": ("report.json", lambda c: c.update(run_id="other"), "run_id is 'other'"),
    "a report elsewhere": ("report.json", lambda c: c.update(run_id="../../victim"), "run_id is '../../victim'"),
    "a report that does not add up": ("report.json", lambda c: c.update(num_ok=1), "num_images is 3"),
    "a lease for ever": ("lease.json", lambda c: c.update(seconds=1e300), "seconds is 1e+300"),
    "a process elsewhere": ("lease.json", lambda c: c.update(process="../../1"), "process is '../../1'"),
    "a format of later": ("format.json", lambda c: c.update(schema_version=99), "schema version 99"),
}


def part(receipt: Any) -> Any:
    return receipt["parts"]["images"]


def moved(receipt: Any, shard: int) -> None:
    receipt["shard"] = shard
    for one in receipt["parts"].values():
        one["path"] = one["path"].replace("shard-000000", f"shard-{shard:06d}")


@pytest.mark.parametrize("change", CHANGES)
def test_what_leads_elsewhere_or_does_not_add_up_is_a_line(change, place):
    name, make, said = CHANGES[change]
    content = prepared(place, name)
    make(content)
    place.write(name, json.dumps(content).encode())
    assert said in outcome(place)


def test_a_plan_is_read_where_the_run_lies_whatever_its_path_says(place):
    """An output may be copied to another bucket, or mounted elsewhere."""
    content = prepared(place, "run.json")
    for path in ("000000.parquet", "/etc/000000.parquet", "s3://other/_runs/night/plan/000000.parquet"):
        pointed_at(content, path)
        place.write("run.json", json.dumps(content).encode())
        found = find_run(place.checked)
        assert found and found.plan.files[0].path == f"{place.output}/_runs/{RUN_ID}/plan/000000.parquet"


# --- the plan ---------------------------------------------------------------------------------------------------------

PLANS: dict[str, tuple[Callable[[dict[str, list]], object], str]] = {
    "an image elsewhere": (
        lambda c: c["image_key"].__setitem__(0, "file:///etc/passwd"),
        "does not lie below the input",
    ),
    "an image of another bucket": (lambda c: c["image_key"].__setitem__(0, "s3://b/x"), "does not lie below the input"),
    "an image above": (lambda c: c["image_key"].__setitem__(0, f"{c['image_key'][0]}/../../../x"), "below the input"),
    "an image twice": (lambda c: c["image_key"].__setitem__(0, c["image_key"][-1]), "a second time"),
    "another shard": (lambda c: c["shard"].__setitem__(0, 5), "the column shard holds"),
    "a size below 0": (lambda c: c["size_bytes"].__setitem__(0, -5), "a size or a place below 0"),
    "a reason of its own": (lambda c: c["reason"].__setitem__(0, "because"), "a reason that there is not"),
}


@pytest.mark.parametrize("change", PLANS)
def test_a_plan_that_is_not_of_this_input_is_a_line(change, place):
    make, said = PLANS[change]
    path = place.output / "_runs" / RUN_ID / "plan" / "000000.parquet"
    file = pq.ParquetFile(path)
    shards = [file.read_row_group(number).to_pydict() for number in range(file.num_row_groups)]
    make(shards[0])
    with pq.ParquetWriter(path, file.schema_arrow) as writer:
        for shard in shards:
            writer.write_table(pa.table(shard, schema=file.schema_arrow))
    line = outcome_of_the_plan(place)
    assert said in line and "000000.parquet" in line


@pytest.mark.parametrize("rows", [{}, {"shard": [0]}, {"image_key": [None]}])
def test_a_file_that_is_no_plan_is_a_line(rows, place):
    path = place.output / "_runs" / RUN_ID / "plan" / "000000.parquet"
    pq.write_table(pa.table(rows), path)
    assert "000000.parquet" in outcome_of_the_plan(place)
    path.write_bytes(b"PAR1")
    assert "000000.parquet" in outcome_of_the_plan(place)


def outcome_of_the_plan(place: Place) -> str:
    """By the time that the plan is read, the attempt has begun."""
    record = find_run(place.checked)
    before = place.content()
    with pytest.raises(RunError) as refused:
        spread_over(place.checked.output, place.checked.inputs, record.plan, 8)
    assert place.content() == before and "\n" not in str(refused.value)
    return str(refused.value)


# --- links and names --------------------------------------------------------------------------------------------------

LINKED = (
    "_runs", "_runs/format.json", "_runs/lease.json", "images", "segments", f"images/run={RUN_ID}",
    f"_runs/{RUN_ID}", f"_runs/{RUN_ID}/run.json", f"_runs/{RUN_ID}/plan", f"_runs/{RUN_ID}/plan/000000.parquet",
    f"_runs/{RUN_ID}/journal", f"_runs/{RUN_ID}/journal/000001-000000.jsonl", f"_runs/{RUN_ID}/attempts",
    f"_runs/{RUN_ID}/attempts/000001.json", f"_runs/{RUN_ID}/started",
)  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
def test_a_link_out_of_the_output_is_not_followed(name, place):
    """Not even to what the output itself held."""
    elsewhere = place.root / "elsewhere"
    (place.output / name).rename(elsewhere)
    (place.output / name).symlink_to(elsewhere)
    line = outcome_of_the_plan(place) if name.endswith(".parquet") else outcome(place)
    assert "leads out of the output" in line and str(elsewhere) in line and name.rpartition("/")[2] in line


@pytest.mark.parametrize("name", LINKED)
def test_a_link_inside_the_output_is_followed(name, place):
    moved_to = place.output / "kept"
    (place.output / name).rename(moved_to)
    (place.output / name).symlink_to(moved_to)
    assert outcome(place) == ""


def test_the_output_itself_may_be_a_link(place):
    place.output.rename(place.root / "elsewhere")
    place.output.symlink_to(place.root / "elsewhere")
    with contextlib.suppress(RunError):
        drive(place)
    assert (place.root / "elsewhere" / "_runs" / RUN_ID / "attempts" / "000002.json").exists()


def test_a_link_among_the_start_markers_is_removed_and_what_it_names_is_not(place):
    started = place.output / "_runs" / RUN_ID / "started"
    (started / "000001-1").symlink_to(place.root / "victim")
    (started / "000001-2").symlink_to(place.root / "victim" / "started" / "000000-1")
    (started / "notes").mkdir()
    (started / "notes" / "000003-1").write_bytes(b"not ours")
    assert outcome(place) == ""
    assert [path.name for path in started.iterdir()] == ["notes"]
    assert (place.root / "victim" / "started" / "000000-1").read_bytes() == b"mine"
    assert (started / "notes" / "000003-1").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_not_waited_for(name, place):
    prepared(place, name)
    place.file(name).unlink()
    os.mkfifo(place.file(name))
    assert "neither a file nor a folder" in outcome(place)


OTHER_NAMES = (
    "attempts/000002.JSON", "attempts/2.json", "attempts/0000000002.json",
    "attempts/\u0662\u0662\u0662\u0662\u0662\u0662.json", "journal/1-1.jsonl", "journal/000001-000001.jsonl.tmp",
    "journal/00000000000001-000000.jsonl", "plan/000001.parquet", "../notes.txt", "../a folder/run.json",
    "../.hidden/run.json", "../x.lock/run.json",
)  # fmt: skip


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_objects_of_other_names_are_not_ours(name, place):
    path = Path(os.path.normpath(place.output / "_runs" / RUN_ID / name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{")
    assert outcome(place) == ""
    assert path.read_bytes() == b"{"
