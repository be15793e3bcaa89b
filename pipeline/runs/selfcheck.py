"""Does this device compute what the checkpoint says, and how fast? For jobs/selfcheck.py, where the run would be done.

The network as a run uses it, with whatever makes it fast there (kernels, graphs, packed weights, bf16, resizing on the
device), against the same checkpoint on the CPU in float32, its layers as PyTorch computes them. What is made of the
outputs is computed on either side's device, with the same code where both are CPUs. Nothing is written.
"""

import itertools
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from m2f_core.layers.deformable_attention import DeformableAttention
from m2f_core.masks.rle import decode
from pipeline.cluster.allotment import allot, run_on_worker
from pipeline.cluster.resources import connect
from pipeline.config import SelfCheckSettings
from pipeline.errors import ImageError, RunError
from pipeline.guard.watchdog import start_watchdog
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import ListedImage, list_images, refuse_empty
from pipeline.runs.check import check
from pipeline.runs.specs import segment_spec
from pipeline.segment.checkpoint import stage_model
from pipeline.segment.decode import decode_image
from pipeline.segment.device_model import Network
from pipeline.segment.postprocess import FoundSegment, found_segments, infer
from pipeline.segment.segmenter import Segmenter, SegmentSpec
from pipeline.telemetry.costs import ON_DEVICE, Costs

_SAME_IOU = 0.9  # of the masks of a segment that both sides have found
# What rounding explains. A batch of another size already changes one mask bit in two million in float32; bfloat16 has
# 8 bits of mantissa.
_MOST_FLIPPED = {"fp32": 1e-4, "bf16": 1e-2}
_MOST_OTHER_CLASSES = {"fp32": 1e-2, "bf16": 1e-1}  # of queries; those that are unsure have several near the top


@dataclass(frozen=True)
class Comparison:
    """The device's results for some images beside those of plain PyTorch."""

    num_images: int
    class_logits: float  # largest difference
    mask_logits: float  # largest difference
    flipped: float  # share of the mask logits, of all queries, that lie on the other side of 0
    other_classes: float  # share of the queries whose most likely class is another one
    segments: int  # that plain PyTorch found
    segments_alike: int  # of them, found by the device too: the same class, nearly the same mask
    segments_only_here: int  # found by the device alone


@dataclass(frozen=True)
class Timing:
    """Of a model actor, without reading and writing."""

    images_per_second: float  # decoding, model, reduction, encoding
    device_ms: dict[str, float]  # an image, by step
    batch_size: int  # images, at most
    max_batch_pixels: int | None  # what memory allowed, where it ran out


@dataclass(frozen=True)
class SelfCheck:
    """What came out."""

    device: str
    precision: str
    comparison: Comparison
    timing: Timing

    @property
    def passes(self) -> bool:
        """Whether rounding explains the differences."""
        return (
            self.comparison.flipped <= _MOST_FLIPPED[self.precision]
            and self.comparison.other_classes <= _MOST_OTHER_CLASSES[self.precision]
        )


def selfcheck(settings: SelfCheckSettings) -> SelfCheck:
    """Compare and time on a worker with the resources of a model actor. RunError where a run could not start."""
    checked = check(settings)
    refuse_empty(checked.settings.input)
    images = list(itertools.islice(list_images(checked.settings.input), settings.limit))
    allotment = allot(settings, connect())
    spec = segment_spec(checked.settings, checked.model, allotment)
    return run_on_worker(allotment, _check_on_worker, spec, checked.settings.input, images)


def _check_on_worker(spec: SegmentSpec, source: str, images: Sequence[ListedImage]) -> SelfCheck:
    start_watchdog(spec.step_timeout, "the self-check has failed")
    encoded, decoded = _decodable(_read(source, images, spec.step_timeout), spec)
    segmenter = Segmenter(spec)
    comparison = compare(segmenter.network, plain_network(spec), decoded)
    return SelfCheck(_name(segmenter.network.device), spec.precision, comparison, time_actor(segmenter, encoded))


def plain_network(spec: SegmentSpec) -> Network:
    """The checkpoint of `spec` on the CPU, its layers as PyTorch computes them, in float32."""
    checkpoint = stage_model(spec.model, spec.weights_sha256)
    network = Network(
        checkpoint,
        device="cpu",
        precision="fp32",
        preprocess=spec.preprocess,
        image_size=spec.image_size,
        inference=spec.inference,
    )
    network.model = checkpoint.load().requires_grad_(False)
    for module in network.model.modules():
        if isinstance(module, DeformableAttention):
            module.train()  # the way that has a gradient is PyTorch's; the other is a kernel of ours on a CPU too
    return network


def compare(network: Network, plain: Network, images: Sequence[Image.Image]) -> Comparison:
    """One image at a time, at least one. Logits that are no numbers count as differing without end."""
    class_logits = mask_logits = 0.0
    flipped = cells = others = queries = segments = alike = only_here = 0
    for number, image in enumerate(images):
        geometry = plain.processor.geometry(image.height, image.width)
        here, there = ([one.prepare(image, geometry, f"image {number}")] for one in (network, plain))
        (classes_here, masks_here), (classes_there, masks_there) = (
            network.decoder_outputs(here),
            plain.decoder_outputs(there),
        )
        cells += masks_here.numel()
        queries += classes_here.shape[1]
        if not all(logits.isfinite().all() for logits in (classes_here, masks_here, classes_there, masks_there)):
            class_logits = mask_logits = math.inf
            flipped += masks_here.numel()
            others += classes_here.shape[1]
            continue
        class_logits = max(class_logits, float((classes_here - classes_there).abs().max()))
        mask_logits = max(mask_logits, float((masks_here - masks_there).abs().max()))
        flipped += int(((masks_here >= 0) != (masks_there >= 0)).sum())
        others += int((classes_here.argmax(-1) != classes_there.argmax(-1)).sum())
        found_here = found_segments(network.run(here, Costs())[0])  # reduced on the device, as in a run
        # A CPU takes seconds for a forward pass: one will do.
        found_there = found_segments(infer(classes_there[0], masks_there[0], geometry, plain.inference))
        pairs = _count_alike(found_here, found_there, image.height, image.width)
        segments += len(found_there)
        alike += pairs
        only_here += len(found_here) - pairs
    return Comparison(
        len(images), class_logits, mask_logits, flipped / cells, others / queries, segments, alike, only_here
    )


def time_actor(segmenter: Segmenter, encoded: Sequence[bytes], seconds: float = 10.0) -> Timing:
    """Segment the images again and again, for so long, in batches as large as a run's, after one warm-up."""
    batch_size = segmenter.spec.batch_size
    many = list(itertools.islice(itertools.cycle(encoded), max(len(encoded), 4 * batch_size)))
    _segment_all(segmenter, many, Costs())  # kernels compile, graphs are recorded, memory runs out
    costs, num_images, started = Costs(), 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        _segment_all(segmenter, many, costs)
        num_images += len(many)
    ms = {step: round(1e3 * costs.seconds.get(step, 0.0) / num_images, 3) for step in ON_DEVICE}
    was_lowered = segmenter.max_batch_pixels < segmenter.spec.max_batch_pixels
    return Timing(num_images / passed, ms, batch_size, segmenter.max_batch_pixels if was_lowered else None)


def _segment_all(segmenter: Segmenter, encoded: Sequence[bytes], costs: Costs) -> None:
    """RunError where an image fails: failures are quick, and would pass for speed."""
    for result in segmenter.segment(encoded, costs=costs):
        if isinstance(result, ImageError):
            raise RunError(f"an image failed in batches of {segmenter.spec.batch_size}: {result}")


def _read(source: str, images: Sequence[ListedImage], step_timeout: float) -> list[bytes]:
    stage = FetchImages(source, step_timeout)
    read = [stage.fetch(image.image_key, image.etag, image.size_bytes) for image in images]
    encoded = [data for data in read if isinstance(data, bytes)]
    if not encoded:
        raise RunError(f"none of the first {len(images)} images can be read; the first error: {read[0]!s}")
    return encoded


def _decodable(encoded: Sequence[bytes], spec: SegmentSpec) -> tuple[list[bytes], list[Image.Image]]:
    """Those that can be decoded, as they are and decoded."""
    good: list[bytes] = []
    images: list[Image.Image] = []
    error: ImageError | None = None
    for data in encoded:
        try:
            images.append(decode_image(data, max_pixels=spec.max_image_pixels, apply_exif=spec.exif))
            good.append(data)
        except ImageError as undecodable:
            error = undecodable
    if not images:
        raise RunError(f"none of the first {len(encoded)} images can be decoded; the last error: {error}")
    return good, images


def _count_alike(
    found_here: Sequence[FoundSegment], found_there: Sequence[FoundSegment], height: int, width: int
) -> int:
    """How many pairs of the same class and nearly the same mask there are, each segment in one at most."""
    left = [(segment.class_id, decode(segment.mask.counts, height, width)) for segment in found_here]
    for segment in found_there:
        mask_HW = decode(segment.mask.counts, height, width)
        for place, (class_id, other_HW) in enumerate(left):
            if class_id == segment.class_id and _is_nearly(mask_HW, other_HW):
                del left[place]
                break
    return len(found_here) - len(left)


def _is_nearly(mask_HW: NDArray[np.bool_], other_HW: NDArray[np.bool_]) -> bool:
    both, either = np.count_nonzero(mask_HW & other_HW), np.count_nonzero(mask_HW | other_HW)
    return bool(both >= _SAME_IOU * either)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
