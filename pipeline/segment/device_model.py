"""The model on its device, one batch at a time: from decoded pixels to the inference result of each image."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from m2f_core.checkpoints.checkpoint import Checkpoint
from m2f_core.images.geometry import ImageGeometry
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import ImageSize
from m2f_core.images.quality import Quality
from m2f_core.model.cuda_graphs import GraphedForward
from m2f_core.model.for_inference import prepare_for_inference
from m2f_core.model.mask2former import Mask2FormerOutput
from pipeline.errors import RunError
from pipeline.guard.watchdog import watch
from pipeline.precision import check_precision
from pipeline.segment.inference_settings import InferenceSettings
from pipeline.segment.kept_logits import keep_logits
from pipeline.segment.postprocess import InferenceResult, Inferred, infer, queries_of, warm_up
from pipeline.telemetry.costs import Costs

# The GPU resizes an image if that costs little memory. Images wait in decoded form for the GPU, and a photograph of 64
# megapixels takes 192 MB decoded, but 3 MB resized.
_MOST_DECODED_TO_RESIZED = 4


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
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise RunError(
                f"Ray gave this actor a GPU, but PyTorch on {socket.gethostname()} sees no GPU; "
                "install a CUDA build of PyTorch on that machine, or use --device cpu"
            )
        if self.device.type == "cuda" and gpu_share < 1:
            # Beyond its part, this process is out of memory and takes smaller batches, before its neighbours are.
            torch.cuda.set_per_process_memory_fraction(gpu_share)
        self.model = prepare_for_inference(checkpoint.load(), self.device, precision)
        self.processor = ImageProcessor.from_preprocessor_config(checkpoint.preprocessor_config, preprocess, image_size)
        self.forward = GraphedForward(self._forward) if self.device.type == "cuda" else self._forward
        warm_up(inference)
        self.processor.warm_up()
        # Ray may call this from several threads at once, so that one shard is decoded while another is on the device.
        self.lock = threading.Lock()

    def prepare(self, image: Image.Image, geometry: ImageGeometry, name: str) -> PreparedImage:
        """Resize an RGB image, or leave the resize to the device; the network sees the same pixels in both cases.

        `geometry` describes the stored image; `image` may have been decoded smaller.
        """
        if self.device.type == "cpu":
            return PreparedImage(torch.from_numpy(self.processor.resize(image, geometry.resized_hw)), geometry, name)
        decoded, resized = image.height * image.width, geometry.resized_hw[0] * geometry.resized_hw[1]
        on_device = self.processor.resizes_anywhere and decoded <= _MOST_DECODED_TO_RESIZED * resized
        pixels_hw3 = torch.from_numpy(
            np.array(image) if on_device else self.processor.resize(image, geometry.resized_hw)
        )
        # Pinned memory can be copied while the device computes.
        return PreparedImage(pixels_hw3.pin_memory(), geometry, name)

    def run(self, images: Sequence[PreparedImage], costs: Costs) -> list[Inferred]:
        """The inference result of each image. All images have one padded size; results do not depend on the others.

        Raises PyTorch's exceptions, among them the one for too little memory on the device.
        """
        what = images[0].name if len(images) == 1 else f"{len(images)} images from {images[0].name} on"
        with self.lock, watch("segmenting", what), torch.inference_mode():
            with costs.passing("model"):
                logits_BQK1, masks_BQhw, queries_BQD = self._decoder_outputs(images)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # otherwise the model's time would count as the reduction's
            with costs.passing("reduce"):
                results = [
                    infer(logits_QK1, masks_Qhw, image.geometry, self.inference)
                    for image, logits_QK1, masks_Qhw in zip(images, logits_BQK1, masks_BQhw, strict=True)
                ]
                inferred = _inferred(results, queries_BQD)
                if self.keep_logits is None:
                    return inferred
                kept = keep_logits(logits_BQK1, masks_BQhw, self.keep_logits)
                return [one._replace(kept=of_one) for one, of_one in zip(inferred, kept, strict=True)]

    def decoder_outputs(self, images: Sequence[PreparedImage]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits [B, Q, K+1] and mask logits [B, Q, h, w], before `run` reduces them: float32, in host memory."""
        with self.lock, watch("segmenting", images[0].name), torch.inference_mode():
            logits_BQK1, masks_BQhw, _ = self._decoder_outputs(images)
            return logits_BQK1.cpu(), masks_BQhw.cpu()

    def _decoder_outputs(
        self, images: Sequence[PreparedImage]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        padded_hw = images[0].geometry.padded_hw
        assert all(image.geometry.padded_hw == padded_hw for image in images), "a batch has one padded size"
        resized = [self.processor.resize_on(self.device, i.pixels_hw3, i.geometry.resized_hw) for i in images]
        output = self.forward(self.processor.to_batch(resized, padded_hw, self.device))
        return output.class_queries_logits.float(), output.masks_queries_logits.float(), output.queries

    def _forward(self, pixels_B3HW: torch.Tensor) -> Mask2FormerOutput:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output: Mask2FormerOutput = self.model(pixels_B3HW, **self.wanted)
        return output

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
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def exit_if_lost(self) -> None:
        """End the process if an illegal access or a bus error has broken CUDA: every later image would fail at once.

        Ray then gives the shard to a fresh process.
        """
        if self.device.type == "cuda":
            try:
                torch.zeros(1, device=self.device).add_(1).cpu()
            except torch.OutOfMemoryError:
                pass
            except RuntimeError:
                os._exit(1)


def _inferred(results: Sequence[InferenceResult], queries_BQD: torch.Tensor | None) -> list[Inferred]:
    """The results of a batch, with the queries of all their segments, which are one copy from the device."""
    if queries_BQD is None:
        return [Inferred(result) for result in results]
    of_images = [queries_of(result) for result in results]
    places = [(image, query) for image, queries in enumerate(of_images) for query in queries]
    images_N, queries_N = torch.tensor(places, dtype=torch.int64).reshape(-1, 2).unbind(1)
    # Half floats as bytes, whatever the machine: the first byte of a number is its lowest.
    halves_ND = queries_BQD[images_N, queries_N].half().cpu().numpy().astype("<f2")
    rows = iter(halves_ND)
    return [
        Inferred(result, tuple(next(rows).tobytes() for _ in queries))
        for result, queries in zip(results, of_images, strict=True)
    ]
