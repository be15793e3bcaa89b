"""Panoptic post-processing and RLE of one image: ours against transformers with pycocotools, on one thread.

    python tests/benchmarks/bench_postprocess.py [--repeats 15]

Both sides start from the same decoder outputs (100 queries, 20 of them kept, 133 classes, COCO stuff fused, the same
thresholds) and end with compressed counts: of every segment of transformers' result by pycocotools, of the whole map by
`rle.encode_runs`, which also gives area and box. The sides take turns, so that both meet the same disturbances, and the
medians are printed. `peak` is the growth of the process's resident memory during one call.

"reference" is compared with transformers although it computes something else (and more: logits at the padded size
instead of 384 x 384), because it takes the same place in a pipeline. "hf" has transformers' own result.
The last line of the output is one JSON document.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numba
import numpy as np
import pycocotools.mask as coco_mask
import torch
import transformers
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference.panoptic import panoptic_segments
from m2f_core.inference.settings import PanopticSettings
from m2f_core.masks import rle
from tests.benchmarks.memory import peak_mib
from tests.support.decoder_scenes import STUFF_CLASS_IDS, decoder_outputs

# Original size, and what the paper's resizing (short edge 800, long edge at most 1333, multiple of 32) makes of it.
GEOMETRIES = [
    ImageGeometry((480, 640), (800, 1067), (800, 1088)),
    ImageGeometry((1080, 1920), (750, 1333), (768, 1344)),
]


def run_transformers(
    logits: torch.Tensor, masks: torch.Tensor, geometry: ImageGeometry, settings: PanopticSettings
) -> list[bytes]:
    outputs = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])
    (result,) = Mask2FormerImageProcessorPil().post_process_panoptic_segmentation(
        outputs,
        threshold=settings.score_threshold,
        label_ids_to_fuse=set(settings.fuse_class_ids),
        target_sizes=[geometry.original_hw],
    )
    label_map = result["segmentation"].numpy()
    ids = sorted({row["id"] for row in result["segments_info"]})
    return [coco_mask.encode(np.asfortranarray((label_map == i).astype(np.uint8)))["counts"] for i in ids]


def run_ours(
    logits: torch.Tensor, masks: torch.Tensor, geometry: ImageGeometry, settings: PanopticSettings
) -> list[bytes]:
    result = panoptic_segments(logits, masks, geometry, settings)
    return [r.counts for r in rle.encode_runs(result.label_map.runs, *geometry.original_hw)]


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def compare(mode: str, geometry: ImageGeometry, num_kept: int, repeats: int) -> dict[str, object]:
    mask_hw = (geometry.padded_hw[0] // 4, geometry.padded_hw[1] // 4)
    logits, masks = decoder_outputs(0, mask_hw, num_kept, num_doubtful=0)
    settings = PanopticSettings.defaults(mode, STUFF_CLASS_IDS)

    def theirs() -> list[bytes]:
        return run_transformers(logits, masks, geometry, settings)

    def ours() -> list[bytes]:
        return run_ours(logits, masks, geometry, settings)

    kept = panoptic_segments(logits, masks, geometry, settings).num_kept_queries
    if kept != num_kept:
        raise RuntimeError(f"the scene keeps {kept} queries, not {num_kept}")
    if mode == "hf" and theirs() != ours():
        raise RuntimeError("hf mode must give transformers' bytes")
    theirs(), ours()  # warm up: numba compiles, allocators grow
    theirs_ms, ours_ms, decide_ms = [], [], []
    for _ in range(repeats):
        theirs_ms.append(milliseconds(theirs))
        ours_ms.append(milliseconds(ours))
        decide_ms.append(milliseconds(lambda: panoptic_segments(logits, masks, geometry, settings)))
    hf_ms, our_ms = statistics.median(theirs_ms), statistics.median(ours_ms)
    return {
        "mode": mode,
        "size": "x".join(map(str, geometry.original_hw)),
        "num_kept": num_kept,
        "hf_ms": round(hf_ms, 2),
        "ours_ms": round(our_ms, 2),
        "ours_without_rle_ms": round(statistics.median(decide_ms), 2),
        "ratio": round(hf_ms / our_ms, 1),
        "hf_peak_mib": rounded(peak_mib(theirs)),
        "ours_peak_mib": rounded(peak_mib(ours)),
    }


def compare_rle(height: int, width: int, num_segments: int, repeats: int) -> dict[str, object]:
    """A label map, as it stands in memory after inference, to the compressed counts of its segments, byte for byte."""
    seeds = np.random.default_rng(0).random((num_segments, 2)) * (height, width)
    y_HW1, x_HW1 = (places[..., None] for places in np.mgrid[:height, :width])
    distances_HWN = np.hypot(y_HW1 - seeds[:, 0], x_HW1 - seeds[:, 1]) + 12 * np.sin(y_HW1 / 7) * np.cos(x_HW1 / 9)
    ripples_HWN = 15 * np.sin((y_HW1 + 40 * np.arange(num_segments)) / 11)  # outlines as ragged as those of masks
    label_map_HW = np.asfortranarray((distances_HWN + ripples_HWN).argmin(-1) + 1, np.uint8)

    def theirs() -> list[bytes]:
        masks = ((label_map_HW == n).astype(np.uint8) for n in range(1, num_segments + 1))
        return [coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in masks]

    def ours() -> list[bytes]:
        return [r.counts for r in rle.encode_runs(rle.label_runs(label_map_HW), height, width)]

    if theirs() != ours():
        raise RuntimeError("RLE must have pycocotools' bytes")
    theirs_ms, ours_ms = [], []
    for _ in range(repeats):
        theirs_ms.append(milliseconds(theirs))
        ours_ms.append(milliseconds(ours))
    coco_ms, our_ms = statistics.median(theirs_ms), statistics.median(ours_ms)
    return {
        "size": f"{height}x{width}",
        "num_segments": num_segments,
        "num_runs": rle.label_runs(label_map_HW).values.size,
        "pycocotools_ms": round(coco_ms, 2),
        "ours_ms": round(our_ms, 2),
        "ratio": round(coco_ms / our_ms, 1),
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="post-processing and RLE against transformers and pycocotools")
    parser.add_argument("--repeats", type=int, default=15, help="calls of each side per row; the median is reported")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)

    rows: list[dict[str, object]] = []
    for mode in ("reference", "hf"):
        for geometry in GEOMETRIES:
            row = compare(mode, geometry, num_kept=20, repeats=repeats)
            if not rows:
                print("  ".join(name.rjust(9) for name in row))
            rows.append(row)
            print("  ".join(str(value).rjust(max(9, len(name))) for name, value in row.items()), flush=True)
    rle_rows = [compare_rle(480, 640, 15, repeats), compare_rle(1080, 1920, 28, repeats)]
    for row in rle_rows:
        print("RLE of a label map: " + "  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, numba, np)} | {
        "python": platform.python_version()
    }
    print(json.dumps({"benchmark": "postprocess", "rows": rows, "rle": rle_rows, "versions": versions, "threads": 1}))


if __name__ == "__main__":
    main()
