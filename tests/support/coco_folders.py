"""Small data sets in COCO's formats on disk, in which the colour of a pixel says which segment it belongs to."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from m2f_core.masks.rle import counts_bbox_xywh, encode_mask

CATEGORIES = [
    {"id": 3, "name": "ground", "isthing": 0},
    {"id": 17, "name": "block", "isthing": 1},
    {"id": 90, "name": "bar", "isthing": 1},
]


@dataclass(frozen=True)
class CocoFolder:
    """`images/`, `panoptic.json` with `panoptic/`, and `instances.json` with the things."""

    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def panoptic_gt(self) -> Path:
        return self.root / "panoptic.json"

    @property
    def instances_gt(self) -> Path:
        return self.root / "instances.json"


def colour_of(segment_id: int, category_id: int) -> tuple[int, int, int]:
    """No two segments of an image share it; red alone says the category."""
    return category_id * 2, 40 * segment_id % 256, 255 - 40 * segment_id % 256


def write_coco_folder(root: Path, sizes_hw: list[tuple[int, int]], seed: int = 0) -> CocoFolder:
    """One image a size: ground, a block (in the middle) and a bar (somewhere else)."""
    rng = np.random.default_rng(seed)
    (root / "images").mkdir(parents=True)
    (root / "panoptic").mkdir()
    images, panoptic, instances = [], [], []
    for number, (height, width) in enumerate(sizes_hw, 1):
        ids_HW = np.full((height, width), 1, np.int32)
        ids_HW[height // 4 : height // 2, width // 4 : width // 2] = 2
        row = int(rng.integers(height * 5 // 8, height - 6))
        ids_HW[row : row + 6] = 3
        pixels = np.zeros((height, width, 3), np.uint8)
        segments = []
        for segment_id, category in enumerate(CATEGORIES, 1):
            mask = ids_HW == segment_id
            pixels[mask] = colour_of(segment_id, category["id"])
            counts = encode_mask(mask)
            bbox, area = list(counts_bbox_xywh(counts, height, width)), int(mask.sum())
            segments.append({"id": segment_id, "category_id": category["id"], "area": area, "bbox": bbox, "iscrowd": 0})
            if category["isthing"]:
                rle = {"size": [height, width], "counts": counts.decode()}
                instances.append(
                    {**segments[-1], "id": len(instances) + 1, "image_id": number, "segmentation": rle}
                )  # fmt: skip
        name = f"{number:03d}.png"
        Image.fromarray(pixels).save(root / "images" / name)
        png = np.stack([ids_HW % 256, ids_HW // 256, np.zeros_like(ids_HW)], axis=-1).astype(np.uint8)
        Image.fromarray(png).save(root / "panoptic" / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        panoptic.append({"image_id": number, "file_name": name, "segments_info": segments})
    common = {"images": images, "categories": CATEGORIES}
    (root / "panoptic.json").write_text(json.dumps({**common, "annotations": panoptic}))
    things = [category for category in CATEGORIES if category["isthing"]]
    (root / "instances.json").write_text(json.dumps({**common, "categories": things, "annotations": instances}))
    return CocoFolder(root)
