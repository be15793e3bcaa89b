"""What README shows runs as it stands there."""

import re
import subprocess
import sys

import pytest
from PIL import Image

from m2f_core.masks.rle import encode_counts
from tests.support.places import ROOT
from tests.support.published_tables import publish, segment_row
from tools.readme_pictures import MOST_BYTES


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.thorough)])
def test_reading_the_tables_ends_well_every_time(tmp_path, times):
    """With the library's data set and `head`, the interpreter aborted at its end in some runs."""
    counts = encode_counts([100, 4, 480 * 640 - 104]).decode()
    rows = [
        segment_row(f"file:///{n}.jpg", "r", area=n, segmentation={"size": [480, 640], "counts": counts})
        for n in range(60)
    ]
    publish(str(tmp_path / "out"), "segments", "r", [rows[n::3] for n in range(3)])
    [program] = re.findall(r"```python\n(import duckdb.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for _ in range(times):
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "cat" in done.stdout, done.stderr


def test_each_picture_is_there_and_small():
    """PyPI shows the text in place of a picture, so the text says what is seen."""
    pictures = re.findall(r"!\[([^]]*)\]\(([^)]*)\)", (ROOT / "README.md").read_text())
    assert len(pictures) == 2 and {path.name for path in (ROOT / "docs" / "pictures").iterdir()} == {
        name.rpartition("/")[2] for _, name in pictures
    }
    for text, name in pictures:
        assert len(text.split()) > 5 and (ROOT / name).stat().st_size <= MOST_BYTES
        with Image.open(ROOT / name) as picture:
            assert min(picture.size) >= 400
