"""Encoded images -> segments: threads decode ahead of the device, and images are batched by padded size.

Only images of equal padded size share a batch, because the network does not mask padding: a batch then gives the
results of single images, up to float rounding. When memory runs out, batches become smaller and stay smaller.

An image that is cut into tiles is a row of images of one size, segmented as others are; then their segments are merged.
"""

import contextlib
import logging
import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from typing import Any, cast

import torch

from m2f_core.images.geometry import ImageGeometry
from pipeline.errors import ErrorCode, ImageError, InvalidResultError
from pipeline.guard.memory import MemoryBound, machine_memory, private_bytes, room_to_work
from pipeline.guard.watchdog import watch
from pipeline.look_ahead import look_ahead
from pipeline.segment.batches import plan_batches
from pipeline.segment.checkpoint import stage_model
from pipeline.segment.cut_images import PIXELS_TOGETHER, CutImage, open_together
from pipeline.segment.device_model import Network, PreparedImage
from pipeline.segment.kept_logits import KeptInput
from pipeline.segment.postprocess import FoundSegment, found_segments, merged_segments
from pipeline.segment.preparation import Measured, Preparation
from pipeline.segment.spec import SegmentedImage, SegmentSpec
from pipeline.store.filesystem import one_line
from pipeline.telemetry.costs import Costs
from pipeline.telemetry.metrics import BATCH_FILL, BATCH_IMAGES, RETRIES, on_device

logger = logging.getLogger(__name__)

_BATCHES_AHEAD = 2  # decoded batches waiting for the device, per shard in the actor


class Segmenter:
    """Encoded images -> segments with one model on one device. Thread safe; knows nothing of Ray."""

    def __init__(self, spec: SegmentSpec, busy: Callable[[float], None] = lambda seconds: None):
        """`busy` is told after each batch for how many seconds the device has worked on it."""
        self.spec = spec
        self.busy = busy
        if spec.device == "cpu":
            torch.set_num_threads(spec.threads)
        self.network = load_network(spec)
        self.preparation = Preparation(spec, self.network)
        self.decoders = ThreadPoolExecutor(spec.threads, thread_name_prefix="decode")
        self.max_batch_pixels = spec.max_batch_pixels  # lowered once memory has run out
        self.large_image = threading.Lock()  # held while an image of more than PIXELS_TOGETHER is open

    def memory_bound(self, *, decoding: int, batch_size: int) -> MemoryBound:
        """How far this process may grow from now on, with `decoding` images decoded at once and batches this large."""
        processor, tiling = self.network.processor, self.spec.tiling
        uncut_pixels = self.spec.max_image_pixels if tiling is None else min(self.spec.max_image_pixels, tiling.size**2)
        side = math.isqrt(uncut_pixels)  # of the largest image, if images keep their size
        largest_hw = processor.geometry(*(processor.size.largest_hw or (side, side))).padded_hw
        most_pixels = batch_size * largest_hw[0] * largest_hw[1]
        room = room_to_work(
            encoded_bytes=2 * self.spec.shard_bytes,  # two shards at a time in an actor
            max_image_pixels=uncut_pixels,
            decoding=decoding,
            batch_pixels=max(largest_hw[0] * largest_hw[1], min(most_pixels, self.spec.max_batch_pixels)),
            device=self.spec.device,
            max_cut_pixels=0 if tiling is None else max(self.spec.max_image_pixels, 2 * PIXELS_TOGETHER),
        )
        return MemoryBound(private_bytes(), room)

    def segment(
        self,
        encoded: Sequence[bytes | None],
        names: Sequence[str] | None = None,
        costs: Costs | None = None,
        batch_done: Callable[[], None] = lambda: None,
    ) -> list[SegmentedImage | ImageError | None]:
        """One result per image, in order; None for images without bytes.

        If a step hangs, the watchdog names the image from `names`; without names, it gives the image's number. The time
        of each step is added to `costs`. `batch_done` is called after each batch, by the thread of the caller.
        """
        names, costs = names or [f"image {index}" for index in range(len(encoded))], costs or Costs()
        measured = list(self.decoders.map(self.preparation.measure, encoded, names, repeat(costs)))
        results: list[Any] = [m.image if isinstance(m, Measured) else m for m in measured]
        sizes = [r.padded_hw if isinstance(r, ImageGeometry) else None for r in results]
        batches = plan_batches(sizes, self._most_in_a_batch)
        prepare = [
            [partial(self.preparation.prepare, cast(bytes, encoded[i]), results[i], names[i], costs) for i in batch]
            for batch in batches
        ]
        for batch, outcomes in zip(batches, self._segment_batches(prepare, costs), strict=True):
            for index, outcome in zip(batch, outcomes, strict=True):
                results[index] = outcome
            batch_done()
        found: dict[CutImage, SegmentedImage | ImageError] = {}
        for images in open_together([result for result in results if isinstance(result, CutImage)]):
            found.update(zip(images, self._segment_cut(images, costs, batch_done), strict=True))
        results = [found[result] if isinstance(result, CutImage) else result for result in results]
        for index, header in enumerate(measured):
            if isinstance(header, Measured) and header.georeference and isinstance(results[index], SegmentedImage):
                results[index] = replace(results[index], georeference=header.georeference)
        return results

    def _segment_cut(
        self, images: Sequence[CutImage], costs: Costs, batch_done: Callable[[], None]
    ) -> list[SegmentedImage | ImageError]:
        """One result per image. The tiles of all of them have one padded size."""
        tiles = [(image, index) for image in images for index in range(len(image.tiles))]
        most = self._most_in_a_batch(images[0].geometry.padded_hw)
        batches = [tiles[i : i + most] for i in range(0, len(tiles), most)]
        prepare = [
            [partial(self.preparation.prepare_tile, image, index, costs) for image, index in batch] for batch in batches
        ]
        found: dict[CutImage, list[SegmentedImage | ImageError]] = {image: [] for image in images}
        is_large = sum(image.num_pixels for image in images) > PIXELS_TOGETHER
        with self.large_image if is_large else contextlib.nullcontext():  # of the two shards in an actor, one waits
            for batch, outcomes in zip(batches, self._segment_batches(prepare, costs), strict=True):
                for (image, _), outcome in zip(batch, outcomes, strict=True):
                    found[image].append(outcome)
                batch_done()
        return [self._merge(image, found[image], costs) for image in images]

    def _merge(
        self, image: CutImage, found: Sequence[SegmentedImage | ImageError], costs: Costs
    ) -> SegmentedImage | ImageError:
        """The result of an image from those of its tiles; the first error of a tile is that of the image."""
        segments: list[tuple[FoundSegment, ...]] = []
        kept: list[KeptInput] = []
        for of_tile in found:
            if isinstance(of_tile, ImageError):
                return of_tile
            segments.append(of_tile.segments)
            kept += of_tile.kept or ()
        with watch("merging the tiles of", image.name), costs.of_thread("encode"):
            merged = merged_segments(image.tiles, segments, image.image_hw, self.spec.inference)
        wanted = self.spec.keep_logits is not None
        return SegmentedImage(*image.image_hw, merged, kept=tuple(kept) if wanted else None)

    def _segment_batches(
        self, batches: Sequence[Sequence[Callable[[], PreparedImage | ImageError]]], costs: Costs
    ) -> Iterator[list[SegmentedImage | ImageError]]:
        """The results of each batch. Threads prepare the next batches meanwhile."""
        for prepared in self._prepare_ahead(batches):
            outcomes: list[Any] = list(prepared)
            ready = [place for place, image in enumerate(prepared) if isinstance(image, PreparedImage)]
            for place, result in zip(ready, self._infer([outcomes[place] for place in ready], costs), strict=True):
                outcomes[place] = result
            yield outcomes

    def _prepare_ahead(
        self, batches: Sequence[Sequence[Callable[[], PreparedImage | ImageError]]]
    ) -> Iterator[list[PreparedImage | ImageError]]:
        def submit(batch: Sequence[Callable[[], PreparedImage | ImageError]]) -> _PendingBatch:
            return _PendingBatch([self.decoders.submit(prepare) for prepare in batch])

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
                SegmentedImage(
                    *image.geometry.original_hw,
                    found_segments(inferred.result, inferred.embeddings),
                    quality=image.quality,
                    kept=None if inferred.kept is None else (KeptInput.of(inferred.kept, image.geometry),),
                )
                for image, inferred in zip(images, found, strict=True)
            ]


def load_network(spec: SegmentSpec) -> Network:
    """The network that `spec` names; its weights must be those that the run was planned with."""
    return Network(
        stage_model(spec.model, spec.weights_sha256),
        device=spec.device,
        precision=spec.precision,
        preprocess=spec.preprocess,
        image_size=spec.image_size,
        inference=spec.inference,
        embeddings=spec.embeddings,
        keep_logits=spec.keep_logits,
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
