"""Encoded bytes -> segments: the actor that holds the model and keeps the device fed.

Images are batched only with images of equal padded size, because the network does not mask padding: a batch then gives
what single images give, to float rounding. Decoding runs in threads ahead of the device, also across shards, since Ray
calls the actor for the next shard while this one is on the device.
"""

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch

from m2f_core.checkpoint import CheckpointError, load_checkpoint, read_preprocessor_config
from m2f_core.geometry import ImageGeometry
from m2f_core.image_processor import ImageProcessor
from m2f_core.image_size import ImageSize
from m2f_core.rle import Rle
from pipeline.decode import decode_image, measure_image
from pipeline.errors import ErrorCode, ImageError, InvalidResultError, RunError, StoreUnavailableError
from pipeline.inference_settings import InferenceSettings
from pipeline.reduce import FoundSegment, found_segments, infer, warm_up
from pipeline.schema import SEGMENTED, pack_shard, unpack_shard
from pipeline.storage import one_line
from pipeline.weights import stage_model

_BATCHES_AHEAD = 2  # decoded batches waiting for the device, per shard in the actor

T = TypeVar("T")
R = TypeVar("R")


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
        self.model = load_checkpoint(folder).to(self.device)
        self.processor = ImageProcessor.from_preprocessor_config(
            read_preprocessor_config(folder), spec.preprocess, spec.image_size
        )
        warm_up(spec.inference)
        self.decoders = ThreadPoolExecutor(spec.threads, thread_name_prefix="decode")
        # Ray may call from several threads at once, so that one shard decodes while another is on the device.
        self.device_lock = threading.Lock()

    def segment(self, encoded: Sequence[bytes | None]) -> list[SegmentedImage | ImageError | None]:
        """One result per image, in order; None where there were no bytes to begin with."""
        results: list[Any] = list(self.decoders.map(self._measure, encoded))
        sizes = [r.padded_hw if isinstance(r, ImageGeometry) else None for r in results]
        batches = plan_batches(sizes, self.spec.batch_size)
        prepare = [[encoded[index] for index in batch] for batch in batches]
        for batch, prepared in zip(batches, self._prepare_ahead(prepare), strict=True):
            ready = [(i, p) for i, p in zip(batch, prepared, strict=True) if isinstance(p, PreparedImage)]
            for index, outcome in zip(batch, prepared, strict=True):
                results[index] = outcome
            for (index, _), result in zip(ready, self._infer([p for _, p in ready]), strict=True):
                results[index] = result
        return results

    def _measure(self, data: bytes | None) -> ImageGeometry | ImageError | None:
        """Sizes from the header alone, so that images can be grouped before any of them is decoded."""
        if data is None:
            return None
        try:
            height, width = measure_image(data, max_pixels=self.spec.max_image_pixels, apply_exif=self.spec.exif)
        except ImageError as error:
            return error
        return self.processor.geometry(height, width)

    def _prepare(self, data: bytes) -> PreparedImage | ImageError:
        try:
            image = decode_image(data, max_pixels=self.spec.max_image_pixels, apply_exif=self.spec.exif)
            return PreparedImage(self.processor.resize(image), self.processor.geometry(image.height, image.width))
        except ImageError as error:
            return error
        except MemoryError:
            return ImageError(ErrorCode.TOO_LARGE, "the machine has no memory to decode it")

    def _prepare_ahead(self, batches: Sequence[Sequence[Any]]) -> Iterator[list[PreparedImage | ImageError]]:
        def submit(batch: Sequence[Any]) -> list[Future[PreparedImage | ImageError]]:
            return [self.decoders.submit(self._prepare, data) for data in batch]

        for futures in look_ahead(submit, batches, _BATCHES_AHEAD):
            yield [future.result() for future in futures]

    def _infer(self, images: Sequence[PreparedImage]) -> list[SegmentedImage | ImageError]:
        """Model and reduction; where a batch fails, image by image, so that only the culprit gets the error."""
        if not images:
            return []
        try:
            return self._forward(images)
        except InvalidResultError:
            raise  # a bug of ours, not of the image
        except Exception as error:
            self._exit_if_device_is_lost()
            failure = ImageError(ErrorCode.INFERENCE_FAILED, f"{type(error).__name__}: {one_line(error)}")
        # Outside of the handler, whose traceback holds the failed batch's tensors: after an out-of-memory error the
        # single images need that memory.
        if len(images) == 1:
            return [failure]
        return [result for image in images for result in self._infer([image])]

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

    def _forward(self, images: Sequence[PreparedImage]) -> list[SegmentedImage | ImageError]:
        padded_hw = images[0].geometry.padded_hw
        assert all(image.geometry.padded_hw == padded_hw for image in images), "a batch has one padded size"
        bf16 = self.spec.precision == "bf16"
        with self.device_lock, torch.inference_mode():
            pixels_B3HW = self.processor.to_batch([i.pixels_hw3 for i in images], padded_hw, self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                output = self.model(pixels_B3HW)
            logits_BQK1, masks_BQhw = output.class_queries_logits.float(), output.masks_queries_logits.float()
            reduced = [
                infer(logits_QK1, masks_Qhw, image.geometry, self.spec.inference)
                for image, logits_QK1, masks_Qhw in zip(images, logits_BQK1, masks_BQhw, strict=True)
            ]
        return [
            SegmentedImage(*image.geometry.original_hw, found_segments(result))
            for image, result in zip(images, reduced, strict=True)
        ]


class SegmentImages:
    """Model actor: one shard in, one shard out; encoded bytes are replaced by segments."""

    def __init__(self, spec: SegmentSpec):
        self.broken: Exception | None = None
        try:
            self.segmenter = Segmenter(spec)
        except StoreUnavailableError:
            raise  # may pass: Ray repeats the constructor
        except (RunError, CheckpointError) as error:
            # It will not pass, and Ray would repeat the constructor a hundred times: the first call ends the run.
            self.broken = error

    def __call__(self, row: pa.Table) -> pa.Table:
        if self.broken is not None:
            raise self.broken
        started = time.time()
        shard, images = unpack_shard(row)
        results = self.segmenter.segment(images.column("data").to_pylist())
        return pack_shard(shard, segmented_table(images.drop_columns(["data"]), results), started)


def segmented_table(images: pa.Table, results: Sequence[SegmentedImage | ImageError | None]) -> pa.Table:
    """The table of schema.SEGMENTED from that of schema.FETCHED without `data`, and one result per image.

    Errors of earlier stages stand; a None result is allowed only there.
    """
    codes = images.column("error_code").to_pylist()
    messages = images.column("error_message").to_pylist()
    done: list[SegmentedImage | None] = []
    for index, result in enumerate(results):
        if isinstance(result, ImageError):
            codes[index], messages[index] = result.code.value, result.message
        assert (result is None) == (images.column("error_code")[index].as_py() is not None), "a row has one outcome"
        done.append(result if isinstance(result, SegmentedImage) else None)
    columns: dict[str, Any] = {
        "error_code": codes,
        "error_message": messages,
        "height": [r and r.height for r in done],
        "width": [r and r.width for r in done],
        "masks": [r and [_mask_row(mask) for mask in _distinct_masks(r)] for r in done],
        "segments": [r and _segment_rows(r) for r in done],
    }
    planned = {name: images.column(name) for name in images.column_names if name not in columns}
    return pa.table({**planned, **columns}, schema=SEGMENTED)


def _distinct_masks(image: SegmentedImage) -> list[Rle]:
    return list(dict.fromkeys(segment.mask for segment in image.segments))


def _mask_row(mask: Rle) -> dict[str, Any]:
    return {"counts": mask.counts.decode("ascii"), "area": mask.area, "bbox": mask.bbox_xywh}


def _segment_rows(image: SegmentedImage) -> list[dict[str, Any]]:
    places = {mask: place for place, mask in enumerate(_distinct_masks(image))}
    return [
        {"segment_id": s.segment_id, "class_id": s.class_id, "score": s.score, "mask": places[s.mask]}
        for s in image.segments
    ]


def plan_batches(padded_hws: Sequence[tuple[int, int] | None], batch_size: int) -> list[list[int]]:
    """Indices grouped by equal padded size, at most `batch_size` each; None is left out. Order is kept in a group."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, padded_hw in enumerate(padded_hws):
        if padded_hw is not None:
            groups.setdefault(padded_hw, []).append(index)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


def look_ahead(submit: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """submit(item) for each item in order, at most `depth` ahead of what has been taken."""
    waiting: deque[R] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) > depth:
            yield waiting.popleft()
    yield from waiting
