"""PNGs of label maps: Pillow reads the same pixels, and zlib the same rows."""

import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from m2f_core.masks.formats.map_png import gray_png, panoptic_png_bytes
from m2f_core.masks.panoptic_png import panoptic_ids
from m2f_core.masks.rle import label_runs

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def maps(dtype, most):
    few = st.sampled_from([0, 0, 0, 1, 7, most])
    return st.one_of(
        arrays(dtype, SHAPES, elements=few),
        arrays(dtype, SHAPES, elements=st.integers(0, most)),
        st.builds(np.full, st.tuples(st.integers(1, 900), st.integers(1, 3)), few, st.just(dtype)),
        st.builds(lambda row, n: np.repeat(row[None], n, axis=0), arrays(dtype, 30, elements=few), st.integers(1, 300)),
    )


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()  # checks all checksums
    return image


def gray(labels_WH: np.ndarray, **options) -> Image.Image:
    bits = 8 * labels_WH.dtype.itemsize
    return opened(gray_png(label_runs(labels_WH.T), *labels_WH.T.shape, bits, **options))


@given(maps(np.uint8, 255))
@settings(max_examples=80, deadline=None)
def test_gray_of_8_bits(labels_WH):
    image = gray(labels_WH)
    assert image.mode == "L" and np.array_equal(np.array(image), labels_WH.T)


@given(maps(np.uint16, 65_535))
@settings(max_examples=80, deadline=None)
def test_gray_of_16_bits(labels_WH):
    assert np.array_equal(np.array(gray(labels_WH)).astype(np.uint16), labels_WH.T)


@given(maps(np.uint32, 2**24 - 1))
@settings(max_examples=80, deadline=None)
def test_panoptic(ids_WH):
    assert np.array_equal(
        panoptic_ids(np.array(opened(panoptic_png_bytes(label_runs(ids_WH.T), *ids_WH.T.shape)))), ids_WH.T
    )


@pytest.mark.parametrize("length", [*range(1, 12), 257, 258, 259, 260, 261, 515, 516, 517, 518, 5000])
def test_runs_of_every_length(length):
    labels_WH = np.zeros((length, 1), np.uint8)
    labels_WH[0] = 200
    assert np.array_equal(np.array(gray(labels_WH)), labels_WH.T)


def test_colours_of_a_palette():
    image = gray(np.array([[0, 1], [1, 0]], np.uint8), palette=[(0, 0, 0), (9, 8, 7)])
    assert image.mode == "P" and image.convert("RGB").getpixel((1, 0)) == (9, 8, 7)


@given(maps(np.uint8, 255))
@settings(max_examples=80, deadline=None)
def test_rows_are_differences_to_the_row_above(labels_WH):
    """What is packed is what the specification says, byte for byte: no byte that is skipped is another than 0."""
    data = gray_png(label_runs(labels_WH.T), *labels_WH.T.shape)
    size = int.from_bytes(data[33:37], "big")
    above_HW = np.vstack([np.zeros_like(labels_WH.T[:1]), labels_WH.T[:-1]])
    rows = np.hstack([np.full((labels_WH.shape[1], 1), 2, np.uint8), labels_WH.T - above_HW])
    assert data[37:41] == b"IDAT" and zlib.decompress(data[41 : 41 + size]) == rows.tobytes()
