"""`Network` on a fake CUDA device: a model without values, images without content."""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from m2f_core.config.labels import Task
from m2f_core.config.model_config import ModelConfig
from m2f_core.families.registry import family_of
from m2f_core.images.image_processor import ImageProcessor
from m2f_core.images.image_size import ImageSize
from m2f_core.inference.settings import InstanceSettings, PanopticSettings
from m2f_core.model.contract import SegmentationModel
from pipeline.device.cuda import Cuda
from pipeline.segment import device_model
from pipeline.segment.device_model import Network, PreparedImage
from pipeline.segment.inference_settings import InferenceSettings
from tests.support.fake_cuda import CUDA, fake_cuda

Size = tuple[int, int]


class FakeCheckpoint:
    """A model of fake tensors on the device."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.family = family_of(config.to_dict())

    def image_processor(self, mode: str, image_size: ImageSize | None, task: Task) -> ImageProcessor:
        return self.family.image_processor(self.config, None, mode, image_size, task)

    def load(self) -> SegmentationModel:
        with torch.device(CUDA):
            model = self.family.build_model(self.config)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):  # made of numpy, in host memory
                setattr(module, name, buffer.to(CUDA))
        model.to = lambda device: model  # it is there already; PyTorch cannot move parameters that are fakes
        return model


@contextlib.contextmanager
def fake_network(
    config: ModelConfig,
    precision: str,
    inference: InferenceSettings,
    image_size: ImageSize | None = None,
    preprocess: str = "reference",
    embeddings: bool = False,
) -> Iterator[Network]:
    """While this is open, the network runs on fakes (see `fake_cuda`), to the point where it waits for results."""
    before = torch.backends.cudnn.allow_tf32
    with (
        # They compile kernels for the CPU, with values.
        mock.patch.object(device_model, "warm_up"),
        mock.patch.object(ImageProcessor, "warm_up"),
        fake_cuda(),
    ):
        try:
            network = Network(
                FakeCheckpoint(config),
                device=str(CUDA),
                precision=precision,
                preprocess=preprocess,
                image_size=image_size,
                inference=inference,
                embeddings=embeddings,
            )
            network.forward = network._forward  # a recorded graph would hide the model
            network.cuda = CudaWithTables(network.cuda.device, 1.0)
            yield network
        finally:
            torch.backends.cudnn.allow_tf32 = before


class ResultsAwaitedError(Exception):
    """The host waits for the results of a batch: there the fakes end."""


class CudaWithTables(Cuda):
    """Where the host waits for a table of scores, it gets `tables[0]`, then the next."""

    def __init__(self, device: torch.device, memory_share: float) -> None:
        super().__init__(device, memory_share)
        self.tables: list[bytes] = []
        self.waits = 0

    def fetch(self, there: torch.Tensor) -> Callable[[], NDArray[np.uint8]]:
        super().fetch(there)

        def wait() -> NDArray[np.uint8]:
            self.waits += 1
            if not self.tables:
                raise ResultsAwaitedError
            table = np.frombuffer(self.tables.pop(0), np.uint8)
            assert table.shape == there.shape
            return table

        return wait


def table_of(inference: InferenceSettings, batch: int, num_queries: int, num_classes: int, kept: int) -> list[bytes]:
    """What the host waits for before the results: tables in which so many queries of each image are sure."""
    shape = (batch, num_queries)
    finite = np.zeros((2, *shape), np.float32)
    is_kept_BQ = np.broadcast_to(np.arange(num_queries) < kept, shape)
    if isinstance(inference, PanopticSettings):
        scores, classes = np.where(is_kept_BQ, 0.9, 0.1).astype(np.float32), np.zeros(shape, np.int64)
        return [scores.tobytes() + classes.tobytes() + finite.tobytes()]
    if isinstance(inference, InstanceSettings):
        num_pairs = min(inference.top_k or num_queries, num_queries * num_classes)
        pairs = np.broadcast_to(np.arange(num_pairs), (batch, num_pairs))
        scores = np.where(pairs < kept, 0.9, 0.0).astype(np.float32)
        return [scores.tobytes() + (pairs % num_queries * num_classes).astype(np.int64).tobytes() + finite.tobytes()]
    return []


def images_of(network: Network, *sizes_hw: Size) -> list[PreparedImage]:
    """Prepared images of these sizes."""
    images = [Image.fromarray(np.zeros((*size_hw, 3), np.uint8)) for size_hw in sizes_hw]
    geometry = network.processor.geometry
    return [network.prepare(one, geometry(one.height, one.width), f"image {n}") for n, one in enumerate(images)]
