"""Train a small Swin from scratch on 13 photographs of COCO until it has them by heart: the bar is PQ > 0.90.

    python tests/training/overfit_photographs.py [--output FOLDER]

It is to show that losses, targets, transforms and inference fit together on real data: PQ comes from the tables of
`jobs/segment_bucket.py` and from `jobs/evaluate.py`. docs/benchmarks/2026-11.md has the course of the training, and
overfit_photographs.log beside this file what it printed. Takes about five hours on 2 cores; a second start goes on
where the first was stopped. Needs shared/data/coco_things beside the checkout. Ends with exit code 1 below the bar.

Masks have a cell for 4 x 4 pixels of the network's input. With the ground truth itself at that resolution PQ is 0.84
where the longest side has 640 pixels, as it is stored, 0.93 with 960 and 0.97 with 1280: many of the 93 things are a
few pixels wide. So all but the second stage happens at the scale of 1280 or above. A thing of six cells is a 12,000th
of such an image, and a network that starts there learns first that its mask is empty, from where no gradient leads
back. So the first stage trains on crops: there the same thing is eight times as large a part, and an image takes an
eighth of the time. The second shows, at a smaller scale, where what it has learned lies in the whole image (position
embeddings are relative to the image's size). The third brings the small things to life, in crops at up to twice the
scale; the fourth takes them over larger crops, and the fifth to whole images. Things that were not clear enough to
come through to whole images then get a second round of the same three stages, from a network that knows the rest; and
whole images once more, at a lower learning rate, let outlines settle.

Matching reads masks at points that are drawn evenly, 8,192 of them in 69,120 cells: often none lies in a thing of six
cells, and then a query with an empty mask matches it best. Hence the 49,152 points where a round leaves the small
crops.

Every step has the same norm of its gradient: all that occur are above 0.01, where the paper clips. So with one image a
step a thing among 19 would count a 19th of a lone one. A photograph is therefore listed once for every three things,
in stages for small things by the sum of 1 / area.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "coco_things"
TRUTH = PHOTOGRAPHS / "panoptic.json"
BAR = 0.90

# Half the width of Swin-T, six blocks, one layer in the pixel decoder, three in the decoder: 5.4 M parameters.
ARCHITECTURE = {
    "model_type": "mask2former",
    "backbone_config": {
        "model_type": "swin",
        "embed_dim": 48,
        "depths": [1, 1, 2, 2],
        "num_heads": [2, 4, 8, 16],
        "window_size": 7,
        "drop_path_rate": 0.0,
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 192,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "dim_feedforward": 384,
    "num_queries": 40,
}
SCALE = 1280  # pixels of the longest side of whole images
STRIDE = 4  # of the masks


@dataclass(frozen=True)
class Stage:
    """What differs from stage to stage."""

    crop: int | None  # pixels of a side; None: whole images
    batch_size: int
    learning_rate: float
    iterations: int
    longest_side: tuple[int, int] = (SCALE, SCALE)  # pixels that an image is scaled to (then cropped): from, to
    small_things: bool = False  # their photographs most often, and points of the loss drawn evenly
    num_points: int = 8192  # of each mask, in the matching and in the loss

    def flags(self) -> dict[str, object]:
        if self.crop is None:
            size = {"crop-size": "whole", "image-size": "{}:{}".format(*self.longest_side)}
        else:
            least, most = (side / self.crop for side in self.longest_side)
            size = {"crop-size": f"{self.crop}x{self.crop}", "min-scale": f"{least}", "max-scale": f"{most}"}
        # The paper draws three quarters of the points where a logit is near 0.
        ratio = 0.0 if self.small_things else 0.75
        points = {"train-num-points": self.num_points, "importance-sample-ratio": ratio}
        course = {"batch-size": self.batch_size, "learning-rate": self.learning_rate, "iterations": self.iterations}
        return {**size, **points, **course}

    def copies(self, areas: list[float]) -> float:
        """How often a photograph is listed, by the areas of its things in cells of the mask."""
        return sum(60 / area for area in areas) if self.small_things else len(areas) / 3


# From crops, in which small things come to life, over larger ones to whole images.
ROUND = (
    Stage(
        crop=256,
        batch_size=4,
        learning_rate=6e-4,
        iterations=4000,
        longest_side=(SCALE, 2 * SCALE),
        small_things=True,
    ),
    Stage(crop=640, batch_size=1, learning_rate=4e-4, iterations=400, small_things=True, num_points=49152),
    Stage(crop=None, batch_size=1, learning_rate=5e-4, iterations=2000, num_points=49152),
)
STAGES = (
    Stage(crop=384, batch_size=4, learning_rate=1e-3, iterations=1600),
    Stage(crop=None, batch_size=1, learning_rate=6e-4, iterations=900, longest_side=(960, 960)),
    *ROUND,
    *ROUND,
    Stage(crop=None, batch_size=1, learning_rate=3e-4, iterations=800, num_points=49152),
)
COMMON = {
    "image-size": f"{SCALE}:{SCALE}",
    "backbone-multiplier": 1,
    "schedule": "poly",
    "warmup-iterations": 100,
    "precision": "bf16",
    "cpus-per-worker": 2,
    "log-every": 50,
    "save-every": 250,
    "evaluate-every": 1000,
}

# glibc gives big tensors back to the system, which clears their pages anew at every step: a fifth of its time.
KEEP_MEMORY = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**34),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / ".overfit", help="default: .overfit in the checkout")
    output = parser.parse_args().output.resolve()
    if not PHOTOGRAPHS.is_dir():
        sys.exit(f"needs the photographs of {PHOTOGRAPHS}")
    output.mkdir(parents=True, exist_ok=True)
    architecture, images = output / "architecture.json", PHOTOGRAPHS / "images"
    truth = json.loads(TRUTH.read_text())
    settings = json.dumps([ARCHITECTURE, COMMON, *map(asdict, STAGES)], indent=1)
    kept = output / "settings.json"
    if any(output.glob("stage*")):
        begun = json.loads(kept.read_text()) if kept.exists() else []
        if not begun or json.loads(settings)[: len(begun)] != begun:  # stages may be added at the end
            sys.exit(f"{output} holds stages of other settings: remove it or choose another --output")
    kept.write_text(settings)
    architecture.write_text(json.dumps(ARCHITECTURE, indent=1))
    for number, stage in enumerate(STAGES, 1):
        folder = output / f"stage{number}"
        if (folder / "model" / "config.json").exists():
            continue
        start = {"model": output / f"stage{number - 1}" / "model"} if number > 1 else {"architecture": architecture}
        repeated = output / f"repeated{number}.json"
        repeated.write_text(json.dumps(repeated_for(stage, truth)))
        data = {"images": images, "panoptic-gt": repeated, "panoptic-pngs": TRUTH.with_suffix("")}
        validation = {"val-images": images, "val-gt": TRUTH}
        flags = {**COMMON, **stage.flags(), **start, **data, **validation}
        run("finetune", **flags, output=folder, flags=("--no-flip",))
    model = output / f"stage{len(STAGES)}" / "model"
    run("segment_bucket", input=images, output=output / "tables", model=model)
    run("evaluate", tables=output / "tables", panoptic_gt=TRUTH, report=output / "report.json")
    quality = json.loads((output / "report.json").read_text())["panoptic"]["all"]["PQ"]
    print(f"PQ {quality:.4f}, the bar is {BAR}")
    sys.exit(quality <= BAR)


def repeated_for(stage: Stage, truth: dict[str, Any]) -> dict[str, Any]:
    """The same ground truth in COCO's panoptic format, with each photograph as often as the stage wants it."""
    cells_of_pixel = {
        image["id"]: (SCALE / max(image["height"], image["width"]) / STRIDE) ** 2 for image in truth["images"]
    }
    repeated = []
    for annotation in truth["annotations"]:
        areas = [segment["area"] * cells_of_pixel[annotation["image_id"]] for segment in annotation["segments_info"]]
        repeated += [annotation] * max(1, round(stage.copies(areas)))
    return {**truth, "annotations": repeated}


def run(job: str, flags: tuple[str, ...] = (), **named: object) -> None:
    given = [text for name, value in named.items() for text in ("--" + name.replace("_", "-"), str(value))]
    environment = {"PYTHONPATH": str(ROOT), **KEEP_MEMORY, **os.environ}
    subprocess.run([sys.executable, str(ROOT / "jobs" / f"{job}.py"), *given, *flags], check=True, env=environment)


if __name__ == "__main__":
    main()
