"""A run that is not like the runs before is held back, and published after a look; with a real model on scenes."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from jobs import publish
from jobs.publish import main
from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.config.labels import LabelMap
from m2f_core.images.image_size import ImageSize
from m2f_core.inference.settings import PanopticSettings
from pipeline.commit.encode import EncodeSpec, encode_shard
from pipeline.commit.journal import Journal
from pipeline.commit.run_report import read_report
from pipeline.errors import BrokenRunError, HeldByGateError, RunError
from pipeline.gate import publish_held as module
from pipeline.gate.bounds_file import GateBounds
from pipeline.gate.gate import pass_gate
from pipeline.gate.publish_held import publish_held
from pipeline.gate.record import GateRecord, read_gate_record
from pipeline.layout import Output
from pipeline.plan.shards import PLANNED_IMAGES
from pipeline.runs.roll_back import roll_back
from pipeline.runs.settings import PublishSettings, RollBackSettings
from pipeline.scenes.draw import draw_scene
from pipeline.schema import FETCHED
from pipeline.segment.actor import segmented_table
from pipeline.segment.checkpoint import stage_model
from pipeline.segment.segmenter import Segmenter
from pipeline.tables.current_view import current_images, published_files
from pipeline.tables.publish import Publisher
from tests.support.run_books import FINGERPRINT, Found, Shard, created_at, encoded, spec_of, write_report, write_run
from tests.support.segmenting import small_spec
from tests.support.without_pages import without_pages

BOUNDS = GateBounds(least_runs=3, images=200)


def quarters(*labels: int) -> np.ndarray:
    return np.array(labels, np.int32).reshape(2, 2).repeat(3, axis=0).repeat(4, axis=1)


def images(first: int, number: int = 20, classes: tuple[int, ...] = (0, 1, 2)) -> list[Found]:
    return [Found(f"s3://b/{first + n}.jpg", quarters(1, 2, 3, 3 if n % 2 else 2), classes) for n in range(number)]


def run(uri: str, run_id: str, found: list[Found], days_ago: float, finished: bool = True) -> None:
    spec = spec_of(run_id, "panoptic", created_at(days_ago))
    shards = [encoded(found[first : first + 10], n, spec) for n, first in enumerate(range(0, len(found), 10))]
    write_run(uri, run_id, shards, created=created_at(days_ago), finished=finished, published=finished)


def gate(uri: str, run_id: str, bounds: GateBounds = BOUNDS) -> None:
    """As segment_bucket.py does at the end of the run: its report, then the gate."""
    output = Output.open(uri)
    write_report(uri, run_id)
    path = output.run(run_id).report_json

    report = read_report(output, output.run(run_id))
    output.filesystem.rm_file(path)
    pass_gate(bounds, Journal(output.run(run_id)), report, "panoptic")


def seen(uri: str, run_id: str) -> GateRecord:
    output = Output.open(uri)
    record = read_gate_record(output, output.run(run_id))
    assert record is not None
    return record


@pytest.fixture
def output(tmp_path) -> Path:
    for number in range(3):
        run(str(tmp_path), f"night-{number}", images(100 * number), 10 - number)
    return tmp_path


def hold(output: Path, run_id: str = "tonight") -> str:
    run(str(output), run_id, images(900, classes=(3, 1, 2)), 1, finished=False)
    with pytest.raises(HeldByGateError) as held:
        gate(str(output), run_id)
    return str(held.value)


def test_a_run_like_those_before_passes(output):
    run(str(output), "tonight", images(900), 1, finished=False)
    gate(str(output), "tonight")
    record = seen(str(output), "tonight")
    assert record.violations == [] and record.figures.num_images == 20


def test_a_run_that_is_not_like_them_is_held_back_with_a_line_for_each_figure(output, caplog):
    message = hold(output)
    assert "jobs/publish.py --tables" in message and "--run-id tonight" in message
    lines = [line for line in caplog.messages if line.startswith("out of bounds: ")]
    assert len(lines) == 2 and "class 40 road" in lines[0] and "class 7 cat" in lines[1]
    assert not (output / "_runs/tonight/report.json").exists()
    assert not [path for path in published_files(Output.open(str(output)), "images") if "tonight" in path]


def test_with_too_few_earlier_runs_a_run_passes_with_a_warning(tmp_path, caplog):
    run(str(tmp_path), "first", images(0), 5)
    run(str(tmp_path), "second", images(100, classes=(3, 1, 2)), 1, finished=False)
    gate(str(tmp_path), "second")
    assert any("1 earlier runs to compare with" in line for line in caplog.messages)


def test_runs_of_another_task_rolled_back_runs_and_runs_without_parts_are_not_compared_with(output, caplog):
    record = output / "_runs/night-0/run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "results": {**content["results"], "task": "semantic"}}))
    (output / "_runs/night-1/rolled_back.json").write_text("{}")
    for part in (output / "segments/run=night-2").iterdir():
        part.unlink()
    run(str(output), "tonight", images(900, classes=(3, 1, 2)), 1, finished=False)
    gate(str(output), "tonight")
    assert any("0 earlier runs to compare with" in line for line in caplog.messages)


def test_runs_in_which_no_image_was_ok_are_not_compared_with(output):
    """They would blind the gate: each uses up one of the last runs."""
    failed = [Found(f"s3://b/{n}.jpg", failed="access_denied") for n in range(2000, 2010)]
    for number in range(3):
        run(str(output), f"failed-{number}", failed, 5 - number)
    run(str(output), "tonight", images(900, classes=(3, 1, 2)), 1, finished=False)
    with pytest.raises(HeldByGateError):
        gate(str(output), "tonight", replace(BOUNDS, last_runs=3))


def test_a_run_in_which_most_images_failed_is_held(output):
    found = [*images(900, 8), *(Found(f"s3://b/{n}.jpg", failed="decode_failed") for n in range(2000, 2012))]
    run(str(output), "tonight", found, 1, finished=False)
    with pytest.raises(HeldByGateError):
        gate(str(output), "tonight")
    record = seen(str(output), "tonight")
    assert record.figures.num_images == 20 and record.figures.num_ok == 8
    assert any(line.startswith("failed images: share is 60.00%; the last 3 runs") for line in record.violations)


def lose(path: Path) -> None:
    path.unlink()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("harm", "said"), [(lose, "does not exist"), (flip, "is damaged: its sha256")])
@pytest.mark.parametrize("table", ["images", "segments"])
def test_a_run_whose_own_parts_cannot_be_read_does_not_pass(output, table, harm, said):
    run(str(output), "tonight", images(900), 1, finished=False)
    harm(next((output / table / "run=tonight").iterdir()))
    with pytest.raises(BrokenRunError) as broke:
        gate(str(output), "tonight")
    message = str(broke.value)
    assert "run tonight is not published" in message and said in message and len(message.splitlines()) == 1
    assert not (output / "_runs/tonight/gate.json").exists()


def test_an_earlier_run_with_a_damaged_part_is_left_out_with_a_warning(output, caplog):
    flip(next((output / "segments/run=night-1").iterdir()))
    run(str(output), "tonight", images(900), 1, finished=False)
    gate(str(output), "tonight", replace(BOUNDS, least_runs=2))
    assert any("run night-1 is left out of the comparison" in line for line in caplog.messages)


# --- after a look -----------------------------------------------------------------------------------------------------


def settings(output: Path, run_id: str = "tonight") -> PublishSettings:
    return PublishSettings(str(output), run_id, allow_unsafe_store=True)


def keys(output: Path) -> list[str]:
    return sorted(row["image_key"] for row in current_images(str(output), ["image_key"]).read_all().to_pylist())


def test_a_held_run_is_published_once(output, capsys):
    hold(output)
    before = keys(output)
    with without_pages(publish) as pages:
        assert main(["--tables", str(output), "--run-id", "tonight"]) == 0
    assert pages == [(str(output), "tonight", "embed")], "as at the end of a run"
    said = capsys.readouterr().out
    assert "run tonight" in said and "budget" not in said, "no rate judges the failures of a run that somebody has seen"
    assert keys(output) == sorted([*before, *(image.key for image in images(900))])
    report = json.loads((output / "_runs/tonight/report.json").read_text())
    assert report["num_images"] == 20 and report["table_versions"] == {"images": 4, "segments": 4}
    with pytest.raises(SystemExit) as stop:
        main(["--tables", str(output), "--run-id", "tonight"])
    assert stop.value.code == 2 and "run tonight is published already" in capsys.readouterr().err
    run(str(output), "later", images(1500, classes=(3, 1, 2)), 0, finished=False)
    gate(str(output), "later")
    assert seen(str(output), "later").violations == []


@pytest.mark.parametrize("point", ["between segments and images published", "after images published"])
def test_a_publication_that_dies_is_completed_by_the_same_command(output, monkeypatch, point):
    hold(output)

    def die(self: Publisher) -> dict[str, int]:
        for name in ("segments", "images") if point.startswith("after") else ("segments",):
            self._publish_table(name)
        raise BrokenRunError("died")

    with monkeypatch.context() as patch:
        patch.setattr(module.Publisher, "publish", die)
        with pytest.raises(BrokenRunError, match="died"):
            publish_held(settings(output))
    assert not (output / "_runs/tonight/report.json").exists()
    publish_held(settings(output))
    assert len(keys(output)) == len(set(keys(output))) == 80


def test_what_is_not_held_is_refused(output):
    with pytest.raises(RunError, match="holds no run other"):
        publish_held(settings(output, "other"))
    with pytest.raises(RunError, match="run night-0 is published already"):
        publish_held(settings(output, "night-0"))
    roll_back(RollBackSettings(str(output), "night-0", yes=True, allow_unsafe_store=True))
    with pytest.raises(RunError, match="run night-0 is rolled back, and is not published again"):
        publish_held(settings(output, "night-0"))
    run(str(output), "tonight", images(900), 1, finished=False)
    with pytest.raises(RunError, match="no --gate holds run tonight back"):
        publish_held(settings(output))
    gate(str(output), "tonight")
    with pytest.raises(RunError, match="no --gate holds run tonight back"):
        publish_held(settings(output))


def with_setting(output: Path, **changes: object) -> None:
    record = output / "_runs/tonight/run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "settings": {**content["settings"], **changes}}))


def test_the_settings_of_the_held_run_say_whether_it_gets_a_page_and_small_files_are_merged(output):
    hold(output)
    with_setting(output, page=False, compact=True)
    with without_pages(publish) as pages:
        assert main(["--tables", str(output), "--run-id", "tonight"]) == 0
    assert pages == [] and len(published_files(Output.open(str(output)), "images")) == 1


def test_a_run_without_pixels_on_its_page_gets_none_when_it_is_published(output):
    hold(output)
    with_setting(output, page_images="none")
    with without_pages(publish) as pages:
        assert main(["--tables", str(output), "--run-id", "tonight"]) == 0
    assert pages == [(str(output), "tonight", "none")]


def test_a_held_run_that_has_lost_receipts_is_not_published(output):
    hold(output)
    for path in (output / "_runs/tonight/journal").iterdir():
        path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(RunError, match="has lost receipts"):
        publish_held(settings(output))
    assert not [path for path in published_files(Output.open(str(output)), "images") if "tonight" in path]


# --- four mutations of a real model -----------------------------------------------------------------------------------

MODEL = stage_model("synthetic-scenes")
HEIGHT, WIDTH, NUMBER = 128, 160, 60  # images of a night
Pixels = list[np.ndarray]


def scenes(seed: int) -> Pixels:
    return [draw_scene(seed, index, HEIGHT, WIDTH).pixels_HW3 for index in range(NUMBER)]


def segment(pixels: Pixels, run_id: str, days_ago: float, labels: LabelMap = MODEL.labels, **changes) -> Shard:
    """A night's shard: images to rows, by the steps of the pipeline."""
    spec = small_spec(MODEL.path, image_size=None, inference=PanopticSettings.for_labels("reference", MODEL.labels))
    keys = [f"s3://scenes/{run_id}/{n}.png" for n in range(len(pixels))]
    found = Segmenter(replace(spec, **changes)).segment([png(one) for one in pixels])
    planned = [{"image_key": key, "etag": "e", "size_bytes": 1, "reason": "new"} for key in keys]
    rows = segmented_table(pa.Table.from_pylist(planned, schema=pa.schema(list(FETCHED)[:-1])), found)
    encode = EncodeSpec(run_id, created_at(days_ago), FINGERPRINT, 1, "panoptic", labels.categories)
    return Shard(pa.Table.from_pylist(planned, schema=PLANNED_IMAGES), encode_shard(0, rows, encode))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def unchanged(pixels: Pixels, folder: Path) -> Shard:
    return segment(pixels, "tonight", 0)


def swapped_labels(pixels: Pixels, folder: Path) -> Shard:
    """The label map of another checkpoint: every class has the name and the id of the next."""
    categories = MODEL.labels.categories
    following = zip(categories, [*categories[1:], categories[0]], strict=True)
    turned = [replace(one, category_id=other.category_id, name=other.name) for one, other in following]
    return segment(pixels, "tonight", 0, replace(MODEL.labels, categories=tuple(turned)))


def bgr_for_rgb(pixels: Pixels, folder: Path) -> Shard:
    return segment([np.ascontiguousarray(one[:, :, ::-1]) for one in pixels], "tonight", 0)


def wrong_resize(pixels: Pixels, folder: Path) -> Shard:
    """A small square, as when a default is taken for the size of the checkpoint."""
    return segment(pixels, "tonight", 0, image_size=ImageSize.parse("64x64"))


def broken_head(pixels: Pixels, folder: Path) -> Shard:
    """The weights of the class head are lost: they are as if never trained."""
    broken = Path(shutil.copytree(MODEL.path, folder / "broken"))
    weights = load_file(broken / "model.safetensors")
    rng = np.random.default_rng(0)
    lost = [name for name in weights if name.startswith("class_predictor.")]
    for name in lost:
        weights[name] = rng.normal(0, 0.02, weights[name].shape).astype(weights[name].dtype)
    assert lost
    save_file(weights, broken / "model.safetensors")
    return segment(pixels, "tonight", 0, model=str(broken), weights_sha256=Checkpoint(broken).sha256)


@pytest.fixture(scope="module")
def nights(tmp_path_factory) -> Path:
    """Three published nights of scenes."""
    place = tmp_path_factory.mktemp("nights")
    for number in range(3):
        shard = segment(scenes(number), f"night-{number}", 3 - number)
        write_run(str(place), f"night-{number}", [shard], created=created_at(3 - number))
    return place


@pytest.mark.thorough
@pytest.mark.parametrize("change", [unchanged, swapped_labels, bgr_for_rgb, wrong_resize, broken_head])
def test_a_night_of_a_real_model_passes_and_mutations_of_it_are_held_back(nights, tmp_path, change):
    place = str(shutil.copytree(nights, tmp_path / "out"))
    shard = change(scenes(9), tmp_path)
    write_run(place, "tonight", [shard], created=created_at(0), finished=False, published=False)
    if change is unchanged:
        gate(place, "tonight")
        assert seen(place, "tonight").violations == []
    else:
        with pytest.raises(HeldByGateError) as held:
            gate(place, "tonight")
        print(change.__name__, *seen(place, "tonight").violations, sep="\n  ")
        assert "out of the bounds of --gate" in str(held.value)
