"""The self-check: equal networks pass, wrong ones do not, and what it says of segments and speed is so."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from m2f_core.inference.settings import InstanceSettings, PanopticSettings
from m2f_core.inference.tiling import Tiling
from m2f_core.layers import deformable_attention
from m2f_core.masks.rle import Rle, counts_area, counts_bbox_xywh, encode_mask
from pipeline.errors import RunError
from pipeline.runs import selfcheck
from pipeline.runs.selfcheck import SelfCheck, Timing, compare, plain_network, time_actor
from pipeline.segment.postprocess import FoundSegment, count_alike
from pipeline.segment.segmenter import Segmenter
from tests.support.segmenting import encoded, small_spec

# Random weights are sure of nothing: with the usual thresholds there would be no segments to compare.
INFERENCE = PanopticSettings("reference", score_threshold=0.0, overlap_threshold=0.0, mask_threshold=0.5)


@pytest.fixture(scope="module")
def photographs_small(photographs):
    return [Image.open(path).convert("RGB").resize((120, 90)) for path in sorted(photographs.iterdir())[:3]]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_made_ready_for_a_device_gives_what_plain_layers_give(
    tiny_checkpoint, photographs_small, precision, request
):
    if precision == "bf16":
        request.getfixturevalue("bf16_on_cpu")
    spec = small_spec(tiny_checkpoint, precision=precision, inference=INFERENCE)
    segmenter = Segmenter(spec)
    found = compare(segmenter.network, plain_network(spec), photographs_small)
    assert found.num_images == 3 and found.segments > 3
    assert found.class_logits > 0, (
        "packed weights are summed in another order: an exact zero compares a thing to itself"
    )
    check = SelfCheck("CPU", precision, found, time_actor(segmenter, [encoded()], seconds=0.1))
    assert check.passes
    if precision == "fp32":
        assert found.class_logits < 1e-3 and found.mask_logits < 1e-3
        assert (found.segments_alike, found.segments_only_here) == (found.segments, 0)


def test_a_network_that_computes_something_else_does_not_pass(tiny_checkpoint, photographs_small):
    spec = small_spec(tiny_checkpoint, inference=INFERENCE)
    network = plain_network(spec)
    with torch.no_grad():
        network.model.pixel_decoder.mask_projection.bias.add_(1.0)
    segmenter = Segmenter(spec)
    found = compare(segmenter.network, network, photographs_small)
    assert found.mask_logits > 0.1
    assert not SelfCheck("CPU", "fp32", found, time_actor(segmenter, [encoded()], seconds=0.1)).passes


def test_a_kernel_that_computes_something_else_does_not_pass(tiny_checkpoint, photographs_small, monkeypatch):
    """On a CPU too: a kernel that both sides had would be compared with itself."""
    right = deformable_attention.attend_by_kernel
    monkeypatch.setattr(deformable_attention, "attend_by_kernel", lambda *inputs: 1.1 * right(*inputs))
    spec = small_spec(tiny_checkpoint, inference=INFERENCE)
    found = compare(Segmenter(spec).network, plain_network(spec), photographs_small[:1])
    assert not SelfCheck("CPU", "fp32", found, Timing(1.0, {}, 1, None)).passes


def test_wrong_classes_do_not_pass_though_all_masks_are_right(tiny_checkpoint, photographs_small):
    spec = small_spec(tiny_checkpoint, inference=INFERENCE)
    network = plain_network(spec)
    with torch.no_grad():
        network.model.class_predictor.bias[3] += 100.0
    found = compare(network, plain_network(spec), photographs_small[:1])
    assert found.flipped == 0 and found.other_classes > 0.5
    assert not SelfCheck("CPU", "bf16", found, Timing(1.0, {}, 1, None)).passes


def test_images_that_fail_are_no_speed(tiny_checkpoint):
    with pytest.raises(RunError, match=r"an image failed in batches of 2: unsupported"):
        time_actor(Segmenter(small_spec(tiny_checkpoint)), [encoded(), b"no image"], seconds=0.1)


def test_logits_that_are_no_numbers_do_not_pass(tiny_checkpoint, photographs_small):
    spec = small_spec(tiny_checkpoint, inference=INFERENCE)
    network = plain_network(spec)
    with torch.no_grad():
        network.model.class_predictor.bias.fill_(float("nan"))
    found = compare(network, plain_network(spec), photographs_small[:1])
    assert found.class_logits == float("inf") and found.flipped == 1
    assert not SelfCheck("CPU", "bf16", found, Timing(1.0, {}, 1, None)).passes
    assert compare(plain_network(spec), network, photographs_small[:1]).flipped == 1


def test_of_an_image_that_a_run_would_cut_one_tile_is_compared_and_the_whole_is_timed(tiny_checkpoint):
    segmenter = Segmenter(small_spec(tiny_checkpoint, tiling=Tiling(64, 16)))
    encoded_images, decoded = selfcheck._decodable([encoded(150, 64), encoded(30, 40)], segmenter.spec)
    assert [image.size for image in decoded] == [(64, 64), (40, 30)]
    whole = np.asarray(Image.open(io.BytesIO(encoded_images[0])))
    assert np.array_equal(np.asarray(decoded[0]), whole[48:112]), "the middle one of three"
    sizes, run = [], segmenter.network.run
    segmenter.network.run = lambda images, costs: sizes.append(len(images)) or run(images, costs)
    time_actor(segmenter, encoded_images[:1], seconds=0.1)
    assert sizes[0] == 2 and sum(sizes) % 3 == 0


def segment(class_id, mask_HW):
    counts = encode_mask(mask_HW)
    mask = Rle(1, counts, counts_area(counts), counts_bbox_xywh(counts, *mask_HW.shape))
    return FoundSegment(1, class_id, 0.9, mask)


def test_segments_are_alike_by_class_and_mask_and_each_counts_once():
    left, right, most_of_left = (np.zeros((20, 40), bool) for _ in range(3))
    left[:, :20], right[:, 20:], most_of_left[1:, :20] = True, True, True
    count = count_alike
    assert count([segment(1, left), segment(2, right)], [segment(2, right), segment(1, most_of_left)], 20, 40) == 2
    assert count([segment(1, left)], [segment(2, left), segment(1, right)], 20, 40) == 0
    assert count([segment(1, left)], [segment(1, left), segment(1, left)], 20, 40) == 1
    most_of_left[:4] = False
    assert count([segment(1, left)], [segment(1, most_of_left)], 20, 40) == 0


def test_speed_is_that_of_batches_as_in_a_run(tiny_checkpoint):
    segmenter = Segmenter(small_spec(tiny_checkpoint, batch_size=3))
    sizes, run = [], segmenter.network.run
    segmenter.network.run = lambda images, costs: sizes.append(len(images)) or run(images, costs)
    timing = time_actor(segmenter, [encoded(seed=seed) for seed in range(2)], seconds=0.2)
    assert set(sizes) == {3}
    assert timing.batch_size == 3 and timing.images_per_second > 0
    assert timing.device_ms["model"] > timing.device_ms["reduce"] > 0


@pytest.mark.parametrize("inference", [INFERENCE, InstanceSettings.defaults("reference")], ids=["panoptic", "instance"])
def test_a_model_that_reads_the_task_is_compared_in_the_task_of_the_run(tiny_oneformer, photographs_small, inference):
    spec = small_spec(tiny_oneformer, inference=inference)
    found = compare(Segmenter(spec).network, plain_network(spec), photographs_small[:1])
    assert 0 < found.mask_logits < 1e-3 and found.segments_alike == found.segments > 0
