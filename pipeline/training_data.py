"""COCO-format data -> training batches, the same ones whatever the number of workers and however often it was resumed.

Sample n of a training is image n of an endless sequence of shuffled epochs, augmented by a generator seeded with n. So
a batch is decided by its first n, a worker takes its share of it, and going on means to start at another n.

Memory of a worker: the ground truth's JSON (about 0.3 KB a segment), and its share of a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from m2f_core.augment import IMAGE_PADDING, LargeScaleJitter, WholeImages
from m2f_core.panoptic_png import PANOPTIC_VOID
from m2f_core.targets import Targets, instance_targets, map_targets, panoptic_map
from pipeline.decode import decode_image
from pipeline.errors import ImageError, RunError
from pipeline.ground_truth import GroundTruth, read_instances, read_panoptic
from pipeline.ground_truth_png import read_panoptic_pixels
from pipeline.read_object import read_bytes
from pipeline.storage import open_filesystem

Augmentation = LargeScaleJitter | WholeImages
MAX_IMAGE_PIXELS = 2**31 - 1  # whoever trains knows the data


@dataclass(frozen=True)
class Batch:
    """Samples of one worker: uint8 [B, h, w, 3], and for each the masks bool [N, h, w] and class ids int64 [N]."""

    pixels_Bhw3: torch.Tensor  # noqa: N815
    mask_labels: list[torch.Tensor]
    class_labels: list[torch.Tensor]


@dataclass(frozen=True)
class AnnotatedImages:
    """Images in a folder and what is annotated in them."""

    folder: str
    ground_truth: GroundTruth
    panoptic: bool

    @classmethod
    def read(cls, folder: str, gt: str, pngs: str | None, panoptic: bool, flag: str) -> "AnnotatedImages":
        """RunError where the ground truth cannot be used. `flag` names it in messages."""
        truth = read_panoptic(gt, pngs, flag) if panoptic else read_instances(gt, flag)
        return cls(folder.rstrip("/"), truth, panoptic)

    def image(self, index: int) -> Image.Image:
        """RGB. RunError where it cannot be read, or is not of the size that the ground truth says."""
        annotated = self.ground_truth.images[index]
        filesystem, path = open_filesystem(f"{self.folder}/{annotated.name}")
        try:
            image = decode_image(read_bytes(filesystem, path, "image"), max_pixels=MAX_IMAGE_PIXELS, apply_exif=False)
        except ImageError as error:
            raise RunError(f"image {path} cannot be used: {error}") from None
        if (image.height, image.width) != annotated.size:
            found = f"{image.height} x {image.width} (height x width)"
            raise RunError(f"image {path} is {found}, its ground truth says {annotated.size}")
        return image


class TrainingSamples(Dataset[tuple[np.ndarray, Targets]]):
    """Sample n: an image, augmented, uint8 [h, w, 3], and its targets. Endless."""

    def __init__(
        self, data: AnnotatedImages, class_id_of_category: dict[int, int], augmentation: Augmentation, seed: int
    ) -> None:
        self.data = data
        self.class_id_of_category = class_id_of_category
        self.augmentation = augmentation
        self.order = EndlessOrder(len(data.ground_truth.images), seed)
        self.seed = seed

    def __getitem__(self, n: int) -> tuple[np.ndarray, Targets]:
        index = self.order[n]
        image = self.data.image(index)
        rng = np.random.default_rng([self.seed, n])
        jitter = self.augmentation.draw(image.height, image.width, rng)
        annotated = self.data.ground_truth.images[index]
        try:
            if self.data.panoptic:
                png_HW3 = read_panoptic_pixels(annotated)
                ids_HW, class_ids = panoptic_map(png_HW3, annotated.annotations, self.class_id_of_category)
                targets = map_targets(jitter.map(ids_HW, PANOPTIC_VOID), class_ids, PANOPTIC_VOID)
            else:
                whole = instance_targets(annotated.annotations, image.height, image.width, self.class_id_of_category)
                masks_Nhw = torch.from_numpy(jitter.masks(whole.mask_labels.numpy()))
                visible_N = masks_Nhw.flatten(1).any(1) if len(masks_Nhw) else torch.zeros(0, dtype=torch.bool)
                targets = Targets(masks_Nhw[visible_N], whole.class_labels[visible_N])
        except ValueError as error:
            raise RunError(f"the ground truth of {annotated.name} cannot be used: {error}") from None
        return jitter.image(image), targets


class EndlessOrder:
    """Place n of epoch after epoch, each a permutation of `num_images` of its own."""

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
    """The sample numbers of one worker: of every batch, an equal and contiguous part."""

    batch_size: int  # of all workers
    rank: int
    num_workers: int

    def sample_numbers(self, iteration: int) -> range:
        """Of the batch that follows `iteration` finished steps."""
        size = self.batch_size // self.num_workers
        first = iteration * self.batch_size + self.rank * size
        return range(first, first + size)


def load_batches(
    samples: TrainingSamples, share: WorkerShare, iterations: range, loading_processes: int
) -> Iterator[Batch]:
    """One batch for each of `iterations`, loaded ahead where there are processes for it."""
    loader = DataLoader(
        samples,
        batch_sampler=_Batches(share, iterations),
        collate_fn=_collate,
        num_workers=loading_processes,
        multiprocessing_context="spawn" if loading_processes else None,  # a fork would copy locks of other threads
        persistent_workers=False,
    )
    return iter(loader)


@dataclass(frozen=True)
class _Batches:
    share: WorkerShare
    iterations: range

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in self.iterations:
            yield list(self.share.sample_numbers(iteration))

    def __len__(self) -> int:
        return len(self.iterations)


def _collate(samples: Sequence[tuple[np.ndarray, Targets]]) -> Batch:
    """Whole images differ in size: all get that of the largest, and with it the pixels of their masks stay theirs."""
    height, width = (max(pixels.shape[axis] for pixels, _ in samples) for axis in (0, 1))
    pixels_Bhw3 = np.full((len(samples), height, width, 3), IMAGE_PADDING, np.uint8)
    mask_labels = []
    for padded_hw3, (pixels_hw3, targets) in zip(pixels_Bhw3, samples, strict=True):
        h, w, _ = pixels_hw3.shape
        padded_hw3[:h, :w] = pixels_hw3
        mask_labels.append(F.pad(targets.mask_labels, (0, width - w, 0, height - h)))
    return Batch(torch.from_numpy(pixels_Bhw3), mask_labels, [targets.class_labels for _, targets in samples])
