"""What the page says of the input, from rows with figures of real pictures."""

import pyarrow as pa
from PIL import Image, ImageEnhance
from skimage import data

from m2f_core.images.quality import measure_quality
from pipeline.page.figures.quality import quality
from pipeline.page.figures.tallies import NOW
from pipeline.schema import IMAGES
from pipeline.tables.spill_database import ScratchDatabase
from tests.support.published_tables import image_row


def found(pictures: dict[str, Image.Image | None]) -> dict[str, list[str]]:
    """The names of the images of each kind."""
    rows = [
        image_row(name, "run", 0, height=480, width=640, quality=image and measure_quality(image)._asdict())
        for name, image in pictures.items()
    ]
    scratch = ScratchDatabase()
    scratch.connection.register(f"{NOW}_images", pa.Table.from_pylist(rows, schema=IMAGES))
    said = quality(scratch)
    assert bool(said["missing"]) != any(pictures.values())
    return {one["kind"]: sorted(one["examples"]) for one in said["kinds"] if one["images"]}


def test_pictures_with_a_fault_and_doubled_ones_are_named():
    sound = {name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in ("astronaut", "coffee", "chelsea")}
    spoilt = {
        "dark": ImageEnhance.Brightness(sound["coffee"]).enhance(0.2),
        "light": Image.eval(sound["astronaut"], lambda level: 250 + level // 64),
        "grey": sound["chelsea"].convert("L").convert("RGB"),
        "plain": Image.new("RGB", (300, 200), (90, 120, 60)),
    }
    kinds = found({**sound, **spoilt, "again": sound["coffee"].copy(), "not decoded": None})
    assert kinds["dark"] == ["dark"] and kinds["light"] == ["light"] and kinds["grey"] == ["grey"]
    assert "plain" in kinds["low_information"]
    near = set(kinds["near_duplicates"])  # the first and the last of each group
    assert "again" in near and near < {"again", "coffee", "dark", "astronaut", "light", "chelsea", "grey"}


def test_without_figures_the_page_says_why():
    assert "dark" not in found({"a": None, "b": None})
