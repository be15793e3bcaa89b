"""What the COCO formats share: images, categories and boxes as JSON."""

import json
from typing import Any

from pipeline.export.format import Census, Document, ExportImage, Segment, Stream
from pipeline.export.names import extension_of


def line(record: Any) -> bytes:
    """A record as JSON, on one line."""
    return json.dumps(record, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def image_line(image: ExportImage, file_name: str) -> bytes:
    """An image, with its key, by which the tables are found again."""
    return line(
        {
            "id": image.image_id,
            "file_name": file_name,
            "height": image.height,
            "width": image.width,
            "image_key": image.key,
        }
    )


def bbox_of(segment: Segment) -> list[int | float]:
    """x, y, width, height; whole numbers as such."""
    return [int(value) if value == int(value) else value for value in segment.bbox]


def head(census: Census) -> bytes:
    """The beginning of a document, up to the images."""
    categories = [{"supercategory": "", **category} for category in census.categories]
    info = {"description": "exported by m2f-pipeline", "runs": sorted(census.tasks)}
    return b'{"info":' + line(info) + b',"licenses":[],"categories":' + line(categories) + b',"images":[\n'


def annotated(name: str, census: Census) -> Document:
    """The document `name` of an annotated data set, from the streams `images` and `annotations`."""
    parts: list[bytes | Stream] = [
        head(census),
        Stream("images"),
        b'\n],"annotations":[\n',
        Stream("annotations"),
        b"\n]}\n",
    ]
    return Document(name, parts)


def original_name(image: ExportImage) -> str:
    """The path of the image in COCO's `file_name`, as image folders have it: with its extension."""
    return image.name + extension_of(image.key)
