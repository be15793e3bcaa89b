"""The memory that a large image takes while it is read tile by tile, in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.support.places import ROOT

pytestmark = pytest.mark.thorough

SIDE = 8000
WHOLE_MIB = SIDE * SIDE * 4 >> 20  # as Pillow holds it: 244
PROGRAM = """
import sys
from pathlib import Path
from m2f_core.inference.tiling import Tiling
from pipeline.decoding.decode import open_image

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) // 1024

def read(data, size_hw):
    regions = open_image(data, max_pixels=10**9, apply_exif=True)
    assert regions.size_hw == size_hw
    return sum(int(regions.read(tile.box)[::64, ::64].sum()) for tile in Tiling(512, 64).tiles(*size_hw))

path, small, height, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
read(Path(small).read_bytes(), (100, 100))  # what the libraries load
data = Path(path).read_bytes()
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
read(data, (height, width))
print(memory("VmHWM") - before)
"""
FILES = {
    "tiff in tiles": {"tile": (256, 256), "compression": "zlib"},
    "tiff in strips": {"rowsperstrip": 16, "compression": "zlib"},
    "jpeg": None,
    "png, turned": None,
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
@pytest.mark.parametrize("name", FILES)
def test_a_large_image_takes_what_the_documentation_says(tmp_path, name):
    pixels = np.zeros((SIDE, SIDE - 8, 3), np.uint8)
    pixels[::7, :, 0] = np.arange(SIDE - 8) % 256
    for path, part in ((tmp_path / "large", pixels), (tmp_path / "small", pixels[:100, :100])):
        if (options := FILES[name]) is not None:
            tifffile.imwrite(path, part, photometric="rgb", **options)
        elif name == "jpeg":
            Image.fromarray(part).save(path, "JPEG")
        else:
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(part).save(path, "PNG", exif=exif.tobytes(), compress_level=1)
    hw = (SIDE - 8, SIDE) if "turned" in name else (SIDE, SIDE - 8)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "large"), str(tmp_path / "small"), *map(str, hw)]
    grown = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    rows_MiB = 512 * SIDE * 3 >> 20  # of one row of tiles: 11
    assert grown < (WHOLE_MIB + 40 if options is None else 4 * rows_MiB + 40), grown
