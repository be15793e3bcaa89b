"""CVAT for images 1.1: one XML with a <mask> for each segment.

Specification: https://docs.cvat.ai/docs/dataset_management/formats/format-cvat/. `rle` are runs along the rows of the
cropped box, the first outside of the mask.

    DIR/annotations.xml
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar
from xml.sax.saxutils import escape, quoteattr

from m2f_core.masks.formats.row_runs import row_runs
from pipeline.export.format import Converted, Document, ExportImage, Format, Segment, Stream
from pipeline.export.formats.coco import original_name
from pipeline.export.parts.masks import mask_in_box
from pipeline.export.parts.xml_text import check_for_xml

_SCORE = (
    "<attribute><name>score</name><mutable>False</mutable><input_type>text</input_type>"
    "<default_value></default_value><values></values></attribute>"
)


class Cvat(Format):
    streams: ClassVar[Mapping[str, bytes]] = {"images": b"\n"}

    def check(self) -> None:
        check_for_xml(self.settings.format, self.census)

    def convert(self, image: ExportImage) -> Converted:
        head = (
            f'<image id="{image.image_id - 1}" name={quoteattr(original_name(image))} width="{image.width}" '
            f'height="{image.height}">'
        )
        masks = [self._mask(image, segment) for segment in image.segments]
        return Converted(lines={"images": ["\n".join([head, *masks, "</image>"]).encode()]})

    def _mask(self, image: ExportImage, segment: Segment) -> str:
        box, cut_hw = mask_in_box(image, segment)
        runs = ", ".join(map(str, row_runs(cut_hw).tolist()))
        return (
            f'<mask label={quoteattr(segment.category_name)} source="auto" occluded="0" rle="{runs}" left="{box.left}" '
            f'top="{box.top}" width="{cut_hw.shape[1]}" height="{cut_hw.shape[0]}" z_order="0">'
            f'<attribute name="score">{segment.score!r}</attribute></mask>'
        )

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        names = dict.fromkeys(category["name"] for category in self.census.categories)
        labels = "\n".join(
            f"<label><name>{escape(name)}</name><type>mask</type><attributes>{_SCORE}</attributes></label>"
            for name in names
        )
        head = (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task>\n'
            f"<size>{self.census.num_images}</size>\n<mode>annotation</mode>\n<labels>\n{labels}\n</labels>\n"
            "</task></meta>\n"
        )
        return [Document("annotations.xml", [head.encode(), Stream("images"), b"\n</annotations>\n"])]
