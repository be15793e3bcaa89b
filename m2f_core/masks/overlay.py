"""Draw segments over their image, for people to look at.

Legend: H, W pixels of the image; N masks.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from m2f_core.masks.colours import segment_colour

_OPACITY = 0.55
_FONT_SIZE = 14  # pixels


def draw_segments(
    pixels_HW3: NDArray[np.uint8],
    masks_HW: Iterable[NDArray[np.bool_]],
    colours: Sequence[tuple[int, int, int]] | None = None,
    outlined: Sequence[bool] | None = None,
) -> NDArray[np.uint8]:
    """A copy of the image with each mask in its own colour and a white outline; later masks cover earlier ones.

    `colours`: RGB of each mask, else `segment_colour` of its place. `outlined`: which masks have an outline, else all.
    """
    drawn_HW3 = pixels_HW3.astype(np.float32)
    outline_HW = np.zeros(pixels_HW3.shape[:2], np.bool_)
    for number, mask_HW in enumerate(masks_HW):
        colour = np.array(segment_colour(number) if colours is None else colours[number], np.float32)
        drawn_HW3[mask_HW] = (1 - _OPACITY) * pixels_HW3[mask_HW] + _OPACITY * colour
        outline_HW[mask_HW] = False
        if outlined is None or outlined[number]:
            outline_HW |= _outline(mask_HW)
    drawn_HW3[outline_HW] = 255
    return drawn_HW3.round().astype(np.uint8)


def with_legend(
    drawn_HW3: NDArray[np.uint8], names: Sequence[str], colours: Sequence[tuple[int, int, int]] | None = None
) -> NDArray[np.uint8]:
    """The picture with a legend below it: the colour and the name of each segment, in the order of `draw_segments`.

    `colours`: as in `draw_segments`.
    """
    if not names:
        return drawn_HW3
    font = ImageFont.load_default(_FONT_SIZE)
    line = _FONT_SIZE + 6
    widths = [2 * line + round(font.getlength(name)) for name in names]
    width = max(drawn_HW3.shape[1], *widths)
    rows, used = [0], 0  # row of each entry
    for entry in widths:
        rows.append(rows[-1] + (used + entry > width))
        used = entry if rows[-1] > rows[-2] else used + entry
    legend = Image.new("RGB", (width, line * (rows[-1] + 1) + 4), "white")
    draw = ImageDraw.Draw(legend)
    left, row = 0, 0
    for number, (name, entry, place) in enumerate(zip(names, widths, rows[1:], strict=True)):
        left = 0 if place != row else left
        row = place
        top = 2 + row * line
        fill = segment_colour(number) if colours is None else colours[number]
        draw.rectangle((left + 4, top + 3, left + line - 2, top + line - 3), fill=fill)
        draw.text((left + line + 2, top), name, fill="black", font=font)
        left += entry
    padded_HW3 = np.full((drawn_HW3.shape[0], width, 3), 255, np.uint8)
    padded_HW3[:, : drawn_HW3.shape[1]] = drawn_HW3
    return np.concatenate([padded_HW3, np.asarray(legend)])


def _outline(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask's pixels that have a neighbour outside the mask; the border of the image does not count as outside."""
    padded = np.pad(mask_HW, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask_HW & ~inner
