"""Kept mask logits read back: with their sign, in their order, and within the error that the module promises."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from m2f_core.inference.kept_masks import dequantise, pack_codes, quantise, unpack_codes

LOGITS = st.floats(-1e6, 1e6, width=32)


@given(arrays(np.float32, array_shapes(min_dims=3, max_dims=3, max_side=6), elements=LOGITS))
def test_signs_order_and_error_are_as_promised(logits):
    codes = quantise(torch.from_numpy(logits))
    read = dequantise(codes.numpy()).numpy()
    assert read.dtype == np.float32 and read.shape == logits.shape
    assert ((read > 0) == (logits >= 0)).all()
    order = np.argsort(logits, axis=None, kind="stable")
    assert (np.diff(read.ravel()[order]) >= 0).all()
    near = np.abs(logits) <= 63
    assert (np.abs(read - logits) <= 0.002 * (1 + np.abs(logits)))[near].all()
    assert (np.abs(np.abs(read) - 64) < 0.3)[np.abs(logits) >= 64].all()


@given(arrays(np.int16, array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=7)))
def test_packed_codes_come_back(codes):
    assert (unpack_codes(pack_codes(codes), codes.shape) == codes).all()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
def test_bytes_of_another_size_are_refused(change):
    packed = pack_codes(np.ones((2, 3, 4), np.int16))
    with pytest.raises(ValueError):
        unpack_codes(change(packed), (2, 3, 4))


def test_a_code_that_no_logit_has_is_refused():
    with pytest.raises(ValueError, match="no code"):
        dequantise(np.array([[[30_000]]], np.int16))
