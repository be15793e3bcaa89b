"""Annotated images -> training batches, which depend neither on the number of workers nor on interruptions.

Sample n of a training is image n of an endless sequence of shuffled epochs, augmented by a generator seeded with n. So
the first n of a batch determines the batch, each worker takes its share of the batch, and a resumed training starts at
a later n.

Memory of a worker: the ground truth, shared with the loading processes (40 bytes per panoptic segment; polygons take as
much as in the JSON), four times the JSON while it is read, and the worker's share of a batch. Memory of a loading
process: one image at its own size, and its targets at the size of the crop.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from m2f_core.images.image_processor import NETWORK_STRIDE
from m2f_core.training.augment import Jitter, LargeScaleJitter, WholeImages
from m2f_core.training.targets import Targets, instance_masks, map_targets
from pipeline.errors import RunError
from pipeline.train.annotated_images import AnnotatedImages

Augmentation = LargeScaleJitter | WholeImages


@dataclass(frozen=True)
class Batch:
    """Samples of one worker: uint8 [B, h, w, 3]; for each image, masks bool [N, h, w] and class ids int64 [N]."""

    pixels_Bhw3: torch.Tensor  # noqa: N815
    mask_labels: list[torch.Tensor]
    class_labels: list[torch.Tensor]


class TrainingSamples(Dataset[tuple[np.ndarray, Targets]]):
    """Endless samples. Sample n is an augmented image, uint8 [h, w, 3], and its targets."""

    def __init__(
        self, data: AnnotatedImages, class_id_of_category: dict[int, int], augmentation: Augmentation, seed: int
    ) -> None:
        self.data = data
        self.class_id_of_category = class_id_of_category
        self.augmentation = augmentation
        self.order = EndlessOrder(len(data.images), seed)
        self.seed = seed

    def padded_hw(self, numbers: range) -> tuple[int, int]:
        """The padded size of a batch of these samples: the largest size, rounded up to the network's stride."""
        if isinstance(self.augmentation, LargeScaleJitter):
            sizes = [self.augmentation.crop_hw]
        else:
            sizes = [self._jitter(n, self.data.size(self.order[n])).crop_hw for n in numbers]
        height, width = (-(-max(lengths) // NETWORK_STRIDE) * NETWORK_STRIDE for lengths in zip(*sizes, strict=True))
        return height, width

    def __getitem__(self, n: int) -> tuple[np.ndarray, Targets]:
        index = self.order[n]
        image, annotated = self.data.image(index), self.data.images[index]
        jitter = self._jitter(n, (image.height, image.width))
        try:
            if self.data.kind == "instances":
                targets = self._instance_targets(annotated.annotations, image, jitter)
            else:
                ids_HW, class_ids, ignored = self.data.map(index, self.class_id_of_category)
                targets = map_targets(jitter.map(ids_HW, ignored), class_ids, ignored)
        except ValueError as error:
            raise RunError(f"the ground truth of {annotated.name} cannot be used: {error}") from None
        return jitter.image(image), targets

    def _jitter(self, n: int, size_hw: tuple[int, int]) -> Jitter:
        return self.augmentation.draw(*size_hw, np.random.default_rng([self.seed, n]))

    def _instance_targets(
        self, annotations: Sequence[Mapping[str, Any]], image: Image.Image, jitter: Jitter
    ) -> Targets:
        """Make one mask at a time at the image's own size, because an image may have hundreds of masks."""
        masks, class_ids = [], []
        for mask_HW, class_id in instance_masks(annotations, image.height, image.width, self.class_id_of_category):
            mask_hw = jitter.mask(mask_HW)
            if mask_hw.any():
                masks.append(torch.from_numpy(mask_hw))
                class_ids.append(class_id)
        masks_Nhw = torch.stack(masks) if masks else torch.zeros((0, *jitter.crop_hw), dtype=torch.bool)
        return Targets(masks_Nhw, torch.tensor(class_ids, dtype=torch.int64))


class EndlessOrder:
    """Image index at place n in an endless sequence of epochs; each epoch is its own permutation of `num_images`."""

    def __init__(self, num_images: int, seed: int) -> None:
        self.num_images = num_images
        self.seed = seed
        self._epoch = -1

    def __getitem__(self, n: int) -> int:
        epoch, place = divmod(n, self.num_images)
        if epoch != self._epoch:
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
            self._epoch = epoch
        return int(self._permutation[place])


@dataclass(frozen=True)
class WorkerShare:
    """The sample numbers of one worker: an equal and contiguous share of every batch."""

    batch_size: int  # images of all workers together
    rank: int
    num_workers: int

    def batch_numbers(self, iteration: int) -> range:
        """All sample numbers of the batch that follows `iteration` finished steps."""
        return range(iteration * self.batch_size, (iteration + 1) * self.batch_size)

    def sample_numbers(self, iteration: int) -> range:
        """This worker's sample numbers in that batch."""
        size = self.batch_size // self.num_workers
        return self.batch_numbers(iteration)[self.rank * size : (self.rank + 1) * size]


def load_batches(
    samples: TrainingSamples, share: WorkerShare, iterations: range, loading_processes: int
) -> Iterator[Batch]:
    """One batch for each of `iterations`; loading processes, if any, load ahead."""
    loader = DataLoader(
        _PaddedSamples(samples),
        batch_sampler=_Batches(samples, share, iterations),
        collate_fn=_collate,
        num_workers=loading_processes,
        multiprocessing_context="spawn" if loading_processes else None,  # a fork would copy the locks of other threads
        persistent_workers=False,
    )
    return iter(loader)


@dataclass(frozen=True)
class _Batches:
    """A worker's sample numbers of each batch, each with the padded size of the whole batch.

    The network's output for an image depends on its padding. With a size per worker it would depend on the number of
    workers.
    """

    samples: TrainingSamples
    share: WorkerShare
    iterations: range

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, int]]]]:
        for iteration in self.iterations:
            padded_hw = self.samples.padded_hw(self.share.batch_numbers(iteration))
            yield [(n, padded_hw) for n in self.share.sample_numbers(iteration)]

    def __len__(self) -> int:
        return len(self.iterations)


@dataclass(frozen=True)
class _PaddedSamples(Dataset[tuple[np.ndarray, Targets]]):
    """Samples padded to the size of their batch; masks are padded with pixels that belong to no target."""

    samples: TrainingSamples

    def __getitem__(self, of_batch: tuple[int, tuple[int, int]]) -> tuple[np.ndarray, Targets]:
        n, (height, width) = of_batch
        pixels_hw3, targets = self.samples[n]
        h, w, _ = pixels_hw3.shape
        padded_HW3 = np.full((height, width, 3), self.samples.augmentation.padding, np.uint8)
        padded_HW3[:h, :w] = pixels_hw3
        return padded_HW3, targets._replace(mask_labels=F.pad(targets.mask_labels, (0, width - w, 0, height - h)))


def _collate(samples: Sequence[tuple[np.ndarray, Targets]]) -> Batch:
    return Batch(
        torch.from_numpy(np.stack([pixels_hw3 for pixels_hw3, _ in samples])),
        [targets.mask_labels for _, targets in samples],
        [targets.class_labels for _, targets in samples],
    )
