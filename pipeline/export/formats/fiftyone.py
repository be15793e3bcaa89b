"""FiftyOne: a data set in its own JSON form, with each segment as a `Detection` with a mask.

Specification: https://docs.voxel51.com/user_guide/import_datasets.html, fiftyone.utils.data.importers. A box is left,
top, width and height as shares of the image; a mask is the .npy of the pixels in the box, compressed by zlib.

    DIR/metadata.json       the fields of the samples, the classes
    DIR/samples.json        a sample for each image

FiftyOne opens local files. Without --image-url-prefix, an image of a local folder has its path, and any other image is
expected at `data/<path below the shared folder>`, below DIR or below what the reader gives as `rel_dir`.
"""

import base64
import hashlib
import io
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from pipeline.export.format import Census, Converted, Document, ExportImage, Format, Segment, Stream
from pipeline.export.formats.coco import line, original_name
from pipeline.export.parts.image_urls import read_prefixes, replaced
from pipeline.export.parts.masks import mask_in_box
from pipeline.export.settings import ExportSettings

# The oldest version with these documents; newer programs migrate them when they read them.
_VERSION = "1.0.0"
_LOCAL = "file://"
FIELD = "segments"


class FiftyOne(Format):
    streams: ClassVar[Mapping[str, bytes]] = {"samples": b",\n"}

    def __init__(self, settings: ExportSettings, census: Census):
        super().__init__(settings, census)
        self.prefixes = read_prefixes(settings.image_url_prefix)

    def convert(self, image: ExportImage) -> Converted:
        place = self._place(image)
        sample = {
            "_id": _object_id(image.image_id, image.key),
            "filepath": place or f"data/{original_name(image)}",
            "tags": [],
            "metadata": {"_cls": "ImageMetadata", "width": image.width, "height": image.height},
            "_media_type": "image",
            "_rand": int(_digest(image.key)[:13], 16) / 16**13,  # by which FiftyOne draws samples
            "image_id": image.image_id,
            "image_key": image.key,
            "run_id": image.run_id,
            FIELD: {"_cls": "Detections", "detections": [_detection(image, segment) for segment in image.segments]},
        }
        return Converted(lines={"samples": [line(sample)]}, counts=Counter(elsewhere=int(place is None)))

    def _place(self, image: ExportImage) -> str | None:
        """Where FiftyOne finds the image; None if nobody has said so."""
        if (place := replaced(image.key, self.prefixes)) is not None:
            return place[0] + place[1]
        is_file = image.key.startswith(_LOCAL) and "#" not in image.key
        return image.key.removeprefix(_LOCAL) if is_file else None

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        names = list(dict.fromkeys(category["name"] for category in self.census.categories))
        about = {
            "version": _VERSION,
            "name": "m2f",
            "media_type": "image",
            "tags": [],
            "info": {"description": "exported by m2f-pipeline", "runs": sorted(self.census.tasks)},
            "default_classes": names,
            "sample_fields": _FIELDS,
        }
        return [
            Document("metadata.json", [line(about)]),
            Document("samples.json", [b'{"samples":[\n', Stream("samples"), b"\n]}\n"]),
        ]

    def summary(self, counts: Counter[str]) -> Sequence[str]:
        if not counts["elsewhere"]:
            return []
        return [
            f"{counts['elsewhere']:,} images lie in a store or in tar or Parquet files, of which FiftyOne opens none: "
            "copy them to `data` as samples.json has them, or say by --image-url-prefix where they are"
        ]


def _detection(image: ExportImage, segment: Segment) -> dict[str, Any]:
    box, mask_hw = mask_in_box(image, segment)
    height, width = box.size_hw
    shares = [box.left / image.width, box.top / image.height, width / image.width, height / image.height]
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(mask_hw), allow_pickle=False)
    mask = base64.b64encode(zlib.compress(file.getvalue())).decode()
    return {
        "_id": _object_id(segment.annotation_id, f"{image.key}#{segment.segment_id}"),
        "_cls": "Detection",
        "attributes": {},
        "tags": [],
        "label": segment.category_name,
        "bounding_box": shares,
        "mask": {"$binary": {"base64": mask, "subType": "00"}},
        "confidence": segment.score,
        "segment_id": segment.segment_id,
        "category_id": segment.category_id,
        "isthing": segment.isthing,
        "area": segment.area,
    }


def _object_id(number: int, name: str) -> dict[str, str]:
    """The same id each time, in the order of the numbers."""
    return {"$oid": f"{number % 2**32:08x}{_digest(name)[:16]}"}


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _field(name: str, kind: str, *, of: str | None = None, document: str | None = None, fields: Any = ()) -> Any:
    return {
        "name": name,
        "ftype": f"fiftyone.core.fields.{kind}",
        "embedded_doc_type": document and f"fiftyone.core.{document}",
        "subfield": of and f"fiftyone.core.fields.{of}",
        "fields": list(fields),
        "db_field": {"id": "_id"}.get(name, name),
        "description": None,
        "info": None,
        "read_only": name in ("created_at", "last_modified_at"),
    }


_OF_DETECTION = [
    _field("id", "ObjectIdField"),
    _field("tags", "ListField", of="StringField"),
    _field("attributes", "DictField", of="EmbeddedDocumentField", document="labels.Attribute"),
    _field("label", "StringField"),
    _field("bounding_box", "ListField", of="FloatField"),
    _field("mask", "ArrayField"),
    _field("mask_path", "StringField"),
    _field("confidence", "FloatField"),
    _field("index", "IntField"),
    _field("segment_id", "IntField"),
    _field("category_id", "IntField"),
    _field("isthing", "BooleanField"),
    _field("area", "IntField"),
]
_DETECTIONS = _field(
    "detections", "ListField", of="EmbeddedDocumentField", document="labels.Detection", fields=_OF_DETECTION
)
_OF_METADATA = [
    _field("size_bytes", "IntField"),
    _field("mime_type", "StringField"),
    _field("width", "IntField"),
    _field("height", "IntField"),
    _field("num_channels", "IntField"),
]
_FIELDS = [
    _field("id", "ObjectIdField"),
    _field("filepath", "StringField"),
    _field("tags", "ListField", of="StringField"),
    _field("metadata", "EmbeddedDocumentField", document="metadata.ImageMetadata", fields=_OF_METADATA),
    _field("created_at", "DateTimeField"),
    _field("last_modified_at", "DateTimeField"),
    _field("_media_type", "StringField"),
    _field("_rand", "FloatField"),
    _field("_dataset_id", "ObjectIdField"),
    _field("image_id", "IntField"),
    _field("image_key", "StringField"),
    _field("run_id", "StringField"),
    _field(FIELD, "EmbeddedDocumentField", document="labels.Detections", fields=[_DETECTIONS]),
]
