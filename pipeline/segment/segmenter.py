"""Encoded images -> segments: threads decode ahead of the device, and images are batched by padded size.

Only images of equal padded size share a batch, because the network does not mask padding: a batch then gives the
results of single images, up to float rounding. When memory runs out, batches become smaller and stay smaller.
"""

import logging
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch

from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.image_size import ImageSize
from pipeline.decoding.decode import decode_image, measure_image
from pipeline.errors import ErrorCode, ImageError, InvalidResultError
from pipeline.guard import planted_faults
from pipeline.guard.memory import MemoryBound, machine_memory, private_bytes, room_to_work
from pipeline.guard.watchdog import watch
from pipeline.look_ahead import look_ahead
from pipeline.segment.batches import plan_batches
from pipeline.segment.checkpoint import stage_model
from pipeline.segment.device_model import Network, PreparedImage
from pipeline.segment.inference_settings import InferenceSettings
from pipeline.segment.postprocess import FoundSegment, found_segments
from pipeline.store.filesystem import one_line
from pipeline.telemetry.costs import Costs
from pipeline.telemetry.metrics import BATCH_FILL, BATCH_IMAGES, RETRIES, on_device

logger = logging.getLogger(__name__)

# In multiples of the network's input size. With 1 no resize remains, and the pixels differ by up to 30 levels; with
# 1.25 they differ by a third of that.
_LEAST_DECODED = 1.25
_BATCHES_AHEAD = 2  # decoded batches waiting for the device, per shard in the actor


@dataclass(frozen=True)
class SegmentSpec:
    """Everything a model actor needs; tiny, because large constructor arguments break actor restarts (ray#53727)."""

    model: str
    weights_sha256: str
    preprocess: str
    image_size: ImageSize | None
    exif: bool
    max_image_pixels: int
    inference: InferenceSettings
    precision: str  # fp32 | bf16
    device: str  # cuda | cpu
    threads: int  # decoding threads; on a CPU also those of the model
    batch_size: int  # most images in a batch
    max_batch_pixels: int  # most padded pixels in a batch; a single image may have more
    gpu_share: float = 1.0  # of the GPU, and of its memory, for this process
    shard_bytes: int = 512 * 2**20  # most encoded bytes in a shard
    step_timeout: float = 600.0  # seconds for one decode or one batch
    scaled_jpeg: bool = False  # decode large JPEGs at a fraction of their size
    planted_faults: bool = False  # tests and drills: look for pipeline.guard.planted_faults in the images


@dataclass(frozen=True)
class SegmentedImage:
    """The result for one image, in the frame of the decoded (and EXIF-oriented) image."""

    height: int
    width: int
    segments: tuple[FoundSegment, ...]


class Segmenter:
    """Encoded images -> segments with one model on one device. Thread safe; knows nothing of Ray."""

    def __init__(self, spec: SegmentSpec, busy: Callable[[float], None] = lambda seconds: None):
        """`busy` is told after each batch for how many seconds the device has worked on it."""
        self.spec = spec
        self.busy = busy
        if spec.device == "cpu":
            torch.set_num_threads(spec.threads)
        self.network = load_network(spec)
        self.decoders = ThreadPoolExecutor(spec.threads, thread_name_prefix="decode")
        self.max_batch_pixels = spec.max_batch_pixels  # lowered once memory has run out

    def memory_bound(self, *, decoding: int, batch_size: int) -> MemoryBound:
        """How far this process may grow from now on, with `decoding` images decoded at once and batches this large."""
        processor = self.network.processor
        side = math.isqrt(self.spec.max_image_pixels)  # of the largest image, if images keep their size
        largest_hw = processor.geometry(*(processor.size.largest_hw or (side, side))).padded_hw
        most_pixels = batch_size * largest_hw[0] * largest_hw[1]
        room = room_to_work(
            encoded_bytes=2 * self.spec.shard_bytes,  # two shards at a time in an actor
            max_image_pixels=self.spec.max_image_pixels,
            decoding=decoding,
            batch_pixels=max(largest_hw[0] * largest_hw[1], min(most_pixels, self.spec.max_batch_pixels)),
            device=self.spec.device,
        )
        return MemoryBound(private_bytes(), room)

    def segment(
        self, encoded: Sequence[bytes | None], names: Sequence[str] | None = None, costs: Costs | None = None
    ) -> list[SegmentedImage | ImageError | None]:
        """One result per image, in order; None for images without bytes.

        If a step hangs, the watchdog names the image from `names`; without names, it gives the image's number. The time
        of each step is added to `costs`.
        """
        names, costs = names or [f"image {index}" for index in range(len(encoded))], costs or Costs()
        results: list[Any] = list(self.decoders.map(self._measure, encoded, names, repeat(costs)))
        sizes = [r.padded_hw if isinstance(r, ImageGeometry) else None for r in results]
        batches = plan_batches(sizes, self._most_in_a_batch)
        prepare = [[(encoded[i], results[i], names[i], costs) for i in batch] for batch in batches]
        for batch, prepared in zip(batches, self._prepare_ahead(prepare), strict=True):
            ready = [(i, p) for i, p in zip(batch, prepared, strict=True) if isinstance(p, PreparedImage)]
            for index, outcome in zip(batch, prepared, strict=True):
                results[index] = outcome
            for (index, _), result in zip(ready, self._infer([p for _, p in ready], costs), strict=True):
                results[index] = result
        return results

    def _measure(self, data: bytes | None, name: str, costs: Costs) -> ImageGeometry | ImageError | None:
        """Read the size from the header alone, so that images can be grouped before any image is decoded."""
        if data is None:
            return None
        try:
            with watch("reading the header of", name), costs.of_thread("decode"):
                height, width = measure_image(data, max_pixels=self.spec.max_image_pixels, apply_exif=self.spec.exif)
            return self.network.processor.geometry(height, width)
        except ImageError as error:
            return error
        except ValueError as error:  # the checkpoint's pad_size is smaller than the image
            return ImageError(ErrorCode.TOO_LARGE, one_line(error))

    def _prepare(self, data: bytes, geometry: ImageGeometry, name: str, costs: Costs) -> PreparedImage | ImageError:
        at_least_hw = least_decoded(geometry) if self.spec.scaled_jpeg else None
        try:
            with watch("decoding", name):
                if self.spec.planted_faults:
                    planted_faults.trip(data)
                with costs.of_thread("decode"):
                    image = decode_image(
                        data,
                        max_pixels=self.spec.max_image_pixels,
                        apply_exif=self.spec.exif,
                        at_least_hw=at_least_hw,
                    )
                with costs.of_thread("resize"):
                    return self.network.prepare(image, geometry, name)
        except ImageError as error:
            return error
        except MemoryError:
            return ImageError(ErrorCode.TOO_LARGE, "the machine has too little memory to decode the image")

    def _prepare_ahead(self, batches: Sequence[Sequence[Any]]) -> Iterator[list[PreparedImage | ImageError]]:
        def submit(batch: Sequence[Any]) -> _PendingBatch:
            return _PendingBatch([self.decoders.submit(self._prepare, *image) for image in batch])

        return look_ahead(submit, batches, lambda: 0 if _host_is_short() else _BATCHES_AHEAD)

    def _infer(self, images: Sequence[PreparedImage], costs: Costs) -> list[SegmentedImage | ImageError]:
        """Run the model and the reduction on images of one padded size; only the image at fault gets the error.

        A batch that needs too much memory is halved. If a batch fails for another reason, its images run one by one.
        """
        if not images:
            return []
        if len(images) > (most := self._most_in_a_batch(images[0].geometry.padded_hw)):
            return [*self._infer(images[:most], costs), *self._infer(images[most:], costs)]
        try:
            return self._run(images, costs)
        except InvalidResultError:
            raise  # a bug of ours, not of the image
        except Exception as error:
            out_of_memory = _is_out_of_memory(error)
            said = f"{type(error).__name__}: {one_line(error)}"
        # This runs outside of the handler, because the traceback there holds the failed batch's tensors; after an
        # out-of-memory error the next try needs that memory.
        self.network.exit_if_lost()
        if len(images) > 1:
            if out_of_memory:
                RETRIES.add(cause="out_of_memory")
                self._make_batches_smaller(images)
                return self._infer(images, costs)
            RETRIES.add(cause="batch_failed")
            return [result for image in images for result in self._infer([image], costs)]
        if out_of_memory:
            height, width = images[0].geometry.padded_hw
            said = f"{self.spec.device} has too little memory for the image alone ({height} x {width} padded): {said}"
        return [ImageError(ErrorCode.INFERENCE_FAILED, said)]

    def _most_in_a_batch(self, padded_hw: tuple[int, int]) -> int:
        """How many images of that size a batch may hold, by --batch-size and the memory limits found so far."""
        most = min(self.spec.batch_size, self.max_batch_pixels // (padded_hw[0] * padded_hw[1]))
        if most > 1 and _host_is_short():
            most //= 2
        return max(1, most)

    def _make_batches_smaller(self, failed: Sequence[PreparedImage]) -> None:
        """From now on limit batches to half the padded pixels of the failed batch: the next would fail as well."""
        self.network.free_memory()
        most = len(failed) // 2 * failed[0].padded_pixels
        self.max_batch_pixels = min(most, self.max_batch_pixels)
        height, width = failed[0].geometry.padded_hw
        logger.warning(
            f"{self.spec.device} on {socket.gethostname()} has too little memory for {len(failed)} images of "
            f"{height} x {width}; from now on a batch has at most {most} padded pixels (--max-batch-pixels {most})"
        )

    def _run(self, images: Sequence[PreparedImage], costs: Costs) -> list[SegmentedImage | ImageError]:
        before = on_device(costs.seconds)
        found = self.network.run(images, costs)
        self.busy(on_device(costs.seconds) - before)  # of one shard, one batch at a time is on the device
        BATCH_IMAGES.observe(len(images))
        BATCH_FILL.observe(len(images) / self._most_in_a_batch(images[0].geometry.padded_hw))
        with costs.of_thread("encode"):
            return [
                SegmentedImage(*image.geometry.original_hw, found_segments(result))
                for image, result in zip(images, found, strict=True)
            ]


def least_decoded(geometry: ImageGeometry) -> tuple[int, int]:
    """The smallest (height, width) at which a JPEG may be decoded."""
    height, width = geometry.resized_hw
    return math.ceil(_LEAST_DECODED * height), math.ceil(_LEAST_DECODED * width)


def load_network(spec: SegmentSpec) -> Network:
    """The network that `spec` names; its weights must be those that the run was planned with."""
    return Network(
        stage_model(spec.model, spec.weights_sha256),
        device=spec.device,
        precision=spec.precision,
        preprocess=spec.preprocess,
        image_size=spec.image_size,
        inference=spec.inference,
        gpu_share=spec.gpu_share,
    )


@dataclass(frozen=True)
class _PendingBatch:
    """The images of a batch while threads decode them, each in its own task."""

    images: list[Future[PreparedImage | ImageError]]

    def result(self) -> list[PreparedImage | ImageError]:
        return [image.result() for image in self.images]

    def cancel(self) -> bool:
        cancelled = [image.cancel() for image in self.images]  # cancel all, even if the first cannot be
        return all(cancelled)


def _host_is_short() -> bool:
    """Whether host memory is so short that fewer images should wait and batches should be smaller."""
    return machine_memory().is_short


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might succeed. On a CPU, PyTorch has no exception type for lack of memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in said or "not enough memory" in said)
