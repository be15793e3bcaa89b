"""Batching and look-ahead as plain functions; the answer to bad images, to a failing model, to memory that runs out."""

import io
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_core.inference.settings import InstanceSettings, SemanticSettings
from m2f_core.layers import int8
from m2f_core.layers.cpu_instructions import int8_refusal
from m2f_core.masks.rle import decode
from pipeline.device import precision
from pipeline.errors import ErrorCode, ImageError, InvalidResultError, RunError
from pipeline.guard.memory import MachineMemory
from pipeline.guard.planted_faults import marker
from pipeline.segment import preparation
from pipeline.segment.batches import plan_batches
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentedImage
from tests.support.host_as_device import HostAsDevice
from tests.support.segmenting import encoded, small_spec

SIZES = st.lists(st.one_of(st.none(), st.sampled_from([(32, 32), (32, 64), (64, 32)])), max_size=40)


@given(SIZES, st.fixed_dictionaries({size: st.integers(1, 6) for size in [(32, 32), (32, 64), (64, 32)]}))
def test_batches_hold_each_image_once_and_one_padded_size(sizes, most):
    batches = plan_batches(sizes, most.__getitem__)
    assert sorted(i for batch in batches for i in batch) == [i for i, size in enumerate(sizes) if size is not None]
    for batch in batches:
        [size] = {sizes[i] for i in batch}
        assert 1 <= len(batch) <= most[size]
    # No more batches than needed.
    needed = {size: -(-sum(s == size for s in sizes) // most[size]) for size in set(sizes) - {None}}
    assert len(batches) == sum(needed.values())


def test_every_image_has_one_outcome_in_its_place(tiny_checkpoint):
    segmenter = Segmenter(small_spec(tiny_checkpoint))
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


def test_an_image_that_breaks_the_model_takes_no_neighbour_with_it(tiny_checkpoint, monkeypatch):
    segmenter = Segmenter(small_spec(tiny_checkpoint, batch_size=3))
    poison = np.asarray(Image.open(io.BytesIO(encoded(seed=2))))
    forward = segmenter.network.model.forward
    normal = segmenter.network.processor.resize(Image.fromarray(poison))

    def breaks(pixels):
        if any(bool((p == poisoned[0]).all()) for p in pixels):
            raise RuntimeError("the device says no")
        return forward(pixels)

    padded_hw = segmenter.network.processor.geometry(60, 80).padded_hw
    poisoned = segmenter.network.processor.to_batch([normal], padded_hw, "cpu")
    monkeypatch.setattr(segmenter.network.model, "forward", breaks)
    results = segmenter.segment([encoded(seed=1), encoded(seed=2), encoded(seed=3)])
    assert isinstance(results[0], SegmentedImage) and isinstance(results[2], SegmentedImage)
    assert results[1].code is ErrorCode.INFERENCE_FAILED
    assert "the device says no" in results[1].message


def test_a_result_that_cannot_be_is_no_fault_of_the_image(tiny_checkpoint, monkeypatch):
    """A bug of ours stops the run; the image does not fail for it."""

    def impossible(result, embeddings):
        raise InvalidResultError("the result lists segments [1], but its map holds []")

    monkeypatch.setattr("pipeline.segment.segmenter.found_segments", impossible)
    with pytest.raises(InvalidResultError, match="but its map holds"):
        Segmenter(small_spec(tiny_checkpoint)).segment([encoded(seed=1)])


@pytest.mark.parametrize(
    "inference", [InstanceSettings.defaults("reference", frozenset(range(5))), SemanticSettings.defaults("reference")]
)
def test_every_task_gives_segments(tiny_checkpoint, inference):
    [result] = Segmenter(small_spec(tiny_checkpoint, inference=inference)).segment([encoded(seed=1)])
    assert isinstance(result, SegmentedImage) and result.segments


def test_other_weights_than_the_drivers_are_refused(tiny_checkpoint):
    with pytest.raises(RunError, match="same checkpoint"):
        Segmenter(small_spec(tiny_checkpoint, weights_sha256="0" * 64))


def test_bf16_on_a_cpu_that_lacks_the_instructions_is_refused(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(precision, "bf16_refusal", lambda: "no AMX")
    with pytest.raises(RunError, match=r"^--precision bf16: no AMX "):
        Segmenter(small_spec(tiny_checkpoint, precision="bf16"))


@pytest.mark.usefixtures("bf16_on_cpu")
def test_bf16_gives_segments_too(tiny_checkpoint):
    [result] = Segmenter(small_spec(tiny_checkpoint, precision="bf16")).segment([encoded(seed=1)])
    assert isinstance(result, SegmentedImage)


def test_int8_is_refused_on_a_cpu_that_lacks_the_instructions_and_on_a_gpu(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(precision, "int8_refusal", lambda: "no VNNI")
    with pytest.raises(RunError, match=r"^--precision int8: no VNNI "):
        Segmenter(small_spec(tiny_checkpoint, precision="int8"))
    with pytest.raises(RunError, match=r"^--precision int8 is for CPUs"):
        precision.check_precision("int8", "cuda")


@pytest.mark.skipif(int8_refusal() is not None, reason=str(int8_refusal()))
def test_in_int8_images_of_a_batch_do_not_change_each_other(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(int8, "LEAST_WIDTH", 32)
    images = [encoded(seed=1), encoded(seed=2), encoded(seed=3)]
    alone = Segmenter(small_spec(tiny_checkpoint, precision="int8", batch_size=1)).segment(images)
    together = Segmenter(small_spec(tiny_checkpoint, precision="int8", batch_size=3)).segment(images)
    assert all(isinstance(result, SegmentedImage) and result.segments for result in alone)
    assert [result.segments for result in together] == [result.segments for result in alone]


def test_the_memory_of_a_failed_batch_is_free_when_its_images_are_tried_alone(tiny_checkpoint, monkeypatch):
    """Or a batch that ran out of memory would take the same memory from each of its images."""
    segmenter = Segmenter(small_spec(tiny_checkpoint, batch_size=2))
    forward, batches, alive = segmenter.network.model.forward, [], []

    def out_of_memory(pixels):
        if len(pixels) > 1:
            batches.append(weakref.ref(pixels))
            raise MemoryError
        alive.append(batches[0]() is not None)
        return forward(pixels)

    monkeypatch.setattr(segmenter.network.model, "forward", out_of_memory)
    results = segmenter.segment([encoded(seed=1), encoded(seed=2)])
    assert all(isinstance(result, SegmentedImage) for result in results)
    assert alive == [False, False]


class Memory:
    """A device that holds so many padded pixels; `forward` says how many images each batch had."""

    def __init__(self, segmenter, most_images, error):
        self.model, self.most, self.error, self.batches = segmenter.network.model.forward, most_images, error, []

    def forward(self, pixels):
        self.batches.append(len(pixels))
        if len(pixels) > self.most:
            raise self.error
        return self.model(pixels)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=range(4))
def test_a_batch_too_large_for_the_memory_is_halved_and_the_next_ones_are_small(
    tiny_checkpoint, monkeypatch, caplog, error
):
    segmenter = Segmenter(small_spec(tiny_checkpoint, batch_size=8))
    memory = Memory(segmenter, 2, error)
    monkeypatch.setattr(segmenter.network.model, "forward", memory.forward)
    images = [encoded(60, 60, seed) for seed in range(8)]
    results = segmenter.segment([*images, *(encoded(60, 80, seed) for seed in range(8))])
    assert all(isinstance(result, SegmentedImage) for result in results)
    # 8 fail, 4 fail, then pairs; the wider images, of 1.5 times the pixels, then go one by one at once.
    assert memory.batches == [8, 4, 2, 2, 2, 2] + [1] * 8
    said = [record.message for record in caplog.records if record.name.startswith("pipeline.")]
    assert len(said) == 2 and "has too little memory for 8 images of 64 x 64" in said[0]
    assert segmenter.segment(images) == results[:8] and memory.batches[14:] == [2, 2, 2, 2]


def test_a_batch_has_at_most_so_many_padded_pixels(tiny_checkpoint, monkeypatch):
    segmenter = Segmenter(small_spec(tiny_checkpoint, batch_size=8, max_batch_pixels=3 * 64 * 64))
    memory = Memory(segmenter, 8, None)
    monkeypatch.setattr(segmenter.network.model, "forward", memory.forward)
    results = segmenter.segment([encoded(size, 60, seed) for seed in range(4) for size in (60, 80, 100)])
    assert all(isinstance(result, SegmentedImage) for result in results)
    # 64 x 64 by threes, 96 x 64 by twos, 128 x 64 alone: half as many fit, and one always does.
    assert memory.batches == [3, 1, 2, 2, 1, 1, 1, 1]


def test_an_image_too_large_for_the_memory_alone_has_a_row_that_says_so(tiny_checkpoint, monkeypatch):
    segmenter = Segmenter(small_spec(tiny_checkpoint, batch_size=2))
    monkeypatch.setattr(segmenter.network.model, "forward", Memory(segmenter, 0, OUT_OF_MEMORY[0]).forward)
    for result in segmenter.segment([encoded(seed=1), encoded(seed=2)]):
        assert result.code is ErrorCode.INFERENCE_FAILED
        assert "has too little memory for the image alone (64 x 96 padded): OutOfMemoryError: CUDA" in result.message


def test_where_the_host_is_short_of_memory_batches_are_halved_and_nothing_waits(tiny_checkpoint, monkeypatch):
    segmenter = Segmenter(small_spec(tiny_checkpoint, batch_size=4))
    memory = Memory(segmenter, 4, None)
    monkeypatch.setattr(segmenter.network.model, "forward", memory.forward)
    images = [encoded(seed=seed) for seed in range(8)]
    usual = segmenter.segment(images)
    monkeypatch.setattr("pipeline.segment.segmenter.machine_memory", lambda: MachineMemory(total=100, available=10))
    short = segmenter.segment(images)
    assert memory.batches == [4, 4, 2, 2, 2, 2]
    assert [r.segments for r in short] == [r.segments for r in usual]


def test_a_gpu_gets_decoded_pixels_unless_they_are_many(tiny_checkpoint, monkeypatch):
    """And resizes them to what the CPU would have made of them."""
    network = Segmenter(small_spec(tiny_checkpoint)).network
    network.cuda = HostAsDevice()
    for size_hw, waits_as in (((60, 80), (60, 80)), ((600, 800), (64, 85))):
        image = Image.open(io.BytesIO(encoded(*size_hw)))
        geometry = network.processor.geometry(image.height, image.width)
        prepared = network.prepare(image, geometry, "x")
        assert prepared.pixels_hw3.shape == (*waits_as, 3) and network.cuda.pinned[-1] is prepared.pixels_hw3
        resized = network.processor.resize(image)
        assert torch.equal(network._batch([prepared]), network.processor.to_batch([resized], geometry.padded_hw))


def test_memory_is_given_back_only_between_batches(tiny_checkpoint, monkeypatch):
    """The results of the batch that runs lie in the memory of a recorded graph."""
    network = Segmenter(small_spec(tiny_checkpoint)).network
    freed = threading.Event()
    monkeypatch.setattr(network, "_free", freed.set)
    with network.lock:
        thread = threading.Thread(target=network.free_memory)
        thread.start()
        assert not freed.wait(0.2)
    thread.join()
    assert freed.is_set()


def test_a_device_that_is_lost_ends_the_process_and_one_that_is_full_does_not(tiny_checkpoint, monkeypatch):
    segmenter = Segmenter(small_spec(tiny_checkpoint))
    ends = []
    monkeypatch.setattr("pipeline.segment.device_model.os._exit", ends.append)
    segmenter.network.exit_if_lost()  # a CPU is never lost
    segmenter.network.cuda = HostAsDevice()
    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: an illegal memory access")):
        monkeypatch.setattr("pipeline.device.cuda.torch.zeros", raises(error))
        segmenter.network.exit_if_lost()
    assert ends == [1]


def raises(error):
    def function(*args, **kwargs):
        raise error

    return function


def test_planted_faults_are_looked_for_only_where_asked(tiny_checkpoint, monkeypatch):
    tripped = []
    monkeypatch.setattr("pipeline.segment.preparation.planted_faults.trip", tripped.append)
    image = encoded(image_format="JPEG") + marker("abort")
    for planted_faults in (False, True):
        [result] = Segmenter(small_spec(tiny_checkpoint, planted_faults=planted_faults)).segment([image])
        assert isinstance(result, SegmentedImage), "a marker behind the end of an image changes nothing"
        assert tripped == [image] * planted_faults


def test_a_jpeg_that_is_decoded_smaller_keeps_the_size_of_its_result(tiny_checkpoint, photographs, monkeypatch):
    image = Image.open(photographs / "rocket.jpg").convert("RGB").resize((480, 304))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    decoded, decode_image = [], preparation.decode_image
    monkeypatch.setattr(
        preparation,
        "decode_image",
        lambda *args, **more: decoded.append(decode_image(*args, **more)) or decoded[-1],
    )
    whole, small = (
        Segmenter(small_spec(tiny_checkpoint, scaled_jpeg=scaled)).segment([buffer.getvalue()])[0]
        for scaled in (False, True)
    )
    assert [d.size for d in decoded] == [(480, 304), (240, 152)], (
        "the network sees 64 x 101: a quarter, 76 x 120, is too close"
    )
    assert (small.height, small.width) == (whole.height, whole.width) == (304, 480)
    areas = [{segment.class_id: segment.mask.area for segment in result.segments} for result in (whole, small)]
    assert areas[0] and areas[0].keys() == areas[1].keys()
    for class_id, area in areas[0].items():
        assert areas[1][class_id] == pytest.approx(area, rel=0.05)
