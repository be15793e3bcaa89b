"""A forward pass of a family's model against transformers', on a CPU: the same weights, the same pixels.

    python tests/benchmarks/bench_families.py --family maskformer [--threads 1] [--size 512x704] [--rounds 3]

The model is the family's Swin-T, or what is nearest to it, with random weights, as jobs/segment_bucket.py prepares it.
Sides take turns; the least processor time of each counts, which other programs on the machine hardly change. Outputs
are compared first. The last line is one JSON document.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from m2f_core.checkpoints.checkpoint import load_checkpoint
from m2f_core.model.for_inference import prepare_for_inference


def _maskformer() -> torch.nn.Module:
    from tests.parity.test_maskformer_parity import MODELS, theirs_of

    return theirs_of(*MODELS["swin tiny"])


def _oneformer() -> torch.nn.Module:
    import transformers

    from tests.parity.test_model_parity import STAGES, SWIN
    from tests.parity.test_oneformer_parity import jittered, task_inputs

    model = jittered(transformers.SwinConfig(**SWIN["swin_tiny"], out_features=STAGES))
    model.forward = partial(model.forward, task_inputs=task_inputs("panoptic", 1))
    return model


def _eomt() -> torch.nn.Module:
    """Of the width of ViT-B, for --size 640x640 alone."""
    from tests.parity.test_eomt_parity import jittered

    vit_b = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_blocks": 3}
    return jittered(**vit_b, image_size=640, patch_size=16, num_register_tokens=4, num_queries=200, num_labels=133)


def _mask2former() -> torch.nn.Module:
    from tests.parity.test_model_parity import SWIN, jittered_model

    return jittered_model(SWIN["swin_tiny"])


# Family -> transformers' model in eval mode. `forward` of both sides takes the pixels alone.
FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "mask2former": _mask2former,
    "maskformer": _maskformer,
    "oneformer": _oneformer,
    "eomt": _eomt,
}


def best(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Processor seconds of the fastest call of each side."""
    seconds = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, call in sides.items():
            started = time.process_time()
            call()
            seconds[name] = min(seconds[name], time.process_time() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", default="512x704")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    height, width = map(int, given.size.split("x"))
    torch.set_num_threads(given.threads)
    theirs = FAMILIES[given.family]()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        theirs.save_pretrained(folder)
        ours = prepare_for_inference(load_checkpoint(folder), torch.device("cpu"), "fp32")
        pixels = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
        mine, expected = ours(pixels), theirs(pixels)
        error = (mine.masks_queries_logits - expected.masks_queries_logits).abs().max().item()
        seconds = best({"ours": lambda: ours(pixels), "transformers": lambda: theirs(pixels)}, given.rounds)
    ratio = seconds["transformers"] / seconds["ours"]
    print(f"{given.family}, {given.size}, {given.threads} thread(s), largest difference of a mask logit {error:.1e}")
    print(f"ours {seconds['ours']:.2f} s, transformers {seconds['transformers']:.2f} s, ratio {ratio:.2f}")
    print(json.dumps({**vars(given), "seconds": seconds, "ratio": ratio, "error": error}))


if __name__ == "__main__":
    main()
