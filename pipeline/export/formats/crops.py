"""Cut-outs: each segment as a PNG of its own, transparent outside of its mask.

DIR/<name of the image>/<segment_id>.png
DIR/crops.csv       a line for each cut-out
DIR/left_out.csv    images whose pixels cannot be had, and why
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from PIL import Image

from pipeline.export.format import Converted, Document, ExportImage, Format, Stream
from pipeline.export.formats.flat_csv import lines_of
from pipeline.export.parts.masks import mask_in_box
from pipeline.export.parts.pixels import IMAGES_WITH_PIXELS, NoPixelsError, decode_as_run, read_bytes_of

_COLUMNS = ("path", "image_key", "segment_id", "category_id", "category_name", "score", "area", "left", "top")
_OPAQUE = 255


class Crops(Format):
    streams: ClassVar[Mapping[str, bytes]] = {"crops": b"", "left_out": b""}
    images_per_batch = IMAGES_WITH_PIXELS

    def convert(self, image: ExportImage) -> Converted:
        try:
            data = read_bytes_of(image, self.census.access[image.run_id])
            pixels_HW3 = decode_as_run(image, data, self.census.exif[image.run_id])
        except NoPixelsError as error:
            return Converted(lines={"left_out": [lines_of([(image.key, str(error))])]}, counts=Counter(left_out=1))
        files, rows = {}, []
        for segment in image.segments:
            box, mask_hw = mask_in_box(image, segment)
            cut_hw3 = pixels_HW3[box.top : box.bottom, box.left : box.right]
            alpha_hw1 = np.where(mask_hw, _OPAQUE, 0).astype(np.uint8)[..., None]
            # Hidden pixels are black: they are nobody's, and cost nothing.
            rgba_hw4 = np.concatenate([np.where(alpha_hw1, cut_hw3, 0).astype(np.uint8), alpha_hw1], axis=2)
            file = io.BytesIO()
            Image.fromarray(rgba_hw4).save(file, "PNG")
            name = f"{image.name}/{segment.segment_id}.png"
            files[name] = file.getvalue()
            place = (segment.category_id, segment.category_name, segment.score, segment.area, box.left, box.top)
            rows.append((name, image.key, segment.segment_id, *place))
        return Converted(files, lines={"crops": [lines_of(rows)]})

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        return [
            Document("crops.csv", [lines_of([_COLUMNS]), Stream("crops")]),
            Document("left_out.csv", [lines_of([("image_key", "why")]), Stream("left_out")]),
        ]

    def summary(self, counts: Counter[str]) -> Sequence[str]:
        return [left_out(counts)] if counts["left_out"] else []


def left_out(counts: Counter[str]) -> str:
    """A line for people."""
    return f"{counts['left_out']:,} images are left out, because their pixels cannot be had: left_out.csv says why"
