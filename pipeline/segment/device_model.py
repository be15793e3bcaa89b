"""The model on its device, one batch at a time: from decoded pixels to what the task finds in each image."""

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
from m2f_core.model.cuda_graphs import GraphedForward
from m2f_core.model.for_inference import prepare_for_inference
from m2f_core.model.mask2former import Mask2FormerOutput
from pipeline.errors import RunError
from pipeline.guard.watchdog import watch
from pipeline.precision import check_precision
from pipeline.segment.inference_settings import InferenceSettings
from pipeline.segment.postprocess import InferenceResult, infer, warm_up
from pipeline.telemetry.costs import Costs

# A GPU resizes by itself where that costs little memory: decoded images wait for it, and a photograph of 64 megapixels
# takes 192 MB, resized 3 MB.
_MOST_DECODED_TO_RESIZED = 4


@dataclass(frozen=True)
class PreparedImage:
    """An image on its way to the device: uint8 [h, w, 3], resized already or as decoded; on CUDA machines pinned."""

    pixels_hw3: torch.Tensor
    geometry: ImageGeometry
    name: str

    @property
    def padded_pixels(self) -> int:
        return self.geometry.padded_hw[0] * self.geometry.padded_hw[1]


class Network:
    """A checkpoint on one device. `prepare` may be called from many threads, `run` does one batch after the other."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str,
        precision: str,
        preprocess: str,
        image_size: ImageSize | None,
        inference: InferenceSettings,
    ):
        check_precision(precision, device)  # the driver may run on another machine, with another CPU
        self.device = torch.device(device)
        self.precision = precision
        self.inference = inference
        # "fp32" means it: PyTorch's default lets convolutions drop to TF32, 10 bits of mantissa.
        torch.backends.cudnn.allow_tf32 = precision != "fp32"
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise RunError(
                f"Ray gave this actor a GPU, but PyTorch on {socket.gethostname()} sees none; "
                "install a CUDA build of PyTorch there, or use --device cpu"
            )
        self.model = prepare_for_inference(checkpoint.load(), self.device, precision)
        self.processor = ImageProcessor.from_preprocessor_config(checkpoint.preprocessor_config, preprocess, image_size)
        self.forward = GraphedForward(self._forward) if self.device.type == "cuda" else self._forward
        warm_up(inference)
        self.processor.warm_up()
        # Ray may call from several threads at once, so that one shard decodes while another is on the device.
        self.lock = threading.Lock()

    def prepare(self, image: Image.Image, geometry: ImageGeometry, name: str) -> PreparedImage:
        """Resize an RGB image, or leave that to the device; the pixels the network sees are the same.

        `geometry` is that of the image as it is stored; it may have been decoded smaller.
        """
        if self.device.type == "cpu":
            return PreparedImage(torch.from_numpy(self.processor.resize(image, geometry.resized_hw)), geometry, name)
        decoded, resized = image.height * image.width, geometry.resized_hw[0] * geometry.resized_hw[1]
        on_device = self.processor.resizes_anywhere and decoded <= _MOST_DECODED_TO_RESIZED * resized
        pixels_hw3 = torch.from_numpy(
            np.array(image) if on_device else self.processor.resize(image, geometry.resized_hw)
        )
        # Pinned memory travels while the device computes.
        return PreparedImage(pixels_hw3.pin_memory(), geometry, name)

    def run(self, images: Sequence[PreparedImage], costs: Costs) -> list[InferenceResult]:
        """What the task finds in each image. They have one padded size; what an image gets does not hang on the rest.

        Raises what PyTorch raises, also where the device has not the memory.
        """
        what = images[0].name if len(images) == 1 else f"{len(images)} images from {images[0].name} on"
        with self.lock, watch("segmenting", what), torch.inference_mode():
            with costs.passing("model"):
                logits_BQK1, masks_BQhw = self._decoder_outputs(images)
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)  # else the reduction would be charged with the model's time
            with costs.passing("reduce"):
                return [
                    infer(logits_QK1, masks_Qhw, image.geometry, self.inference)
                    for image, logits_QK1, masks_Qhw in zip(images, logits_BQK1, masks_BQhw, strict=True)
                ]

    def decoder_outputs(self, images: Sequence[PreparedImage]) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits [B, Q, K+1] and mask logits [B, Q, h, w] that `run` reduces, float32, in the host's memory."""
        with self.lock, watch("segmenting", images[0].name), torch.inference_mode():
            logits_BQK1, masks_BQhw = self._decoder_outputs(images)
            return logits_BQK1.cpu(), masks_BQhw.cpu()

    def _decoder_outputs(self, images: Sequence[PreparedImage]) -> tuple[torch.Tensor, torch.Tensor]:
        padded_hw = images[0].geometry.padded_hw
        assert all(image.geometry.padded_hw == padded_hw for image in images), "a batch has one padded size"
        resized = [self.processor.resize_on(self.device, i.pixels_hw3, i.geometry.resized_hw) for i in images]
        output = self.forward(self.processor.to_batch(resized, padded_hw, self.device))
        return output.class_queries_logits.float(), output.masks_queries_logits.float()

    def _forward(self, pixels_B3HW: torch.Tensor) -> Mask2FormerOutput:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output: Mask2FormerOutput = self.model(pixels_B3HW)
        return output

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Meanwhile no batch runs here and the device's memory is another process's: the model waits in the host's."""
        with self.lock:
            self.model.to("cpu")
            self._free()
            try:
                yield
            finally:
                self.model.to(self.device)

    def free_memory(self) -> None:
        """Give back what the device holds for later: recorded graphs, cached blocks. Waits for the batch that runs:
        its results lie in the memory of a graph.
        """
        with self.lock:
            self._free()

    def _free(self) -> None:
        if isinstance(self.forward, GraphedForward):
            self.forward.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def exit_if_lost(self) -> None:
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
