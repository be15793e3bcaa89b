"""What a batch asks of a GPU, counted without one, and the ceiling that each GPU's data sheet sets.

    python tests/benchmarks/device_card.py [--precision bf16] [--task panoptic] [--image 480x640] [--size 800:1333]

The code of a run goes over `cuda` tensors without values (`tests/support/fake_network.py`), 20 of 100 queries are sure,
and each operation is counted. The time of an operation is the longer of its FLOPs over the peak and its bytes over the
bandwidth of the device's memory; a kernel takes 4 us to start. `launched` is the longer of all operations and all
starts; `graph` leaves out the starts, because a CUDA graph starts the whole forward pass. `rest`: the batch is made and
reduced, kernel by kernel; its last column is the bar. Images and results are copied beside the computation; `copies` is
what they take at 25 GB/s. The last line is one JSON document.
"""

import argparse
import json
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from m2f_core.config.backbones import SwinConfig
from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.images.image_size import ImageSize
from m2f_core.inference.settings import InstanceSettings, PanopticSettings, SemanticSettings
from pipeline.telemetry.costs import Costs
from tests.support.decoder_scenes import NUM_CLASSES, STUFF_CLASS_IDS
from tests.support.device_counts import Copy, Counted, DeviceCounts, Operation
from tests.support.fake_network import ResultsAwaitedError, fake_network, images_of, table_of

KEPT = 20  # sure queries of each image
TASKS = {
    "panoptic": PanopticSettings.defaults("reference", STUFF_CLASS_IDS),
    "instance": InstanceSettings.defaults("reference", frozenset(range(NUM_CLASSES)) - STUFF_CLASS_IDS),
    "semantic": SemanticSettings.defaults("reference"),
}
LAUNCH_SECONDS = 4e-6
PCIE_BYTES = 25e9  # a second, of PCIe 4 with 16 lanes
Size = tuple[int, int]


@dataclass(frozen=True)
class Gpu:
    """Of the data sheet, without sparsity: FLOP/s by type, bytes/s of its memory."""

    fp32: float
    tf32: float
    bf16: float
    memory: float


GPUS = {
    "H100": Gpu(67e12, 494e12, 989e12, 3.35e12),
    "A100": Gpu(19.5e12, 156e12, 312e12, 2.04e12),
    "L4": Gpu(30.3e12, 60e12, 121e12, 0.3e12),
}


@dataclass(frozen=True)
class Part:
    """Operations of a batch; `tf32`: whether products of float32 may use it."""

    operations: list[Operation]
    tf32: bool

    @property
    def launches(self) -> int:
        return sum(operation.launches for operation in self.operations)

    def seconds(self, gpu: Gpu) -> float:
        return sum(max(o.flops / self._peak(o, gpu), o.num_bytes / gpu.memory) for o in self.operations)

    def of_flops(self, gpu: Gpu) -> float:
        return sum(o.flops / self._peak(o, gpu) for o in self.operations)

    def _peak(self, operation: Operation, gpu: Gpu) -> float:
        if operation.dtype != torch.float32:
            return gpu.bf16
        return gpu.tf32 if self.tf32 else gpu.fp32

    def launched(self, gpu: Gpu) -> float:
        return max(self.seconds(gpu), LAUNCH_SECONDS * self.launches)


@dataclass(frozen=True)
class Card:
    parts: dict[str, Part]
    counted: Counted

    def copies(self) -> dict[str, list[Copy]]:
        return {"to": self.counted.to_device, "from": self.counted.to_host}


def count(config: Mask2FormerConfig, precision: str, task: str, image_hw: Size, size: ImageSize, batch: int) -> Card:
    """What a batch of images of one size asks, after the first batch of a run."""
    inference = TASKS[task]
    with fake_network(config, precision, inference, size) as network:
        images = images_of(network, *[image_hw] * batch)
        whole = DeviceCounts()
        for counts in (nullcontext(), whole):  # what is made once for a size is made in the first batch
            network.cuda.tables = table_of(inference, batch, config.num_queries, config.num_labels, KEPT)
            with counts, suppress(ResultsAwaitedError):
                network.run(images, Costs())
        with torch.inference_mode(), DeviceCounts() as made:
            pixels = network._batch(images)
        with torch.inference_mode(), DeviceCounts() as modelled:
            network._forward(pixels)
    operations, first, last = whole.counted.operations, len(made.counted.operations), len(modelled.counted.operations)
    parts = {
        "input": operations[:first],
        "model": operations[first : first + last],
        "reduction": operations[first + last :],
    }
    assert len(parts["model"]) == last and parts["reduction"]
    tf32 = {"model": precision != "fp32"}
    return Card({name: Part(found, tf32.get(name, False)) for name, found in parts.items()}, whole.counted)


def rows_of(card: Card, batch: int) -> list[dict[str, Any]]:
    rows = [
        {
            "batch": batch,
            "part": name,
            "GFLOP": round(sum(o.flops for o in part.operations) / 1e9, 1),
            "GB of its memory": round(sum(o.num_bytes for o in part.operations) / 1e9, 3),
            "kernels": part.launches,
        }
        for name, part in card.parts.items()
    ]
    copied = {way: sum(copy.num_bytes for copy in copies) / 1e6 for way, copies in card.copies().items()}
    everything = {"MB to it": round(copied["to"], 2), "MB from it": round(copied["from"], 3)}
    rows[-1] |= everything | {"waits": len(card.counted.to_host), "peak GB": round(card.counted.peak_bytes / 1e9, 2)}
    return rows


def bounds_of(card: Card, batch: int, name: str, gpu: Gpu) -> dict[str, Any]:
    model, others = card.parts["model"], [part for part in card.parts.values() if part is not card.parts["model"]]
    graph, rest = model.seconds(gpu), sum(part.launched(gpu) for part in others)
    return {
        "GPU": name,
        "batch": batch,
        "model, launched ms": round(1e3 * model.launched(gpu), 2),
        "model, graph ms": round(1e3 * graph, 2),
        "its FLOPs alone ms": round(1e3 * model.of_flops(gpu), 2),
        "rest ms": round(1e3 * rest, 2),
        "copies ms": round(sum(c.num_bytes for copies in card.copies().values() for c in copies) / PCIE_BYTES * 1e3, 2),
        "images/s at most": round(batch / (graph + rest), 1),
        "all over model": round((graph + rest) / graph, 3),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--task", default="panoptic", choices=TASKS)
    parser.add_argument("--image", default="480x640")
    parser.add_argument("--size", default="800:1333")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    args = parser.parse_args()
    height, width = map(int, args.image.split("x"))
    labels = {n: f"class {n}" for n in range(NUM_CLASSES)}
    config = Mask2FormerConfig(backbone_config=SwinConfig(), id2label=labels)
    rows, bounds = [], []
    for batch in args.batches:
        card = count(config, args.precision, args.task, (height, width), ImageSize.parse(args.size), batch)
        rows += rows_of(card, batch)
        bounds += [bounds_of(card, batch, name, gpu) for name, gpu in GPUS.items()]
    print_table(rows)
    print_table(bounds)
    print(json.dumps({"benchmark": "device_card", **vars(args), "parts": rows, "bounds": bounds}))


if __name__ == "__main__":
    main()
