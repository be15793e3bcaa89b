"""What is checked before a run: settings, fingerprint, checkpoint, places."""

import dataclasses
import json
import re
import shutil

import pytest

from m2f_core.checkpoints.checkpoint import Checkpoint
from pipeline.config import Settings, fingerprint
from pipeline.errors import RunError
from pipeline.runs.check import check, check_model, resolved_results


@pytest.fixture
def settings(tmp_path, tiny_checkpoint):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(name.encode())
    return Settings(input=str(folder), output=str(tmp_path / "out"), model=str(tiny_checkpoint))


def mark(settings):
    model = check_model(settings)
    return fingerprint(resolved_results(settings, model), model.weights_sha256)


RESULTS = {
    "preprocess": "hf",
    "postprocess": "hf",
    "image_size": "64:128",
    "exif": False,
    "scaled_jpeg": True,
    "max_image_pixels": 1000,
    "precision": "bf16",
    "tile": "64:16",
    "classes": ("class 1",),
}
RESULTS_OF_TASK = {
    "panoptic": {
        "score_threshold": 0.7,
        "overlap_threshold": 0.7,
        "mask_threshold": 0.6,
        "label_ids_to_fuse": (1,),
        "embeddings": True,
    },
    "instance": {"score_threshold": 0.7, "top_k": 10, "embeddings": True},
    "semantic": {},
}
NO_RESULTS = {
    "images_per_shard": 2,
    "shard_mib": 1,
    "batch_size": 2,
    "max_batch_pixels": 1_000_000,
    "device": "cpu",
    "gpu_actors": "1:2",
    "cpus_per_actor": 1,
    "gpus_per_actor": 0.5,
    "model_nodes": "kind=gpu",
    "helper_nodes": "kind=cpu",
    "mode": "overwrite",
    "tombstone_removed": True,
    "step_timeout": 5.0,
    "publish_every": 1.0,
    "compact": True,
    "keep_logits": 0.05,
    "page": False,
    "page_images": "none",
    "gate": "gate.yaml",
    "lease_seconds": 5.0,
    "max_failure_rate": 0.5,
    "max_failures": 3,
    "progress_seconds": 1.0,
    "deadline": "06:00",
    "time_zone": "Europe/Berlin",
    "max_cost": 120.0,
    "prices": "prices.yaml",
    "forecast": "forecast.json",
    "otlp_endpoint": "http://127.0.0.1:4318",
    "allow_unsafe_store": True,
    "log_format": "json",
}
OF_TASKS = [(task, name, value) for task, changes in RESULTS_OF_TASK.items() for name, value in changes.items()]
CHANGES = [*OF_TASKS, *((task, name, value) for task in RESULTS_OF_TASK for name, value in RESULTS.items())]


def test_every_setting_is_known_to_change_results_or_not():
    of_the_run = {"input", "input_format", "include", "exclude", "allow_scheme", "anonymous", "requester_pays"}
    of_the_run |= {"image_column", "key_column", "keep_columns", "output", "limit", "run_id", "task", "model"}
    names = {field.name for field in dataclasses.fields(Settings)}
    assert names == set(RESULTS) | {name for _, name, _ in OF_TASKS} | set(NO_RESULTS) | of_the_run


@pytest.mark.parametrize(
    ("task", "postprocess", "mark"),
    [
        ("panoptic", "reference", "d441964fa17ee68a"),
        ("panoptic", "hf", "3acf4f690819e8aa"),
        ("instance", "reference", "a33d7556e5a9e860"),
        ("instance", "hf", "714900928fa77488"),
        ("semantic", "reference", "fd028b38911bd75e"),
        ("semantic", "hf", "57ccf24c73b01ba4"),
    ],
)
def test_fingerprints_of_earlier_versions_stay(settings, task, postprocess, mark):
    """Computed before there was --tile, when --max-image-pixels was 64,000,000 by default; another one would process
    every bucket anew.
    """
    settings = dataclasses.replace(settings, task=task, postprocess=postprocess)
    assert fingerprint(resolved_results(settings, check_model(settings)), "0" * 64) == mark


@pytest.mark.parametrize(("task", "name", "value"), CHANGES)
def test_settings_that_change_results_change_the_fingerprint(settings, task, name, value):
    settings = dataclasses.replace(settings, task=task)
    assert mark(dataclasses.replace(settings, **{name: value})) != mark(settings)


def test_a_default_of_tiling_and_another_spelling_are_no_change(settings):
    tiled = dataclasses.replace(settings, tile="64:16")
    for same in ({"tile": " 064:16"}, {"max_image_pixels": 500_000_000}):
        assert mark(dataclasses.replace(tiled, **same)) == mark(tiled)
    assert mark(dataclasses.replace(settings, max_image_pixels=64_000_000)) == mark(settings)
    assert (settings.most_image_pixels(), tiled.most_image_pixels()) == (64_000_000, 500_000_000)


@pytest.mark.parametrize("name", NO_RESULTS)
def test_settings_that_change_no_results_do_not(settings, name):
    assert mark(dataclasses.replace(settings, **{name: NO_RESULTS[name]})) == mark(settings)


def test_tasks_are_different_runs(settings):
    assert len({mark(dataclasses.replace(settings, task=task)) for task in RESULTS_OF_TASK}) == 3


@pytest.mark.parametrize(
    ("task", "spelled_out"),
    [
        (
            "panoptic",
            {
                "score_threshold": 0.8,
                "overlap_threshold": 0.8,
                "mask_threshold": 0.5,
                "label_ids_to_fuse": (7, 5, 6),
                "embeddings": False,
            },
        ),
        ("instance", {"score_threshold": 0.0, "top_k": 100, "embeddings": False}),
    ],
)
def test_a_default_that_is_spelled_out_is_no_change(settings, task, spelled_out):
    assert set(spelled_out) == set(RESULTS_OF_TASK[task])
    default = dataclasses.replace(settings, task=task)
    assert mark(dataclasses.replace(default, **spelled_out)) == mark(default)


@pytest.mark.parametrize("in_file", [None, {"height": 384, "width": 384}, {"shortest_edge": 96, "longest_edge": 160}])
def test_an_image_size_that_is_that_of_the_files_is_no_change(settings, tmp_path, tiny_checkpoint, in_file):
    """A night with --image-size after one without would otherwise do the whole bucket anew."""
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    if in_file is not None:
        (tmp_path / "copy" / "preprocessor_config.json").write_text(json.dumps({"size": in_file}))
    default = dataclasses.replace(settings, model=str(tmp_path / "copy"))
    size = str(check_model(default).image_size)
    assert size == {None: "800:1333", 384: "384x384", 96: "96:160"}[in_file and next(iter(in_file.values()))]
    for spelled in (size, f"0{size}"):
        assert mark(dataclasses.replace(default, image_size=spelled)) == mark(default)


@pytest.mark.parametrize("task", RESULTS_OF_TASK)
def test_a_run_is_known_by_the_settings_of_its_task(settings, task):
    settings = dataclasses.replace(settings, task=task)
    known = set(resolved_results(settings, check_model(settings)))
    later = {"tile": "64:16", "embeddings": True, "classes": ("class 1",)}  # known only if they are given
    assert known - {"semantic_resize"} == {"model", "task", *RESULTS, *RESULTS_OF_TASK[task]} - set(later)
    for name, value in later.items():
        if name in {**RESULTS, **RESULTS_OF_TASK[task]}:
            given = dataclasses.replace(settings, **{name: value})
            assert set(resolved_results(given, check_model(given))) == known | {name}
    assert ("semantic_resize" in known) == (task == "semantic")


def test_the_same_weights_in_another_folder_are_the_same_model(settings, tmp_path, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    assert mark(dataclasses.replace(settings, model=str(tmp_path / "copy"))) == mark(settings)


def test_another_preprocessor_file_is_another_model(settings, tmp_path, tiny_checkpoint):
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 384, "width": 384}}))
    changed = dataclasses.replace(settings, model=str(tmp_path / "copy"))
    assert mark(changed) != mark(settings)
    assert any("384x384" in warning for warning in check_model(changed).warnings)


def test_local_paths_are_made_whole_before_actors_elsewhere_see_them(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checked = check(dataclasses.replace(settings, input="in", output="out"))
    assert (checked.settings.input, checked.settings.output) == (settings.input, settings.output)


@pytest.mark.parametrize("name", ["input", "output"])
def test_a_uri_with_one_slash_is_no_folder(settings, name):
    with pytest.raises(RunError, match="did you mean s3://bucket"):
        check(dataclasses.replace(settings, **{name: "s3:/bucket"}))


def test_a_repair_that_changes_results_is_another_fingerprint(settings, monkeypatch):
    before = mark(settings)
    monkeypatch.setattr("pipeline.config.RESULTS_VERSION", 2)
    assert mark(settings) != before


# --- what a checkpoint was trained for --------------------------------------------------------------------------------


def with_classes(folder, settings, *isthing):
    """The settings with a copy of their checkpoint whose 8 classes are things or not."""
    shutil.copytree(settings.model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["categories"] = [
        {**c, "isthing": int(thing)} for c, thing in zip(config["categories"], isthing, strict=True)
    ]
    (folder / "config.json").write_text(json.dumps(config))
    return dataclasses.replace(settings, model=str(folder))


def without_categories(folder, settings):
    """The settings with a copy of their checkpoint that names its 8 classes and no more."""
    settings = with_classes(folder, settings, *[True] * 8)
    config = json.loads((folder / "config.json").read_text())
    del config["categories"]
    (folder / "config.json").write_text(json.dumps(config))
    return settings


def warnings_of(settings, task):
    return check_model(dataclasses.replace(settings, task=task)).warnings


def test_a_panoptic_checkpoint_does_all_tasks_without_a_warning(settings):
    assert [warnings_of(settings, task) for task in RESULTS_OF_TASK] == [(), (), ()]


@pytest.mark.parametrize(("isthing", "trained_for"), [(True, "instance"), (False, "semantic")])
@pytest.mark.parametrize("task", RESULTS_OF_TASK)
def test_a_checkpoint_that_is_asked_for_what_it_has_not_learned(settings, tmp_path, isthing, trained_for, task):
    settings = with_classes(tmp_path / "one_kind", settings, *[isthing] * 8)
    if (task, trained_for) == ("instance", "semantic"):
        with pytest.raises(RunError, match="all 8 classes of --model are stuff"):
            warnings_of(settings, task)
        settings = dataclasses.replace(settings, postprocess="hf")  # transformers keeps stuff
    warnings = warnings_of(settings, task)
    if task == trained_for:
        assert warnings == ()
    else:
        [warning] = warnings
        assert f"trained for {trained_for} segmentation" in warning and f"so use --task {trained_for}" in warning


def test_ids_to_fuse_leave_things_what_they_are(settings, tmp_path):
    settings = with_classes(tmp_path / "things", settings, *[True] * 8)
    model = check_model(dataclasses.replace(settings, label_ids_to_fuse=(7,)))
    assert model.warnings == () and model.inference.fuse_class_ids == {7} and not model.labels.stuff_class_ids


def test_ids_to_fuse_are_the_stuff_of_a_checkpoint_that_names_none(settings, tmp_path):
    settings = without_categories(tmp_path / "guess", settings)
    model = check_model(dataclasses.replace(settings, label_ids_to_fuse=(7,)))
    assert model.inference.fuse_class_ids == model.labels.stuff_class_ids == {7}
    [about_ids] = model.warnings
    assert "category_id in the tables is the class id of the model" in about_ids


@pytest.mark.parametrize("task", RESULTS_OF_TASK)
def test_classes_that_the_checkpoint_does_not_describe_count_as_things(settings, tmp_path, task):
    about_ids, about_stuff = warnings_of(without_categories(tmp_path / "guess", settings), task)
    assert "category_id in the tables is the class id of the model" in about_ids
    assert "does not say which of its classes are stuff" in about_stuff
    assert ("--label-ids-to-fuse" in about_stuff) == (task == "panoptic")


def test_instances_are_those_of_things_unless_transformers_is_followed(settings):
    settings = dataclasses.replace(settings, task="instance")
    assert check_model(settings).inference.wanted_class_ids == {0, 1, 2, 3, 4}
    assert check_model(dataclasses.replace(settings, postprocess="hf")).inference.wanted_class_ids is None


@pytest.mark.parametrize(("task", "chosen"), [("panoptic", {0, 7}), ("instance", {0}), ("semantic", {0, 7})])
def test_classes_are_chosen_by_name(settings, task, chosen):
    """Of the stuff among them there are no instances, as in the original."""
    names = {c.class_id: c.name for c in check_model(settings).labels.categories}
    settings = dataclasses.replace(settings, task=task, classes=(names[7], names[0], names[7]))
    assert check_model(settings).inference.wanted_class_ids == chosen
    turned = dataclasses.replace(settings, classes=(names[0], names[7]))
    assert mark(turned) == mark(settings) != mark(dataclasses.replace(settings, classes=()))


@pytest.mark.parametrize(
    ("task", "names", "said"),
    [
        ("panoptic", ("{0}s",), "--classes: the model has no class '{0}s'; it has {0}"),
        (
            "semantic",
            ("unicorn",),
            "--classes: the model has no class 'unicorn'; it has {0}, {1}",
        ),
        ("instance", ("{7}",), "--task instance finds things, but all --classes are stuff"),
    ],
)
def test_classes_that_the_model_does_not_find_are_refused(settings, task, names, said):
    of_model = [c.name for c in check_model(settings).labels.categories]
    chosen = tuple(name.format(*of_model) for name in names)
    with pytest.raises(RunError, match=re.escape(said.format(*of_model))):
        check_model(dataclasses.replace(settings, task=task, classes=chosen))


def test_int8_is_refused_for_a_family_that_was_not_measured(settings, monkeypatch):
    int8 = dataclasses.replace(settings, precision="int8")
    assert mark(int8) != mark(settings)
    family = dataclasses.replace(Checkpoint(settings.model).family, has_int8=False)
    monkeypatch.setattr(Checkpoint, "family", family)
    with pytest.raises(RunError, match="--precision int8 is not for models of the family"):
        check_model(int8)


def test_semantic_checkpoints_resize_scores_and_others_masks(settings, tmp_path):
    """As the original; which a checkpoint is, is known by its name."""
    settings = dataclasses.replace(settings, task="semantic")
    name = tmp_path / "mask2former-swin-tiny-ade-semantic"
    shutil.copytree(settings.model, name)
    semantic = dataclasses.replace(settings, model=str(name))
    assert check_model(settings).inference.resize == "masks"
    assert check_model(semantic).inference.resize == "scores"
    assert check_model(dataclasses.replace(settings, postprocess="hf")).inference.resize == "scores"
    assert mark(semantic) != mark(settings)


def test_a_model_that_reads_the_task_serves_every_task(settings, tiny_oneformer, tmp_path):
    """Also under the name of a checkpoint that was trained for one task, and with stuff alone; each task is another
    fingerprint, and the settings are those of its family.
    """
    folder = tmp_path / "mask2former-swin-tiny-coco-semantic"
    shutil.copytree(tiny_oneformer, folder)
    config = json.loads((folder / "config.json").read_text())
    stuff = [{**one, "isthing": 0} for one in config["categories"]]
    (folder / "config.json").write_text(json.dumps({**config, "categories": stuff}))
    marks = set()
    for task in ("panoptic", "semantic"):
        given = dataclasses.replace(settings, model=str(folder), task=task)
        model = check_model(given)
        assert not model.warnings and model.model_type == "oneformer"
        marks.add(mark(given))
    assert len(marks) == 2
    assert model.inference.resize == "masks", "as the authors do for a model that serves all tasks"
    given = dataclasses.replace(settings, model=str(tiny_oneformer), task="instance")
    assert check_model(given).inference.top_k is None, "as many as there are queries"
    assert check_model(dataclasses.replace(given, postprocess="hf")).inference.rules.hf_exclusive
