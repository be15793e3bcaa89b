"""YOLO segmentation: a text file for each image, one polygon for each object.

Specification: https://docs.ultralytics.com/datasets/segment/. A line is the class, counted from 0, and x y of each
corner as shares of width and height. Trainers look for the labels of `images/<name>.jpg` at `labels/<name>.txt`.

    DIR/data.yaml           the classes, in the order of the category ids
    DIR/labels/<name>.txt   empty for an image without segments
    DIR/images.csv          the path at which an image is to lie, and its key

A polygon holds neither holes nor parts. `m2f_core.masks.formats.one_outline` joins them by bridges; only bridges
between parts add pixels. A corner lies a quarter of a pixel behind the upper left of its pixel: readers that round down
(ultralytics) and readers that round to the nearest (supervision) find the same pixel.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import yaml

from m2f_core.masks.formats.one_outline import one_outline
from pipeline.export.format import Census, Converted, Document, ExportImage, Format, Stream
from pipeline.export.formats.coco import original_name
from pipeline.export.formats.flat_csv import lines_of
from pipeline.export.parts.masks import mask_in_box
from pipeline.export.settings import ExportSettings

_FEWEST_CORNERS = 3
_WITHIN_PIXEL = 0.25
_DIGITS = 7  # exact to a thousandth of a pixel in images of 65,535 pixels


class Yolo(Format):
    streams: ClassVar[Mapping[str, bytes]] = {"images": b""}

    def __init__(self, settings: ExportSettings, census: Census):
        super().__init__(settings, census)
        self.classes = {category["id"]: number for number, category in enumerate(census.categories)}

    def convert(self, image: ExportImage) -> Converted:
        lines = []
        counts: Counter[str] = Counter()
        size = np.array([image.width, image.height])
        for segment in image.segments:
            box, mask_hw = mask_in_box(image, segment)
            outline = one_outline(mask_hw)
            corners_K2 = np.resize(outline.corners, (max(_FEWEST_CORNERS, len(outline.corners)), 2))
            shares = (corners_K2 + np.array([box.left, box.top]) + _WITHIN_PIXEL) / size
            lines.append(" ".join([str(self.classes[segment.category_id]), *(f"{x:.{_DIGITS}f}" for x in shares.flat)]))
            counts["pixels"] += int(mask_hw.sum())
            counts["added"] += outline.num_added
            counts["changed"] += outline.num_added > 0
        row = [f"images/{original_name(image)}", image.key, image.height, image.width]
        text = "".join(f"{line}\n" for line in lines).encode()
        return Converted({f"labels/{image.name}.txt": text}, {"images": [lines_of([row])]}, counts)

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        names = {number: category["name"] for number, category in enumerate(self.census.categories)}
        about = {"path": ".", "train": "images", "val": "images", "names": names}
        data = yaml.safe_dump(about, allow_unicode=True, sort_keys=False).encode()
        head = lines_of([["path", "image_key", "height", "width"]])
        return [Document("data.yaml", [data]), Document("images.csv", [head, Stream("images")])]

    def summary(self, counts: Counter[str]) -> Sequence[str]:
        iou = counts["pixels"] / max(1, counts["pixels"] + counts["added"])
        return [
            f"bridges between the parts of {counts['changed']:,} segments add {counts['added']:,} pixels to "
            f"{counts['pixels']:,}: IoU {iou:.6f} over all segments; holes are exact"
        ]
