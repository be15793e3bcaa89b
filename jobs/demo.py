"""Segment the photographs that scikit-image ships, with a seeded random model, and query the tables.

Everything lies below .demo/ afterwards. The model is random: the pictures are real, the shard, the masks and the
tables are what a real run makes, but the classes mean nothing.
"""

import shutil
import sys
from pathlib import Path

from jobs import segment_bucket

FOLDER = Path(".demo")
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
SEED = 0

QUERY = """
SELECT parse_filename(image_key) AS image, category_name, round(score, 2) AS score, area, bbox,
       segmentation.counts[:20] AS rle
FROM read_parquet('{segments}') ORDER BY area DESC LIMIT 5
"""


def main() -> int:
    photographs, model = FOLDER / "photographs", FOLDER / "model"
    gather_photographs(photographs)
    make_model(model)
    print(f"photographs: {photographs} ({len(PHOTOGRAPHS)}, from scikit-image)")
    print(f"model: {model}, SEEDED RANDOM WEIGHTS: segments are real masks of real pixels, their classes mean nothing")
    output = FOLDER / "output"
    code = segment_bucket.main(
        ["--input", str(photographs), "--output", str(output), "--model", str(model), "--image-size", "320:533"]
    )
    run = max((output / "segments").glob("run=*"), key=lambda path: path.stat().st_mtime)
    query = QUERY.format(segments=run / "*.parquet").strip()
    print(f"\nA query that works (python -m pip install duckdb):\n\n{query}\n")
    import duckdb

    print(duckdb.sql(query))
    return code


def gather_photographs(folder: Path) -> None:
    """Copy the photographs of the installed scikit-image wheel into `folder`."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        shutil.copyfile(source / name, folder / name)


def make_model(folder: Path) -> None:
    """Write a tiny Mask2Former with seeded random weights as a Hugging Face checkpoint."""
    from m2f_core.checkpoint import save_checkpoint
    from m2f_core.config import Mask2FormerConfig
    from m2f_core.labels import Category, LabelMap
    from m2f_core.seeded import seeded_model

    categories = tuple(Category(i, i + 1, f"class {i + 1}", isthing=i < 5) for i in range(8))
    config = Mask2FormerConfig.tiny(id2label={category.class_id: category.name for category in categories})
    save_checkpoint(seeded_model(config, SEED), folder, LabelMap(categories))


if __name__ == "__main__":
    sys.exit(main())
