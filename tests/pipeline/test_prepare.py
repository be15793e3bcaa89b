"""Identity of a run: what is resumed, what is planned anew."""

import dataclasses
import json

import pytest

from pipeline.config import Settings, fingerprint
from pipeline.errors import RunError
from pipeline.plan import ListedImage
from pipeline.prepare import check, check_model, prepare, resolved_results


@pytest.fixture
def settings(tmp_path, tiny_checkpoint):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(name.encode())
    return Settings(input=str(folder), output=str(tmp_path / "out"), model=str(tiny_checkpoint))


def planned(settings):
    return prepare(check(settings), 512)


def mark(settings):
    model = check_model(settings)
    return fingerprint(resolved_results(settings, model), model.weights_sha256)


RESULTS = {
    "preprocess": "hf",
    "postprocess": "hf",
    "score_threshold": 0.7,
    "overlap_threshold": 0.7,
    "mask_threshold": 0.6,
    "label_ids_to_fuse": (1,),
    "image_size": "64:128",
    "exif": False,
    "max_image_pixels": 1000,
    "precision": "bf16",
}
NO_RESULTS = {
    "images_per_shard": 2,
    "shard_mib": 1,
    "batch_size": 2,
    "device": "cpu",
    "gpu_actors": "1:2",
    "cpus_per_actor": 1,
    "max_failure_rate": 0.5,
    "progress_seconds": 1.0,
}


def test_every_setting_is_known_to_change_results_or_not():
    of_the_run = {"input", "output", "limit", "run_id", "task", "model"}
    names = {field.name for field in dataclasses.fields(Settings)}
    assert names == set(RESULTS) | set(NO_RESULTS) | of_the_run


@pytest.mark.parametrize("name", RESULTS)
def test_settings_that_change_results_change_the_fingerprint(settings, name):
    assert mark(dataclasses.replace(settings, **{name: RESULTS[name]})) != mark(settings)


@pytest.mark.parametrize("name", NO_RESULTS)
def test_settings_that_change_no_results_do_not(settings, name):
    assert mark(dataclasses.replace(settings, **{name: NO_RESULTS[name]})) == mark(settings)


def test_a_default_that_is_spelled_out_is_no_change(settings):
    spelled_out = dataclasses.replace(
        settings, score_threshold=0.8, overlap_threshold=0.8, mask_threshold=0.5, label_ids_to_fuse=(7, 5, 6)
    )
    assert mark(spelled_out) == mark(settings)


def test_the_same_weights_in_another_folder_are_the_same_model(settings, tmp_path, tiny_checkpoint):
    import shutil

    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    assert mark(dataclasses.replace(settings, model=str(tmp_path / "copy"))) == mark(settings)


def test_another_preprocessor_file_is_another_model(settings, tmp_path, tiny_checkpoint):
    import shutil

    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 384, "width": 384}}))
    changed = dataclasses.replace(settings, model=str(tmp_path / "copy"))
    assert mark(changed) != mark(settings)
    assert any("384x384" in warning for warning in check_model(changed).warnings)


def test_an_unfinished_run_is_taken_up_and_keeps_its_plan(settings, tmp_path):
    first = planned(settings)
    first.put_object("attempts/000001.json", {})
    (tmp_path / "in" / "later.jpg").write_bytes(b"later")
    again = planned(dataclasses.replace(settings, batch_size=3))
    assert (again.run_id, again.plan, again.attempt) == (first.run_id, first.plan, 2)


def test_a_finished_run_is_not_taken_up_without_its_name(settings):
    first = planned(settings)
    first.put_object("report.json", {})
    assert planned(settings).run_id != first.run_id
    assert planned(dataclasses.replace(settings, run_id=first.run_id)).run_id == first.run_id


@pytest.mark.parametrize("change", [{"limit": 2}, {"exif": False}])
def test_other_settings_are_another_run(settings, change):
    first = planned(settings)
    other = dataclasses.replace(settings, **change)
    assert planned(other).run_id != first.run_id
    with pytest.raises(RunError, match="other settings"):
        planned(dataclasses.replace(other, run_id=first.run_id))


def test_a_plan_that_broke_off_is_no_run(settings, tmp_path):
    """run.json is written last: without it there is nothing to take up."""
    first = planned(settings)
    (tmp_path / "out" / "_runs" / first.run_id / "run.json").unlink()
    assert planned(settings).run_id != first.run_id


def test_run_json_says_what_the_run_is(settings, tmp_path):
    run = planned(settings)
    content = json.loads((tmp_path / "out" / "_runs" / run.run_id / "run.json").read_text())
    assert content["fingerprint"] == run.fingerprint == mark(settings)
    assert content["plan"]["num_images"] == 3
    assert content["model"]["weights_sha256"] == run.model.weights_sha256
    assert content["versions"]["ray"] and content["versions"]["torch"]
    assert content["results"]["label_ids_to_fuse"] == [5, 6, 7]  # the demo checkpoint's stuff


def test_local_paths_are_made_whole_before_actors_elsewhere_see_them(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked = check(dataclasses.replace(settings, input="in", output="out"))
    assert (checked.settings.input, checked.settings.output) == (settings.input, settings.output)


@pytest.mark.parametrize("name", ["input", "output"])
def test_a_uri_with_one_slash_is_no_folder(settings, name):
    with pytest.raises(RunError, match="did you mean s3://bucket"):
        check(dataclasses.replace(settings, **{name: "s3:/bucket"}))


def test_a_named_run_with_another_setting_says_which(settings):
    first = planned(settings)
    with pytest.raises(RunError, match=r"exif \(True there, False here\)"):
        planned(dataclasses.replace(settings, exif=False, run_id=first.run_id))


def test_a_listing_that_breaks_off_leaves_no_plan(settings, tmp_path, monkeypatch):
    def breaks_off(uri):
        yield from (ListedImage(f"file:///{number}", "e", 1) for number in range(200))
        raise RunError("the store went away")

    monkeypatch.setattr("pipeline.prepare.list_images", breaks_off)
    with pytest.raises(RunError, match="went away"):
        prepare(check(settings), 1)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_repair_that_changes_results_is_another_fingerprint(settings, monkeypatch):
    before = mark(settings)
    monkeypatch.setattr("pipeline.config.RESULTS_VERSION", 2)
    assert mark(settings) != before
