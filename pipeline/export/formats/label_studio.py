"""Label Studio: a task for each image with its segments as pre-annotations (brush), and the labeling config.

Specification: https://labelstud.io/guide/predictions, label_studio_sdk.converter.brush.

    DIR/tasks.json      to import
    DIR/labeling.xml    the labeling config of the project, whose names the tasks use

Label Studio shows an image by its URL: --image-url-prefix turns keys into URLs that its storage serves.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar
from xml.sax.saxutils import quoteattr

from m2f_core.masks.colours import category_colour
from m2f_core.masks.formats.row_runs import brush_rle
from pipeline.export.format import Census, Converted, Document, ExportImage, Format, Segment, Stream
from pipeline.export.formats.coco import line
from pipeline.export.parts.image_urls import read_prefixes, url_of
from pipeline.export.parts.masks import whole_mask
from pipeline.export.parts.xml_text import check_for_xml
from pipeline.export.settings import ExportSettings

_FROM, _TO = "segments", "image"


class LabelStudio(Format):
    streams: ClassVar[Mapping[str, bytes]] = {"tasks": b",\n"}

    def __init__(self, settings: ExportSettings, census: Census):
        super().__init__(settings, census)
        self.prefixes = read_prefixes(settings.image_url_prefix)

    def check(self) -> None:
        check_for_xml(self.settings.format, self.census)

    def convert(self, image: ExportImage) -> Converted:
        url = url_of(image.key, self.prefixes)
        scores = [segment.score for segment in image.segments]
        prediction = {
            "model_version": image.run_id,
            **({"score": sum(scores) / len(scores)} if scores else {}),
            "result": [self._result(image, segment) for segment in image.segments],
        }
        task = {"data": {"image": url, "image_key": image.key}, "predictions": [prediction]}
        in_containers = int("#" in image.key and url == image.key)
        return Converted(lines={"tasks": [line(task)]}, counts=Counter(in_containers=in_containers))

    def _result(self, image: ExportImage, segment: Segment) -> dict[str, object]:
        rle = brush_rle(whole_mask(image, segment))
        return {
            "id": f"{image.image_id}-{segment.annotation_id}",
            "type": "brushlabels",
            "from_name": _FROM,
            "to_name": _TO,
            "original_width": image.width,
            "original_height": image.height,
            "image_rotation": 0,
            "score": segment.score,
            "meta": {"segment_id": segment.segment_id},
            "value": {"format": "rle", "rle": rle, "brushlabels": [segment.category_name]},
        }

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        names = list(dict.fromkeys(category["name"] for category in self.census.categories))
        labels = "".join(
            f'    <Label value={quoteattr(name)} background="#{bytes(category_colour(place)).hex()}"/>\n'
            for place, name in enumerate(names)
        )
        config = (
            f'<View>\n  <Image name="{_TO}" value="$image" zoom="true"/>\n'
            f'  <BrushLabels name="{_FROM}" toName="{_TO}">\n{labels}  </BrushLabels>\n</View>\n'
        )
        return [
            Document("tasks.json", [b"[\n", Stream("tasks"), b"\n]\n"]),
            Document("labeling.xml", [config.encode()]),
        ]

    def summary(self, counts: Counter[str]) -> Sequence[str]:
        if not counts["in_containers"]:
            return []
        return [
            f"{counts['in_containers']:,} images lie in tar or Parquet files, of which Label Studio shows none; unpack "
            "them and give the place as --image-url-prefix"
        ]
