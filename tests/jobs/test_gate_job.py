"""--gate on a whole run: scenes as before are published; a run with another image size is held back, then published."""

from pathlib import Path

import pytest

from jobs import publish, segment_bucket
from jobs.verify import main as verify
from pipeline.layout import Output
from pipeline.nights.seen import seen_nights
from pipeline.scenes.settings import ScenesSettings
from pipeline.scenes.write import write_scenes
from tests.support.tables import read_report

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    write_scenes(ScenesSettings(output=str(folder / "scenes"), number=24, height=96, width=128, seed=3))
    (folder / "gate.yaml").write_text("least_runs: 1\n")
    return folder


def night(place: Path, *flags: object) -> int:
    words = ("--input", place / "scenes/images", "--output", place / "out", "--gate", place / "gate.yaml", *flags)
    return segment_bucket.main([str(word) for word in ("--mode", "overwrite", "--images-per-shard", 8, *words)])


def published(place: Path) -> list[str]:
    return sorted(path.parent.name for path in (place / "out/_runs").glob("*/report.json"))


def test_a_night_that_is_not_like_the_others_waits_for_a_look(ray_session, place, capfd):
    assert night(place, "--run-id", "first") == 0
    assert "0 earlier runs to compare with" in capfd.readouterr().err
    assert night(place, "--run-id", "second") == 0
    capfd.readouterr()
    assert night(place, "--run-id", "small", "--image-size", "32x32") == 3
    said = capfd.readouterr().err
    assert "out of bounds: " in said and said.rstrip().endswith("--run-id small")
    assert published(place) == ["first", "second"]
    [*_, last] = seen_nights(Output.open(str(place / "out")))
    assert (last.outcome, last.record.exit_code) == ("stopped", 3) and "--gate" in last.reason
    assert night(place, "--run-id", "small", "--image-size", "32x32") == 3, "the same command compares again"
    assert published(place) == ["first", "second"]
    assert verify(["--tables", str(place / "out"), "--workers", "1"]) == 0
    assert publish.main(["--tables", str(place / "out"), "--run-id", "small"]) == 0
    assert published(place) == ["first", "second", "small"]
    assert read_report(place / "out", "small")["num_images"] == 24
    assert verify(["--tables", str(place / "out"), "--workers", "1"]) == 0
