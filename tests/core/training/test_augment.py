"""Large-scale jitter: image, map and masks stay together; the distribution is the one that the docstring names."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from m2f_core.training.augment import IMAGE_PADDING, Jitter, LargeScaleJitter

SIDES = st.integers(1, 70)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**31), st.booleans())
def test_image_map_and_masks_stay_together(height, width, crop_height, crop_width, seed, flip):
    """Where colour is a function of the id, it is so after the jitter, but for the pixels that resizing mixes."""
    rng = np.random.default_rng(seed)
    jitter = LargeScaleJitter((crop_height, crop_width), 0.1, 2.0, flip).draw(height, width, rng)
    ids_HW = np.zeros((height, width), np.int32)
    ids_HW[:, width // 2 :] = 1
    ids_HW[height // 2 :] += 2
    image = Image.fromarray(np.repeat(ids_HW[..., None] * 60, 3, axis=2).astype(np.uint8))

    pixels, ids = jitter.image(image), jitter.map(ids_HW, padding=9)
    masks = np.stack([jitter.mask(ids_HW == n) for n in range(4)])

    assert pixels.shape == (crop_height, crop_width, 3) and pixels.dtype == np.uint8
    assert np.array_equal(masks, ids[None] == np.arange(4)[:, None, None])
    padded = ids == 9
    assert (pixels[padded] == IMAGE_PADDING).all()
    if jitter.resized_hw == (height, width):
        assert np.array_equal(pixels[..., 0][~padded], ids[~padded] * 60)


@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**31))
def test_crop_is_inside_and_fits_the_scale(height, width, crop_height, crop_width, seed):
    low, high = 0.1, 2.0
    jitter = LargeScaleJitter((crop_height, crop_width), low, high, True)
    draw = jitter.draw(height, width, np.random.default_rng(seed))
    for length, crop, offset in zip(draw.resized_hw, (crop_height, crop_width), draw.offset_yx, strict=True):
        assert 0 <= offset <= max(0, length - crop)
    scales = [resized / crop for resized, crop in zip(draw.resized_hw, (crop_height, crop_width), strict=True)]
    assert max(scales) <= high + 1.0 / min(crop_height, crop_width)


def test_no_scale_and_no_flip_change_nothing():
    rng = np.random.default_rng(0)
    pixels_HW3 = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    draw = LargeScaleJitter((20, 30), 1.0, 1.0, False).draw(20, 30, rng)
    assert np.array_equal(draw.image(Image.fromarray(pixels_HW3)), pixels_HW3)


def test_flip_mirrors_half_of_the_images_left_to_right():
    rng = np.random.default_rng(0)
    jitter = LargeScaleJitter((4, 6), 1.0, 1.0, True)
    draws = [jitter.draw(4, 6, rng) for _ in range(400)]
    assert 150 < sum(draw.flip for draw in draws) < 250
    ids_HW = np.arange(24, dtype=np.int32).reshape(4, 6)
    flipped = next(draw for draw in draws if draw.flip)
    assert np.array_equal(flipped.map(ids_HW, 0), ids_HW[:, ::-1])


def test_resized_pixels_are_pillows_and_the_crop_is_where_the_offset_says():
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    draw = Jitter(flip=False, resized_hw=(80, 120), offset_yx=(7, 11), crop_hw=(32, 48))
    expected = np.asarray(image.resize((120, 80), Image.Resampling.BILINEAR))[7:39, 11:59]
    assert np.array_equal(draw.image(image), expected)


@given(
    st.tuples(SIDES, SIDES),
    st.tuples(SIDES, SIDES),
    st.sampled_from([0.1, 1.0, 3.7]),
    st.integers(0, 2**31),
    st.sampled_from([Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]),
)
def test_the_crop_of_a_resized_image_is_what_is_resized_into_the_crop(size_hw, crop_hw, scale, seed, resample):
    """As if Pillow had resized all of it and it were cropped then, to the last bit."""
    rng = np.random.default_rng(seed)
    draw = replace(LargeScaleJitter(crop_hw, 0.1 * scale, scale, True).draw(*size_hw, rng), resample=resample)
    image = Image.fromarray(rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8))
    ids_HW = rng.integers(0, 9, size_hw, dtype=np.int32)
    height, width = draw.resized_hw
    y, x = draw.offset_yx
    window = slice(y, y + crop_hw[0]), slice(x, x + crop_hw[1])

    def whole(image, resample):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.flip else image
        return np.asarray(image.resize((width, height), resample))[window]

    wanted, wanted_ids = whole(image, resample), whole(Image.fromarray(ids_HW), Image.Resampling.NEAREST)
    inside = slice(0, wanted.shape[0]), slice(0, wanted.shape[1])
    assert np.array_equal(draw.image(image)[inside], wanted)
    assert np.array_equal(draw.map(ids_HW, 0)[inside], wanted_ids)
    assert np.array_equal(draw.mask(ids_HW == 3)[inside], wanted_ids == 3)


def test_padding_belongs_to_no_mask():
    draw = Jitter(flip=True, resized_hw=(8, 8), offset_yx=(0, 0), crop_hw=(10, 10))
    mask = draw.mask(np.ones((4, 4), np.bool_))
    assert mask.shape == (10, 10) and mask[:8, :8].all() and mask.sum() == 64
