"""Polygons as well-known binary (WKB), which GeoPackage and GeoParquet hold: OGC 06-103r4, section 8."""

import struct
from collections.abc import Sequence

import numpy as np

_LITTLE_ENDIAN, _POLYGON, _MULTI_POLYGON = 1, 3, 6


def multi_polygon_wkb(polygons: Sequence[Sequence[Sequence[tuple[float, float]]]]) -> bytes:
    """Polygons, each an outer ring and its holes; a ring ends where it began."""
    parts = [struct.pack("<BII", _LITTLE_ENDIAN, _MULTI_POLYGON, len(polygons))]
    for rings in polygons:
        parts.append(struct.pack("<BII", _LITTLE_ENDIAN, _POLYGON, len(rings)))
        for ring in rings:
            parts += [struct.pack("<I", len(ring)), np.asarray(ring, "<f8").tobytes()]
    return b"".join(parts)
