"""Scenes -> a data set in COCO's formats, panoptic and instances.

Images and PNGs of segment ids are written as they are drawn, and the JSON files at the end. `panoptic.json` is the last
file: if it exists, the data set is complete. The same settings give the same bytes, as long as numpy, Pillow and its
zlib stay the same.

Memory: the content of the JSON files, about 8 KB per scene.
"""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m2f_core.masks.panoptic_png import panoptic_png
from m2f_core.masks.rle import encode_runs, label_runs
from pipeline.errors import RunError
from pipeline.look_ahead import look_ahead
from pipeline.scenes.draw import CATEGORIES, Scene, check_size, draw_scene
from pipeline.scenes.settings import ScenesSettings
from pipeline.store.filesystem import open_filesystem, put_object, store_errors_as

PANOPTIC_JSON = "panoptic.json"
INSTANCES_JSON = "instances.json"
_WRITERS = 8  # threads; a write waits for the disk or the store, which takes longer than to draw a scene
_MAX_PENDING = 4 * _WRITERS
_THINGS = tuple(category for category in CATEGORIES if category["isthing"])
_THING_IDS = frozenset(category["id"] for category in _THINGS)


def write_scenes(settings: ScenesSettings) -> None:
    """Draw and write all scenes. RunError if that is not possible, or if --output holds a data set already."""
    try:
        check_size(settings.height, settings.width)
    except ValueError as error:
        raise RunError(f"--height and --width: {error}") from None
    filesystem, root = open_filesystem(settings.output)
    root = root.rstrip("/")
    tables = CocoTables(settings)
    with store_errors_as(RunError, f"--output {settings.output} cannot be written"):
        if filesystem.exists(f"{root}/{PANOPTIC_JSON}"):
            raise RunError(f"--output {settings.output} already holds a {PANOPTIC_JSON}; choose another folder")
        _write_pictures(filesystem, root, settings, tables)
        for name, content in tables.files():
            put_object(filesystem, f"{root}/{name}", json.dumps(content, separators=(",", ":")).encode())


def _write_pictures(
    filesystem: fsspec.AbstractFileSystem, root: str, settings: ScenesSettings, tables: "CocoTables"
) -> None:
    """Draw all scenes, write their PNGs, note them in `tables`."""

    def pictures() -> Iterator[tuple[str, bytes]]:
        for index in range(settings.first_index, settings.first_index + settings.number):
            scene = draw_scene(settings.seed, index, settings.height, settings.width)
            tables.add(index, scene)
            for folder, pixels_HW3 in (("images", scene.pixels_HW3), ("panoptic", panoptic_png(scene.ids_HW))):
                yield f"{root}/{folder}/{file_name(index)}", _png(pixels_HW3)

    with ThreadPoolExecutor(_WRITERS) as pool:
        for _ in look_ahead(lambda picture: pool.submit(put_object, filesystem, *picture), pictures(), _MAX_PENDING):
            pass


def file_name(index: int) -> str:
    return f"{index:06d}.png"


def _png(pixels_HW3: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, "PNG")
    return file.getvalue()


@dataclass
class CocoTables:
    """The content of the JSON files, added scene by scene."""

    settings: ScenesSettings
    images: list[dict[str, Any]] = field(default_factory=list)
    panoptic: list[dict[str, Any]] = field(default_factory=list)
    instances: list[dict[str, Any]] = field(default_factory=list)

    def add(self, index: int, scene: Scene) -> None:
        height, width = scene.ids_HW.shape
        self.images.append({"id": index, "file_name": file_name(index), "height": height, "width": width})
        segments_info = []
        for segment in scene_annotations(scene):
            segments_info.append({name: value for name, value in segment.items() if name != "segmentation"})
            if segment["category_id"] in _THING_IDS:
                # Ids count from 1, because pycocotools ignores an annotation with id 0.
                self.instances.append({**segment, "id": len(self.instances) + 1, "image_id": index})
        self.panoptic.append({"image_id": index, "file_name": file_name(index), "segments_info": segments_info})

    def files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and content of each JSON file, in the order of writing."""
        info = {"description": f"m2f-pipeline, synthetic scenes of seed {self.settings.seed}"}
        common = {"info": info, "licenses": [], "images": self.images}
        yield INSTANCES_JSON, {**common, "annotations": self.instances, "categories": _THINGS}
        yield PANOPTIC_JSON, {**common, "annotations": self.panoptic, "categories": CATEGORIES}


def scene_annotations(scene: Scene) -> Iterator[dict[str, Any]]:
    """Each segment as a COCO annotation without image_id: `id` is the segment's, `segmentation` is compressed RLE."""
    height, width = scene.ids_HW.shape
    category_ids = dict(scene.segments)
    for rle in encode_runs(label_runs(scene.ids_HW), height, width):
        yield {
            "id": rle.label,
            "category_id": category_ids[rle.label],
            "area": rle.area,
            "bbox": [int(value) for value in rle.bbox_xywh],
            "iscrowd": 0,
            "segmentation": {"size": [height, width], "counts": rle.counts.decode()},
        }
