"""One sample's augmentation: only the crop is resized, against all of the image first, as detectron2 does.

    python tests/benchmarks/bench_augment.py [--draws 40]

An image of 480x640 pixels and its map of segment ids, one thread, the same draws for both sides in turns, which give
the same pixels. Medians per image; the last line is one JSON document.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2f_core.training.augment import Jitter, LargeScaleJitter

SIZE_HW = (480, 640)
CASES = {  # what docs/training.md and `make overfit` train with
    "the paper's, crop 1024, scale 0.1 to 2": LargeScaleJitter((1024, 1024), 0.1, 2.0, flip=True),
    "crop 384 at 1280 pixels": LargeScaleJitter((384, 384), 1280 / 384, 1280 / 384, flip=False),
    "crop 256 at 1280 to 2560 pixels": LargeScaleJitter((256, 256), 5.0, 10.0, flip=False),
}


def all_then_crop(jitter: Jitter, image: Image.Image, ids_HW: NDArray[np.int32]) -> list[NDArray]:
    """What of the two lies in the crop."""
    (y, x), (height, width) = jitter.offset_yx, jitter.crop_hw
    found = []
    for plane, resample in ((image, jitter.resample), (Image.fromarray(ids_HW), Image.Resampling.NEAREST)):
        turned = plane.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if jitter.flip else plane
        found.append(np.asarray(turned.resize(jitter.resized_hw[::-1], resample))[y : y + height, x : x + width])
    return found


def compare(jitter: LargeScaleJitter, draws: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8))
    ids_HW = rng.integers(0, 20, SIZE_HW, dtype=np.int32)
    drawn = [jitter.draw(*SIZE_HW, rng) for _ in range(draws)]
    drawn[0].image(image)  # compiles
    theirs, ours = [], []
    for draw in drawn:
        started = time.perf_counter()
        expected = all_then_crop(draw, image, ids_HW)
        between = time.perf_counter()
        found = draw.image(image), draw.map(ids_HW, 0)
        ours.append(1e3 * (time.perf_counter() - between))
        theirs.append(1e3 * (between - started))
        height, width = expected[1].shape
        if not all(np.array_equal(f[:height, :width], e) for f, e in zip(found, expected, strict=True)):
            raise RuntimeError("both ways must give the same pixels")
    ms_all, ms_crop = statistics.median(theirs), statistics.median(ours)
    return {"all_ms": round(ms_all, 2), "crop_ms": round(ms_crop, 2), "ratio": round(ms_all / ms_crop, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=40, help="of each case; the median is reported")
    draws = parser.parse_args().draws
    rows = {}
    for name, jitter in CASES.items():
        rows[name] = compare(jitter, draws)
        print(f"{name}:", "  ".join(f"{key} {value}" for key, value in rows[name].items()), flush=True)
    versions = {name: version(name) for name in ("numpy", "pillow", "numba")}
    print(json.dumps({"benchmark": "augment", "rows": rows, "versions": versions, "python": platform.python_version()}))


if __name__ == "__main__":
    main()
