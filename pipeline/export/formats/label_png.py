"""Label PNGs: a gray or palette PNG for each image whose pixels are category ids, as ADE20K, Cityscapes and VOC have.

    DIR/<name of the image>.png
    DIR/categories.json         the categories by id, the value of pixels without a segment, the number of bits

The ids are the data set's own, as the column category_id has them. Pixels without a segment have --ignore-label.
"""

import json
from collections import Counter
from collections.abc import Sequence

from m2f_core.masks.colours import category_colour
from m2f_core.masks.formats.map_png import gray_png
from pipeline.errors import RunError
from pipeline.export.format import Census, Converted, Document, ExportImage, Format
from pipeline.export.parts.masks import painted
from pipeline.export.settings import ExportSettings


class LabelPng(Format):
    one_segment_per_pixel = True

    def __init__(self, settings: ExportSettings, census: Census):
        super().__init__(settings, census)
        ids = [category["id"] for category in census.categories]
        given = settings.ignore_label
        self.bits = 8 if max([*ids, given or 0]) < 256 and (given is not None or 255 not in ids) else 16
        self.ignore = (255 if self.bits == 8 else 65_535) if given is None else given
        self.ids = ids

    def check(self) -> None:
        if "instance" in self.census.tasks.values():
            run = next(run for run, task in self.census.tasks.items() if task == "instance")
            raise RunError(
                f"--format label-png gives a pixel one category, but run {run} is of --task instance: which instance a "
                "pixel belongs to, scores and overlaps would be lost; use coco-instances, or export a panoptic or "
                "semantic run by --run-id"
            )
        if max(self.ids, default=0) > 65_535:
            raise RunError(f"--format label-png holds category ids up to 65535, but there is {max(self.ids)}")
        if self.ignore in self.ids:
            raise RunError(
                f"--ignore-label {self.ignore} is a category's id: pixels of that category and pixels without a "
                "segment would look alike; give another value"
            )
        if self.settings.palette and self.bits == 16:
            raise RunError("--palette is for label PNGs of 8 bits, but these ids need 16; leave out --palette")

    def convert(self, image: ExportImage) -> Converted:
        runs = painted(image, lambda segment: segment.category_id, self.ignore)
        png = gray_png(runs, image.height, image.width, self.bits, self._palette())
        return Converted({f"{image.name}.png": png})

    def _palette(self) -> list[tuple[int, int, int]] | None:
        if not self.settings.palette:
            return None
        colours = [(0, 0, 0)] * 256
        for place, number in enumerate(self.ids):
            colours[number] = category_colour(place)
        return colours

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        about = {"categories": self.census.categories, "ignore_label": self.ignore, "bits": self.bits}
        return [Document("categories.json", [json.dumps(about, indent=1).encode()])]
