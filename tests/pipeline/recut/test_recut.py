"""A recut gives what a run with the other settings gives, up to the rounding of the kept masks."""

import json
from collections import Counter

import numpy as np
import pytest

from m2f_core.families.registry import FAMILIES
from m2f_core.inference.settings import MASK2FORMER_RULES
from m2f_core.masks import rle
from pipeline.errors import ErrorCode, ImageError, RunError
from pipeline.inputs.reads import ListedImage
from pipeline.recut.actor import RecutImages
from pipeline.recut.check import check_recut
from pipeline.recut.settings import RecutSettings
from pipeline.recut.source import find_source
from pipeline.schema import LISTED
from pipeline.segment.spec import SegmentedImage
from pipeline.telemetry.costs import Costs
from tests.support.kept_runs import FLOOR, KeptRun, renamed
from tests.support.run_books import created_at

OTHERS = {
    "panoptic": {"score_threshold": 0.5, "overlap_threshold": 0.6},
    "panoptic, masks": {"mask_threshold": 0.4, "score_threshold": 0.3},
    "panoptic, fused": {"label_ids_to_fuse": (0, 1)},
    "panoptic, hf": {"postprocess": "hf"},
    "instance": {"task": "instance", "score_threshold": 0.1, "top_k": 30},
    "instance, hf": {"task": "instance", "postprocess": "hf"},
    "semantic": {"task": "semantic"},
    "semantic, hf": {"task": "semantic", "postprocess": "hf"},
}


@pytest.fixture(scope="module")
def run(photographs):
    paths = sorted(path for path in photographs.iterdir() if path.suffix in (".png", ".jpg"))[:4]
    return KeptRun({f"file://{path}": path.read_bytes() for path in paths})


@pytest.fixture(scope="module")
def tables(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "out"
    run.write(folder, keep_logits=FLOOR)
    return folder


@pytest.fixture(scope="module")
def tables_of_all_queries(run, tmp_path_factory):
    """The score of a pixel in semantic segmentation is a sum over all queries."""
    folder = tmp_path_factory.mktemp("all") / "out"
    run.write(folder, keep_logits=0.001)
    return folder


def recut(tables, tmp_path, **given):
    """The results of all images, by key, and the settings of the run."""
    checked = check_recut(RecutSettings(str(tables), str(tmp_path / "recut"), **given))
    rows = [row for table in checked.list_kept() for row in table.to_pylist()]
    rows.sort(key=lambda row: (row["object_uri"] or "", row["position"] or 0))
    return RecutImages(checked.recut, "recut").recut([ListedImage(**row) for row in rows], Costs()), checked


def counted(image):
    return Counter(segment.class_id for segment in image.segments)


def pixels_that_differ(one: SegmentedImage, other: SegmentedImage) -> int:
    """Pixels, summed over segments; segments are paired by class, and in a class by their overlap."""
    height, width = one.height, one.width
    left = [(s.class_id, rle.decode(s.mask.counts, height, width)) for s in other.segments]
    differ = 0
    for segment in one.segments:
        mask = rle.decode(segment.mask.counts, height, width)
        same = [place for place, (class_id, _) in enumerate(left) if class_id == segment.class_id]
        best = min(same, key=lambda place: np.count_nonzero(left[place][1] != mask))
        differ += np.count_nonzero(left.pop(best)[1] != mask)
    return differ


def compare(run, found, **given) -> float:
    """The share of pixels that differ; the classes of the segments must be the same, and scores nearly so."""
    differ = pixels = 0
    for key, full in zip(run.images, run.results(**given), strict=True):
        image = found[key]
        assert (image.height, image.width) == (full.height, full.width)
        assert counted(image) == counted(full), key
        scores = [sorted(s.score for s in one.segments) for one in (image, full)]
        # The score of a class in semantic segmentation is a mean over its pixels, so it changes as these do.
        error = 1e-2 if given.get("task") == "semantic" else 2e-3
        assert scores[0] == pytest.approx(scores[1], abs=error), key
        differ += pixels_that_differ(image, full)
        pixels += full.height * full.width
    return differ / pixels


@pytest.mark.parametrize("name", OTHERS)
def test_it_is_the_run_with_the_other_settings(run, tables, tables_of_all_queries, tmp_path, name):
    tables = tables_of_all_queries if "semantic" in name else tables
    found, checked = recut(tables, tmp_path, **OTHERS[name])
    assert compare(run, found, **OTHERS[name]) < 1e-3
    assert checked.fingerprint != find_source(str(tables), None).record.fingerprint
    if "score_threshold" not in OTHERS[name] and "panoptic" in name:
        assert checked.model.inference.score_threshold >= FLOOR


@pytest.mark.thorough
@pytest.mark.parametrize("name", OTHERS)
def test_thirty_one_photographs(shared_data, tmp_path, name):
    paths = sorted((shared_data / "photos").iterdir())
    assert len(paths) == 31
    run = KeptRun({f"file://{path}": path.read_bytes() for path in paths})
    run.write(tmp_path / "out", keep_logits=0.001 if "semantic" in name else FLOOR)
    found, _ = recut(tmp_path / "out", tmp_path, **OTHERS[name])
    share = compare(run, found, **OTHERS[name])
    print(f"{name}: {len(paths)} photographs, {1e3 * share:.3f} pixels in 1,000 differ")
    assert share < 1e-3


def test_settings_that_are_not_given_are_those_of_the_run(run, tmp_path):
    own = {"score_threshold": 0.6, "overlap_threshold": 0.7, "mask_threshold": 0.45, "label_ids_to_fuse": (2,)}
    run.write(tmp_path / "out", keep_logits=FLOOR, **own)
    found, checked = recut(tmp_path / "out", tmp_path, score_threshold=0.4)
    assert compare(run, found, **{**own, "score_threshold": 0.4}) < 1e-3
    assert checked.settings.overlap_threshold == 0.7 and checked.settings.label_ids_to_fuse == (2,)


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_tiles_are_merged_again(run, tmp_path, task):
    cut = KeptRun(dict(list(run.images.items())[:2]), tile="320:64")
    cut.write(tmp_path / "out", keep_logits=0.001)
    given = {"task": task, **({} if task == "semantic" else {"score_threshold": 0.5})}
    found, _ = recut(tmp_path / "out", tmp_path, **given)
    assert compare(cut, found, **given) < 2e-3  # a seam doubles what a border loses


def test_another_label_map_renames_the_rows_and_says_what_is_stuff(run, tables, tmp_path):
    labels = run.checked().labels
    (tmp_path / "labels.json").write_text(json.dumps(renamed(labels)))
    _, checked = recut(tables, tmp_path, labels=str(tmp_path / "labels.json"))
    assert checked.model.labels.to_list() == renamed(labels)
    assert 0 in checked.model.inference.fuse_class_ids
    assert checked.fingerprint != recut(tables, tmp_path)[1].fingerprint


def test_an_image_that_failed_fails_again(run, tmp_path):
    failed = {"file:///gone.jpg": (ErrorCode.NOT_FOUND, "the object was listed: but no longer exists")}
    run.write(tmp_path / "out", keep_logits=FLOOR, failed=failed)
    found, _ = recut(tmp_path / "out", tmp_path)
    error = found["file:///gone.jpg"]
    assert isinstance(error, ImageError)
    assert (error.code, error.message) == failed["file:///gone.jpg"]
    assert len(found) == len(run.images) + 1


def test_an_image_that_has_a_result_at_last_is_new_to_the_next_recut(run, tmp_path):
    """The object is the same, and so is its ETag."""
    key = next(iter(run.images))
    rest = KeptRun({name: data for name, data in run.images.items() if name != key})
    rest.write(tmp_path / "out", keep_logits=FLOOR, failed={key: (ErrorCode.DECODE_FAILED, "broken")})
    before = etags(tmp_path / "out")
    KeptRun({key: run.images[key]}).write(tmp_path / "out", "later", keep_logits=FLOOR, created=created_at(days_ago=-1))
    after = etags(tmp_path / "out")
    assert before.keys() == after.keys() == run.images.keys()
    assert {name for name in before if before[name] != after[name]} == {key}
    assert before[key] == f"etag of {key} (decode_failed)" and after[key] == f"etag of {key}"


def etags(tables):
    rows = [row for table in find_source(str(tables), None).images() for row in table.to_pylist()]
    return {row["image_key"]: row["etag"] for row in rows}


def test_runs_of_which_no_image_has_a_result_need_not_have_kept_any(run, tmp_path):
    run.write(tmp_path / "out", keep_logits=FLOOR)
    KeptRun({}).write(tmp_path / "out", "later", failed={"file:///x.jpg": (ErrorCode.DECODE_FAILED, "broken")})
    assert [record.run_id for record in find_source(str(tmp_path / "out"), None).records] == ["night"]


def test_each_image_is_read_from_the_run_of_its_current_row(run, tmp_path):
    """An image that a later run has segmented again has two rows of logits."""
    run.write(tmp_path / "out", keep_logits=FLOOR, in_a_shard=1)
    again = KeptRun(dict(list(run.images.items())[:2]))
    again.write(tmp_path / "out", "later", keep_logits=0.1, created=created_at(days_ago=-1))
    source = find_source(str(tmp_path / "out"), None)
    assert [record.run_id for record in source.records] == ["later", "night"] and source.floor == 0.1
    places = {row["image_key"]: row["object_uri"] for table in source.images() for row in table.to_pylist()}
    assert {key for key, place in places.items() if "run=later" in place} == set(again.images)
    found, _ = recut(tmp_path / "out", tmp_path)
    assert compare(run, found) < 1e-3
    of_night = find_source(str(tmp_path / "out"), "night")
    assert all("run=night" in row["object_uri"] for table in of_night.images() for row in table.to_pylist())


def test_rows_of_the_listing_are_those_of_any_listing(tables):
    for table in find_source(str(tables), None).images():
        assert table.schema.equals(LISTED)
        assert table["etag"].null_count == table["fault"].null_count - table.num_rows == 0


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "instance"}, "give --score-threshold 0.05 or more"),
        ({"score_threshold": 0.04}, "from 0.05 on"),
        ({"task": "semantic", "score_threshold": 0.5}, "--score-threshold belongs to"),
        ({"of_run": "other"}, "no row of run other"),
        ({"labels": "nothing.json"}, "--labels nothing.json"),
    ],
)
def test_what_the_logits_cannot_give_is_refused(tables, tmp_path, given, message):
    with pytest.raises(RunError, match=message):
        recut(tables, tmp_path, **given)


def test_another_task_of_a_model_that_reads_the_task_is_refused(tiny_oneformer, photographs, tmp_path):
    """Its logits are of one task. Other settings of that task are those of the model's family."""
    run = KeptRun({"rocket": (photographs / "rocket.jpg").read_bytes()}, str(tiny_oneformer))
    run.write(tmp_path / "out", keep_logits=FLOOR, task="instance")
    with pytest.raises(RunError, match="--task panoptic cannot be recut: the model of run night reads the task"):
        recut(tmp_path / "out", tmp_path, task="panoptic")
    inference = recut(tmp_path / "out", tmp_path, postprocess="hf", task="instance")[1].model.inference
    assert inference.rules.hf_exclusive and inference.task == "instance"


def test_labels_of_another_number_are_refused(tables, tmp_path):
    (tmp_path / "labels.json").write_text('[{"id": 1, "name": "a", "isthing": 1}]')
    with pytest.raises(RunError, match="one for each class"):
        recut(tables, tmp_path, labels=str(tmp_path / "labels.json"))


def test_tables_without_logits_are_refused(run, tmp_path):
    run.write(tmp_path / "out")
    with pytest.raises(RunError, match=r"holds no logits of 4 images.*--keep-logits and --mode overwrite"):
        find_source(str(tmp_path / "out"), None)


def test_the_rules_are_those_of_the_family_of_the_model(run, tmp_path):
    """run.json names the family; runs of older programs were of Mask2Former and do not."""
    run.write(tmp_path / "out", keep_logits=FLOOR)
    file = tmp_path / "out" / "_runs" / "night" / "run.json"
    record = json.loads(file.read_text())
    assert record["model"].pop("model_type") == "mask2former"
    for model_type, rules in ((None, MASK2FORMER_RULES), *((f.model_types[0], f.rules) for f in FAMILIES)):
        model = record["model"] if model_type is None else {**record["model"], "model_type": model_type}
        file.write_text(json.dumps({**record, "model": model}))
        assert recut(tmp_path / "out", tmp_path)[1].model.inference.rules == rules
    file.write_text(json.dumps({**record, "model": {**record["model"], "model_type": "detr"}}))
    with pytest.raises(RunError, match=r"run\.json of run night.*model_type must be one of"):
        recut(tmp_path / "out", tmp_path)


def test_rows_of_two_models_are_refused(run, tmp_path):
    run.write(tmp_path / "out", keep_logits=FLOOR)
    KeptRun(dict(list(run.images.items())[:1])).write(
        tmp_path / "out", "later", keep_logits=FLOOR, fingerprint="f" * 16, created=created_at(days_ago=-1)
    )
    with pytest.raises(RunError, match=r"several models or settings.*0123456789abcdef \(3 images\).*--of-run"):
        find_source(str(tmp_path / "out"), None)


def test_no_tables_and_places_in_each_other_are_refused(tables, tmp_path):
    with pytest.raises(RunError, match="no published table images"):
        find_source(str(tmp_path / "nothing"), None)
    for place in (tables, tables / "in", tables.parent):
        with pytest.raises(RunError, match="must not lie in each other"):
            check_recut(RecutSettings(str(tables), str(place)))


# --- damage -----------------------------------------------------------------------------------------------------------


def damaged_row(tables, tmp_path, change):
    """The result of an image whose row of logits somebody has changed."""
    checked = check_recut(RecutSettings(str(tables), str(tmp_path / "recut")))
    actor = RecutImages(checked.recut, "recut")
    rows = [row for table in checked.list_kept() for row in table.to_pylist()]
    [(_, row)] = actor._read(rows[0]["object_uri"], [ListedImage(**rows[0])], Costs())
    change(row["inputs"][0])
    return actor._reduce(row)


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.update(masks=one["masks"][:-3]),
        lambda one: one.update(masks=b""),
        lambda one: one.update(masks=b"\x00" * 40),
        lambda one: one.update(mask_hw=[1, 1]),
        lambda one: one.update(mask_hw=[2**31 - 1, 2**31 - 1]),
        lambda one: one.update(mask_hw=[]),
        lambda one: one.update(queries=one["queries"][:-1]),
        lambda one: one.update(queries=[0] * len(one["queries"])),
        lambda one: one.update(num_queries=0),
        lambda one: one.update(class_logits=one["class_logits"][:-1]),
        lambda one: one.update(class_logits=[float("nan")] * len(one["class_logits"])),
        lambda one: one.update(original_hw=[10, 10]),
        lambda one: one.update(resized_hw=[2**20, 2**20]),
        lambda one: one.update(padded_hw=[0, 5]),
        lambda one: one.update(masks=None),
    ],
)
def test_a_damaged_row_is_the_error_of_its_image(tables, tmp_path, change):
    error = damaged_row(tables, tmp_path, change)
    assert isinstance(error, ImageError) and error.code is ErrorCode.DAMAGED_CONTAINER
