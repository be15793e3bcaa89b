"""A scene of 400 megapixels in tiles: time, memory beyond the loaded model, and PQ against the parts of the scene.

    python tests/benchmarks/bench_tiles.py [--across 20] [--side 1000] [--tile 1004:4] [--format jpeg]

The scene is a mosaic of `across` x `across` synthetic scenes of `side` pixels, so its answer is known from its parts:
from their ground truth, and from what the same model finds in each part as an image of its own (untiled). The model is
the embedded one, which sees each tile at 128 pixels, the size at which it was trained. It was trained on single scenes,
so the overlap is small by default: with a wider overlap a tile shows slices of other scenes behind a hard edge, which
this model has never seen. `--landscape` draws one continuous scene of the same scale instead, for the cost of seams in
things; then there are no parts. The last line is one JSON document. Memory is the peak of a process of its own, from
the moment when the model is loaded and has segmented one small image: encoded bytes, decoded image, tiles, results.
"""

import argparse
import io
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tifffile
from PIL import Image

from m2f_core.inference.settings import PanopticSettings
from m2f_core.inference.tiling import Tiling
from m2f_core.masks.box import Box
from m2f_core.masks.intervals import placed, to_rle, united
from m2f_core.masks.rle import encode_runs, label_runs
from pipeline.evaluate.metrics import panoptic_summary, panoptic_sums
from pipeline.scenes.draw import CATEGORIES, draw_scene
from pipeline.segment.checkpoint import stage_model
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.spec import SegmentedImage, SegmentSpec

SEED = 2026
MODEL = "synthetic-scenes"
STUFF = {category["id"] for category in CATEGORIES if not category["isthing"]}
Found = list[tuple[int, Box, bytes]]  # category id, where in the scene, compressed counts within the box

Image.MAX_IMAGE_PIXELS = None


def segmenter(tile: str, threads: int) -> Segmenter:
    checkpoint = stage_model(MODEL)
    return Segmenter(
        SegmentSpec(
            model=MODEL,
            weights_sha256=checkpoint.sha256,
            preprocess="reference",
            image_size=None,
            exif=True,
            max_image_pixels=2**31 - 1,
            inference=PanopticSettings.for_labels("reference", checkpoint.labels),
            precision="fp32",
            device="cpu",
            threads=threads,
            batch_size=1,  # the default on CPUs
            max_batch_pixels=2**40,
            tiling=Tiling.parse(tile),
        )
    )


def category_ids() -> list[int]:
    return [category.category_id for category in stage_model(MODEL).labels.categories]


def draw(across: int, side: int, landscape: bool) -> tuple[np.ndarray, Found, list[Box]]:
    """Pixels, ground truth and the boxes of the parts."""
    if landscape:
        scene = draw_scene(SEED, 0, across * side, across * side, unit=side)
        box = Box(0, 0, across * side, across * side)
        return scene.pixels_HW3, true_segments(scene, box), []
    pixels_HW3 = np.empty((across * side, across * side, 3), np.uint8)
    truth, boxes = [], []
    for number in range(across**2):
        top, left = number // across * side, number % across * side
        boxes.append(Box(top, left, top + side, left + side))
        scene = draw_scene(SEED, number, side, side)
        pixels_HW3[top : top + side, left : left + side] = scene.pixels_HW3
        truth += true_segments(scene, boxes[-1])
    return pixels_HW3, truth, boxes


def true_segments(scene, box: Box) -> Found:
    categories = dict(scene.segments)
    return [(categories[r.label], box, r.counts) for r in encode_runs(label_runs(scene.ids_HW), *box.size_hw)]


def records(found: Found, image_hw: tuple[int, int]) -> list[dict]:
    """In COCO's form; the stuff of a class is one segment of the scene."""
    groups: dict[object, list] = {}
    for number, (category_id, box, counts) in enumerate(found):
        key = category_id if category_id in STUFF else (number, category_id)
        groups.setdefault(key, []).append((category_id, placed(counts, box, box, image_hw)))
    rows = []
    for number, pieces in enumerate(groups.values(), 1):
        mask = to_rle(united([intervals for _, intervals in pieces]), image_hw, 1)
        segmentation = {"size": list(image_hw), "counts": mask.counts.decode()}
        rows.append(
            {"id": number, "image_id": 1, "category_id": pieces[0][0], "segmentation": segmentation, "iscrowd": 0}
            | {"area": mask.area, "bbox": list(mask.bbox_xywh)}
        )
    return rows


def quality(truth: list[dict], predicted: list[dict], image_hw: tuple[int, int]) -> dict[str, float]:
    images = [{"id": 1, "height": image_hw[0], "width": image_hw[1], "file_name": "scene"}]
    summary = panoptic_summary(panoptic_sums(images, truth, predicted, CATEGORIES), CATEGORIES)
    return {f"PQ {name}": round(summary[name]["PQ"], 4) for name in ("all", "things", "stuff")}


def save(pixels_HW3: np.ndarray, path: Path, image_format: str) -> None:
    if image_format == "jpeg":
        Image.fromarray(pixels_HW3).save(path, "JPEG", quality=95)
    else:
        tifffile.imwrite(path, pixels_HW3, photometric="rgb", tile=(512, 512), compression="zlib", predictor=True)


def segment_in_this_process(path: str, tile: str, threads: int, output: str) -> None:
    """The child: load, segment, and write segments, seconds and peak."""
    model = segmenter(tile, threads)
    buffer = io.BytesIO()
    Image.fromarray(draw_scene(SEED, 0, 128, 128).pixels_HW3).save(buffer, "PNG")
    model.segment([buffer.getvalue()])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, started = memory("VmRSS"), time.perf_counter()
    [result] = model.segment([Path(path).read_bytes()])
    seconds = time.perf_counter() - started
    if not isinstance(result, SegmentedImage):
        sys.exit(f"the scene failed: {result}")
    Path(output).write_bytes(pickle.dumps((result, seconds, memory("VmHWM") - before, before)))


def memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--across", type=int, default=20)
    parser.add_argument("--side", type=int, default=1000)
    parser.add_argument("--tile", default="1004:4")
    parser.add_argument("--format", choices=("jpeg", "tiff"), default="jpeg")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--landscape", action="store_true")
    args = parser.parse_args()
    image_hw = (args.across * args.side,) * 2
    pixels_HW3, truth, boxes = draw(args.across, args.side, args.landscape)
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "scene", Path(folder) / "result"
        save(pixels_HW3, path, args.format)
        encoded_bytes = path.stat().st_size
        program = f"from tests.benchmarks.bench_tiles import *; segment_in_this_process(*{[str(path), args.tile]!r}, "
        program += f"{args.threads}, {str(output)!r})"
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", program], check=True, cwd=root)
        result, seconds, peak, loaded = pickle.loads(output.read_bytes())
        print(f"segmented in {seconds:.0f} s, peak over the model {peak / 2**30:.2f} GiB", file=sys.stderr)
        if args.format == "jpeg" and boxes:  # the parts as the file shows them
            pixels_HW3 = np.asarray(Image.open(path))
    ids = category_ids()
    whole = Box(0, 0, *image_hw)
    tiled = records([(ids[s.class_id], whole, s.mask.counts) for s in result.segments], image_hw)
    true = records(truth, image_hw)
    report = {
        "machine": platform.machine(),
        "size": f"{image_hw[0]} x {image_hw[1]}",
        "format": args.format,
        "encoded_MiB": round(encoded_bytes / 2**20),
        "tile": args.tile,
        "tiles": len(Tiling.parse(args.tile).tiles(*image_hw)),
        "segments": len(tiled),
        "seconds": round(seconds, 1),
        "loaded_model_MiB": round(loaded / 2**20),
        "peak_over_the_model_GiB": round(peak / 2**30, 3),
        "tiled against ground truth": quality(true, tiled, image_hw),
    }
    if boxes:
        model, found = segmenter(args.tile, args.threads), []
        for box in boxes:
            buffer = io.BytesIO()
            Image.fromarray(pixels_HW3[box.top : box.bottom, box.left : box.right]).save(buffer, "BMP")
            [part] = model.segment([buffer.getvalue()])
            found += [(ids[s.class_id], box, s.mask.counts) for s in part.segments]
        parts = records(found, image_hw)
        report["tiled against its parts"] = quality(parts, tiled, image_hw)
        report["parts against ground truth"] = quality(true, parts, image_hw)
    for name, value in report.items():
        print(f"{name:28} {value}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
