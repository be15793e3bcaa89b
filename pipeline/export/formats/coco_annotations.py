"""COCO instances and COCO results: one JSON with a compressed RLE for each segment.

Specification: https://cocodataset.org/#format-data and #format-results; pycocotools reads both.

    DIR/instances.json      an annotated data set: images, annotations, categories
    DIR/results.json        a list of results, which has no images
    DIR/images.json         the images of the results by id, in the form of a data set without annotations
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

from pipeline.export.format import Converted, Document, ExportImage, Format, Segment, Stream
from pipeline.export.formats.coco import annotated, bbox_of, head, image_line, line, original_name


def _rle(image: ExportImage, segment: Segment) -> dict[str, object]:
    return {"size": [image.height, image.width], "counts": segment.counts.decode("ascii")}


class CocoInstances(Format):
    streams: ClassVar[Mapping[str, bytes]] = {"images": b",\n", "annotations": b",\n"}

    def convert(self, image: ExportImage) -> Converted:
        annotations = [
            line(
                {
                    "id": segment.annotation_id,
                    "image_id": image.image_id,
                    "category_id": segment.category_id,
                    "segmentation": _rle(image, segment),
                    "area": segment.area,
                    "bbox": bbox_of(segment),
                    "iscrowd": 0,
                    "score": segment.score,
                }
            )
            for segment in image.segments
        ]
        return Converted(
            lines={"images": [image_line(image, original_name(image))], "annotations": annotations},
        )

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        return [annotated("instances.json", self.census)]


class CocoResults(Format):
    streams: ClassVar[Mapping[str, bytes]] = {"images": b",\n", "results": b",\n"}

    def convert(self, image: ExportImage) -> Converted:
        results = [
            line(
                {
                    "image_id": image.image_id,
                    "category_id": segment.category_id,
                    "segmentation": _rle(image, segment),
                    "bbox": bbox_of(segment),
                    "score": segment.score,
                }
            )
            for segment in image.segments
        ]
        return Converted(lines={"images": [image_line(image, original_name(image))], "results": results})

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        return [
            Document("results.json", [b"[\n", Stream("results"), b"\n]\n"]),
            Document("images.json", [head(self.census), Stream("images"), b'\n],"annotations":[]}\n']),
        ]
