"""--deadline and --max-cost: a run that stops between shards, and the nights that continue it."""

import contextlib
import io
import shutil
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import ray

from jobs import segment_bucket
from pipeline.commit.receipt import Receipt
from pipeline.forecast import limit_watch
from pipeline.forecast.limits import Limits
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from tests.jobs.test_increments import Nights
from tests.jobs.test_segment_bucket import local_journal
from tests.support.drivers import CHANGED_BY
from tests.support.tables import read_report, read_table, results_by_image

IN_TIME = f"{datetime.now(UTC) + timedelta(hours=8):%Y-%m-%dT%H:%M:%SZ}"
ONE_BY_ONE = ("--images-per-shard", 1, "--gpu-actors", "1:1")


def fill(bucket: Path, photographs: Path, copies: int) -> int:
    for copy in range(copies):
        for photograph in photographs.iterdir():
            bucket.mkdir(exist_ok=True)
            shutil.copy(photograph, bucket / f"{copy}-{photograph.name}")
    return len(list(bucket.iterdir()))


def unfinished(output: Path) -> Path:
    [folder] = (path for path in (output / "_runs").glob("2*") if not (path / "report.json").exists())
    return folder


@dataclass
class StoppedNight(Nights):
    """A run that stopped at its deadline, before its last shard."""

    said: str
    receipts: list[Receipt]


@pytest.fixture(scope="module")
def stopped(ray_session, photographs, tiny_checkpoint, tmp_path_factory) -> StoppedNight:
    """The deadline comes with the third receipt: a reached limit, at a moment that the machine's load does not move."""
    folder = tmp_path_factory.mktemp("stopped")
    fill(folder / "in", photographs, 2)
    nights = Nights(folder / "in", folder / "out", tiny_checkpoint)
    add, said = Limits.add, io.StringIO()

    def add_until_the_deadline(self, receipt):
        add(self, receipt)
        if len(self._shard_seconds) == 3:
            self.deadline = datetime.now(UTC)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(Limits, "add", add_until_the_deadline)
        assert segment_bucket.main(nights.flags(*ONE_BY_ONE, "--deadline", IN_TIME)) == 3
    receipts = list(local_journal(unfinished(nights.output)).read())
    return StoppedNight(nights.bucket, nights.output, nights.model, said.getvalue(), receipts)


def test_a_run_at_its_deadline_stops_between_shards(stopped):
    num_images, done = len(list(stopped.bucket.iterdir())), len(stopped.receipts)
    assert 3 <= done < num_images
    left = f"{num_images - done} images are left: about 0:0"
    assert left in stopped.said and "INFO: --deadline 20" in stopped.said
    kept = f"{done} of {num_images} images are done and kept; run the same command again to continue"
    assert stopped.said.rstrip().endswith(kept)
    assert len(stopped.current()) == done, "what is done is published"
    [night] = seen_nights(Output.open(str(stopped.output)))[:1]
    assert (night.outcome, night.record.exit_code, night.record.counts["done"]) == ("stopped", 3, done)
    assert left in night.reason and kept in night.reason
    assert len(list(stopped.output.glob("images/run=*/*.parquet"))) == done, "no shard was begun that is not done"


@pytest.mark.thorough
def test_the_same_command_continues_a_run_that_stopped(stopped):
    num_images, done = len(list(stopped.bucket.iterdir())), len(stopped.receipts)
    assert segment_bucket.main(stopped.flags(*ONE_BY_ONE)) == 0
    report = read_report(stopped.output)
    assert (report["num_images"], report["num_shards_done_before"]) == (num_images, done)
    rows = read_table(stopped.output, "images")
    assert len(rows) == num_images == len({row["image_key"] for row in rows})
    assert sorted(row["attempt"] for row in rows) == [1] * done + [2] * (num_images - done)


@pytest.mark.thorough
def test_nights_with_a_small_budget_give_the_rows_of_one_night_without(drivers, photographs, tiny_checkpoint, tmp_path):
    """Each shard that is done costs a dollar: how many nights there are does not depend on the machine's load."""
    num_images = fill(tmp_path / "in", photographs, 8)
    (tmp_path / "prices.yaml").write_text("usd_per_hour: {cpu: 0.001}\n")
    once, often = (Nights(tmp_path / "in", tmp_path / name, tiny_checkpoint) for name in ("once", "often"))
    shards = ("--images-per-shard", 5, "--cpus-per-actor", 1, "--gpu-actors", "1:1")
    undisturbed = drivers.start(*once.flags(*shards))
    assert undisturbed.wait() == 0, undisturbed.said()
    budget = ("--max-cost", 5, "--prices", tmp_path / "prices.yaml")
    codes = []
    while (not codes or codes[-1] == 3) and len(codes) < 40:
        driver = drivers.start(*often.flags(*shards, *budget), **{CHANGED_BY: "tests.support.dollar_a_shard"})
        driver.finish_alone()
        codes.append(driver.wait())
        assert "Traceback" not in driver.said(), driver.said()
    assert codes[-1] == 0 and len(codes) > 1, codes
    seen = [(night.outcome, night.record.exit_code) for night in seen_nights(Output.open(str(often.output)))]
    assert seen == [("stopped", 3)] * (len(codes) - 1) + [("finished", 0)]
    assert results_by_image(often.output) == results_by_image(once.output)
    assert len(often.current()) == num_images


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_a_deadline_that_comes_before_the_first_shard_leaves_a_run_to_continue(
    photographs, tiny_checkpoint, tmp_path, capsys
):
    nights = Nights(tmp_path / "in", tmp_path / "out", tiny_checkpoint)
    num_images = fill(nights.bucket, photographs, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Limits, "set_devices", lambda self, *_: setattr(self, "deadline", datetime.now(UTC)))
        assert segment_bucket.main(nights.flags("--deadline", IN_TIME)) == 3
    assert f"{num_images} images are left; 0 of {num_images} images are done" in capsys.readouterr().err
    assert segment_bucket.main(nights.flags()) == 0
    assert len(nights.current()) == num_images == len(read_table(nights.output, "images"))


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_a_run_for_which_no_actor_ever_starts_ends_at_its_deadline(
    photographs, tiny_checkpoint, tmp_path, capsys, monkeypatch
):
    """Ray Data waits for nodes for hours; here another job holds all CPUs."""
    nights = Nights(tmp_path / "in", tmp_path / "out", tiny_checkpoint)
    num_images = fill(nights.bucket, photographs, 1)
    other = ray.remote(Counter).options(num_cpus=4).remote()
    ray.get(other.total.remote())
    set_devices = Limits.set_devices

    def set_the_deadline(self, *args):
        set_devices(self, *args)
        self.deadline = datetime.now(UTC) + timedelta(seconds=10)

    monkeypatch.setattr(limit_watch, "_EMPTY_SECONDS", 1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Limits, "set_devices", set_the_deadline)
        assert segment_bucket.main(nights.flags("--deadline", IN_TIME)) == 3
    assert f"{num_images} images are left; 0 of {num_images} images are done" in capsys.readouterr().err
    ray.kill(other)
    assert segment_bucket.main(nights.flags()) == 0
    assert len(nights.current()) == num_images == len(read_table(nights.output, "images"))


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_session")
def test_the_first_shards_measure_how_many_actors_a_deadline_needs(photographs, tiny_checkpoint, tmp_path, capsys):
    """One actor is fast enough: the actors of the start measure with four shards each, another one does the rest."""
    nights = Nights(tmp_path / "in", tmp_path / "out", tiny_checkpoint)
    num_images = fill(nights.bucket, photographs, 9)
    actors = ("--images-per-shard", 1, "--cpus-per-actor", 1, "--gpu-actors", "1:2", "--deadline", IN_TIME)
    assert segment_bucket.main(nights.flags(*actors)) == 0
    said = capsys.readouterr().err
    assert "1 of at most 2 model actors: about 0:0" in said
    assert len(read_table(nights.output, "images")) == num_images
    [folder] = (nights.output / "_runs").glob("2*")
    receipts = sorted(local_journal(folder).read(), key=lambda receipt: receipt.finished)
    actors = [receipt.model_actor for receipt in receipts]
    assert len(actors) == num_images and len(set(actors[8:])) == 1 and actors[8] not in actors[:8]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--deadline", "yesterday"], "--deadline is 'yesterday'; write a time of day"),
        (["--deadline", "2020-01-01T00:00Z"], "--deadline 2020-01-01T00:00Z has passed; it is 20"),
        (["--time-zone", "Mars"], "--time-zone Mars: this machine knows no such zone"),
        (["--max-cost", "0"], "--max-cost is 0.0; it must be above 0"),
        (["--max-cost", "nan"], "--max-cost is nan"),
        (["--prices", "none.yaml"], "--prices none.yaml: "),
        (["--forecast", "none.json"], "--forecast none.json: "),
    ],
)
def test_a_limit_that_is_none_is_refused_and_nothing_is_written(
    photographs, tiny_checkpoint, tmp_path, capsys, flags, said
):
    nights = Nights(photographs, tmp_path / "out", tiny_checkpoint)
    with pytest.raises(SystemExit) as stop:
        segment_bucket.main(nights.flags(*flags))
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and said in lines[0]
    assert not nights.output.exists() or not [file for file in nights.files() if "_nights" not in file.parts]


def test_a_price_that_max_cost_needs_is_missed_before_a_run_is_planned(
    ray_session, photographs, tiny_checkpoint, tmp_path, capsys
):
    (tmp_path / "prices.yaml").write_text("usd_per_hour: {gpu: 1}\n")
    nights = Nights(photographs, tmp_path / "out", tiny_checkpoint)
    with pytest.raises(SystemExit) as stop:
        segment_bucket.main(nights.flags("--max-cost", 5, "--prices", tmp_path / "prices.yaml"))
    assert stop.value.code == 2
    assert "prices.yaml has no price of cpu; add it below usd_per_hour" in capsys.readouterr().err
    assert not list((nights.output / "_runs").glob("2*"))
