"""A Hugging Face data set folder: Parquet files with images and masks, which `datasets` shows as pictures.

Specification: https://huggingface.co/docs/datasets, features `Image` (a struct of bytes and path) and `List`. There is
no feature for masks, so a mask is a PNG of the image's size, 255 inside.

    DIR/README.md                       the card, which names the files
    DIR/data/train-000000.parquet ...   some images each; `masks`, `category` and the others have an entry per segment
    DIR/left_out.csv                    images whose pixels cannot be had, and why
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa

from m2f_core.masks.formats.map_png import gray_png
from pipeline.export.format import Census, Converted, Document, ExportImage, Format, Segment, Stream
from pipeline.export.formats.crops import left_out
from pipeline.export.formats.flat_csv import lines_of
from pipeline.export.parts.masks import painted
from pipeline.export.parts.pixels import IMAGES_WITH_PIXELS, NoPixelsError, read_bytes_of
from pipeline.export.settings import ExportSettings

_INSIDE = 255
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_OF_SEGMENTS: dict[str, tuple[pa.DataType, dict[str, str]]] = {
    "segment_id": (pa.int32(), {"dtype": "int32", "_type": "Value"}),
    "category_id": (pa.int32(), {"dtype": "int32", "_type": "Value"}),
    "category": (pa.string(), {"dtype": "string", "_type": "Value"}),
    "score": (pa.float32(), {"dtype": "float32", "_type": "Value"}),
    "area": (pa.int64(), {"dtype": "int64", "_type": "Value"}),
    "masks": (_PICTURE, {"_type": "Image"}),
}


class HuggingFace(Format):
    streams: ClassVar[Mapping[str, bytes]] = {"left_out": b""}
    images_per_batch = IMAGES_WITH_PIXELS

    def __init__(self, settings: ExportSettings, census: Census):
        super().__init__(settings, census)
        columns: list[tuple[str, pa.DataType, dict[str, Any]]] = [
            ("image_id", pa.int64(), {"dtype": "int64", "_type": "Value"}),
            ("image_key", pa.string(), {"dtype": "string", "_type": "Value"}),
            *([("image", _PICTURE, {"_type": "Image"})] if settings.images else []),
            ("width", pa.int32(), {"dtype": "int32", "_type": "Value"}),
            ("height", pa.int32(), {"dtype": "int32", "_type": "Value"}),
        ]
        columns += [(name, pa.list_(kind), {"feature": f, "_type": "List"}) for name, (kind, f) in _OF_SEGMENTS.items()]
        features = {name: feature for name, _, feature in columns}
        about = json.dumps({"info": {"features": features}}).encode()
        self.schema = pa.schema([(name, kind) for name, kind, _ in columns], {b"huggingface": about})

    def convert(self, image: ExportImage) -> Converted:
        row: dict[str, Any] = {
            "image_id": image.image_id,
            "image_key": image.key,
            "width": image.width,
            "height": image.height,
            "segment_id": [segment.segment_id for segment in image.segments],
            "category_id": [segment.category_id for segment in image.segments],
            "category": [segment.category_name for segment in image.segments],
            "score": [segment.score for segment in image.segments],
            "area": [segment.area for segment in image.segments],
            "masks": [{"bytes": _mask_png(image, segment), "path": None} for segment in image.segments],
        }
        if self.settings.images:
            try:
                data = read_bytes_of(image, self.census.access[image.run_id])
                row["image"] = {"bytes": data, "path": image.key.rpartition("/")[2]}
            except NoPixelsError as error:
                line = lines_of([(image.key, str(error))])
                return Converted(lines={"left_out": [line]}, counts=Counter(left_out=1))
        return Converted(rows=[row])

    def row_file(self, number: int) -> tuple[str, pa.Schema]:
        return f"data/train-{number:06d}.parquet", self.schema

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        card = (
            "---\ntask_categories:\n- image-segmentation\nconfigs:\n- config_name: default\n  data_files:\n"
            "  - split: train\n    path: data/*.parquet\n---\n\nExported by m2f-pipeline from the runs "
            f"{', '.join(sorted(self.census.tasks))}. `masks`, `category`, `score` and the other lists have an entry "
            "for each segment of the image.\n"
        )
        documents = [Document("README.md", [card.encode()])]
        if self.settings.images:
            documents.append(Document("left_out.csv", [lines_of([("image_key", "why")]), Stream("left_out")]))
        return documents

    def summary(self, counts: Counter[str]) -> Sequence[str]:
        return [left_out(counts)] if counts["left_out"] else []


def _mask_png(image: ExportImage, segment: Segment) -> bytes:
    alone = replace(image, segments=[segment])
    return gray_png(painted(alone, lambda _: _INSIDE), image.height, image.width)
