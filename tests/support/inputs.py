"""Inputs that tests make on the spot: photographs out of an installed wheel, a seeded checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

from m2f_core.config.mask2former import Mask2FormerConfig
from m2f_core.config.model_config import ModelConfig

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


def gather_photographs(folder: Path) -> None:
    """Copy the photographs of the installed scikit-image wheel into `folder`."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        shutil.copyfile(source / name, folder / name)


def make_model(folder: Path, seed: int = 0, tiny: Callable[..., ModelConfig] = Mask2FormerConfig.tiny) -> None:
    """Write a tiny model with seeded random weights, 5 things and 3 stuff classes, as a Hugging Face folder."""
    from m2f_core.checkpoints.checkpoint import save_checkpoint
    from m2f_core.config.labels import Category, LabelMap
    from tests.support.seeded_model import seeded_model

    categories = tuple(Category(i, i + 1, f"class {i + 1}", isthing=i < 5) for i in range(8))
    config = tiny(id2label={category.class_id: category.name for category in categories})
    save_checkpoint(seeded_model(config, seed), folder, LabelMap(categories))
