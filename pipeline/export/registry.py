"""The formats by the names of --format: a new format is a class of its own and a line here."""

from collections.abc import Mapping

from pipeline.export.format import Format
from pipeline.export.formats.coco_annotations import CocoInstances, CocoResults
from pipeline.export.formats.coco_panoptic import CocoPanoptic
from pipeline.export.formats.crops import Crops
from pipeline.export.formats.cvat import Cvat
from pipeline.export.formats.fiftyone import FiftyOne
from pipeline.export.formats.flat_csv import FlatCsv
from pipeline.export.formats.geo import GeoJson, GeoPackage, GeoParquet
from pipeline.export.formats.hugging_face import HuggingFace
from pipeline.export.formats.label_png import LabelPng
from pipeline.export.formats.label_studio import LabelStudio
from pipeline.export.formats.yolo import Yolo
from pipeline.export.settings import FormatName

FORMATS: Mapping[FormatName, type[Format]] = {
    "coco-panoptic": CocoPanoptic,
    "coco-results": CocoResults,
    "coco-instances": CocoInstances,
    "csv": FlatCsv,
    "label-png": LabelPng,
    "yolo": Yolo,
    "label-studio": LabelStudio,
    "cvat": Cvat,
    "fiftyone": FiftyOne,
    "geojson": GeoJson,
    "gpkg": GeoPackage,
    "geoparquet": GeoParquet,
    "crops": Crops,
    "hf": HuggingFace,
}
