"""Segments as polygons on the map: GeoJSON, GeoPackage and GeoParquet, a file for each scene.

    DIR/<name of the image>.geojson     RFC 7946, which means longitude and latitude (WGS 84)
    DIR/<name of the image>.gpkg        in the scene's own reference system, layer `segments`
    DIR/<name of the image>.parquet     GeoParquet 1.1, in the scene's own reference system

Polygons follow the edges of pixels, with holes. The column `attributes` says where an image lies
(docs/huge-images.md). Images for which it does not say so are left out and counted, and so are images whose place this
program or a format cannot use: GeoJSON needs a reference system that can be converted to degrees.
"""

import io
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.decoding import geotiff
from pipeline.errors import RunError
from pipeline.export.format import Converted, Document, ExportImage, Format, Segment
from pipeline.export.formats.coco import line
from pipeline.export.parts.masks import mask_in_box
from pipeline.export.parts.wkb import multi_polygon_wkb

_COLUMNS = ("image_key", "segment_id", "category_id", "category_name", "isthing", "score", "area")
_KINDS: dict[str, type[np.generic]] = {
    "isthing": np.bool_,
    "score": np.float64,
    "segment_id": np.int32,
    "category_id": np.int32,
    "area": np.int64,
}
_LAYER = "segments"
Polygon = list[list[tuple[float, float]]]  # an outer ring, then holes


@dataclass(frozen=True)
class _Place:
    """Where the pixels of an image lie; see `pipeline.decoding.geotiff.georeference`."""

    crs: str
    transform: list[float]


class _UnusableError(Exception):
    """A format cannot express the place of an image."""


def _place_of(image: ExportImage) -> _Place | None:
    """_UnusableError if there is something else where this program writes the place: --keep-columns may have put it
    there.
    """
    attributes = json.loads(image.attributes or "{}")
    found = attributes.get("geotiff") if isinstance(attributes, dict) else None
    if not isinstance(found, dict) or found.get("crs") is None or found.get("transform") is None:
        return None
    crs, transform = found["crs"], found["transform"]
    are_numbers = isinstance(transform, list) and all(type(one) in (int, float) and isfinite(one) for one in transform)
    if not isinstance(crs, str) or not are_numbers or len(transform) != 6:
        raise _UnusableError
    return _Place(crs, transform)


class _Geo(Format):
    ending: ClassVar[str]

    def check(self) -> None:
        if not geotiff.is_installed():
            raise RunError(f"--format {self.settings.format} needs the extra `geo`: pip install 'm2f-pipeline[geo]'")

    def convert(self, image: ExportImage) -> Converted:
        try:
            place = _place_of(image)
            if place is None:
                return Converted(counts=Counter(without_place=1))
            rows = [self._row(image, segment) for segment in image.segments]
            shapes = [self._polygons(image, segment, place) for segment in image.segments]
            data = self.written(place, rows, shapes)
        except _UnusableError:
            return Converted(counts=Counter(unusable_place=1))
        return Converted({f"{image.name}.{self.ending}": data}, counts=Counter(files=1))

    @abstractmethod
    def written(self, place: _Place, rows: list[dict[str, Any]], shapes: list[list[Polygon]]) -> bytes:
        """The file of one image. _UnusableError if the format cannot express its place."""

    @staticmethod
    def _row(image: ExportImage, segment: Segment) -> dict[str, Any]:
        return {"image_key": image.key, **{name: getattr(segment, name) for name in _COLUMNS[1:]}}

    @staticmethod
    def _polygons(image: ExportImage, segment: Segment, place: _Place) -> list[Polygon]:
        from rasterio.features import shapes
        from rasterio.transform import Affine

        box, mask_hw = mask_in_box(image, segment)
        transform = Affine(*place.transform) @ Affine.translation(box.left, box.top)
        pixels_hw = np.ascontiguousarray(mask_hw, np.uint8)
        return [geometry["coordinates"] for geometry, _ in shapes(pixels_hw, pixels_hw, transform=transform)]

    def documents(self, counts: Counter[str]) -> Sequence[Document]:
        return []

    def summary(self, counts: Counter[str]) -> Sequence[str]:
        notes = {
            "without_place": "their `attributes` hold no reference system and transform, as GeoTIFFs have them in runs "
            "with the extra `geo`",
            "unusable_place": f"{self.settings.format} cannot express their reference system or transform",
        }
        return [f"{counts[name]:,} images are left out: {why}" for name, why in notes.items() if counts[name]]


class GeoJson(_Geo):
    ending = "geojson"

    def written(self, place: _Place, rows: list[dict[str, Any]], shapes: list[list[Polygon]]) -> bytes:
        from rasterio.warp import transform_geom

        geometries = [{"type": "MultiPolygon", "coordinates": polygons} for polygons in shapes]
        try:
            degrees = transform_geom(place.crs, "OGC:CRS84", geometries, precision=-1) if geometries else []
        except Exception:  # GDAL's own errors, whose classes are private: a local system, a point outside of its domain
            raise _UnusableError from None
        features = [
            {"type": "Feature", "geometry": geometry, "properties": row}
            for geometry, row in zip(degrees, rows, strict=True)
        ]
        try:
            return line({"type": "FeatureCollection", "features": features})
        except ValueError:  # a corner at infinity
            raise _UnusableError from None


class GeoPackage(_Geo):
    ending = "gpkg"

    def check(self) -> None:
        super().check()
        try:
            import pyogrio  # noqa: F401
        except ImportError:
            raise RunError("--format gpkg needs the extra `geo`: pip install 'm2f-pipeline[geo]'") from None

    def written(self, place: _Place, rows: list[dict[str, Any]], shapes: list[list[Polygon]]) -> bytes:
        from pyogrio.errors import CRSError
        from pyogrio.raw import write

        file = io.BytesIO()
        try:
            write(
                file,
                np.array([multi_polygon_wkb(polygons) for polygons in shapes], object),
                field_data=[_array([row[name] for row in rows], name) for name in _COLUMNS],
                fields=np.array(_COLUMNS, object),
                geometry_type="MultiPolygon",
                crs=place.crs,
                driver="GPKG",
                layer=_LAYER,
            )
        except CRSError:
            raise _UnusableError from None
        return file.getvalue()


def _array(values: list[Any], name: str) -> np.ndarray[Any, Any]:
    return np.array(values, _KINDS.get(name, object))


class GeoParquet(_Geo):
    ending = "parquet"
    _SCHEMA = pa.schema(
        [
            ("image_key", pa.string()),
            ("segment_id", pa.int32()),
            ("category_id", pa.int32()),
            ("category_name", pa.string()),
            ("isthing", pa.bool_()),
            ("score", pa.float32()),
            ("area", pa.int64()),
            ("geometry", pa.binary()),
        ]
    )

    def written(self, place: _Place, rows: list[dict[str, Any]], shapes: list[list[Polygon]]) -> bytes:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError

        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["MultiPolygon"]}
        try:
            column["crs"] = CRS.from_user_input(place.crs).to_dict(projjson=True)
        except CRSError:
            raise _UnusableError from None
        if shapes:
            rings = (ring for polygons in shapes for one in polygons for ring in one)
            corners = np.array(list(chain.from_iterable(rings)))
            column["bbox"] = [*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist()]
        about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        records = [{**row, "geometry": multi_polygon_wkb(polygons)} for row, polygons in zip(rows, shapes, strict=True)]
        schema = self._SCHEMA.with_metadata({b"geo": line(about)})
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(records, schema=schema), sink, compression="zstd")
        return bytes(sink.getvalue())
