"""Semantic and instance post-processing of one image: ours against transformers, on one thread.

    python tests/benchmarks/bench_tasks.py [--repeats 5]

Both sides start from the same decoder outputs (100 queries, 20 of them sure). Semantic: 150 classes, 1080x1920, up to
the class of each pixel. Instance: 133 classes, up to the masks of the best 100 pairs of query and class, in
transformers' case as binary maps, its only form in which instances may overlap. The sides take turns and the medians
are printed; `peak` is the growth of the process's resident memory during one call.

"reference" computes something else than transformers, and more: it decides at the original size instead of 384 x 384,
and keeps every candidate where transformers keeps those with a score of 0.5. "hf" has transformers' own result, and is
checked to have it. The last line of the output is one JSON document.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))

import numba
import numpy as np
import torch
import transformers
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from m2f_core.images.geometry import ImageGeometry
from m2f_core.inference import instance, semantic
from m2f_core.inference.instance import instance_segments
from m2f_core.inference.semantic import semantic_segments
from m2f_core.inference.settings import InstanceSettings, SemanticSettings
from tests.benchmarks.bench_postprocess import milliseconds, peak_mib, rounded
from tests.support.decoder_scenes import decoder_outputs

GEOMETRY = ImageGeometry((1080, 1920), (750, 1333), (768, 1344))
NUM_SEMANTIC_CLASSES = 150
SEMANTIC = {
    "reference masks": SemanticSettings("reference", "masks"),
    "reference scores": SemanticSettings("reference", "scores"),
    "hf": SemanticSettings.defaults("hf"),
}
INSTANCE = {mode: InstanceSettings.defaults(mode) for mode in ("reference", "hf")}


def outputs_for(num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    mask_hw = (GEOMETRY.padded_hw[0] // 4, GEOMETRY.padded_hw[1] // 4)
    logits, masks = decoder_outputs(0, mask_hw, 20, num_doubtful=0)
    if num_classes != logits.shape[1] - 1:
        generator = torch.Generator().manual_seed(0)
        more = torch.randn((len(logits), num_classes + 1 - logits.shape[1]), generator=generator)
        logits = torch.cat([logits[:, :-1], more, logits[:, -1:]], dim=1)
    return logits, masks


def compare(name: str, theirs: Callable[[], object], ours: Callable[[], object], repeats: int) -> dict[str, object]:
    theirs(), ours()  # warm up: numba compiles, allocators grow
    theirs_ms, ours_ms = [], []
    for _ in range(repeats):
        theirs_ms.append(milliseconds(theirs))
        ours_ms.append(milliseconds(ours))
    hf_ms, our_ms = statistics.median(theirs_ms), statistics.median(ours_ms)
    hf_peak, our_peak = peak_mib(theirs), peak_mib(ours)
    return {
        "task": name,
        "hf_ms": round(hf_ms, 1),
        "ours_ms": round(our_ms, 1),
        "ratio": round(hf_ms / our_ms, 1),
        "hf_peak_mib": rounded(hf_peak),
        "ours_peak_mib": rounded(our_peak),
        "memory_ratio": None if not hf_peak or not our_peak else round(hf_peak / our_peak, 1),
    }


def semantic_rows(repeats: int) -> list[dict[str, object]]:
    logits, masks = outputs_for(NUM_SEMANTIC_CLASSES)
    batch = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])

    def theirs() -> torch.Tensor:
        processor = Mask2FormerImageProcessorPil()
        return processor.post_process_semantic_segmentation(batch, target_sizes=[GEOMETRY.original_hw])[0]

    if not torch.equal(theirs(), semantic.to_hf(semantic_segments(logits, masks, GEOMETRY, SEMANTIC["hf"]))):
        raise RuntimeError("hf mode must give transformers' classes")
    return [
        compare(
            f"semantic {way}",
            theirs,
            lambda settings=settings: semantic_segments(logits, masks, GEOMETRY, settings),
            repeats,
        )
        for way, settings in SEMANTIC.items()
    ]


def instance_rows(repeats: int) -> list[dict[str, object]]:
    logits, masks = outputs_for(133)
    batch = SimpleNamespace(class_queries_logits=logits[None], masks_queries_logits=masks[None])

    def theirs() -> dict[str, object]:
        processor = Mask2FormerImageProcessorPil()
        return processor.post_process_instance_segmentation(
            batch, target_sizes=[GEOMETRY.original_hw], return_binary_maps=True
        )[0]

    ours_hf = instance.to_hf(instance_segments(logits, masks, GEOMETRY, INSTANCE["hf"]), return_binary_maps=True)
    if not torch.equal(theirs()["segmentation"], ours_hf["segmentation"]):
        raise RuntimeError("hf mode must give transformers' masks")
    return [
        compare(
            f"instance {way}",
            theirs,
            lambda settings=settings: instance_segments(logits, masks, GEOMETRY, settings),
            repeats,
        )
        for way, settings in INSTANCE.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="semantic and instance post-processing against transformers")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each side per row; the median is reported")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rows = semantic_rows(repeats) + instance_rows(repeats)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    versions = {m.__name__: m.__version__ for m in (torch, transformers, numba, np)} | {
        "python": platform.python_version()
    }
    print(json.dumps({"benchmark": "tasks", "rows": rows, "versions": versions, "threads": 1}))


if __name__ == "__main__":
    main()
