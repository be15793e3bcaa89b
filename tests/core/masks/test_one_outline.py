"""One outline per mask: painted by the even-odd rule, it is the mask and the bridges between its parts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from m2f_core.masks.formats.one_outline import one_outline
from tests.support.painted_outlines import painted

MASKS = st.one_of(
    arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))),
    arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.sampled_from([True] * 9 + [False])),
    arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)), elements=st.sampled_from([False] * 14 + [True])),
).filter(np.any)


@given(MASKS)
@settings(max_examples=5 * settings.default.max_examples, deadline=None)
def test_the_outline_is_the_mask_and_its_bridges(mask):
    outline = one_outline(mask)
    found = painted(outline.corners, mask.shape)
    assert (found | mask == found).all()
    assert (found & ~mask).sum() == outline.num_added
    assert ndimage.label(found, np.ones((3, 3)))[1] == 1
    if ndimage.label(mask, np.ones((3, 3)))[1] == 1:
        assert outline.num_added == 0


def test_two_pixels_are_joined_by_the_pixels_between():
    mask = np.zeros((3, 9), bool)
    mask[0, 0] = mask[2, 8] = True
    assert one_outline(mask).num_added == 7


def test_many_holes_need_no_recursion():
    mask = np.ones((3, 6001), bool)
    mask[1, 1::2] = False
    outline = one_outline(mask)
    assert outline.num_added == 0 and len(outline.corners) > 4 * 3000
