"""Tidying that dies at any write loses nothing, and the same command brings it to the same end."""

import random
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable
from deltalake.table import TableOptimizer

from pipeline.guard.kill_points import POINTS_OF_TIDY, VARIABLE
from pipeline.layout import Output
from pipeline.nights.record import NightRecord, new_name, write_record
from pipeline.runs.settings import TidySettings
from pipeline.tables.publish import compact
from pipeline.tidy import files, rewrite
from pipeline.tidy import tidy as module
from pipeline.tidy.tidy import tidy
from tests.support.old_outputs import DAY, age, night, put, view
from tests.support.places import ROOT

SETTINGS = {"keep_versions": 1, "yes": True}


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> Path:
    """An output with something to do for every step."""
    place = tmp_path_factory.mktemp("messy") / "out"
    uri = str(place)
    night(uri, "first", 100, "abc")
    compact(Output.open(uri))
    night(uri, "second", 90, "ac", removed="b")
    for table in ("images", "segments"):
        DeltaTable(f"{uri}/{table}").create_checkpoint()
    night(uri, "third", 80, "c")
    night(uri, "superseded", 75, "xy", finished=False)
    night(uri, "continuable", 70, "xy", finished=False)
    night(uri, "fourth", 60, "c")
    night(uri, "fifth", 50, "d")
    put(uri, "images/run=lost/shard-000000-0123456789abcdef.parquet", b"x")
    for days in (60, 50, 40):
        start = datetime.now(UTC) - timedelta(days=days)
        record = NightRecord(started_at=start, host="h", pid=1, process="", version="0", command=(), end="finished")
        write_record(Output.open(uri), new_name(start), record)
    age(place, 40)
    return place


class Death(BaseException):
    """The process is gone: nothing catches this."""


class Writes:
    """Counts the writes of a job; the job dies before or after the write of a given number."""

    def __init__(self, patch: pytest.MonkeyPatch, last: float = float("inf"), before: bool = False):
        self.number, self.last, self.before = 0, last, before
        for owner, name in (
            (module, "put_object"),
            (rewrite, "put_object"),
            (DeltaTable, "create_write_transaction"),
            (DeltaTable, "create_checkpoint"),
            (TableOptimizer, "compact"),
        ):
            patch.setattr(owner, name, self._counted(getattr(owner, name)))
        remove = files.remove_objects
        one_by_one = self._counted(lambda filesystem, folder, path: remove(filesystem, folder, [path]))
        patch.setattr(
            files,
            "remove_objects",
            lambda filesystem, folder, paths: [one_by_one(filesystem, folder, p) for p in paths],
        )
        patch.setattr(module, "_COMMITS_PER_CHECKPOINT", 1)

    def _counted(self, write):
        def counted(*args, **options):
            self.number += 1
            if self.number == self.last and self.before:
                raise Death
            written = write(*args, **options)
            if self.number == self.last:
                raise Death
            return written

        return counted


def tidied(place: Path, last: float = float("inf"), before: bool = False) -> int:
    """Tidy, and die at a write; the number of writes. A dead process holds no lease: this one would, so remove it."""
    with pytest.MonkeyPatch.context() as patch:
        writes = Writes(patch, last, before)
        try:
            tidy(TidySettings(str(place), **SETTINGS))
            assert last > writes.number, "nothing died"
        except Death:
            (place / "_runs/lease.json").unlink()
        return writes.number


def content(place: Path) -> dict:
    """Everything that counts in an output: rows, runs and nights, parts. Not: the log, files of merged rows."""
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    rows = {
        table: sorted(map(str, DeltaTable(f"{place}/{table}").to_pyarrow_dataset().to_table().to_pylist()))
        for table in ("images", "segments")
    }
    return {
        "rows": rows,
        "runs": {path for path in there if path.startswith("_runs/") and "lease" not in path},
        "parts": {path for path in there if "/run=" in path},
    }


def assert_nothing_is_lost(place: Path, before: dict, unfinished: dict[str, bytes]) -> None:
    """Readers see what they saw; whoever continues the run finds all of it; no half of a run looks like a whole one."""
    assert view(str(place)) == before
    assert {path: (place / path).read_bytes() for path in unfinished} == unfinished
    for folder in (place / "_runs").iterdir():
        if (folder / "run.json").exists() and not (folder / "tidied.json").exists():
            assert (folder / "plan/000000.parquet").exists() and (folder / "journal/000001-000000.jsonl").exists()
            if not (folder / "report.json").exists():
                assert list(place.glob(f"images/run={folder.name}/*.parquet")), "its parts were removed"


def assert_deaths_do_no_harm(messy: Path, tmp_path: Path, every: int) -> None:
    undisturbed = Path(shutil.copytree(messy, tmp_path / "undisturbed"))
    before = view(str(messy))
    unfinished = {
        path.relative_to(messy).as_posix(): path.read_bytes()
        for path in messy.rglob("*")
        if "continuable" in str(path) and path.is_file()
    }
    assert len(unfinished) == 6
    number = tidied(undisturbed)
    assert number > 35
    end = content(undisturbed)
    assert view(str(undisturbed)) == before and not any("superseded" in path for path in end["runs"] | end["parts"])
    for last in range(1, number + 1, every):
        for dies_before in (True, False):
            place = Path(shutil.copytree(messy, tmp_path / f"{last}-{dies_before}"))
            tidied(place, last, dies_before)
            assert_nothing_is_lost(place, before, unfinished)
            tidied(place)
            assert view(str(place)) == before
            assert content(place) == end, f"died at write {last}"


def test_a_death_at_some_writes(messy, tmp_path):
    assert_deaths_do_no_harm(messy, tmp_path, 25)


@pytest.mark.thorough
def test_a_death_at_every_write(messy, tmp_path):
    assert_deaths_do_no_harm(messy, tmp_path, 1)


@pytest.mark.thorough
@pytest.mark.parametrize("point", POINTS_OF_TIDY)
def test_a_job_that_is_killed_at_a_step_is_completed_by_the_same_command(messy, point, tmp_path, monkeypatch):
    """SIGKILL: the lease of the dead process is taken over."""
    place = Path(shutil.copytree(messy, tmp_path / "out"))
    undisturbed = Path(shutil.copytree(messy, tmp_path / "undisturbed"))
    tidy(TidySettings(str(undisturbed), **SETTINGS))
    command = [sys.executable, "jobs/tidy.py", "--output", str(place), "--keep-versions", "1", "--yes"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(VARIABLE, point)
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert view(str(place)) == view(str(messy))
    monkeypatch.delenv(VARIABLE)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "no longer exists" in done.stderr, done.stderr
    assert view(str(place)) == view(str(messy))
    assert content(place) == content(undisturbed)


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.thorough if n else []) for n in range(25)])
def test_every_version_that_must_stay_is_read_as_before(seed, tmp_path):
    """Nights, merges, gaps of any length, tidying in between, drawn by chance. The oracle: the log of that moment."""
    draw = random.Random(seed)
    place = tmp_path / "out"
    days, oldest = 100.0, 1  # version 0 has no rows
    for number in range(draw.randint(4, 6)):
        keys = draw.sample("abcdef", draw.randint(1, 4))
        removed = draw.sample("abcdef", draw.randint(0, 1))
        night(str(place), f"n{number}", days, keys, "".join(set(removed) - set(keys)))
        if draw.random() < 0.3:
            compact(Output.open(str(place)))
        age(place, days)
        days -= draw.uniform(1, 20)
        if draw.random() < 0.3:
            days = min(days, 39)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "_COMMITS_PER_CHECKPOINT", draw.choice([1, 5]))
                oldest = assert_tidied(place, draw, oldest)
            age(place, days)
    assert_tidied(place, draw, oldest)


def assert_tidied(place: Path, draw: random.Random, oldest: int) -> int:
    """Tidy and compare; the oldest version that had to stay. `oldest`: that of the tidying before, which was free to
    take the files of the versions below, though the log still names them where this one keeps more versions."""
    last, since = draw.choice([1, 2, 4]), time.time() - 30 * DAY
    written = {int(path.stem): path.stat().st_mtime for path in (place / "images/_delta_log").glob("*.json")}
    newest = max(written)
    kept = [v for v in written if v > newest - last or written[min(v + 1, newest)] >= since]
    kept = [v for v in kept if v >= max(min(written), oldest)]
    before = {version: view(str(place), version) for version in kept}
    tidy(TidySettings(str(place), keep_versions=last, yes=True, compact=draw.random() < 0.5))
    assert {version: view(str(place), version) for version in kept} == before
    assert view(str(place)) == before[newest]
    return min(kept)
