"""`make demo` after its set-up: held-out scenes, the embedded checkpoint, PQ, pictures, a query that works."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from jobs import demo


@pytest.mark.thorough
def test_the_demo_scores_pictures_and_queries_what_it_segmented(tmp_path):
    done = subprocess.run([sys.executable, demo.__file__], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "synthetic-scenes was trained only on scenes" in done.stderr
    folder = tmp_path / demo.FOLDER
    [run] = (folder / "output" / "segments").glob("run=*")
    assert f"segments/{run.name}/*.parquet" in done.stdout
    query = done.stdout.split("An example query", 1)[1]
    assert "SELECT" in query and ".png" in query
    pq = {m[1]: float(m[2]) for m in re.finditer(r"(all|things|stuff)\W+([\d.]+)", done.stdout)}
    assert pq["all"] > 80 and pq["things"] > 70 and pq["stuff"] > 70, done.stdout
    with Image.open(folder / "pictures.png") as picture:
        assert picture.size == (128 * demo.NUM_PICTURES // 2, 4 * 128)


def test_the_demo_uses_scenes_that_the_checkpoint_has_not_seen():
    card = (Path(demo.__file__).parents[1] / "pipeline" / "models" / "synthetic-scenes" / "README.md").read_text()
    assert "--seed 1 " in card and demo.HELD_OUT_SEED != 1
