"""Does this device compute the results of the checkpoint, and how fast? For jobs/selfcheck.py, on the run's cluster.

The check compares two networks. The first is the network as a run uses it, with everything that makes it fast on this
device (kernels, graphs, packed weights, bf16, resizing on the device). The second is the same checkpoint on the CPU in
float32, with its layers as PyTorch computes them. Each side derives the segments from its outputs on its own device; if
both devices are CPUs, both sides use the same code. Nothing is written.
"""

import itertools
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from m2f_core.layers.deformable_attention import DeformableAttention
from pipeline.cluster.allotment import allot, run_on_worker
from pipeline.cluster.resources import connect
from pipeline.config import SelfCheckSettings
from pipeline.decoding.decode import decode_image, measure_image, open_image
from pipeline.errors import ImageError, RunError
from pipeline.guard.watchdog import start_watchdog
from pipeline.input_spec import InputSpec
from pipeline.inputs.fetch import FetchImages
from pipeline.inputs.listing import first_images, refuse_empty
from pipeline.inputs.reads import ListedImage, ReadImage
from pipeline.runs.check import check
from pipeline.runs.specs import segment_spec
from pipeline.segment.checkpoint import stage_model
from pipeline.segment.device_model import Network
from pipeline.segment.postprocess import count_alike, found_segments, infer, outputs_of_images
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentSpec
from pipeline.telemetry.costs import ON_DEVICE, Costs

# Rounding explains differences up to these bounds. A batch of another size already changes one mask bit in two million
# in float32; bfloat16 has 8 bits of mantissa, and so have the wide layers of int8.
_MOST_FLIPPED = {"fp32": 1e-4, "bf16": 1e-2, "int8": 2e-2}
# Share of the queries; an unsure query has several classes near the top.
_MOST_OTHER_CLASSES = {"fp32": 1e-2, "bf16": 1e-1, "int8": 1e-1}


@dataclass(frozen=True)
class Comparison:
    """How the device's results for some images differ from the results of plain PyTorch."""

    num_images: int
    class_logits: float  # largest difference
    mask_logits: float  # largest difference
    flipped: float  # share of the mask logits, of all queries, that lie on the other side of 0
    other_classes: float  # share of the queries whose most likely class differs
    segments: int  # found by plain PyTorch
    segments_alike: int  # of these, found by the device too: the same class, nearly the same mask
    segments_only_here: int  # found by the device alone


@dataclass(frozen=True)
class Timing:
    """The speed of a model actor, without reading and writing."""

    images_per_second: float  # includes decoding, model, reduction, encoding
    device_ms: dict[str, float]  # per image, by step
    batch_size: int  # the most images in one batch
    max_batch_pixels: int | None  # the limit that memory allowed; None if memory did not run out


@dataclass(frozen=True)
class SelfCheck:
    """The result of the self-check."""

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
    """Compare and time on a worker with the resources of a model actor. RunError if a run could not start."""
    checked = check(settings)
    refuse_empty(checked.inputs)
    images = [ListedImage(**row) for row in first_images(checked.inputs, settings.limit).to_pylist()]
    allotment = allot(settings, connect(label_keys=settings.label_keys()))
    spec = segment_spec(checked.settings, checked.model, allotment)
    return run_on_worker(allotment, _check_on_worker, spec, checked.inputs, images)


def _check_on_worker(spec: SegmentSpec, inputs: InputSpec, images: Sequence[ListedImage]) -> SelfCheck:
    start_watchdog(spec.step_timeout, "the self-check has failed")
    encoded, decoded = _decodable(_read(inputs, images, spec.step_timeout), spec)
    segmenter = Segmenter(spec)
    comparison = compare(segmenter.network, plain_network(spec), decoded)
    return SelfCheck(_name(segmenter.network.device), spec.precision, comparison, time_actor(segmenter, encoded))


def plain_network(spec: SegmentSpec) -> Network:
    """The checkpoint of `spec` on the CPU in float32, with its layers as PyTorch computes them."""
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
    network.model.set_task(spec.inference.task)
    for module in network.model.modules():
        if isinstance(module, DeformableAttention):
            module.train()  # in training mode it uses PyTorch's code; otherwise a kernel of ours, on a CPU too
    return network


def compare(network: Network, plain: Network, images: Sequence[Image.Image]) -> Comparison:
    """Compare image by image, at least one image. Logits that are not finite count as infinitely different."""
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
        inferred = network.run(here, Costs())[0]  # reduced on the device, as in a run
        found_here = found_segments(inferred.result, inferred.embeddings)
        # A forward pass takes seconds on a CPU, so the outputs above are used again.
        [logits], [masks] = (outputs_of_images(output, [geometry]) for output in (classes_there, masks_there))
        found_there = found_segments(infer(logits, masks, geometry, plain.inference))
        pairs = count_alike(found_here, found_there, image.height, image.width)
        segments += len(found_there)
        alike += pairs
        only_here += len(found_here) - pairs
    return Comparison(
        len(images), class_logits, mask_logits, flipped / cells, others / queries, segments, alike, only_here
    )


def time_actor(segmenter: Segmenter, encoded: Sequence[bytes], seconds: float = 10.0) -> Timing:
    """After one warm-up, segment the images repeatedly for `seconds`, in batches as large as in a run."""
    batch_size = segmenter.spec.batch_size
    many = list(itertools.islice(itertools.cycle(encoded), max(len(encoded), 4 * batch_size)))
    _segment_all(segmenter, many, Costs())  # the warm-up: kernels compile, graphs are recorded, memory may run out
    costs, num_images, started = Costs(), 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        _segment_all(segmenter, many, costs)
        num_images += len(many)
    ms = {step: round(1e3 * costs.seconds.get(step, 0.0) / num_images, 3) for step in ON_DEVICE}
    was_lowered = segmenter.max_batch_pixels < segmenter.spec.max_batch_pixels
    return Timing(num_images / passed, ms, batch_size, segmenter.max_batch_pixels if was_lowered else None)


def _segment_all(segmenter: Segmenter, encoded: Sequence[bytes], costs: Costs) -> None:
    """Raise RunError if an image fails: failures are quick and would look like speed."""
    for result in segmenter.segment(encoded, costs=costs):
        if isinstance(result, ImageError):
            raise RunError(f"an image failed in batches of {segmenter.spec.batch_size}: {result}")


def _read(inputs: InputSpec, images: Sequence[ListedImage], step_timeout: float) -> list[bytes]:
    read = FetchImages(inputs, step_timeout).fetch_all(images)
    encoded = [one.data for one in read if isinstance(one, ReadImage)]
    if not encoded:
        raise RunError(f"none of the first {len(images)} images can be read; the first error: {read[0]!s}")
    return encoded


def _decodable(encoded: Sequence[bytes], spec: SegmentSpec) -> tuple[list[bytes], list[Image.Image]]:
    """The images that can be decoded: their encoded bytes, and what the network sees of them."""
    good: list[bytes] = []
    images: list[Image.Image] = []
    error: ImageError | None = None
    for data in encoded:
        try:
            images.append(_decoded(data, spec))
            good.append(data)
        except ImageError as undecodable:
            error = undecodable
    if not images:
        raise RunError(f"none of the first {len(encoded)} images can be decoded; the last error: {error}")
    return good, images


def _decoded(data: bytes, spec: SegmentSpec) -> Image.Image:
    """The image, or its middle tile if a run would cut the image."""
    if spec.tiling is not None:
        height, width = measure_image(data, max_pixels=spec.max_image_pixels, apply_exif=spec.exif)
        if spec.tiling.cuts(height, width):
            tiles = spec.tiling.tiles(height, width)
            regions = open_image(data, max_pixels=spec.max_image_pixels, apply_exif=spec.exif)
            return Image.fromarray(regions.read(tiles[len(tiles) // 2].box))
    return decode_image(data, max_pixels=spec.max_image_pixels, apply_exif=spec.exif)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
