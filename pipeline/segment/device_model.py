"""The model on its device, one batch at a time: from decoded pixels to the inference result of each image."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.image_size import ImageSize
from m2f_core.images.quality import Quality
from m2f_core.inference.decoder_outputs import places_of
from m2f_core.masks.on_device import Parcel
from m2f_core.model.contract import SegmentationOutput, joined
from m2f_core.model.cuda_graphs import GraphedForward
from m2f_core.model.for_inference import prepare_for_inference
from pipeline.device.cuda import Cuda
from pipeline.device.precision import check_precision
from pipeline.guard.watchdog import watch
from pipeline.segment.inference_settings import InferenceSettings
from pipeline.segment.kept_logits import KeptLogits, keep_logits, start_keeping
from pipeline.segment.postprocess import (
    InferenceResult,
    Inferred,
    infer,
    outputs_of_images,
    queries_of,
    start,
    warm_up,
)
from pipeline.telemetry.costs import Costs

# The GPU resizes an image if that costs little memory. Images wait in decoded form for the GPU, and a photograph of 64
# megapixels takes 192 MB decoded, but 3 MB resized.
_MOST_DECODED_TO_RESIZED = 4


# Class logits, mask logits, and the queries if they were asked for.
Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@dataclass(frozen=True)
class PreparedImage:
    """An image for the device: uint8 [h, w, 3], already resized or as decoded; pinned on machines with CUDA."""

    pixels_hw3: torch.Tensor
    geometry: ImageGeometry
    name: str
    quality: Quality | None = None  # of a whole image

    @property
    def padded_pixels(self) -> int:
        return self.geometry.padded_hw[0] * self.geometry.padded_hw[1]


def device_name(device: str) -> str:
    """`cpu`, or the name of the GPU as its driver gives it; `cuda` if PyTorch sees no GPU, which `Network` refuses."""
    return torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else device


class Network:
    """A checkpoint on one device. Many threads may call `prepare`; `run` computes one batch after the other."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        precision: str,
        preprocess: str,
        image_size: ImageSize | None,
        inference: InferenceSettings,
        embeddings: bool = False,
        keep_logits: float | None = None,
        gpu_share: float = 1.0,
    ):
        """`embeddings`: give each segment the last state of its query. `keep_logits`: keep queries whose best class has
        this probability. `gpu_share`: of the memory of the GPU, if other processes have models on the same GPU.
        """
        check_precision(precision, device)  # the driver may run on another machine, with another CPU
        self.device = torch.device(device)
        self.precision = precision
        self.inference = inference
        self.wanted = {"output_queries": True} if embeddings else {}  # beside the logits
        self.keep_logits = keep_logits
        # True fp32: by default PyTorch lets convolutions use TF32, with 10 bits of mantissa.
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        self.cuda = Cuda(self.device, gpu_share) if self.device.type == "cuda" else None
        self.model = prepare_for_inference(checkpoint.load(), self.device, precision, inference.task)
        self.processor = checkpoint.image_processor(preprocess, image_size, inference.task)
        self.forward = self._forward if self.cuda is None else GraphedForward(self._forward)
        warm_up(inference)
        self.processor.warm_up()
        # Ray may call this from several threads at once, so that one shard is decoded while another is on the device.
        self.lock = threading.Lock()
        # On a GPU, while another thread gives the device its next images, none records a graph.
        self.recording = threading.Lock()

    def prepare(self, image: Image.Image, geometry: ImageGeometry, name: str) -> PreparedImage:
        """Resize an RGB image, or leave the resize to the device; the network sees the same pixels in both cases.

        `geometry` describes the stored image; `image` may have been decoded smaller.
        """
        if self.cuda is None:
            return PreparedImage(torch.from_numpy(self.processor.resize(image, geometry.resized_hw)), geometry, name)
        decoded, resized = image.height * image.width, geometry.resized_hw[0] * geometry.resized_hw[1]
        on_device = self.processor.resizes_anywhere and decoded <= _MOST_DECODED_TO_RESIZED * resized
        pixels_hw3 = torch.from_numpy(
            np.array(image) if on_device else self.processor.resize(image, geometry.resized_hw)
        )
        return PreparedImage(self.cuda.pin(pixels_hw3), geometry, name)

    def run(self, images: Sequence[PreparedImage], costs: Costs) -> list[Inferred]:
        """The inference result of each image. All images have one padded size; results do not depend on the others.

        Raises PyTorch's exceptions, among them the one for too little memory on the device.
        """
        what = images[0].name if len(images) == 1 else f"{len(images)} images from {images[0].name} on"
        if self.cuda is not None:
            return self._run_on(self.cuda, images, what, costs)
        with self.lock, watch("segmenting", what), torch.inference_mode():
            with costs.passing("model"):
                logits_BQK1, masks_BQhw, queries_BQD = self._outputs(self._batch(images), len(images))
            with costs.passing("reduce"):
                geometries = [image.geometry for image in images]
                logits, masks = (outputs_of_images(output, geometries) for output in (logits_BQK1, masks_BQhw))
                results = [
                    infer(logits_QK1, masks_Qhw, geometry, self.inference)
                    for logits_QK1, masks_Qhw, geometry in zip(logits, masks, geometries, strict=True)
                ]
                queries = [] if queries_BQD is None else [queries_of(result) for result in results]
                halves_ND = None if queries_BQD is None else _halves(queries_BQD, queries).numpy()
                kept = None if self.keep_logits is None else keep_logits(logits_BQK1, masks_BQhw, self.keep_logits)
                return _inferred(results, queries, halves_ND, kept)

    def _run_on(self, cuda: Cuda, images: Sequence[PreparedImage], what: str, costs: Costs) -> list[Inferred]:
        """As `run`, on a GPU: the host waits twice, for a small table and for the results; to keep logits, once more.

        The lock is free again once the device has all of its work, so another thread gives it the next batch while this
        thread waits for the results and reads them. `reduce` may include the preparation of that batch.
        """
        began, parcel = time.time(), Parcel()
        with torch.inference_mode(), self.recording:
            pixels_B3HW = self._batch(images)
        with self.lock, watch("segmenting", what), torch.inference_mode():
            with self.recording:
                started = cuda.mark()
                logits_BQK1, masks_BQhw, queries_BQD = self._outputs(pixels_B3HW, len(images))
                modelled = cuda.mark()
            geometries = [image.geometry for image in images]
            reduction = start(logits_BQK1, masks_BQhw, geometries, self.inference, parcel, cuda.fetch)
            at_halves = None if queries_BQD is None else parcel.add(_halves(queries_BQD, reduction.queries))
            keep = None
            if self.keep_logits is not None:
                keep = start_keeping(logits_BQK1, masks_BQhw, self.keep_logits, parcel, cuda.fetch)
            reduced = cuda.mark()
            results_arrive = parcel.send(cuda.fetch)
        with watch("segmenting", what):
            arrays = results_arrive()
            costs.add("model", cuda.seconds(started, modelled), began)
            costs.add("reduce", cuda.seconds(modelled, reduced), began)
            results = reduction.finish(arrays)
        halves_ND = None if at_halves is None else arrays[at_halves]
        return _inferred(results, reduction.queries, halves_ND, None if keep is None else keep(arrays))

    def decoder_outputs(self, images: Sequence[PreparedImage]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits [B, Q, K+1] and mask logits [B, Q, h, w], before `run` reduces them: float32, in host memory."""
        with self.lock, watch("segmenting", images[0].name), torch.inference_mode():
            logits_BQK1, masks_BQhw, _ = self._outputs(self._batch(images), len(images))
            return logits_BQK1.cpu(), masks_BQhw.cpu()

    def _batch(self, images: Sequence[PreparedImage]) -> torch.Tensor:
        """The network's input [B, 3, H, W] on the device. An image with windows has as many entries."""
        padded_hw = images[0].geometry.padded_hw
        assert all(image.geometry.padded_hw == padded_hw for image in images), "a batch has one padded size"
        windows = [image.geometry.windows for image in images]
        has_windows = bool(windows[0])
        pixels = [image.pixels_hw3 for image in images]
        if self.cuda is not None:
            resized_hws = [image.geometry.resized_hw for image in images]
            uploaded = self.cuda.upload(pixels)
            return self.processor.batch_by_torch(uploaded, resized_hws, padded_hw, windows if has_windows else None)
        if has_windows:
            pixels = [
                pixels_hw3[top : top + padded_hw[0], left : left + padded_hw[1]].contiguous()
                for pixels_hw3, of_image in zip(pixels, windows, strict=True)
                for top, left in of_image
            ]
        return self.processor.to_batch(pixels, padded_hw)

    def _outputs(self, pixels_B3HW: torch.Tensor, at_once: int) -> Outputs:
        """What the network gives for the batch, `at_once` inputs at a time, so that windows of images cost no more
        memory in the network than as many images without.
        """
        if len(pixels_B3HW) <= at_once:
            return _float32(self.forward(pixels_B3HW))
        parts = []
        for pixels_b3HW in pixels_B3HW.split(at_once):
            part = _float32(self.forward(pixels_b3HW))
            parts.append([None if output is None else output.clone() for output in part])  # a graph overwrites its own
        logits, masks, queries = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(masks), None if queries[0] is None else torch.cat(queries)

    def _forward(self, pixels_B3HW: torch.Tensor) -> SegmentationOutput:
        products = contextlib.nullcontext() if self.cuda is None else self.cuda.tf32(self.precision != "fp32")
        # An input in 8 bits has one scale, so that images of a batch would change each other's results.
        batches = pixels_B3HW.split(1) if self.precision == "int8" else (pixels_B3HW,)
        with products, torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return joined([self.model(batch, **self.wanted) for batch in batches])

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """While this is open, no batch runs and the model is in host memory, so another process can use the device."""
        with self.lock:
            self.model.to("cpu")
            self._free()
            try:
                yield
            finally:
                self.model.to(self.device)

    def free_memory(self) -> None:
        """Free recorded graphs and cached blocks on the device. Waits for the running batch, because its results lie in
        the memory of a graph.
        """
        with self.lock:
            self._free()

    def _free(self) -> None:
        if isinstance(self.forward, GraphedForward):
            self.forward.forget()
        if self.cuda is not None:
            self.cuda.free_cache()

    def exit_if_lost(self) -> None:
        """End the process if an illegal access or a bus error has broken CUDA: every later image would fail at once.

        Ray then gives the shard to a fresh process.
        """
        if self.cuda is not None and self.cuda.is_lost():
            os._exit(1)


def _float32(output: SegmentationOutput) -> Outputs:
    return output.class_queries_logits.float(), output.masks_queries_logits.float(), output.queries


def _halves(queries_BQD: torch.Tensor, queries: Sequence[Sequence[int]]) -> torch.Tensor:
    """The states [N, D] of these queries of each image, as half floats, on their device."""
    places_N = places_of(queries, queries_BQD.shape[1], queries_BQD.device)
    return queries_BQD.flatten(0, 1).index_select(0, places_N).half()


def _inferred(
    results: Sequence[InferenceResult],
    queries: Sequence[Sequence[int]],
    halves_ND: NDArray[np.float16] | None,
    kept: Sequence[KeptLogits] | None,
) -> list[Inferred]:
    """The results of a batch, with the states of the queries of their segments, which are among `queries`, and with
    kept logits.
    """
    embeddings: list[tuple[bytes, ...] | None] = [None] * len(results)
    if halves_ND is not None:
        rows = iter(halves_ND.astype("<f2"))  # as bytes, whatever the machine: a number's first byte is its lowest
        for image, result in enumerate(results):
            states = {query: next(rows).tobytes() for query in queries[image]}
            embeddings[image] = tuple(states[query] for query in queries_of(result))
    return [
        Inferred(result, embeddings[image], None if kept is None else kept[image])
        for image, result in enumerate(results)
    ]
