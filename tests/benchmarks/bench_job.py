"""The whole job against a plain transformers + pycocotools loop, on the same photographs, weights, sizes and threads.

    python tests/benchmarks/bench_job.py [--images FOLDER] [--image-size 480:800] [--threads N] [--rounds R]

The loop is what a competent user writes: transformers' processor, model and panoptic post-processing under
`inference_mode`, then pycocotools for every segment. The job is `jobs/segment_bucket.py` as a process of its own, in
the same mode of transformers (`hf`) and in the default one (`reference`). Both exclude start-up and loading the model;
the job's time runs from the first shard on a model to the last part written, so it includes encoding, checking and
writing the tables, and reading all shards but the first. The last line printed is one JSON document.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

ROOT = Path(__file__).parents[2]
IMAGES = ROOT.parent / "shared" / "data" / "coco_things" / "images"
STUFF = list(range(80, 133))


def make_checkpoint(folder: Path, shortest: int, longest: int) -> None:
    """Swin-T, 133 classes, random weights, jittered; class head sharpened so that there are segments to encode."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config={
            "model_type": "swin",
            "depths": [2, 2, 6, 2],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
        num_labels=133,
    )
    model = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        model.class_predictor.weight.mul_(20)
    model.save_pretrained(folder)
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": shortest, "longest_edge": longest})
    processor.save_pretrained(folder)


def run_loop(folder: Path, images: list[Path], threads: int) -> dict:
    """Images per second of the loop; the first image, repeated, warms up."""
    torch.set_num_threads(threads)
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
    segments = 0

    def segment(path: Path) -> int:
        image = Image.open(path).convert("RGB")
        inputs = processor(image, return_tensors="pt")
        with torch.inference_mode():
            outputs = model(**inputs)
        [result] = processor.post_process_panoptic_segmentation(
            outputs, threshold=0.5, label_ids_to_fuse=set(STUFF), target_sizes=[image.size[::-1]]
        )
        panoptic = result["segmentation"].numpy()
        rows = []
        for info in result["segments_info"]:
            rle = coco.encode(np.asfortranarray(panoptic == info["id"], dtype=np.uint8))
            rows.append({**info, "area": int(coco.area(rle)), "bbox": coco.toBbox(rle).tolist(), "segmentation": rle})
        return len(rows)

    segment(images[0])
    started = time.perf_counter()
    for path in images:
        segments += segment(path)
    seconds = time.perf_counter() - started
    return {"images_per_second": len(images) / seconds, "seconds": seconds, "segments": segments}


def run_job(folder: Path, images: Path, threads: int, mode: str) -> dict:
    """Images per second of the job, from its own report."""
    with tempfile.TemporaryDirectory() as output:
        subprocess.run(
            [
                *(sys.executable, str(ROOT / "jobs" / "segment_bucket.py")),
                *("--input", str(images), "--output", output, "--model", str(folder)),
                *("--preprocess", mode, "--postprocess", mode, "--score-threshold", "0.5"),
                *("--label-ids-to-fuse", *map(str, STUFF)),
                *("--device", "cpu", "--cpus-per-actor", str(threads), "--images-per-shard", "4"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        [report] = Path(output).glob("_runs/*/report.json")
        content = json.loads(report.read_text())
    return {
        "images_per_second": content["images_per_second"],
        "seconds": content["seconds"],
        "segments": content["num_segments"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder of photographs")
    parser.add_argument("--image-size", default="480:800", help="SHORTEST:LONGEST edge")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads of both sides")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of loop, job, job")
    args = parser.parse_args()
    if not args.images.is_dir():
        parser.error(f"no folder {args.images}; name one with --images")
    images = sorted(args.images.iterdir())
    shortest, longest = map(int, args.image_size.split(":"))
    sides: dict[str, list[dict]] = {"loop": [], "job hf": [], "job reference": []}
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(Path(folder), shortest, longest)
        for _ in range(args.rounds):  # the sides take turns, so that a change of the machine's pace meets all of them
            sides["loop"].append(run_loop(Path(folder), images, args.threads))
            for mode in ("hf", "reference"):
                sides[f"job {mode}"].append(run_job(Path(folder), args.images, args.threads, mode))
    speed = {side: statistics.median(r["images_per_second"] for r in runs) for side, runs in sides.items()}
    print(f"{len(images)} photographs, Swin-T at {args.image_size}, fp32, {args.threads} threads")
    for side, rate in speed.items():
        print(f"{side:14} {rate:6.3f} images/s   {rate / speed['loop']:5.2f}x   {sides[side][0]['segments']} segments")
    document = {
        "benchmark": "job",
        "images": len(images),
        "image_size": args.image_size,
        "threads": args.threads,
        "images_per_second": speed,
        "ratio_to_loop": {side: rate / speed["loop"] for side, rate in speed.items()},
        "runs": sides,
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "versions": {name: version(name) for name in ("torch", "transformers", "pycocotools", "ray", "numba")},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
