"""Two workers that share a batch move the weights as one worker with the whole batch does."""

from dataclasses import replace
from multiprocessing import set_forkserver_preload
from pathlib import Path

import pytest
import torch
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from m2f_core.config.labels import LabelMap
from m2f_core.training.augment import LargeScaleJitter
from m2f_core.training.initial_weights import initial_model
from pipeline.train.annotated_images import AnnotatedImages
from pipeline.train.data import TrainingSamples, WorkerShare, load_batches
from pipeline.train.training import LossMeter
from tests.pipeline.train.test_training import PROCESSOR, tiny_config
from tests.support.coco_folders import write_coco_folder

SIZES = [(64, 64), (64, 80), (48, 64), (64, 48)]


def same_points(size: tuple[int, ...], device: torch.device | None = None) -> torch.Tensor:
    """Points that do not depend on which masks share a draw: each mask gets the same ones."""
    points = torch.rand((1, *size[1:]), generator=torch.Generator().manual_seed(0))
    return points.expand(size).contiguous()


def gradients_of_batch(root: str, rank: int, num_workers: int) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    data = AnnotatedImages.read(f"{root}/images", f"{root}/panoptic.json", None, "panoptic", "--panoptic-gt")
    labels = LabelMap.from_coco_categories(list(data.categories))
    samples = TrainingSamples(data, labels.class_id_of_category, LargeScaleJitter((64, 64), 0.5, 2.0, True), 0)
    [batch] = load_batches(samples, WorkerShare(4, rank, num_workers), range(3, 4), 0)
    model = initial_model(tiny_config(labels), 0)
    model.criterion = replace(model.criterion, rand=same_points)
    wrapped = DistributedDataParallel(model) if num_workers > 1 else model
    pixels = PROCESSOR.to_batch(list(batch.pixels_Bhw3), (64, 64))
    wrapped(pixels, mask_labels=batch.mask_labels, class_labels=batch.class_labels).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _worker(rank: int, root: str, port: int) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )  # fmt: skip
    meter = LossMeter()
    meter.add(torch.tensor(1.0 + rank), {"mask": torch.tensor(3.0 * rank)})
    row = meter.row()
    assert (row["loss"], row["mask"]) == (1.5, 1.5), "the log shows one worker's part of the batch"
    gradients = gradients_of_batch(root, rank, 2)
    if rank == 0:
        torch.save(gradients, Path(root) / "gradients.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture
def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_gradients_of_two_workers_are_those_of_one_with_the_whole_batch(tmp_path, free_port):
    """The images have different numbers of segments in their crops, so sums over a worker's part would not do."""
    root = tmp_path / "set"
    write_coco_folder(root, SIZES)
    expected = gradients_of_batch(str(root), 0, 1)
    set_forkserver_preload([__name__])  # both workers are forked from one process that has imported torch
    multiprocessing.start_processes(_worker, args=(str(root), free_port), nprocs=2, start_method="forkserver")
    found = torch.load(root / "gradients.pt", weights_only=True)
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * float(largest)), name
