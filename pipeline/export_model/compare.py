"""Does the file compute what PyTorch computes, and how fast?

Both sides get the same inputs: noise, and images as a run prepares them. PyTorch is the model as a run uses it on a
CPU, with its kernels; one input at a time. The file gets its inputs in batches, so that a batch of another size than
the example of the export is tried.

Legend: B batch, Q query, K classes, H W pixels of the normalised (and padded) image, h w cells of a mask.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.image_processor import ImageProcessor
from pipeline.export_model.formats import Run
from pipeline.segment.inference_settings import InferenceSettings
from pipeline.segment.postprocess import FoundSegment, count_alike, found_segments, infer, outputs_of_images

# Rounding explains differences up to these bounds. A logit near 0 may fall on either side, and a query that just begins
# or ceases to read a cell may answer a little differently: so a few bits and logits may differ by much, but not most by
# a little. Measured: no bit in a million, and logits by 1e-6 of their size.
MOST_FLIPPED = 1e-4  # share of the mask bits
MOST_OTHER_CLASSES = 1e-2  # share of the queries
MOST_TYPICAL = 1e-4  # mean difference, in relation to the mean size of a logit

_NOISE_INPUTS = 3
_AT_ONCE = 4  # inputs of an image with many windows
_ROUNDS = 3


@dataclass(frozen=True)
class Difference:
    """Of logits: the largest, the mean in relation to the mean size of a logit, and the largest logit."""

    largest: float
    typical: float
    largest_logit: float


@dataclass(frozen=True)
class Comparison:
    """How the file's results differ from PyTorch's."""

    mask_hw: tuple[int, int]  # of the mask logits
    noise_inputs: int
    images: int
    class_logits: Difference
    mask_logits: Difference
    flipped: float  # share of the mask logits that lie on the other side of 0
    other_classes: float  # share of the queries whose most likely class differs
    segments: int  # of the images, by PyTorch's logits
    segments_alike: int  # of these, by the file's logits too: the same class, nearly the same mask
    segments_only_in_file: int

    @property
    def passes(self) -> bool:
        """Whether rounding explains the differences. Not if a logit is not finite, which compares as false."""
        return (
            self.flipped <= MOST_FLIPPED
            and self.other_classes <= MOST_OTHER_CLASSES
            and self.class_logits.typical <= MOST_TYPICAL
            and self.mask_logits.typical <= MOST_TYPICAL
        )

    @property
    def in_words(self) -> str:
        return (
            f"{100 * self.flipped:.2g} % of the mask bits and {100 * self.other_classes:.2g} % of the classes differ, "
            f"mask logits by {self.mask_logits.typical:.1e} of their size, class logits by "
            f"{self.class_logits.typical:.1e}"
        )


@dataclass(frozen=True)
class Timing:
    """Seconds for a batch of one input, the best of a few in turn."""

    threads: int
    pytorch: float
    file: float


class _Differences:
    """Sums of logits of one kind."""

    def __init__(self) -> None:
        self.largest = self.largest_logit = self.total = self.size = 0.0

    def add(self, logits: Tensor, expected: Tensor) -> None:
        apart = (logits - expected).abs().double()
        largest = float(apart.max())
        self.largest = largest if math.isnan(largest) else max(self.largest, largest)
        self.largest_logit = max(self.largest_logit, float(expected.abs().max()))
        self.total += float(apart.sum())
        self.size += float(expected.abs().double().sum())

    def result(self) -> Difference:
        return Difference(self.largest, self.total / self.size if self.size else self.total, self.largest_logit)


def compare(
    file: Run,
    pytorch: Run,
    size_hw: tuple[int, int],
    processor: ImageProcessor,
    images: Sequence[Image.Image],
    inference: InferenceSettings,
) -> Comparison:
    """Compare the logits of noise and of the images, and the segments of the images."""
    kinds = classes, masks = _Differences(), _Differences()
    flipped = cells = others = queries = segments = alike = only_in_file = 0
    inputs: list[tuple[Tensor, ImageGeometry | None]] = [(_noise(size_hw), None)]
    for image in images:
        inputs.append(processor.inputs_of(image))
    for pixels_B3HW, geometry in inputs:
        mine = _joined([file(part) for part in pixels_B3HW.split(_AT_ONCE)])
        expected = _joined([pytorch(part) for part in pixels_B3HW.split(1)])
        for kind, logits, of_pytorch in zip(kinds, mine, expected, strict=True):
            kind.add(logits, of_pytorch)
        flipped += int(((mine[1] >= 0) != (expected[1] >= 0)).sum())
        cells += expected[1].numel()
        others += int((mine[0].argmax(-1) != expected[0].argmax(-1)).sum())
        queries += expected[0].shape[0] * expected[0].shape[1]
        # Logits that are not finite have no segments, and do not pass.
        if geometry is not None and all(logits.isfinite().all() for logits in (*mine, *expected)):
            here, there = (_segments(logits, geometry, inference) for logits in (mine, expected))
            pairs = count_alike(here, there, *geometry.original_hw)
            segments += len(there)
            alike += pairs
            only_in_file += len(here) - pairs
    return Comparison(
        (expected[1].shape[2], expected[1].shape[3]),
        _NOISE_INPUTS,
        len(images),
        classes.result(),
        masks.result(),
        flipped / cells,
        others / queries,
        segments,
        alike,
        only_in_file,
    )


def measure(file: Run, pytorch: Run, size_hw: tuple[int, int]) -> Timing:
    """The time of one input, after a first one that does not count; the two sides take turns."""
    pixels_13HW = _noise(size_hw)[:1]
    seconds = dict.fromkeys((pytorch, file), math.inf)
    for number in range(_ROUNDS + 1):
        for side in seconds:
            started = time.perf_counter()
            side(pixels_13HW)
            if number:
                seconds[side] = min(seconds[side], time.perf_counter() - started)
    return Timing(torch.get_num_threads(), seconds[pytorch], seconds[file])


def _noise(size_hw: tuple[int, int]) -> Tensor:
    """Normalised pixels; the same in each call."""
    return torch.randn(_NOISE_INPUTS, 3, *size_hw, generator=torch.Generator().manual_seed(0))


def _joined(outputs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    classes, masks = zip(*outputs, strict=True)
    return torch.cat(classes), torch.cat(masks)


def _segments(
    logits: tuple[Tensor, Tensor], geometry: ImageGeometry, inference: InferenceSettings
) -> tuple[FoundSegment, ...]:
    [classes], [masks] = (outputs_of_images(output, [geometry]) for output in logits)
    return found_segments(infer(classes, masks, geometry, inference))
