"""The network against transformers', one image at a time: Swin-T, 133 classes, random jittered weights.

    python tests/benchmarks/bench_model.py [--threads 1] [--rounds 5] [--sizes 512x704 800x1088]

All sides take turns within a round; medians are reported. The ceiling is the best rate that the machine reached in this
run for a matrix product, packed or not, of each type; floating-point operations are counted by PyTorch on transformers'
model and do not include the sampling of deformable attention. The last line of the output is one JSON document.
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
from functools import partial
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import numba
import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from m2f_core.checkpoints.checkpoint import load_checkpoint
from m2f_core.layers import mkldnn
from m2f_core.layers.cpu_instructions import bf16_refusal
from m2f_core.layers.deformable_attention import attend_by_embedding_bag, attend_by_grid_sample, locate_and_weigh
from m2f_core.layers.deformable_attention_kernel import attend_by_kernel
from m2f_core.model.for_inference import prepare_for_inference
from m2f_core.model.pixel_decoder import cell_centres
from tests.parity.test_model_parity import SWIN, image_batch, jittered_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # bf16 where the CPU has the instructions
PARTS = ("backbone", "pixel_decoder", "transformer_decoder")


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after one call that does not count."""
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    return {name: statistics.median(taken) for name, taken in times.items()}


def gemm_peak(dtype: torch.dtype) -> float:
    """Best GF/s of a square product, as torch does it and with packed weights."""
    size = 2048
    x, weight = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    packed = mkldnn.lay_out_weight(weight)
    calls = [
        lambda: x @ weight,
        lambda: mkldnn.linear(x, packed, None, "none", ""),
    ]
    return 2 * size**3 / min(seconds(call) for call in calls for _ in range(6)) / 1e9


def attention_row(height: int, width: int, rounds: int) -> dict[str, object]:
    """The core of one layer, with points about three cells around each query."""
    level_hw = [(-(-height // stride), -(-width // stride)) for stride in (32, 16, 8)]
    centres = torch.cat([cell_centres(h, w, torch.device("cpu")) for h, w in level_hw])
    torch.manual_seed(0)
    queries = len(centres)
    cell_size = torch.tensor([(1 / w, 1 / h) for h, w in level_hw])
    value, offsets = torch.randn(1, queries, 8, 32), 3 * torch.randn(1, queries, 8, 3, 4, 2)
    logits = torch.randn(1, queries, 8, 3, 4)

    def plain(attend: Callable[..., Tensor]) -> Tensor:
        return attend(value, level_hw, *locate_and_weigh(cell_size, centres, offsets, logits))

    ways = {
        "grid_sample": lambda: plain(attend_by_grid_sample),
        "embedding_bag": lambda: plain(attend_by_embedding_bag),
        "kernel": lambda: attend_by_kernel(value, level_hw, centres, offsets, logits),
    }
    times = in_turn(ways, 3 * rounds)
    error = (ways["kernel"]() - ways["grid_sample"]()).abs().max().item()
    return {
        "deformable attention core": f"{height}x{width}",
        **{f"{name}_ms": round(1e3 * taken, 2) for name, taken in times.items()},
        "ratio": round(times["grid_sample"] / times["kernel"], 1),
        "max_difference": f"{error:.1e}",
    }


def model_row(theirs: nn.Module, ours: dict[str, nn.Module], peaks: dict[str, float], size, rounds: int):
    height, width = size
    pixels = image_batch(height, width)
    with FlopCounterMode(display=False) as counter:
        theirs(pixels)
    gflop = counter.get_total_flops() / 1e9

    def run(name: str) -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bf16"):
            return ours[name](pixels)

    sides = {"theirs": lambda: theirs(pixels), **{name: partial(run, name) for name in ours}}
    times = in_turn(sides, rounds)
    expected = theirs(pixels).masks_queries_logits
    row: dict[str, object] = {"model": f"{height}x{width}", "gflop": round(gflop), "theirs_ms": ms(times["theirs"])}
    for name in ours:
        masks = run(name).masks_queries_logits
        row[f"{name}_ms"] = ms(times[name])
        row[f"{name}_ratio"] = round(times["theirs"] / times[name], 2)
        row[f"{name}_share_of_peak"] = round(gflop / times[name] / peaks[name], 2)
        row[f"{name}_flipped_mask_bits"] = f"{((masks >= 0) != (expected >= 0)).float().mean().item():.1e}"
    return row | {f"fp32_{part}_ms": taken for part, taken in parts_ms(ours["fp32"], pixels, rounds).items()}


def parts_ms(model: nn.Module, pixels: Tensor, rounds: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {part: [] for part in PARTS}
    started: dict[str, float] = {}
    hooks = []
    for part in PARTS:
        module = getattr(model, part)
        hooks.append(module.register_forward_pre_hook(lambda *_, p=part: started.__setitem__(p, time.perf_counter())))
        hooks.append(module.register_forward_hook(lambda *_, p=part: taken[p].append(time.perf_counter() - started[p])))
    for _ in range(rounds):
        model(pixels)
    for hook in hooks:
        hook.remove()
    return {part: ms(statistics.median(values)) for part, values in taken.items()}


def ms(taken: float) -> float:
    return round(1e3 * taken, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="the network against transformers'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", default=["512x704", "800x1088"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = [tuple(map(int, size.split("x"))) for size in args.sizes]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        theirs = jittered_model(SWIN["swin_tiny"])
        theirs.save_pretrained(folder)
        ours = {
            name: prepare_for_inference(load_checkpoint(folder), torch.device("cpu"), name)
            for name in DTYPES
            if name == "fp32" or bf16_refusal() is None
        }
        peaks = {name: gemm_peak(DTYPES[name]) for name in ours}
        rows = [attention_row(*size, args.rounds) for size in sizes]
        rows += [model_row(theirs, ours, peaks, size, args.rounds) for size in sizes]
    rounded = {name: round(peak) for name, peak in peaks.items()}
    for row in [*rows, {f"peak {name} GF/s": peak for name, peak in rounded.items()}]:
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, numba)} | {"python": platform.python_version()}
    print(
        json.dumps(
            {"benchmark": "model", "rows": rows, "peak_gflops": rounded, "versions": versions, "threads": args.threads}
        )
    )


if __name__ == "__main__":
    main()
