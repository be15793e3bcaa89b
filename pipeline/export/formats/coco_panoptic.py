"""COCO panoptic: a PNG of segment ids for each image, and one JSON with the segments of all images.

Specification: https://cocodataset.org/#format-data, panopticapi. A pixel's id is red + 256 green + 65536 blue; pixels
with id 0 belong to no segment.

    DIR/panoptic.json
    DIR/panoptic/<name of the image>.png
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from m2f_core.masks.formats.map_png import panoptic_png_bytes
from pipeline.errors import RunError
from pipeline.export.format import Converted, Document, ExportImage, Format
from pipeline.export.formats.coco import annotated, bbox_of, image_line, line, original_name
from pipeline.export.parts.masks import painted

_MOST_ID = 2**24 - 1
_FOLDER = "panoptic"


class CocoPanoptic(Format):
    one_segment_per_pixel = True
    streams: ClassVar[Mapping[str, bytes]] = {"images": b",\n", "annotations": b",\n"}

    def convert(self, image: ExportImage) -> Converted:
        highest = max((segment.segment_id for segment in image.segments), default=0)
        if highest > _MOST_ID:
            raise RunError(f"{image.key} has the segment id {highest}; a panoptic PNG holds ids up to {_MOST_ID}")
        runs = painted(image, lambda segment: segment.segment_id)
        segments_info = [
            {
                "id": segment.segment_id,
                "category_id": segment.category_id,
                "area": segment.area,
                "bbox": bbox_of(segment),
                "iscrowd": 0,
                "score": segment.score,
            }
            for segment in image.segments
        ]
        name = f"{image.name}.png"
        annotation = {"image_id": image.image_id, "file_name": name, "segments_info": segments_info}
        return Converted(
            {f"{_FOLDER}/{name}": panoptic_png_bytes(runs, image.height, image.width)},
            {"images": [image_line(image, original_name(image))], "annotations": [line(annotation)]},
        )

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        return [annotated("panoptic.json", self.census)]
