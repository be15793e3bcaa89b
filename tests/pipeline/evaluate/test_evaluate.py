"""Evaluation against plain oracles: PQ and mIoU from their definitions, AP by pycocotools; crowds, void, failures.

Legend: H, W pixels of an image.
"""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m2f_core.masks.rle import decode
from pipeline.errors import RunError
from pipeline.evaluate.evaluate import evaluate, evaluate_images
from pipeline.evaluate.metrics import instance_state, instance_summary
from pipeline.evaluate.settings import EvaluationSettings
from pipeline.scenes.draw import CATEGORIES as DRAWN_CATEGORIES
from pipeline.scenes.draw import draw_scene
from tests.support.evaluation_oracles import (
    COCO_FIGURES,
    coco_api,
    coco_results,
    panoptic_counts,
    panoptic_quality,
    semantic_scores,
)
from tests.support.evaluation_runs import (
    CATEGORIES,
    MadeImage,
    Place,
    Segment,
    coco_instances,
    write_labels,
    write_panoptic,
    write_run,
)
from tests.test_boundaries import modules_after

IDS = [category["id"] for category in CATEGORIES]
THINGS = [category["id"] for category in CATEGORIES if category["isthing"]]
STUFF = [category["id"] for category in CATEGORIES if not category["isthing"]]
SEEDS = st.integers(0, 2**32 - 1)


# --- scenes -----------------------------------------------------------------------------------------------------------


def panoptic_scene(rng: np.random.Generator, number: int) -> MadeImage:
    """Rectangles with void between them, crowds among them, and a run that moved, mistook, lost and invented some."""
    size = tuple(map(int, rng.integers(1, 24, 2)))
    truth_map = _rectangles(rng, size, int(rng.integers(0, 7)))
    crowds = {c for c in THINGS if rng.random() < 0.3}  # COCO has one crowd at most of a category in an image
    truth = []
    for label in np.unique(truth_map[truth_map > 0]):
        category_id = int(rng.choice(IDS))
        iscrowd = int(category_id in crowds)
        crowds.discard(category_id)
        truth.append(Segment(truth_map == label, category_id, iscrowd=iscrowd))
    found_map = np.roll(truth_map, rng.integers(-1, 2, 2), (0, 1))
    if rng.random() < 0.5:
        found_map = np.where(_rectangles(rng, size, 1) > 0, 99, found_map)
    category_of = {label: s.category_id for label, s in zip(np.unique(truth_map[truth_map > 0]), truth, strict=True)}
    found = []
    for label in np.unique(found_map):
        if rng.random() < 0.15 or (label == 0 and rng.random() < 0.5):
            continue
        category_id = category_of.get(label, 7) if rng.random() < 0.8 else int(rng.choice(IDS))
        score = float(rng.choice([0.5, 0.8, 0.9]))  # ties are frequent in fused stuff
        found.append(Segment(found_map == label, category_id, score))
    return MadeImage(f"{number}.jpg", size, truth, None if rng.random() < 0.1 else found, missing=rng.random() < 0.1)


def instance_scene(rng: np.random.Generator, number: int) -> MadeImage:
    """Things that overlap, small to large, several crowds, scores with ties, sometimes more than 100 answers."""
    size = tuple(map(int, rng.integers(20, 140, 2)))
    truth, found = [], []
    for _ in range(rng.integers(0, 6)):
        mask = _rectangles(rng, size, 1) > 0
        category_id = int(rng.choice(IDS))
        truth.append(Segment(mask, category_id, iscrowd=int(rng.random() < 0.2)))
        for _ in range(rng.integers(0, 3)):
            moved = np.roll(mask, rng.integers(-2, 3, 2), (0, 1))
            answer = category_id if rng.random() < 0.8 else int(rng.choice(IDS))
            found.append(Segment(moved, answer, float(rng.choice([0.1, 0.3, 0.5, 0.9]))))
    if rng.random() < 0.1:
        found += [Segment(_rectangles(rng, size, 1) > 0, IDS[0], float(rng.random())) for _ in range(120)]
    return MadeImage(f"{number}.jpg", size, truth, None if rng.random() < 0.1 else found, missing=rng.random() < 0.1)


def _rectangles(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    label_map = np.zeros(size, np.int64)
    for label in range(1, count + 1):
        y, x = rng.integers(0, size)
        height, width = rng.integers(1, np.array(size) + 1)
        label_map[y : y + height, x : x + width] = label
    return label_map


def scenes(seed: int, scene=panoptic_scene, most: int = 7) -> list[MadeImage]:
    """At least one image of them is in the run."""
    rng = np.random.default_rng(seed)
    images = [scene(rng, number) for number in range(rng.integers(1, most))]
    return [replace(images[0], missing=False), *images[1:]]


@pytest.fixture(scope="module")
def new_place(tmp_path_factory):
    """A fresh folder at each call: hypothesis runs many examples in one test."""
    return lambda **options: Place(str(tmp_path_factory.mktemp("evaluation")), **options)


def score(place: Place, **options) -> dict:
    return evaluate(EvaluationSettings(place.tables, workers=options.pop("workers", 1), **options))


def by_id(figures: dict) -> dict[int, dict]:
    return {entry["category_id"]: entry for entry in figures["per_class"]}


def assert_panoptic(figures: dict, images: list[MadeImage], tolerance: float = 1e-12) -> None:
    counts = panoptic_counts(images)
    for category_id, entry in by_id(figures).items():
        expected = counts.get(category_id, {"iou_sum": 0.0, "tp": 0, "fp": 0, "fn": 0})
        assert {name: entry[name] for name in ("tp", "fp", "fn")} == {n: expected[n] for n in ("tp", "fp", "fn")}
        assert entry["iou_sum"] == pytest.approx(expected["iou_sum"], abs=tolerance)
        alone = panoptic_quality(counts, [category_id])
        for name in ("PQ", "SQ", "RQ"):
            assert entry[name] == pytest.approx(alone[name], abs=tolerance)
    things = [entry["category_id"] for entry in figures["per_class"] if entry["isthing"]]
    stuff = [entry["category_id"] for entry in figures["per_class"] if not entry["isthing"]]
    for group, ids in (("all", things + stuff), ("things", things), ("stuff", stuff)):
        assert figures[group] == pytest.approx(panoptic_quality(counts, ids), abs=tolerance)


def assert_semantic(figures: dict, images: list[MadeImage], ids: list[int] = IDS) -> None:
    expected = semantic_scores(images, ids)
    for name in ("mIoU", "fwIoU", "mAcc", "pAcc"):
        assert figures[name] == pytest.approx(expected[name], abs=1e-12)
    for category_id, entry in by_id(figures).items():
        assert entry["IoU"] == pytest.approx(expected["IoU"].get(category_id), abs=1e-12)


def assert_instances(report: dict, ground_truth: dict, results: list[dict], tolerance: float = 1e-9) -> None:
    for kind in ("segm", "bbox"):
        expected = coco_api(ground_truth, results, kind)
        for name in COCO_FIGURES:
            assert report[kind][name] == pytest.approx(expected[name], abs=tolerance), (kind, name)
        for category_id, entry in by_id(report[kind]).items():
            assert entry["AP"] == pytest.approx(expected["per_class"][category_id], abs=tolerance)


def of_classes(images: list[MadeImage], ids: set[int]) -> list[MadeImage]:
    """The same images; the run has kept the segments of these categories alone."""
    return [
        image
        if image.found is None
        else replace(image, found=tuple(one for one in image.found if one.category_id in ids))
        for image in images
    ]


# --- made scenes against the oracles ----------------------------------------------------------------------------------


@given(SEEDS)
def test_pq_and_miou_are_those_of_the_definition(new_place, seed):
    images, place = scenes(seed), new_place()
    write_run(place, images)
    report = score(place, panoptic_gt=write_panoptic(place, images))
    assert_panoptic(report["panoptic"], images)
    assert_semantic(report["semantic"], images)


@given(SEEDS, st.booleans())
def test_miou_by_label_pngs(new_place, seed, reduce_zero_label):
    images, place = scenes(seed), new_place()
    write_run(place, images, task="semantic")
    labels = write_labels(place, images, first=int(reduce_zero_label))
    report = score(place, semantic_gt=labels, reduce_zero_label=reduce_zero_label)
    assert_semantic(report["semantic"], images)
    assert "panoptic" not in report


@given(SEEDS)
def test_ap_of_an_instance_run_is_that_of_pycocotools(new_place, seed):
    images, place = scenes(seed, instance_scene), new_place()
    write_run(place, images, task="instance")
    ground_truth = coco_instances(images, CATEGORIES)
    path = place.put("instances.json", json.dumps(ground_truth).encode())
    assert_instances(score(place, instances_gt=path), ground_truth, coco_results(images, IDS))


@given(SEEDS)
@settings(max_examples=30)
def test_the_ap_of_an_image_is_that_of_pycocotools_for_this_image_alone(new_place, seed):
    """And the figures of all images are what they are without."""
    images, place = scenes(seed, instance_scene), new_place()
    write_run(place, images, task="instance")
    ground_truth, results = coco_instances(images, CATEGORIES), coco_results(images, IDS)
    path = place.put("instances.json", json.dumps(ground_truth).encode())
    report, sums = evaluate_images(EvaluationSettings(place.tables, workers=1, instances_gt=path))
    assert_instances(report, ground_truth, results)
    in_run = {f"s3://photographs/{i.name}": n for n, i in enumerate(images, 1) if not i.missing and i.found is not None}
    assert sums.images.keys() == in_run.keys()
    for key, number in in_run.items():
        alone = {
            **ground_truth,
            "images": [one for one in ground_truth["images"] if one["id"] == number],
            "annotations": [one for one in ground_truth["annotations"] if one["image_id"] == number],
        }
        expected = coco_api(alone, [one for one in results if one["image_id"] == number], "segm")["AP"]
        assert sums.images[key].ap == pytest.approx(expected, abs=1e-9)


@given(SEEDS, st.sets(st.sampled_from(IDS), min_size=1))
@settings(max_examples=20)
def test_a_run_of_some_classes_is_scored_by_these_as_a_run_of_all(new_place, seed, ids):
    """A false segment over an object of another class stays a false one."""
    images, all_classes, some = scenes(seed), new_place(), new_place()
    write_run(all_classes, images)
    write_run(some, of_classes(images, ids), classes=[c["name"] for c in CATEGORIES if c["id"] in ids])
    expected = score(all_classes, panoptic_gt=write_panoptic(all_classes, images))
    report = score(some, panoptic_gt=write_panoptic(some, images))
    for metric in ("panoptic", "semantic"):
        of_all = by_id(expected[metric])
        assert by_id(report[metric]) == {number: of_all[number] for number in of_all if number in ids}
    counts = panoptic_counts(images)
    for group, members in (("all", IDS), ("things", THINGS), ("stuff", STUFF)):
        wanted = [number for number in members if number in ids]
        assert report["panoptic"][group] == pytest.approx(panoptic_quality(counts, wanted), abs=1e-12)


@given(SEEDS, st.sets(st.sampled_from(IDS), min_size=1))
@settings(max_examples=20)
def test_ap_of_a_run_of_some_classes_is_the_mean_over_these(new_place, seed, ids):
    images, place = scenes(seed, instance_scene), new_place()
    write_run(
        place,
        of_classes(images, ids),
        task="instance",
        classes=[c["name"] for c in CATEGORIES if c["id"] in ids],
    )
    path = place.put("instances.json", json.dumps(coco_instances(images, CATEGORIES)).encode())
    alone = coco_instances(images, [c for c in CATEGORIES if c["id"] in ids])
    alone["annotations"] = [one for one in alone["annotations"] if one["category_id"] in ids]
    results = [one for one in coco_results(images, IDS) if one["category_id"] in ids]
    assert_instances(score(place, instances_gt=path), alone, results)


@given(SEEDS, st.integers(1, 6))
@settings(max_examples=20)
def test_annotation_ids_that_come_twice_change_no_ap(new_place, seed, per_shard):
    """As in files that were put together of several, whichever images lie in one part."""
    images, place = scenes(seed, instance_scene), new_place()
    write_run(place, images, task="instance", per_shard=per_shard)
    ground_truth = coco_instances(images, CATEGORIES)
    twice = {**ground_truth, "annotations": [{**a, "id": a["id"] % 100} for a in ground_truth["annotations"]]}
    path = place.put("instances.json", json.dumps(twice).encode())
    assert_instances(score(place, instances_gt=path), ground_truth, coco_results(images, IDS))


@given(SEEDS)
@settings(max_examples=20)
def test_ap_of_a_panoptic_run_is_that_of_its_things(new_place, seed):
    images, place = scenes(seed), new_place()
    write_run(place, images)
    things = [
        replace(image, truth=[segment for segment in image.truth if segment.category_id in THINGS]) for image in images
    ]
    ground_truth = coco_instances(things, [category for category in CATEGORIES if category["isthing"]])
    path = place.put("instances.json", json.dumps(ground_truth).encode())
    report = score(place, instances_gt=path)
    assert_instances(report, ground_truth, coco_results(images, THINGS))


@given(SEEDS)
@settings(max_examples=10)
def test_what_is_found_exactly_scores_one(new_place, seed):
    images, place = scenes(seed), new_place()
    images = [
        replace(image, truth=[replace(s, iscrowd=0) for s in image.truth], found=image.truth, missing=False)
        for image in images
    ]
    write_run(place, images)
    report = score(place, panoptic_gt=write_panoptic(place, images))
    occurs = any(image.truth for image in images)
    assert report["panoptic"]["all"]["PQ"] == (1 if occurs else None)
    assert report["semantic"]["mIoU"] == (1 if occurs else None)


@given(SEEDS, st.integers(1, 5))
@settings(max_examples=10)
def test_shards_and_order_change_nothing(new_place, seed, per_shard):
    images = scenes(seed, most=12)
    reports = []
    for order, size in ((images, 100), (images[::-1], per_shard)):
        place = new_place()
        write_run(place, order, per_shard=size)
        instances = coco_instances(images, CATEGORIES)
        report = score(
            place,
            panoptic_gt=write_panoptic(place, images),
            instances_gt=place.put("instances.json", json.dumps(instances).encode()),
        )
        reports.append({kind: report[kind] for kind in ("panoptic", "semantic", "segm", "bbox")})
    assert _numbers(reports[0]) == pytest.approx(_numbers(reports[1]), abs=1e-12)


def _numbers(value) -> list[float]:
    """All numbers of a report, in order; None as -1."""
    if isinstance(value, dict | list):
        return [number for item in (value.values() if isinstance(value, dict) else value) for number in _numbers(item)]
    return [-1 if value is None else value] if not isinstance(value, str) else []


def test_processes_give_what_one_process_gives(new_place):
    images, place = scenes(5, most=30), new_place()
    write_run(place, images, per_shard=2)
    ground_truths = {
        "panoptic_gt": write_panoptic(place, images),
        "instances_gt": place.put("instances.json", json.dumps(coco_instances(images, CATEGORIES)).encode()),
        "semantic_gt": write_labels(place, images),
    }
    assert score(place, workers=2, **ground_truths) == score(place, workers=1, **ground_truths)


# --- the rules, one by one --------------------------------------------------------------------------------------------


def one_image(new_place, truth: list[Segment], found: list[Segment]) -> dict:
    place = new_place()
    images = [MadeImage("a.jpg", truth[0].mask.shape, truth, found)]
    write_run(place, images)
    report = score(place, panoptic_gt=write_panoptic(place, images))
    assert_panoptic(report["panoptic"], images)
    return by_id(report["panoptic"])[7]


def columns(first: int, last: int, width: int = 10) -> np.ndarray:
    """[4, W] with columns first .. last - 1 set."""
    mask = np.zeros((4, width), bool)
    mask[:, first:last] = True
    return mask


def test_void_under_a_match_is_left_out_of_its_union(new_place):
    entry = one_image(new_place, [Segment(columns(0, 4), 7)], [Segment(columns(0, 8), 7)])
    assert (entry["tp"], entry["iou_sum"]) == (1, 1.0)


@pytest.mark.parametrize(("first", "fp"), [(2, 1), (3, 0)])  # columns 5 .. 9 are void: of 8 columns 4, of 7 columns 4
def test_an_answer_mostly_on_void_is_no_false_positive(new_place, first, fp):
    truth = [Segment(columns(0, 5), 3), Segment(columns(9, 10), 3)]
    entry = one_image(new_place, truth, [Segment(columns(first, 9 if first == 3 else 10), 7)])
    assert (entry["tp"], entry["fp"]) == (0, fp)


@pytest.mark.parametrize(("crowd_category", "fp"), [(7, 0), (3, 1)])
def test_only_a_crowd_of_the_same_category_excuses(new_place, crowd_category, fp):
    truth = [Segment(columns(0, 6), crowd_category, iscrowd=1), Segment(columns(6, 10), 92)]
    entry = one_image(new_place, truth, [Segment(columns(1, 6), 7)])
    assert (entry["tp"], entry["fp"], entry["fn"]) == (0, fp, 0)


def test_half_is_no_match(new_place):
    entry = one_image(new_place, [Segment(columns(0, 4), 7), Segment(columns(4, 10), 92)], [Segment(columns(0, 8), 7)])
    assert (entry["tp"], entry["fp"], entry["fn"]) == (0, 1, 1)


def test_missing_and_failed_images_are_missed_and_counted(new_place):
    truth = [Segment(columns(0, 4), 7)]
    images = [
        MadeImage("ok.jpg", (4, 10), truth, truth),
        MadeImage("failed.jpg", (4, 10), truth, None),
        MadeImage("missing.jpg", (4, 10), truth, missing=True),
        MadeImage("removed.jpg", (4, 10), truth, None, removed=True),
    ]
    place = new_place()
    write_run(place, [*images, MadeImage("other.jpg", (1, 1), [], [])])
    report = score(place, panoptic_gt=write_panoptic(place, images), semantic_gt=write_labels(place, images))
    entry = by_id(report["panoptic"])[7]
    assert (entry["tp"], entry["fp"], entry["fn"]) == (1, 0, 3)
    assert report["semantic"]["mIoU"] == pytest.approx(1 / 4)
    for kind in ("panoptic", "semantic"):
        assert report["ground_truth"][kind]["images"] == {
            "in_ground_truth": 4,
            "with_result": 1,
            "failed": 1,
            "failed_by_code": {"decode_failed": 1},
            "missing": 2,
            "ignored": 1,
        }


def test_rows_of_one_segment_id_are_one_segment(new_place):
    """`--postprocess hf` writes such rows for fused stuff."""
    place, segment = new_place(), Segment(columns(0, 4), 92, segment_id=5)
    images = [MadeImage("a.jpg", (4, 10), [segment], [segment, segment])]
    write_run(place, images)
    entry = by_id(score(place, panoptic_gt=write_panoptic(place, images))["panoptic"])[92]
    assert (entry["tp"], entry["fp"], entry["fn"]) == (1, 0, 0)


def test_what_the_model_says_where_the_ground_truth_has_no_pixels_is_in_no_mean(new_place):
    """As detectron2: a class that only the prediction has costs those that it hides, not a zero of its own."""
    found = [Segment(columns(0, 5), 92), Segment(columns(5, 10), 40)]
    images = [MadeImage("a.jpg", (4, 10), [Segment(columns(0, 10), 92)], found)]
    place = new_place()
    write_run(place, images)
    figures = score(place, panoptic_gt=write_panoptic(place, images))["semantic"]
    assert (figures["mIoU"], figures["n"]) == (0.5, 1)
    assert by_id(figures)[40]["IoU"] is None


# --- which image is which ---------------------------------------------------------------------------------------------


def named(name: str, **options) -> MadeImage:
    return MadeImage(name, (4, 10), [Segment(columns(0, 4), 7)], [Segment(columns(0, 4), 7)], **options)


@pytest.mark.parametrize(
    ("gt_name", "key"),
    [
        ("1.jpg", "s3://b/p/1.jpg"),
        ("1.jpg", "file:///1.jpg"),
        ("val/1.jpg", "s3://b/coco/val/1.jpg"),
        ("/data/coco/val/1.jpg", "file:///data/coco/val/1.jpg"),
        ("./val/1.jpg", "s3://b/val/1.jpg"),
        ("100%#?.jpg", "s3://b/100%#?.jpg"),
    ],
)
def test_an_image_is_known_by_the_end_of_its_key(new_place, gt_name, key):
    place = new_place()
    write_run(place, [named(key)], prefix="")
    report = score(place, panoptic_gt=write_panoptic(place, [named(gt_name)]))
    assert report["panoptic"]["all"]["PQ"] == 1


@pytest.mark.parametrize(
    ("gt_name", "key"), [("1.jpg", "s3://b/11.jpg"), ("val/1.jpg", "s3://b/train/1.jpg"), ("1.jpg", "s3://b/1.png")]
)
def test_an_image_is_not_known_by_half_a_name(new_place, gt_name, key):
    place = new_place()
    write_run(place, [named(key)], prefix="")
    with pytest.raises(RunError, match=f"no image of the run is in --panoptic-gt.*{gt_name}.*{key}"):
        score(place, panoptic_gt=write_panoptic(place, [named(gt_name)]))


def test_label_pngs_are_named_as_the_images_but_for_the_ending(new_place):
    place = new_place()
    write_run(place, [named("city.v1/a.b.jpg"), named("city.v1/no_ending")])
    images = [named("city.v1/a.b.jpg"), named("no_ending")]
    report = score(place, semantic_gt=write_labels(place, images))
    assert report["ground_truth"]["semantic"]["images"]["with_result"] == 2


def test_names_that_fit_two_images_are_refused(new_place):
    place = new_place()
    write_run(place, [named("a/1.jpg"), named("b/1.jpg")])
    with pytest.raises(RunError, match=r"may be s3://photographs/a/1.jpg or s3://photographs/b/1.jpg of the run"):
        score(place, panoptic_gt=write_panoptic(place, [named("1.jpg")]))
    with pytest.raises(RunError, match=r"s3://photographs/a/1.jpg may be 1.jpg or a/1.jpg of --panoptic-gt"):
        score(place, panoptic_gt=write_panoptic(place, [named("1.jpg"), named("a/1.jpg")], "both"))
    with pytest.raises(RunError, match=r"images has file_name '1.jpg' 2 times"):
        score(place, panoptic_gt=write_panoptic(place, [named("1.jpg"), named("1.jpg")], "twice"))
    with_folders = write_panoptic(place, [named("a/1.jpg"), named("b/1.jpg")], "folders")
    assert score(place, panoptic_gt=with_folders)["panoptic"]["all"]["PQ"] == 1


# --- memory and loading -----------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_images(new_place, monkeypatch):
    """Peak of what Python and numpy allocate, for PQ and mIoU, at 8 parts and at 32."""
    rng = np.random.default_rng(0)
    scene = _rectangles(rng, (400, 600), 12)
    segments = [Segment(scene == label, IDS[label % 4]) for label in np.unique(scene[scene > 0])]
    peaks = []
    for count in (8, 32):
        place = new_place()
        images = [MadeImage(f"{n}.jpg", (400, 600), segments, segments) for n in range(count)]
        write_run(place, images, per_shard=1)
        path = write_panoptic(place, images)
        score(place, panoptic_gt=path)  # once before, so that nothing is loaded for the first time
        tracemalloc.start()
        score(place, panoptic_gt=path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    pixels = 400 * 600
    assert peaks[0] > 4 * pixels, "less than one decoded image: nothing was measured"
    assert peaks[1] - peaks[0] < pixels, "24 images more took as much as a fraction of one image's pixels"


def test_evaluation_loads_neither_torch_nor_ray():
    loaded = modules_after("import pipeline.evaluate.evaluate, pipeline.evaluate.report, jobs.evaluate")
    assert not loaded & {"torch", "ray", "pycocotools"}
    assert "hotcoco" in loaded


def test_the_settings_load_nothing_heavy():
    assert not modules_after("import jobs.evaluate") & {"torch", "ray", "numpy", "pyarrow", "hotcoco", "rich.console"}


# --- drawn scenes -----------------------------------------------------------------------------------------------------


def drawn_image(rng: np.random.Generator, seed: int, number: int) -> MadeImage:
    """A scene with void and crowds, and a run that moved, grew, merged, mistook, lost and invented segments."""
    scene = draw_scene(seed, number, 128, 128)
    category_of = dict(scene.segments)
    crowds = {category["id"] for category in DRAWN_CATEGORIES if category["isthing"] and rng.random() < 0.2}
    truth = []
    for segment_id, category_id in scene.segments:
        if rng.random() < 0.9:
            iscrowd = int(category_id in crowds)
            crowds.discard(category_id)
            truth.append(Segment(scene.ids_HW == segment_id, category_id, iscrowd=iscrowd))
    found_HW = scene.ids_HW.copy()
    for segment_id in category_of:
        mask = found_HW == segment_id
        found_HW[mask] = 0
        fate = rng.choice(["kept", "kept", "moved", "grown", "merged", "lost"])
        if fate == "moved":
            mask = np.roll(mask, rng.integers(-5, 6, 2), (0, 1))
        elif fate == "grown":
            mask = np.logical_or.reduce(
                [np.roll(mask, by, (0, 1)) for by in ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2))]
            )
        if fate != "lost":
            found_HW[mask] = rng.choice(list(category_of)) if fate == "merged" else segment_id
    if rng.random() < 0.2:
        found_HW[_rectangles(rng, found_HW.shape, 1) > 0] = 99
    ids = [category["id"] for category in DRAWN_CATEGORIES]
    found = []
    for label in np.unique(found_HW[found_HW > 0]).tolist():
        category_id = category_of[label] if label != 99 and rng.random() < 0.85 else int(rng.choice(ids))
        score = float(rng.choice([0.5, 0.8, 0.9]) if rng.random() < 0.5 else rng.random())
        found.append(Segment(found_HW == label, category_id, score))
    failed, missing = number % 10 == 3, number % 10 == 7
    return MadeImage(f"{number}.png", found_HW.shape, truth, None if failed else found, missing=missing)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_drawn_scenes_with_perturbed_answers(tmp_path, seed):
    rng = np.random.default_rng(seed)
    images = [drawn_image(rng, seed, number) for number in range(20)]
    place = Place(str(tmp_path), categories=DRAWN_CATEGORIES)
    write_run(place, images)
    things = [category for category in DRAWN_CATEGORIES if category["isthing"]]
    thing_ids = [category["id"] for category in things]
    seen = [replace(image, truth=[s for s in image.truth if s.category_id in thing_ids]) for image in images]
    ground_truth = coco_instances(seen, things)
    instances = place.put("instances.json", json.dumps(ground_truth).encode())
    report = score(place, panoptic_gt=write_panoptic(place, images), instances_gt=instances)
    assert_panoptic(report["panoptic"], images)
    assert_semantic(report["semantic"], images, [category["id"] for category in DRAWN_CATEGORIES])
    assert_instances(report, ground_truth, coco_results(images, thing_ids))
    counts = report["ground_truth"]["panoptic"]["images"]
    assert (counts["failed"], counts["missing"]) == (2, 2) and any(s.iscrowd for i in images for s in i.truth)
    figures = [report["panoptic"][group]["PQ"] for group in ("all", "things", "stuff")]
    assert all(0.2 < figure < 0.8 for figure in (*figures, report["semantic"]["mIoU"]))
    assert all(0.05 < report["segm"][name] < 0.8 for name in ("AP", "AP50", "APs", "APm", "AR100"))


# --- real photographs and real masks ----------------------------------------------------------------------------------


def perturbed(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moved by a few pixels, sometimes with a bite out of it."""
    moved = np.roll(mask, rng.integers(-4, 5, 2), (0, 1))
    if rng.random() < 0.4:
        moved &= _rectangles(rng, mask.shape, 1) == 0
    return moved if moved.any() else mask


@pytest.fixture(scope="module")
def coco_things(shared_data) -> Path:
    return shared_data / "coco_things"


def things_images(coco_things: Path) -> tuple[list[MadeImage], list[dict]]:
    """The 13 photographs with their panoptic segments, and perturbed ones as the answer; one failed, one missing."""
    content = json.loads((coco_things / "panoptic.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    rng = np.random.default_rng(11)
    images = []
    for index, entry in enumerate(content["annotations"]):
        ids_HW = np.asarray(Image.open(coco_things / "panoptic" / entry["file_name"])).astype(int) @ [1, 256, 65536]
        truth = [Segment(ids_HW == s["id"], s["category_id"], iscrowd=s["iscrowd"]) for s in entry["segments_info"]]
        taken, found = np.zeros(ids_HW.shape, bool), []
        for segment in truth:
            mask = perturbed(segment.mask, rng) & ~taken
            if rng.random() < 0.85 and mask.any():
                category_id = segment.category_id if rng.random() < 0.9 else int(rng.choice([1, 3, 44, 51]))
                found.append(Segment(mask, category_id, float(rng.random())))
                taken |= mask
        name, size = names[entry["image_id"]], ids_HW.shape
        images.append(MadeImage(name, size, truth, None if index == 3 else found, missing=index == 7))
    return images, content["categories"]


def test_coco_photographs_with_perturbed_answers(coco_things, tmp_path):
    images, categories = things_images(coco_things)
    place = Place(str(tmp_path), categories=categories)
    write_run(place, images)
    report = score(
        place,
        panoptic_gt=str(coco_things / "panoptic.json"),
        instances_gt=str(coco_things / "instances.json"),
    )
    assert_panoptic(report["panoptic"], images)
    assert_semantic(report["semantic"], images, [category["id"] for category in categories])
    assert 0.3 < report["panoptic"]["all"]["PQ"] < 0.9 and report["panoptic"]["stuff"]["n"] == 0
    ground_truth = json.loads((coco_things / "instances.json").read_text())  # polygons
    numbers = {image["file_name"]: image["id"] for image in ground_truth["images"]}
    results = coco_results(images, [category["id"] for category in categories])
    results = [{**result, "image_id": numbers[images[result["image_id"] - 1].name]} for result in results]
    assert_instances(report, ground_truth, results)
    assert 0.2 < report["segm"]["AP"] < 0.9
    assert report["ground_truth"]["panoptic"]["images"]["failed"] == 1


def test_real_masks_of_the_coco_api_demo(shared_data, tmp_path):
    """The 734 masks are the ground truth; the answers are these masks moved by a few pixels, with the demo's scores."""
    results = json.loads((shared_data / "coco_rle" / "instances_val2014_fakesegm100_results.json").read_text())
    ids = sorted({result["category_id"] for result in results})
    categories = [{"id": i, "name": f"category {i}", "isthing": 1} for i in ids]
    rng = np.random.default_rng(4)
    by_image: dict[int, tuple[list[Segment], list[Segment]]] = {}
    for index, result in enumerate(results):
        truth, found = by_image.setdefault(result["image_id"], ([], []))
        mask = decode(result["segmentation"]["counts"].encode(), *result["segmentation"]["size"])
        truth.append(Segment(mask, result["category_id"], iscrowd=int(index % 29 == 0)))
        found.append(Segment(perturbed(mask, rng), result["category_id"], result["score"]))
    images = [MadeImage(f"{i:012d}.jpg", t[0].mask.shape, t, f) for i, (t, f) in by_image.items()]
    place = Place(str(tmp_path), categories=categories)
    write_run(place, images, task="instance", per_shard=16)
    ground_truth = coco_instances(images, categories)
    path = place.put("instances.json", json.dumps(ground_truth).encode())
    report = score(place, instances_gt=path)
    assert len(results) == 734 and len(images) == 99
    assert_instances(report, ground_truth, coco_results(images, ids))
    assert 0.2 < report["segm"]["AP"] < 0.9


@pytest.mark.parametrize("kind", ["segm", "bbox"])
def test_the_figures_that_the_coco_api_published_come_out(shared_data, kind):
    """All twelve of its demo over 100 images of val2014, here from two states, each of half of the images."""
    folder = shared_data / "coco_rle"
    file = folder / "instances_val2014_100.json"
    if not file.is_file():
        pytest.skip(f"needs {file.name}, the annotations of the demo's images, in shared/data/coco_rle/")
    published = (folder / "val2014_fake_eval_res.txt").read_text().split(f"type={kind}\n")[1].split("type=")[0]
    expected = [line.split("= ")[-1] for line in published.splitlines() if line.startswith(" Average")]
    truth = json.loads(file.read_text())
    results = json.loads((folder / f"instances_val2014_fake{kind}100_results.json").read_text())
    categories = tuple(truth["categories"])
    states = []
    for images in (truth["images"][::2], truth["images"][1::2]):
        ids = {image["id"] for image in images}
        known, found = ([r for r in records if r["image_id"] in ids] for records in (truth["annotations"], results))
        states.append(instance_state(kind, images, known, found, categories, "here"))
    figures = instance_summary(states, categories)
    assert [f"{figures[name]:.3f}" for name in COCO_FIGURES] == expected


# --- a part that another program wrote --------------------------------------------------------------------------------


class Forged(Segment):
    """A segment whose columns are given as they are."""

    def __init__(self, **columns: object):
        super().__init__(np.ones((4, 6), bool), 7)
        object.__setattr__(self, "columns", columns)

    rle = property(lambda self: self.columns.get("segmentation", Segment.rle.fget(self)))
    bbox = property(lambda self: self.columns.get("bbox", Segment.bbox.fget(self)))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"segmentation": {"size": [4, 6], "counts": "~~~"}}, "malformed RLE"),
        ({"segmentation": {"size": [4, 6], "counts": "\u00e9"}}, "malformed RLE"),
        ({"segmentation": {"size": [4, 6], "counts": "01"}}, "pixels, but its size is 4 x 6"),
        ({"segmentation": {"size": [40_000, 60_000], "counts": "0h0"}}, "pixels, but its size is 40000 x 60000"),
        ({"segmentation": {"size": [4], "counts": "0h0"}}, "values to unpack"),
        ({"segmentation": {"size": None, "counts": None}}, "cannot unpack"),
        ({"bbox": [1.0]}, "no box"),
    ],
)
def test_a_row_that_another_program_wrote_is_a_line(tmp_path, columns, said):
    place = Place(str(tmp_path))
    image = MadeImage("a.jpg", (4, 6), [Segment(np.ones((4, 6), bool), 7)], [Forged(**columns)])
    write_run(place, [image])
    truths = {"panoptic_gt": write_panoptic(place, [image])}
    with pytest.raises(RunError, match=rf"shard-000000-.*: segment 1 of s3://photographs/a.jpg is damaged: .*{said}"):
        evaluate(EvaluationSettings(tables=place.tables, workers=1, **truths))
