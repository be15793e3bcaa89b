"""JPEG bytes -> network input of one image: ours against transformers' processor, on one thread.

    python tests/benchmarks/bench_input.py [--repeats 15]

Both sides decode with Pillow, resize by the paper's rule (800:1333) and normalise; ours is the `reference` mode, as the
job does it on a CPU. "hf" is our mode that gives transformers' pixels bit for bit, "scaled" is `--scaled-jpeg`. The
photographs come with scikit-image, scaled to the size named and saved with quality 90. The sides take turns; medians.
"ceiling" is the time of the decoder alone, which is the same library on both sides. The last line is one JSON document.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import skimage
import torch
from PIL import Image
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from m2f_core.images.image_processor import ImageProcessor
from pipeline.decoding.decode import decode_image
from pipeline.segment.preparation import least_decoded

SIZES_HW = [(480, 640), (1080, 1920), (3000, 4000)]
PHOTOGRAPH = Path(skimage.__file__).parent / "data" / "coffee.png"


def photograph(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.open(PHOTOGRAPH).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def compare(height: int, width: int, repeats: int) -> dict[str, object]:
    data = photograph(height, width)
    theirs = Mask2FormerImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333})

    def decode() -> Image.Image:
        return decode_image(data, max_pixels=10**9, apply_exif=True)

    def transformers() -> np.ndarray:
        return theirs(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")["pixel_values"].numpy()

    def ours(mode: str, *, scaled: bool = False) -> np.ndarray:
        processor = ImageProcessor(mode)
        geometry = processor.geometry(height, width)
        least = least_decoded(geometry) if scaled else None
        image = decode_image(data, max_pixels=10**9, apply_exif=True, at_least_hw=least)
        return processor.to_batch([processor.resize(image, geometry.resized_hw)], geometry.padded_hw).numpy()

    if not np.array_equal(transformers(), ours("hf")):
        raise RuntimeError("hf mode must give transformers' pixels")
    sides: dict[str, Callable[[], object]] = {
        "transformers": transformers,
        "reference": lambda: ours("reference"),
        "hf": lambda: ours("hf"),
        "scaled": lambda: ours("reference", scaled=True),
        "ceiling": decode,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for call in sides.values():
        call()
    for _ in range(repeats):
        for name, call in sides.items():
            times[name].append(milliseconds(call))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "size": f"{height}x{width}",
        "kib": len(data) // 1024,
        **{f"{name}_ms": round(value, 2) for name, value in median.items()},
        "ratio": round(median["transformers"] / median["reference"], 2),
        "ratio_hf": round(median["transformers"] / median["hf"], 2),
        "ratio_scaled": round(median["transformers"] / median["scaled"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="calls of each side per row; the median is reported")
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rows = []
    for height, width in SIZES_HW:
        rows.append(compare(height, width, repeats))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    versions = {name: version(name) for name in ("torch", "transformers", "pillow", "numba")}
    document = {
        "benchmark": "input",
        "rows": rows,
        "versions": versions,
        "threads": 1,
        "python": platform.python_version(),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
