"""Overlays: colours tell segments apart, pixels outside of all masks stay as they are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from m2f_core.masks.overlay import draw_segments, segment_colour, with_legend


@given(st.integers(0, 200))
def test_neighbouring_segments_have_different_colours(number):
    first, second = np.array(segment_colour(number)), np.array(segment_colour(number + 1))
    assert np.abs(first - second).sum() > 100


def test_pixels_of_no_mask_are_untouched_and_the_image_is_copied():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    before = pixels.copy()
    masks = np.zeros((2, 20, 30), np.bool_)
    masks[0, 3:10, 3:10] = True
    masks[1, 5:15, 5:25] = True
    drawn = draw_segments(pixels, masks)
    assert np.array_equal(pixels, before)
    outside = ~masks.any(axis=0)
    assert np.array_equal(drawn[outside], pixels[outside])


def test_a_mask_has_its_colour_inside_and_a_white_outline():
    pixels = np.zeros((9, 9, 3), np.uint8)
    mask = np.zeros((9, 9), np.bool_)
    mask[2:7, 2:7] = True
    drawn = draw_segments(pixels, [mask])
    assert (drawn[2, 2:7] == 255).all() and (drawn[2:7, 6] == 255).all()
    assert np.allclose(drawn[4, 4], 0.55 * np.array(segment_colour(0)), atol=1)
    whole = draw_segments(pixels, [np.ones((9, 9), np.bool_)])
    assert not (whole == 255).all(axis=2).any()  # the image's border is no outline


def test_later_masks_cover_earlier_ones():
    pixels = np.zeros((8, 8, 3), np.uint8)
    everywhere, block = np.ones((8, 8), np.bool_), np.zeros((8, 8), np.bool_)
    block[2:7, 2:7] = True
    assert np.allclose(draw_segments(pixels, [everywhere, block])[4, 4], 0.55 * np.array(segment_colour(1)), atol=1)


def test_a_legend_names_every_segment_in_its_colour():
    """Below the picture, in as many rows as needed; nothing of the picture changes."""
    picture = np.random.default_rng(0).integers(0, 256, (20, 100, 3), dtype=np.uint8)
    names = ["person", "traffic light", "sky", "a name that is wider than the picture above"]
    drawn = with_legend(picture, names)
    assert np.array_equal(drawn[:20, :100], picture) and (drawn[:20, 100:] == 255).all()
    legend = drawn[20:]
    for number in range(len(names)):
        assert (legend == segment_colour(number)).all(axis=2).sum() > 50
    assert (legend < 100).all(axis=2).any(), "no text"
    assert len(with_legend(picture, names)) > len(with_legend(picture, names[:1]))
    assert with_legend(picture, []) is picture


def test_the_rows_of_a_legend_do_not_overlap():
    drawn = with_legend(np.zeros((1, 200, 3), np.uint8), [f"class {n}" for n in range(12)])
    areas = [(drawn[1:] == segment_colour(number)).all(axis=2) for number in range(12)]
    assert all(area.sum() == areas[0].sum() for area in areas)
