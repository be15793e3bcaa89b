"""The comparison passes rounding and nothing else: each fault that it shall find is planted."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import ImageSize
from m2f_core.inference.settings import PanopticSettings
from pipeline.export_model.compare import MOST_FLIPPED, Comparison, compare

SIZE_HW = (64, 96)
PROCESSOR = ImageProcessor("reference", ImageSize(fixed_hw=SIZE_HW))
INFERENCE = PanopticSettings("reference", score_threshold=0.0, overlap_threshold=0.0, mask_threshold=0.5)
Outputs = tuple[Tensor, Tensor]


def network(pixels_B3HW: Tensor) -> Outputs:
    """Four queries of four classes; the masks are colours of the image."""
    batch = pixels_B3HW.shape[0]
    colours = torch.nn.functional.avg_pool2d(pixels_B3HW, 4)
    masks = torch.cat([colours, -colours[:, :1]], dim=1) * 10 + 0.01
    return torch.eye(4, 5).repeat(batch, 1, 1) * 20, masks


def compared(change) -> Comparison:
    images = [Image.fromarray(np.full((40, 60, 3), grey, np.uint8)) for grey in (40, 200)]
    return compare(lambda pixels: change(*network(pixels)), network, SIZE_HW, PROCESSOR, images, INFERENCE)


def test_equal_logits_pass_and_segments_match():
    found = compared(lambda classes, masks: (classes, masks))
    assert found.passes and found.flipped == found.other_classes == found.mask_logits.largest == 0
    assert found.segments == found.segments_alike > 0 and found.segments_only_in_file == 0
    assert (found.noise_inputs, found.images, found.mask_hw) == (3, 2, (16, 24))
    assert found.class_logits.largest_logit == 20


def test_rounding_passes():
    found = compared(lambda classes, masks: (classes * (1 + 1e-6), masks * (1 - 1e-6)))
    assert found.passes and found.mask_logits.typical == pytest.approx(1e-6, rel=0.2)


def not_finite(classes: Tensor, masks: Tensor) -> Outputs:
    masks = masks.clone()
    masks[0, 0, 0, 0] = math.nan
    return classes, masks


def one_query_flipped(classes: Tensor, masks: Tensor) -> Outputs:
    masks = masks.clone()
    masks[:, 0] *= -1
    return classes, masks


@pytest.mark.parametrize(
    "fault",
    [
        not_finite,
        one_query_flipped,
        lambda classes, masks: (classes, masks * 1.001),  # half floats on the way
        lambda classes, masks: (classes * 1.001, masks),
        lambda classes, masks: (classes.flip(-1), masks),
        lambda classes, masks: (classes, masks.roll(1, -1)),
        lambda classes, masks: (classes[:1].expand_as(classes), masks[:1].expand_as(masks)),  # one image for all
    ],
)
def test_faults_do_not_pass(fault):
    assert not compared(fault).passes


def test_a_flipped_mask_is_counted_and_its_segment_does_not_match():
    found = compared(one_query_flipped)
    assert found.flipped > MOST_FLIPPED and found.segments_alike < found.segments
