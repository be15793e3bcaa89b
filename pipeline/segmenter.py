"""Encoded images -> segments: decoding in threads ahead of the device, batches of one padded size, memory that ends.

Images are batched only with images of equal padded size, because the network does not mask padding: a batch then gives
what single images give, to float rounding. Where memory runs out, batches become smaller and stay so.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch

from m2f_core.checkpoint import load_checkpoint, read_preprocessor_config
from m2f_core.geometry import ImageGeometry
from m2f_core.image_processor import ImageProcessor
from m2f_core.image_size import ImageSize
from m2f_core.inference import prepare_for_inference
from pipeline import planted_faults
from pipeline.batches import look_ahead, plan_batches
from pipeline.costs import Costs
from pipeline.decode import decode_image, measure_image
from pipeline.errors import ErrorCode, ImageError, InvalidResultError, RunError
from pipeline.inference_settings import InferenceSettings
from pipeline.memory import MemoryBound, machine_memory, private_bytes, room_to_work
from pipeline.reduce import FoundSegment, found_segments, infer, warm_up
from pipeline.storage import one_line
from pipeline.watchdog import watch
from pipeline.weights import stage_model

logger = logging.getLogger(__name__)

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
    batch_size: int
    shard_bytes: int = 512 * 2**20  # encoded, at most
    step_timeout: float = 600.0  # seconds for one decode or one batch
    planted_faults: bool = False  # tests and drills: look for pipeline.planted_faults in the images


@dataclass(frozen=True)
class SegmentedImage:
    """The result for one image, in the frame of the decoded (and EXIF-oriented) image."""

    height: int
    width: int
    segments: tuple[FoundSegment, ...]


@dataclass(frozen=True)
class PreparedImage:
    """An image decoded and resized, ready to be stacked: uint8 [h, w, 3]."""

    pixels_hw3: np.ndarray
    geometry: ImageGeometry
    name: str

    @property
    def padded_pixels(self) -> int:
        return self.geometry.padded_hw[0] * self.geometry.padded_hw[1]


class Segmenter:
    """Encoded images -> segments with one model on one device. Thread safe; knows nothing of Ray."""

    def __init__(self, spec: SegmentSpec):
        self.spec = spec
        self.device = torch.device(spec.device)
        # "fp32" means it: PyTorch's default lets convolutions drop to TF32, 10 bits of mantissa.
        torch.backends.cudnn.allow_tf32 = spec.precision != "fp32"
        if self.device.type == "cpu":
            torch.set_num_threads(spec.threads)
        elif not torch.cuda.is_available():
            raise RunError(
                f"Ray gave this actor a GPU, but PyTorch on {socket.gethostname()} sees none; "
                "install a CUDA build of PyTorch there, or use --device cpu"
            )
        folder = stage_model(spec.model, spec.weights_sha256)
        self.model = prepare_for_inference(load_checkpoint(folder), self.device, spec.precision)
        self.processor = ImageProcessor.from_preprocessor_config(
            read_preprocessor_config(folder), spec.preprocess, spec.image_size
        )
        warm_up(spec.inference)
        self.processor.warm_up()
        self.decoders = ThreadPoolExecutor(spec.threads, thread_name_prefix="decode")
        # Ray may call from several threads at once, so that one shard decodes while another is on the device.
        self.device_lock = threading.Lock()
        # What a batch may hold since memory ran out, in padded pixels; None as long as it never did.
        self.most_padded_pixels: int | None = None

    def memory_bound(self, *, decoding: int, batch_size: int) -> MemoryBound:
        """How far this process may grow from now on, with so many images being decoded and in a batch at a time."""
        size = self.processor.size
        largest_hw = self.processor.geometry(*(size.edges or size.fixed_hw or ())).padded_hw
        room = room_to_work(
            encoded_bytes=2 * self.spec.shard_bytes,  # two shards at a time in an actor
            max_image_pixels=self.spec.max_image_pixels,
            decoding=decoding,
            batch_size=batch_size,
            padded_hw=largest_hw,
            device=self.device.type,
        )
        return MemoryBound(private_bytes(), room)

    @contextlib.contextmanager
    def device_lent(self) -> Iterator[None]:
        """Meanwhile no batch runs here and the device's memory is another process's: the model waits in the host's."""
        with self.device_lock:
            self.model.to("cpu")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            try:
                yield
            finally:
                self.model.to(self.device)

    def segment(
        self, encoded: Sequence[bytes | None], names: Sequence[str] | None = None, costs: Costs | None = None
    ) -> list[SegmentedImage | ImageError | None]:
        """One result per image, in order; None where there were no bytes to begin with.

        `names` say which images they are where a step hangs; without them it is their number. What the steps take is
        added to `costs`.
        """
        names, costs = names or [f"image {index}" for index in range(len(encoded))], costs or Costs()
        results: list[Any] = list(self.decoders.map(self._measure, encoded, names, repeat(costs)))
        sizes = [r.padded_hw if isinstance(r, ImageGeometry) else None for r in results]
        batches = plan_batches(sizes, self.spec.batch_size)
        prepare = [[(encoded[index], names[index], costs) for index in batch] for batch in batches]
        for batch, prepared in zip(batches, self._prepare_ahead(prepare), strict=True):
            ready = [(i, p) for i, p in zip(batch, prepared, strict=True) if isinstance(p, PreparedImage)]
            for index, outcome in zip(batch, prepared, strict=True):
                results[index] = outcome
            for (index, _), result in zip(ready, self._infer([p for _, p in ready], costs), strict=True):
                results[index] = result
        return results

    def _measure(self, data: bytes | None, name: str, costs: Costs) -> ImageGeometry | ImageError | None:
        """Sizes from the header alone, so that images can be grouped before any of them is decoded."""
        if data is None:
            return None
        try:
            with watch("reading the header of", name), costs.of_thread("decode"):
                height, width = measure_image(data, max_pixels=self.spec.max_image_pixels, apply_exif=self.spec.exif)
        except ImageError as error:
            return error
        return self.processor.geometry(height, width)

    def _prepare(self, data: bytes, name: str, costs: Costs) -> PreparedImage | ImageError:
        try:
            with watch("decoding", name):
                if self.spec.planted_faults:
                    planted_faults.trip(data)
                with costs.of_thread("decode"):
                    image = decode_image(data, max_pixels=self.spec.max_image_pixels, apply_exif=self.spec.exif)
                geometry = self.processor.geometry(image.height, image.width)
                with costs.of_thread("resize"):
                    return PreparedImage(self.processor.resize(image), geometry, name)
        except ImageError as error:
            return error
        except MemoryError:
            return ImageError(ErrorCode.TOO_LARGE, "the machine has no memory to decode it")

    def _prepare_ahead(self, batches: Sequence[Sequence[Any]]) -> Iterator[list[PreparedImage | ImageError]]:
        def submit(batch: Sequence[Any]) -> list[Future[PreparedImage | ImageError]]:
            return [self.decoders.submit(self._prepare, *image) for image in batch]

        for futures in look_ahead(submit, batches, lambda: 0 if _host_is_short() else _BATCHES_AHEAD):
            yield [future.result() for future in futures]

    def _infer(self, images: Sequence[PreparedImage], costs: Costs) -> list[SegmentedImage | ImageError]:
        """Model and reduction of images of one padded size; where that fails, only the culprit gets the error.

        A batch that takes too much memory is halved, any other that fails is done image by image.
        """
        if not images:
            return []
        if len(images) > (most := self._most_in_a_batch(images[0])):
            return [*self._infer(images[:most], costs), *self._infer(images[most:], costs)]
        try:
            return self._forward(images, costs)
        except InvalidResultError:
            raise  # a bug of ours, not of the image
        except Exception as error:
            out_of_memory = _is_out_of_memory(error)
            said = f"{type(error).__name__}: {one_line(error)}"
        # Outside of the handler, whose traceback holds the failed batch's tensors: after an out-of-memory error the
        # next try needs that memory.
        self._exit_if_device_is_lost()
        if len(images) > 1:
            if out_of_memory:
                self._make_batches_smaller(images)
                return self._infer(images, costs)
            return [result for image in images for result in self._infer([image], costs)]
        if out_of_memory:
            height, width = images[0].geometry.padded_hw
            said = f"{self.device.type} has not the memory for it ({height} x {width} padded), alone in a batch: {said}"
        return [ImageError(ErrorCode.INFERENCE_FAILED, said)]

    def _most_in_a_batch(self, image: PreparedImage) -> int:
        """How many images like this one a batch may hold, after what is known of the memory."""
        most = self.spec.batch_size
        if self.most_padded_pixels is not None:
            most = min(most, self.most_padded_pixels // image.padded_pixels)
        if most > 1 and _host_is_short():
            most //= 2
        return max(1, most)

    def _make_batches_smaller(self, failed: Sequence[PreparedImage]) -> None:
        """Batches of half the padded pixels of this one, from now on: the next would fail as it did."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        most = len(failed) // 2 * failed[0].padded_pixels
        self.most_padded_pixels = min(most, self.most_padded_pixels or most)
        height, width = failed[0].geometry.padded_hw
        logger.warning(
            f"{self.device.type} on {socket.gethostname()} has not the memory for {len(failed)} images of "
            f"{height} x {width}; from now on {len(failed) // 2} of them are a batch (--batch-size {len(failed) // 2})"
        )

    def _exit_if_device_is_lost(self) -> None:
        """An illegal access or a bus error poisons CUDA for the whole process: every later image would fail at once.

        Ray then gives the shard to a fresh process.
        """
        if self.device.type == "cuda":
            try:
                torch.zeros(1, device=self.device).add_(1).cpu()
            except torch.OutOfMemoryError:
                pass
            except RuntimeError:
                os._exit(1)

    def _forward(self, images: Sequence[PreparedImage], costs: Costs) -> list[SegmentedImage | ImageError]:
        padded_hw = images[0].geometry.padded_hw
        assert all(image.geometry.padded_hw == padded_hw for image in images), "a batch has one padded size"
        bf16 = self.spec.precision == "bf16"
        what = images[0].name if len(images) == 1 else f"{len(images)} images from {images[0].name} on"
        with self.device_lock, watch("segmenting", what), torch.inference_mode():
            with costs.passing("model"):
                pixels_B3HW = self.processor.to_batch([i.pixels_hw3 for i in images], padded_hw, self.device)
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                    output = self.model(pixels_B3HW)
                logits_BQK1, masks_BQhw = output.class_queries_logits.float(), output.masks_queries_logits.float()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # else the reduction would be charged with the model's time
            with costs.passing("reduce"):
                reduced = [
                    infer(logits_QK1, masks_Qhw, image.geometry, self.spec.inference)
                    for image, logits_QK1, masks_Qhw in zip(images, logits_BQK1, masks_BQhw, strict=True)
                ]
        with costs.of_thread("encode"):
            return [
                SegmentedImage(*image.geometry.original_hw, found_segments(result))
                for image, result in zip(images, reduced, strict=True)
            ]


def _host_is_short() -> bool:
    """Whether other processes need the memory more than images that wait and batches that are large."""
    machine = machine_memory()
    return machine is not None and machine.is_short


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might not have raised it. On a CPU PyTorch has no type of its own for that."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("DefaultCPUAllocator" in said or "not enough memory" in said)
