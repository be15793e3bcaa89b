"""A training step against transformers': Swin-T, 133 classes, the same weights, batch and points drawn.

    python tests/benchmarks/bench_training.py [--threads 2] [--crop 384] [--batch 2] [--rounds 4]

A step is forward pass, matching, losses, backward pass, clipping and AdamW. `ours` is the step of jobs/finetune.py on
a loaded batch, `recomputed` the same with --recompute-activations, `transformers` its Mask2Former with its own loss.
Sides take turns within a round; medians and the growth of the process during a step are reported. The last line is one
JSON document.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn

from m2f_core.checkpoints.checkpoint import load_checkpoint
from m2f_core.model.contract import SegmentationModel
from m2f_core.training.optimization import parameter_groups
from m2f_core.training.recompute import recompute_activations
from tests.benchmarks.memory import peak_mib
from tests.parity.test_model_parity import SWIN, jittered_model

RATE, DECAY, BACKBONE = 1e-6, 0.05, 0.1  # so low that the weights stay where they are
MOST_NORM = 0.01


def targets(batch: int, crop: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Pixels, and 12 rectangles of an image as masks with their classes."""
    torch.manual_seed(0)
    masks = []
    for _ in range(batch):
        of_image = torch.zeros(12, crop, crop, dtype=torch.bool)
        for mask in of_image:
            y, x, height, width = (int(crop * share) for share in torch.rand(4) * 0.6)
            mask[y : y + height + 8, x : x + width + 8] = True
        masks.append(of_image)
    return torch.randn(batch, 3, crop, crop), masks, [torch.randint(0, 133, (12,)) for _ in range(batch)]


def stepper(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[nn.Module], Tensor]):
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(model).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MOST_NORM)
        optimizer.step()

    return step


def adamw(model: SegmentationModel) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameter_groups(model, RATE, DECAY, BACKBONE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--crop", type=int, default=384, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pixels, masks, classes = targets(args.batch, args.crop)
    as_floats = [of_image.float() for of_image in masks]

    def loss_of_ours(model: nn.Module) -> Tensor:
        return model(pixels, mask_labels=masks, class_labels=classes).loss

    def loss_of_theirs(model: nn.Module) -> Tensor:
        return model(pixel_values=pixels, mask_labels=as_floats, class_labels=classes).loss

    with tempfile.TemporaryDirectory() as folder:
        theirs = jittered_model(SWIN["swin_tiny"])
        theirs.save_pretrained(folder)
        ours, recomputed = load_checkpoint(folder), load_checkpoint(folder)
    recompute_activations(recomputed)
    sides = {
        "transformers": stepper(theirs.train(), torch.optim.AdamW(theirs.parameters(), RATE), loss_of_theirs),
        **{
            name: stepper(
                model.train(), torch.optim.AdamW(parameter_groups(model, RATE, DECAY, BACKBONE)), loss_of_ours
            )
            for name, model in (("ours", ours), ("recomputed", recomputed))
        },
    }
    peaks = {}
    for name, step in sides.items():
        step()
        peaks[name] = peak_mib(step)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            taken[name].append(time.perf_counter() - began)
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    row = {
        **{f"{name}_s": round(value, 2) for name, value in seconds.items()},
        **{f"{name}_peak_mib": peak and round(peak) for name, peak in peaks.items()},
        "ratio": round(seconds["transformers"] / seconds["ours"], 2),
        "ratio_recomputed": round(seconds["transformers"] / seconds["recomputed"], 2),
    }
    print("  ".join(f"{name} {value}" for name, value in row.items()))
    versions = {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()}
    print(json.dumps({"benchmark": "training", "row": row, **vars(args), "versions": versions}))


if __name__ == "__main__":
    main()
