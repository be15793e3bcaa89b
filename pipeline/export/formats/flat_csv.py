"""CSV: a line for each segment, for spreadsheets and programs that read no COCO.

DIR/segments.csv    a line for each segment; `counts` is the compressed RLE
DIR/images.csv      a line for each image, also for images without segments
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from pipeline.export.format import Converted, Document, ExportImage, Format, Stream
from pipeline.export.formats.coco import bbox_of

IMAGE_COLUMNS = ("image_id", "image_key", "height", "width", "num_segments")
SEGMENT_COLUMNS = (
    *("image_id", "image_key", "segment_id", "category_id", "category_name", "isthing", "score", "area"),
    *("bbox_x", "bbox_y", "bbox_width", "bbox_height", "counts"),
)


def lines_of(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as CSV (RFC 4180): CRLF, quotes where needed."""
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


class FlatCsv(Format):
    streams: ClassVar[Mapping[str, bytes]] = {"images": b"", "segments": b""}

    def convert(self, image: ExportImage) -> Converted:
        segments = [
            (
                *(image.image_id, image.key, segment.segment_id, segment.category_id, segment.category_name),
                *(str(segment.isthing).lower(), segment.score, segment.area, *bbox_of(segment)),
                segment.counts.decode("ascii"),
            )
            for segment in image.segments
        ]
        row = (image.image_id, image.key, image.height, image.width, len(segments))
        return Converted(lines={"images": [lines_of([row])], "segments": [lines_of(segments)]})

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        return [
            Document("segments.csv", [lines_of([SEGMENT_COLUMNS]), Stream("segments")]),
            Document("images.csv", [lines_of([IMAGE_COLUMNS]), Stream("images")]),
        ]
