"""Batching and look-ahead as plain functions; the actor's answer to bad images and to a failing model."""

import io
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_core.checkpoint import CheckpointError, weights_sha256
from m2f_core.instances import InstanceSettings
from m2f_core.rle import decode
from m2f_core.segments import PanopticSettings
from m2f_core.semantic import SemanticSettings
from pipeline.errors import ErrorCode, ImageError, InvalidResultError, RunError, StoreUnavailableError
from pipeline.segment import SegmentedImage, Segmenter, SegmentImages, SegmentSpec, look_ahead, plan_batches

SIZES = st.lists(st.one_of(st.none(), st.sampled_from([(32, 32), (32, 64), (64, 32)])), max_size=40)


@given(SIZES, st.integers(1, 6))
def test_batches_hold_each_image_once_and_one_padded_size(sizes, batch_size):
    batches = plan_batches(sizes, batch_size)
    assert sorted(i for batch in batches for i in batch) == [i for i, size in enumerate(sizes) if size is not None]
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({sizes[i] for i in batch}) == 1
    # No more batches than needed.
    needed = {size: -(-sum(s == size for s in sizes) // batch_size) for size in set(sizes) - {None}}
    assert len(batches) == sum(needed.values())


@given(st.lists(st.integers(), max_size=20), st.integers(0, 5))
def test_look_ahead_keeps_order_and_is_bounded(items, depth):
    submitted = []
    taken = 0
    for item in look_ahead(lambda x: submitted.append(x) or x, items, depth):
        assert item == items[taken]
        taken += 1
        assert len(submitted) <= taken + depth
    assert taken == len(items)


def encoded(height=60, width=80, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def spec(tiny_checkpoint):
    return SegmentSpec(
        model=str(tiny_checkpoint),
        weights_sha256=weights_sha256(tiny_checkpoint),
        preprocess="reference",
        image_size=None,
        exif=True,
        max_image_pixels=1_000_000,
        inference=PanopticSettings.defaults("reference"),
        precision="fp32",
        device="cpu",
        threads=1,
        batch_size=2,
    )


def small(spec, **changes):
    from dataclasses import replace

    from m2f_core.image_size import ImageSize

    return replace(spec, image_size=ImageSize.parse("64:128"), **changes)


def test_every_image_has_one_outcome_in_its_place(spec):
    segmenter = Segmenter(small(spec))
    images = [encoded(seed=1), None, b"not an image", encoded(90, 50), encoded(seed=2)[:-200], encoded(seed=3)]
    results = segmenter.segment(images)
    assert [type(r) for r in results] == [
        SegmentedImage,
        type(None),
        ImageError,
        SegmentedImage,
        ImageError,
        SegmentedImage,
    ]
    assert results[2].code is ErrorCode.UNSUPPORTED and results[4].code is ErrorCode.DECODE_FAILED
    assert (results[3].height, results[3].width) == (90, 50)
    assert all(decode(s.mask.counts, 60, 80).sum() == s.mask.area for s in results[0].segments)


def test_an_image_that_breaks_the_model_takes_no_neighbour_with_it(spec, monkeypatch):
    segmenter = Segmenter(small(spec, batch_size=3))
    poison = np.asarray(Image.open(io.BytesIO(encoded(seed=2))))
    forward = segmenter.model.forward
    normal = segmenter.processor.resize(Image.fromarray(poison))

    def breaks(pixels):
        if any(bool((p == poisoned[0]).all()) for p in pixels):
            raise RuntimeError("the device says no")
        return forward(pixels)

    poisoned = segmenter.processor.to_batch([normal], segmenter.processor.geometry(60, 80).padded_hw, "cpu")
    monkeypatch.setattr(segmenter.model, "forward", breaks)
    results = segmenter.segment([encoded(seed=1), encoded(seed=2), encoded(seed=3)])
    assert isinstance(results[0], SegmentedImage) and isinstance(results[2], SegmentedImage)
    assert results[1].code is ErrorCode.INFERENCE_FAILED
    assert "the device says no" in results[1].message


def test_a_result_that_cannot_be_is_no_fault_of_the_image(spec, monkeypatch):
    """A bug of ours stops the run; the image does not fail for it."""

    def impossible(result):
        raise InvalidResultError("segments [1] are listed, [] are in the map")

    monkeypatch.setattr("pipeline.segment.found_segments", impossible)
    with pytest.raises(InvalidResultError, match="are in the map"):
        Segmenter(small(spec)).segment([encoded(seed=1)])


@pytest.mark.parametrize(
    "inference", [InstanceSettings.defaults("reference", frozenset(range(5))), SemanticSettings.defaults("reference")]
)
def test_every_task_gives_segments(spec, inference):
    [result] = Segmenter(small(spec, inference=inference)).segment([encoded(seed=1)])
    assert isinstance(result, SegmentedImage) and result.segments


def test_other_weights_than_the_drivers_are_refused(spec):
    with pytest.raises(RunError, match="same checkpoint"):
        Segmenter(small(spec, weights_sha256="0" * 64))


def test_bf16_gives_segments_too(spec):
    [result] = Segmenter(small(spec, precision="bf16")).segment([encoded(seed=1)])
    assert isinstance(result, SegmentedImage)


def test_the_memory_of_a_failed_batch_is_free_when_its_images_are_tried_alone(spec, monkeypatch):
    """Or a batch that ran out of memory would take the same memory from each of its images."""
    segmenter = Segmenter(small(spec, batch_size=2))
    forward, batches, alive = segmenter.model.forward, [], []

    def out_of_memory(pixels):
        if len(pixels) > 1:
            batches.append(weakref.ref(pixels))
            raise MemoryError
        alive.append(batches[0]() is not None)
        return forward(pixels)

    monkeypatch.setattr(segmenter.model, "forward", out_of_memory)
    results = segmenter.segment([encoded(seed=1), encoded(seed=2)])
    assert all(isinstance(result, SegmentedImage) for result in results)
    assert alive == [False, False]


@pytest.mark.parametrize("lasting", [RunError("other weights"), CheckpointError("cut off")])
def test_what_will_not_pass_is_raised_by_the_call_so_that_ray_does_not_repeat_the_constructor(
    spec, monkeypatch, lasting
):
    monkeypatch.setattr("pipeline.segment.Segmenter", raises(lasting))
    actor = SegmentImages(spec)
    with pytest.raises(type(lasting), match=str(lasting)):
        actor(None)


def test_a_store_that_does_not_answer_is_tried_again_by_ray(spec, monkeypatch):
    monkeypatch.setattr("pipeline.segment.Segmenter", raises(StoreUnavailableError("503")))
    with pytest.raises(StoreUnavailableError):
        SegmentImages(spec)


def raises(error):
    def constructor(spec):
        raise error

    return constructor
