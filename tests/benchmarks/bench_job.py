"""The whole job, from a bucket to tables, against the same job by hand and against its own model alone.

    python tests/benchmarks/bench_job.py [--images FOLDER] [--image-sizes 512:800 800:1333] [--threads N] [--rounds R]
        [--copies C]

Photographs, each several times, lie in a SeaweedFS on this machine. `by hand` is Ray Data, transformers and
pycocotools: tests/benchmarks/ray_data_by_hand.py. `job` is `jobs/segment_bucket.py`, in the mode of transformers
(`hf`), whose segments are the same ones, and by default (`reference`), in fp32 and, where the CPU has the instructions,
in bf16. `model` is the forward pass of the job's own network in a loop over prepared inputs: what the job would do if
all the rest cost nothing. All are processes of their own with the same number of threads, the same niceness and the
same weights (Swin-T, 133 classes, random, jittered). Starting, loading the model and, in `model`, the first image do
not count. Sides take turns within a round, medians are printed. The last line is one JSON document.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
# Ray's own 15 would slow its workers, those of both jobs, by 5 %, and not the model alone.
os.environ.update({"RAY_worker_niceness": "0"})
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from m2f_core.layers.cpu_instructions import bf16_refusal
from tests.benchmarks.scripts import ROOT, run_script
from tests.support.inputs import gather_photographs
from tests.support.s3_server import S3Server, embedded_s3

IMAGES = ROOT.parent / "shared" / "data" / "coco_things" / "images"
STUFF = [str(label) for label in range(80, 133)]
PRECISIONS = ("fp32", "bf16") if bf16_refusal() is None else ("fp32",)
BY_HAND = "by hand"
JOBS = ("job hf", *(f"job {precision}" for precision in PRECISIONS))
MODELS = tuple(f"model {precision}" for precision in PRECISIONS)


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


def run_by_hand(bucket: str, output: str, model: Path, threads: int) -> dict[str, float]:
    flags = ("--input", f"{bucket}/images", "--output", output, "--model", model, "--threads", threads, "--stuff")
    said = run_script(
        "tests/benchmarks/ray_data_by_hand.py", *(str(flag).removeprefix("s3://") for flag in flags), *STUFF
    )
    return json.loads(said.splitlines()[-1])


def run_job(server: S3Server, output: str, bucket: str, model: Path, threads: int, side: str) -> dict[str, float]:
    """As its own report says."""
    mode = "hf" if side == "job hf" else "reference"
    run_script(
        "jobs/segment_bucket.py",
        *("--input", f"{bucket}/images", "--output", output, "--model", str(model), "--device", "cpu"),
        *("--preprocess", mode, "--postprocess", mode, "--score-threshold", "0.5", "--label-ids-to-fuse", *STUFF),
        *("--precision", "bf16" if side == "job bf16" else "fp32"),
        *("--cpus-per-actor", str(threads), "--images-per-shard", "4", "--no-page"),
    )
    name, prefix = output.removeprefix("s3://").split("/", 1)
    keys = [o["Key"] for o in server.client.list_objects_v2(Bucket=name, Prefix=prefix)["Contents"]]
    [report] = [key for key in keys if key.endswith("report.json")]
    content = json.loads(server.client.get_object(Bucket=name, Key=report)["Body"].read())
    return {name: content[name] for name in ("seconds", "step_ms", "device_busy")} | {
        "segments": content["num_segments"]
    }


def run_model(images: Path, model: Path, threads: int, side: str, copies: int) -> dict[str, float]:
    said = run_script("tests/benchmarks/model_alone.py", str(images), str(model), str(threads), side.split()[1])
    return {"seconds": copies * json.loads(said.splitlines()[-1])["seconds"]}


def measure(server: S3Server, images: Path, size: str, threads: int, rounds: int, copies: int):
    """What each side says, round after round."""
    sides: dict[str, list[dict[str, float]]] = {side: [] for side in (BY_HAND, *JOBS, *MODELS)}
    bucket = server.bucket(f"photographs-{size.replace(':', '-')}")
    for path in sorted(images.iterdir()):
        for copy in range(copies):
            server.client.upload_file(str(path), bucket.removeprefix("s3://"), f"images/{path.stem}-{copy}.jpg")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        make_checkpoint(model, *map(int, size.split(":")))
        for number in range(rounds):
            for side, said in sides.items():
                output = f"{bucket}/{side.replace(' ', '-')}-{number}"
                if side == BY_HAND:
                    said.append(run_by_hand(bucket, output, model, threads))
                elif side in JOBS:
                    said.append(run_job(server, output, bucket, model, threads, side))
                else:
                    said.append(run_model(images, model, threads, side, copies))
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photographs; default: ../shared, scikit-image's")
    parser.add_argument("--image-sizes", nargs="+", default=["512:800", "800:1333"], help="SHORTEST:LONGEST edge")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads of all sides")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--copies", type=int, default=3, help="of each photograph in the bucket")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, embedded_s3(Path(folder)) as server:
        images = args.images or (IMAGES if IMAGES.is_dir() else Path(folder) / "photographs")
        if images == Path(folder) / "photographs":
            gather_photographs(images)
        num_images = args.copies * len(list(images.iterdir()))
        os.environ.update(server.environment)
        for size in args.image_sizes:
            sides = measure(server, images, size, args.threads, args.rounds, args.copies)
            rate = {side: num_images / statistics.median(r["seconds"] for r in said) for side, said in sides.items()}
            rows.append({"image_size": size, "images_per_second": rate, "runs": sides})
            print(f"{num_images} images at {size}, {args.threads} threads")
            for side, said in sides.items():
                against = f"{rate[side] / rate[BY_HAND]:5.2f} x by hand"
                if side.replace("job", "model") in MODELS:
                    against += f"  {rate[side] / rate[side.replace('job', 'model')]:5.2f} x its model alone"
                print(f"  {side:10} {rate[side]:6.3f} images/s  {against}  {said[0].get('segments', '')}", flush=True)
    document = {
        "benchmark": "job",
        "images": num_images,
        "threads": args.threads,
        "rows": rows,
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "versions": {name: version(name) for name in ("torch", "transformers", "pycocotools", "ray", "numba")},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
