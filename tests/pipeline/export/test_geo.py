"""Segments on the map: polygons in the scene's reference system, burnt back into pixels by GDAL."""

import json
import struct

import numpy as np
import pyarrow.parquet as pq
import pytest
from pyogrio.raw import read
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.transform import Affine
from rasterio.warp import transform_geom

from tests.support.exports import decoded, export, refused
from tests.support.published_runs import scattered
from tests.support.published_tables import image_row, publish_run, segment_row

SIZE = (30, 40)
TRANSFORM = [0.5, 0.1, 500000.0, 0.05, -0.5, 5000000.0]  # turned, too
PLACES = {
    "s3://scenes/a/utm.tif": {"geotiff": {"crs": "EPSG:32633", "transform": TRANSFORM}},
    "s3://scenes/nowhere.tif": {"geotiff": {"crs": None, "transform": TRANSFORM}},
    "s3://scenes/photo.jpg": None,
    "s3://scenes/empty.tif": {"geotiff": {"crs": "EPSG:32633", "transform": TRANSFORM}, "note": "\u00e4"},
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> tuple[str, list[dict]]:
    tables = str(tmp_path_factory.mktemp("scenes") / "tables")
    found = scattered(np.random.default_rng(4), SIZE, 6)
    key = next(iter(PLACES))
    rows = [
        segment_row(key, "night", n, area=s.area, bbox=s.bbox, segmentation=s.rle, score=s.score)
        for n, s in enumerate(found, 1)
    ]
    images = [
        image_row(
            key,
            "night",
            0,
            height=SIZE[0],
            width=SIZE[1],
            attributes=None if place is None else json.dumps(place),
            num_segments=len(found) if "utm" in key else 0,
        )
        for key, place in PLACES.items()
    ]
    publish_run(tables, "night", images, rows)
    return tables, rows


def burnt(geometry: dict) -> np.ndarray:
    return rasterize([geometry], SIZE, transform=Affine(*TRANSFORM)).astype(bool)


def geometry_of(wkb: bytes) -> dict:
    """WKB by hand."""
    place = 0

    def take(form: str):
        nonlocal place
        place += struct.calcsize("<" + form)
        return struct.unpack_from("<" + form, wkb, place - struct.calcsize("<" + form))

    order, kind, num_polygons = take("BII")
    assert (order, kind) == (1, 6)
    polygons = []
    for _ in range(num_polygons):
        order, kind, num_rings = take("BII")
        assert (order, kind) == (1, 3)
        polygons.append([[take("dd") for _ in range(take("I")[0])] for _ in range(num_rings)])
    assert place == len(wkb)
    return {"type": "MultiPolygon", "coordinates": polygons}


def check_rows(properties: list[dict], geometries: list[dict], rows: list[dict]) -> None:
    assert len(geometries) == len(rows) > 3
    for found, geometry, row in zip(properties, geometries, rows, strict=True):
        assert np.array_equal(burnt(geometry), decoded(row["segmentation"]))
        names = ("image_key", "segment_id", "category_id", "category_name", "isthing", "score", "area")
        assert {name: found[name] for name in names} == {name: row[name] for name in names}


def test_geojson_is_in_degrees(scenes, tmp_path, capsys):
    tables, rows = scenes
    out = export(tables, tmp_path / "out", "geojson")
    assert "2 images are left out: their `attributes` hold no reference system" in capsys.readouterr().out
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*.*")) == ["a/utm.geojson", "empty.geojson"]
    features = json.loads((out / "a" / "utm.geojson").read_text())["features"]
    corner = features[0]["geometry"]["coordinates"][0][0][0]
    assert 14.9 < corner[0] < 15.1 and 45 < corner[1] < 46  # the middle of UTM zone 33 is 15 degrees east
    geometries = [transform_geom("OGC:CRS84", "EPSG:32633", one["geometry"], precision=4) for one in features]
    check_rows([one["properties"] for one in features], geometries, rows)
    assert json.loads((out / "empty.geojson").read_text())["features"] == []


def test_geopackage_keeps_the_reference_system(scenes, tmp_path):
    tables, rows = scenes
    out = export(tables, tmp_path / "out", "gpkg")
    meta, _, geometries, fields = read(out / "a" / "utm.gpkg", layer="segments")
    assert meta["crs"] == "EPSG:32633"
    properties = [dict(zip(meta["fields"], values, strict=True)) for values in zip(*fields, strict=True)]
    check_rows(properties, list(map(geometry_of, geometries)), rows)
    assert len(read(out / "empty.gpkg")[2]) == 0


def test_geoparquet_keeps_the_reference_system(scenes, tmp_path):
    tables, rows = scenes
    out = export(tables, tmp_path / "out", "geoparquet")
    table = pq.read_table(out / "a" / "utm.parquet")
    about = json.loads(table.schema.metadata[b"geo"])
    column = about["columns"][about["primary_column"]]
    assert CRS.from_user_input(json.dumps(column["crs"])) == CRS.from_epsg(32633)
    found = table.to_pylist()
    check_rows(found, [geometry_of(row["geometry"]) for row in found], rows)
    assert len(pq.read_table(out / "empty.parquet")) == 0


UNUSABLE = {
    "local": {"crs": 'LOCAL_CS["arbitrary",UNIT["metre",1]]', "transform": TRANSFORM},
    "far": {"crs": "EPSG:32633", "transform": [1e9, 0, 1e12, 0, 1e9, 1e12]},
    "unknown": {"crs": "EPSG:999999", "transform": TRANSFORM},
    "five": {"crs": "EPSG:32633", "transform": TRANSFORM[:5]},
    "nan": {"crs": "EPSG:32633", "transform": [*TRANSFORM[:5], float("nan")]},
    "texts": {"crs": "EPSG:32633", "transform": list("abcdef")},
    "number": {"crs": 32633, "transform": TRANSFORM},
}


@pytest.mark.parametrize(
    ("form", "kept"), [("geojson", []), ("gpkg", ["far", "local"]), ("geoparquet", ["far", "local"])]
)
def test_a_place_that_a_format_cannot_express_is_counted(tmp_path, capsys, form, kept):
    [found] = scattered(np.random.default_rng(4), SIZE, 1)
    places = {**UNUSABLE, "good": {"crs": "EPSG:32633", "transform": TRANSFORM}, "other": "a column of a manifest"}
    keys = {name: f"s3://scenes/{name}.tif" for name in places}
    images = [
        image_row(key, "night", 0, height=SIZE[0], width=SIZE[1], attributes=json.dumps({"geotiff": places[name]}))
        for name, key in keys.items()
    ]
    rows = [segment_row(key, "night", area=found.area, segmentation=found.rle) for key in keys.values()]
    publish_run(str(tmp_path / "tables"), "night", images, rows)
    out = export(str(tmp_path / "tables"), tmp_path / "out", form)
    assert sorted(file.stem for file in out.glob("*.*")) == sorted([*kept, "good"])
    printed = capsys.readouterr().out
    assert f"{7 - len(kept)} images are left out: {form} cannot express their reference system or transform" in printed
    assert "1 images are left out: their `attributes` hold no reference system" in printed


def test_without_the_extra_it_is_one_line(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.decoding.geotiff.is_installed", lambda: False)
    for form in ("geojson", "gpkg", "geoparquet"):
        assert "needs the extra `geo`" in refused(scenes[0], tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
