"""Training batches: targets lie on their pixels, and what a batch holds depends on its number alone."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_core.config.labels import LabelMap
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import ImageSize
from m2f_core.training.augment import IMAGE_PADDING, LargeScaleJitter, WholeImages
from pipeline.errors import RunError
from pipeline.train.annotated_images import AnnotatedImages
from pipeline.train.data import EndlessOrder, TrainingSamples, WorkerShare, load_batches
from pipeline.train.packed_sequence import PackedSequence
from tests.support.coco_folders import CATEGORIES, colour_of, write_coco_folder

WHOLE_IMAGES = WholeImages(ImageProcessor("reference", ImageSize.parse("60:100")), flip=True)
SIZES = [(40, 64), (64, 40), (32, 32), (50, 70), (33, 47)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_coco_folder(tmp_path_factory.mktemp("coco") / "set", SIZES)


def samples_of(folder, panoptic: bool, jitter=None, seed=0) -> TrainingSamples:
    gt = folder.panoptic_gt if panoptic else folder.instances_gt
    data = AnnotatedImages.read(str(folder.images), str(gt), None, "panoptic" if panoptic else "instances", "--gt")
    labels = LabelMap.from_coco_categories(list(data.categories))
    jitter = jitter or LargeScaleJitter((48, 48), 0.5, 1.5, True)
    return TrainingSamples(data, labels.class_id_of_category, jitter, seed)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_whole_images_are_what_inference_sees_and_are_padded_to_one_size(folder, resample):
    config = {"resample": int(resample)}
    processor = ImageProcessor.from_preprocessor_config(config, "reference", ImageSize.parse("60:100"))
    samples = samples_of(folder, True, WholeImages(processor, flip=False))
    [batch] = load_batches(samples, WorkerShare(len(SIZES), 0, 1), range(1), 0)
    assert batch.pixels_Bhw3.shape == (len(SIZES), 96, 96, 3)  # 94 x 60 and 60 x 96 in multiples of 32
    for place, pixels in enumerate(batch.pixels_Bhw3.numpy()):
        image = samples.data.image(samples.order[place])
        expected = processor.resize(image)
        h, w, _ = expected.shape
        np.testing.assert_array_equal(pixels[:h, :w], expected)
        assert (pixels[h:] == IMAGE_PADDING).all() and (pixels[:, w:] == IMAGE_PADDING).all()
        masks = batch.mask_labels[place]
        assert masks.shape[1:] == (96, 96) and not masks[:, h:].any() and not masks[:, :, w:].any()
        assert masks[:, :h, :w].any(0).all()  # every pixel of these images is annotated


@pytest.mark.parametrize("panoptic", [True, False])
def test_targets_lie_on_their_pixels(folder, panoptic):
    """The colour in the middle of a mask is that of a segment of the mask's class. Things are numbered before stuff."""
    samples = samples_of(folder, panoptic)
    names = ["block", "bar", "ground"] if panoptic else ["block", "bar"]
    category_of = {c["name"]: (segment_id, c["id"]) for segment_id, c in enumerate(CATEGORIES, 1)}
    found = set()
    for n in range(40):
        pixels, targets = samples[n]
        assert pixels.shape == (48, 48, 3)
        assert targets.mask_labels.dtype == torch.bool and targets.mask_labels.shape[1:] == (48, 48)
        for mask, class_id in zip(targets.mask_labels.numpy(), targets.class_labels.tolist(), strict=True):
            assert mask.any()
            colour = np.median(pixels[mask], axis=0)
            assert np.abs(colour - colour_of(*category_of[names[class_id]])).max() < 60
            found.add(names[class_id])
    assert found == set(names)


def test_both_ground_truths_give_the_same_things(folder):
    panoptic, instances = samples_of(folder, True), samples_of(folder, False)
    for n in range(10):
        from_panoptic, from_instances = panoptic[n][1], instances[n][1]
        things = from_panoptic.class_labels < 2
        assert torch.equal(from_panoptic.mask_labels[things], from_instances.mask_labels)
        assert torch.equal(from_panoptic.class_labels[things], from_instances.class_labels)


@given(st.integers(1, 9), st.integers(0, 2**20))
def test_every_epoch_has_every_image_once(num_images, seed):
    order = EndlessOrder(num_images, seed)
    for epoch in (0, 1, 5, 0):  # also backwards
        places = [order[epoch * num_images + i] for i in range(num_images)]
        assert sorted(places) == list(range(num_images))
    assert EndlessOrder(num_images, seed)[7] == order[7]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000))
def test_shares_of_the_workers_are_the_batch(num_workers, per_worker, iteration):
    size = num_workers * per_worker
    shares = [n for r in range(num_workers) for n in WorkerShare(size, r, num_workers).sample_numbers(iteration)]
    assert shares == list(range(iteration * size, (iteration + 1) * size))


@pytest.mark.parametrize("augmentation", [None, WHOLE_IMAGES])
def test_a_batch_is_the_same_wherever_loading_starts_and_whoever_shares_it(folder, augmentation):
    """With whole images too, which are padded to the largest of a batch and not of a worker's part of it."""
    samples = samples_of(folder, True, augmentation)
    whole = list(load_batches(samples, WorkerShare(4, 0, 1), range(6), 0))
    late = list(load_batches(samples_of(folder, True, augmentation), WorkerShare(4, 0, 1), range(4, 6), 0))
    second = list(load_batches(samples_of(folder, True, augmentation), WorkerShare(4, 1, 2), range(6), 0))
    assert len(whole) == 6
    sizes = {(samples.padded_hw(range(n, n + 4)), samples.padded_hw(range(n + 2, n + 4))) for n in range(0, 24, 4)}
    assert any(of_batch != of_share for of_batch, of_share in sizes) == (augmentation is not None)
    for batch, again in zip(whole[4:], late, strict=True):
        assert torch.equal(batch.pixels_Bhw3, again.pixels_Bhw3)
        assert all(map(torch.equal, batch.mask_labels, again.mask_labels))
    for batch, half in zip(whole, second, strict=True):
        assert torch.equal(batch.pixels_Bhw3[2:], half.pixels_Bhw3)
    assert not torch.equal(whole[0].pixels_Bhw3, whole[1].pixels_Bhw3)


def test_processes_load_the_same_batches(folder):
    here = list(load_batches(samples_of(folder, True), WorkerShare(2, 0, 1), range(2), 0))
    there = list(load_batches(samples_of(folder, True), WorkerShare(2, 0, 1), range(2), 1))
    assert all(torch.equal(a.pixels_Bhw3, b.pixels_Bhw3) for a, b in zip(here, there, strict=True))


def test_what_cannot_be_used_is_named(tmp_path):
    folder = write_coco_folder(tmp_path / "set", [(32, 32)])
    image = folder.images / "001.png"
    Image.new("RGB", (31, 32)).save(image)
    with pytest.raises(RunError, match=r"001\.png is 32 x 31 .* its ground truth says \(32, 32\)"):
        samples_of(folder, True)[0]
    image.write_bytes(b"no image")
    with pytest.raises(RunError, match=r"001\.png cannot be used"):
        samples_of(folder, True)[0]
    image.unlink()
    with pytest.raises(RunError, match=r"001\.png does not exist"):
        samples_of(folder, True)[0]


@pytest.mark.parametrize(
    "segmentation",
    [None, "221O", [[1, 2, 3]], [1, 2, 3, 4, 5, 6], {"counts": []}, {"size": [32, 32], "counts": "~~"}],
    ids=str,
)
def test_what_is_no_segmentation_is_refused_before_the_first_step(tmp_path, segmentation):
    folder = write_coco_folder(tmp_path / "set", [(32, 32)])
    content = json.loads(folder.instances_gt.read_text())
    content["annotations"][1]["segmentation"] = segmentation
    folder.instances_gt.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"--gt .*instances\.json: annotation 2 "):
        samples_of(folder, False)


def test_polygons_without_an_area_are_left_out_and_said(tmp_path, caplog):
    """As in detectron2, and so is an object that had no other; the rest of the image stays."""
    folder = write_coco_folder(tmp_path / "set", [(32, 32)])
    content = json.loads(folder.instances_gt.read_text())
    square = [4, 4, 12, 4, 12, 12, 4, 12]
    forms = [[], [[1, 1, 2, 2]], [[1, 1], square], [square]]
    first = content["annotations"][0]
    content["annotations"] = [{**first, "id": n, "segmentation": form} for n, form in enumerate(forms, 1)]
    folder.instances_gt.write_text(json.dumps(content))
    samples = samples_of(folder, False, LargeScaleJitter((32, 32), 1.0, 1.0, False))
    targets = samples[0][1]
    assert torch.equal(targets.mask_labels[0], targets.mask_labels[1]) and targets.mask_labels.sum() == 2 * 64
    assert "2 annotations have no polygon with three points or more" in caplog.text
    assert "and are left out, for example annotation 1" in caplog.text


def test_images_are_turned_as_their_exif_says_unless_told_not_to(tmp_path):
    folder = write_coco_folder(tmp_path / "set", [(32, 48)])
    upright = Image.open(folder.images / "001.png").convert("RGB")
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(folder.images / "001.png", exif=exif)

    def first(exif: bool) -> Image.Image:
        args = str(folder.images), str(folder.panoptic_gt), None, "panoptic", "--gt"
        return AnnotatedImages.read(*args, exif=exif).image(0)

    np.testing.assert_array_equal(np.asarray(first(exif=True)), np.asarray(upright))
    with pytest.raises(RunError, match=r"001\.png is 48 x 32 .* its ground truth says \(32, 48\); is --exif right\?"):
        first(exif=False)


@pytest.mark.parametrize("crop_hw", [(48, 48), (50, 33)])
def test_batches_have_a_size_that_the_network_divides(folder, crop_hw):
    """Otherwise the coarsest features would be taken for those of a smaller image than the one they show."""
    samples = samples_of(folder, True, LargeScaleJitter(crop_hw, 1.0, 1.0, False))
    [batch] = load_batches(samples, WorkerShare(2, 0, 1), range(1), 0)
    assert batch.pixels_Bhw3.shape == (2, 64, 64, 3)
    h, w = crop_hw
    for place, (pixels, masks) in enumerate(zip(batch.pixels_Bhw3.numpy(), batch.mask_labels, strict=True)):
        alone, targets = samples[place]
        np.testing.assert_array_equal(pixels[:h, :w], alone)
        assert (pixels[h:] == IMAGE_PADDING).all() and (pixels[:, w:] == IMAGE_PADDING).all()
        assert torch.equal(masks[:, :h, :w], targets.mask_labels) and masks.sum() == targets.mask_labels.sum()


@given(st.lists(st.one_of(st.integers(), st.text(), st.dictionaries(st.text(), st.integers()))))
def test_a_packed_sequence_gives_back_what_was_put_in(items):
    packed = PackedSequence(items)
    assert len(packed) == len(items) and list(packed) == items
    assert [packed[index] for index in range(len(items))] == items
    with pytest.raises(IndexError):
        packed[len(items)]
