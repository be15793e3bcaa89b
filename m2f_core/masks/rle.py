"""COCO run-length encoding (RLE): label maps to runs, runs to compressed counts, and the way back.

The format, by example. A mask is read in COLUMN-MAJOR order, down the first column, then down the second:

    mask    0 1 0      pixels, column by column   0 0 | 1 1 | 0 1
            0 1 1      run lengths                2     2     1 1     zeros first, then ones, zeros, ones, ...

A mask that begins with a one has a first run of length 0. The area is the sum of every second run length. The
compressed form writes one signed number per run. The first three numbers are the lengths themselves; from the fourth
on, each is the difference to the length two runs before (the last run of the same colour), which is usually small:

    lengths 2 2 1 1    numbers  2 2 1 -1           (-1 is 1 - 2)

A number is cut into groups of five bits, lowest first. A group becomes one character, `chr(48 + group)`, with 32 added
while more groups follow. Bit 16 of the last group is the sign, repeated upwards, so 2 is "2", -1 is binary 11111 = "O"
and 16 needs two characters, "`0" (10000 with 32 added, then 00000):

    counts  b"221O"

`pycocotools.mask` reads and writes the same bytes; the tests hold this module to them, byte for byte.

Legend: H, W pixels of the image; R runs of the whole map; N distinct non-zero labels; M runs of one mask; S bytes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2f_core.jit import compiled

# Lengths are uint32 in the COCO API, so the difference of two has 33 bits and a sign: seven groups of five bits.
MAX_PIXELS = 2**32 - 1
_MAX_CHARS = 7


@dataclass(frozen=True, eq=False)
class LabelRuns:
    """Maximal runs of equal label of a whole map [H, W] in column-major order; together they cover every pixel."""

    values: NDArray[np.integer]  # [R] label of each run; neighbours differ
    lengths: NDArray[np.uint32]  # [R] pixels of each run, at least 1


@dataclass(frozen=True)
class Rle:
    """One label of a map, as a COCO mask. Area in pixels, box in absolute pixels (x, y, width, height)."""

    label: int
    counts: bytes
    area: int
    bbox_xywh: tuple[float, float, float, float]


# ---------------------------------------------------------------------------------------------- label map <-> runs


def label_runs(label_map_HW: NDArray[np.integer]) -> LabelRuns:
    """Find the runs of a label map. A column-major (Fortran-ordered) map is read in place, any other is copied."""
    if label_map_HW.ndim != 2 or label_map_HW.size == 0 or label_map_HW.size > MAX_PIXELS:
        raise ValueError(f"a label map must have two axes and 1 to {MAX_PIXELS} pixels, got shape {label_map_HW.shape}")
    if label_map_HW.dtype.kind not in "iu":
        raise ValueError(f"a label map must hold integers, got {label_map_HW.dtype}")
    info = np.iinfo(np.int32)
    if label_map_HW.dtype.itemsize >= 4 and (label_map_HW.min() < info.min or label_map_HW.max() > info.max):
        raise ValueError("labels must fit into int32")
    pixels = np.ascontiguousarray(label_map_HW.T).reshape(-1)
    stops = np.append(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1, pixels.size)
    lengths = np.diff(stops, prepend=0)
    return LabelRuns(pixels[stops - 1].astype(np.int32), lengths.astype(np.uint32))


def runs_to_label_map(runs: LabelRuns, height: int, width: int) -> NDArray[Any]:
    """Rebuild the map [H, W] (column-major in memory) from its runs, in their type; the inverse of `label_runs`."""
    _check_total(int(runs.lengths.sum(dtype=np.int64)), height, width)
    return np.repeat(runs.values, runs.lengths).reshape(width, height).T


# ------------------------------------------------------------------------------------------- runs of a map -> masks


def encode_runs(runs: LabelRuns, height: int, width: int) -> list[Rle]:
    """COCO masks of all non-zero labels, in ascending order of label, without building any mask."""
    if runs.values.shape != runs.lengths.shape or runs.values.ndim != 1:
        raise ValueError(f"values {runs.values.shape} and lengths {runs.lengths.shape} must be two equal vectors")
    lengths = runs.lengths.astype(np.int64)
    if lengths.size and lengths.min() < 1:
        raise ValueError("every run of a label map must have at least one pixel")
    if np.any(runs.values[1:] == runs.values[:-1]):
        raise ValueError("neighbouring runs must differ in label")
    _check_total(int(lengths.sum()), height, width)

    labels = np.unique(runs.values)
    labels = labels[labels != 0]
    # Index of each run's label in `labels`; runs of label 0 get N and are skipped.
    slots = np.searchsorted(labels, runs.values)
    slots[runs.values == 0] = labels.size

    buffer, offsets, ends, areas, boxes_N4 = _encode_labels(slots, lengths, labels.size, height)
    return [
        Rle(
            label=int(labels[n]),
            counts=buffer[offsets[n] : ends[n]].tobytes(),
            area=int(areas[n]),
            bbox_xywh=_xywh(*boxes_N4[n].tolist()),
        )
        for n in range(labels.size)
    ]


@compiled
def _encode_labels(slots, lengths, num_labels, height):  # type: ignore[no-untyped-def]
    """Compressed counts, area and inclusive corner box (x0, y0, x1, y1) of every label.

    Label n owns `buffer[offsets[n] : offsets[n + 1]]`, with room for the longest possible string, and fills it up to
    `ends[n]`. Between two runs, a label's state is the end of its last run and its last two run lengths.
    """
    num_runs = np.zeros(num_labels, np.int64)
    for slot in slots:
        if slot < num_labels:
            num_runs[slot] += 1
    offsets = np.zeros(num_labels + 1, np.int64)
    for n in range(num_labels):
        offsets[n + 1] = offsets[n] + _MAX_CHARS * (2 * num_runs[n] + 1)
    buffer = np.empty(offsets[num_labels], np.uint8)
    ends = offsets[:num_labels].copy()

    areas = np.zeros(num_labels, np.int64)
    boxes = np.empty((num_labels, 4), np.int64)
    stops = np.zeros(num_labels, np.int64)
    last_gaps = np.zeros(num_labels, np.int64)
    last_lengths = np.zeros(num_labels, np.int64)

    position = 0
    for run in range(slots.size):
        n, start, length = slots[run], position, lengths[run]
        position += length
        if n == num_labels:
            continue
        x0, x1 = start // height, (position - 1) // height
        y0, y1 = start - x0 * height, (position - 1) - x1 * height
        if x0 < x1:  # the run continues from the bottom of one column to the top of the next
            y0, y1 = 0, height - 1
        gap = start - stops[n]
        if areas[n] == 0:  # the first three numbers (here two) are not differences
            ends[n] = _put_number(buffer, ends[n], gap)
            ends[n] = _put_number(buffer, ends[n], length)
            boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = x0, y0, x1, y1
        else:
            # last_gaps is still 0 for the third number, so that number is written unchanged.
            ends[n] = _put_number(buffer, ends[n], gap - last_gaps[n])
            ends[n] = _put_number(buffer, ends[n], length - last_lengths[n])
            last_gaps[n] = gap
            boxes[n, 0], boxes[n, 1] = min(boxes[n, 0], x0), min(boxes[n, 1], y0)
            boxes[n, 2], boxes[n, 3] = max(boxes[n, 2], x1), max(boxes[n, 3], y1)
        last_lengths[n] = length
        areas[n] += length
        stops[n] = position

    for n in range(num_labels):
        if stops[n] < position:
            ends[n] = _put_number(buffer, ends[n], position - stops[n] - last_gaps[n])
    return buffer, offsets, ends, areas, boxes


# ------------------------------------------------------------------------------------------------ one mask <-> counts


def encode_mask(mask_HW: NDArray[np.bool_]) -> bytes:
    """Compressed counts of one boolean mask; an empty mask is one run of zeros."""
    runs = label_runs(np.asarray(mask_HW, dtype=bool).view(np.uint8))
    lengths = runs.lengths.astype(np.int64)
    return encode_counts(np.concatenate([[0], lengths]) if runs.values[0] else lengths)


def decode(counts: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Boolean mask [H, W] (column-major in memory) of compressed counts; the inverse of `encode_mask`."""
    lengths = _checked_lengths(counts, height, width)
    colours = np.arange(lengths.size) % 2 == 1
    return np.repeat(colours, lengths).reshape(width, height).T


def counts_area(counts: bytes) -> int:
    """Pixels of the mask."""
    return int(decode_counts(counts)[1::2].sum())


def counts_bbox_xywh(counts: bytes, height: int, width: int) -> tuple[float, float, float, float]:
    """Tightest box (x, y, width, height) in pixels around the mask; zeros for an empty mask."""
    lengths = _checked_lengths(counts, height, width)
    stops = np.cumsum(lengths)[1::2]
    lengths = lengths[1::2]
    starts, lasts = (stops - lengths)[lengths > 0], stops[lengths > 0] - 1
    if starts.size == 0:
        return (0.0, 0.0, 0.0, 0.0)
    x0, x1 = starts // height, lasts // height
    wraps = x0 < x1
    y0, y1 = np.where(wraps, 0, starts % height), np.where(wraps, height - 1, lasts % height)
    return _xywh(int(x0.min()), int(y0.min()), int(x1.max()), int(y1.max()))


# ------------------------------------------------------------------------------------------- run lengths <-> counts


def encode_counts(lengths: NDArray[np.integer]) -> bytes:
    """Write run lengths [M] (zeros first) as compressed counts."""
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.ndim != 1 or lengths.size == 0 or lengths.min() < 0 or lengths.max() > MAX_PIXELS:
        raise ValueError(f"run lengths must be a vector of at least one number from 0 to {MAX_PIXELS}")
    buffer, end = _write_numbers(lengths)
    return bytes(buffer[:end].tobytes())


def decode_counts(counts: bytes) -> NDArray[np.int64]:
    """Read run lengths [M] (zeros first) from compressed counts; ValueError if they are malformed."""
    if not isinstance(counts, (bytes, bytearray)):
        raise TypeError(f"counts must be bytes, got {type(counts).__name__}")
    if not counts:
        raise ValueError("malformed RLE counts: empty")
    lengths, num_runs, error, position = read_numbers(np.frombuffer(counts, np.uint8).astype(np.int64))
    if error:
        raise ValueError(f"malformed RLE counts: {_READ_ERRORS[error]} at byte {position} of {len(counts)}")
    return lengths[:num_runs].copy()


_BAD_CHARACTER, _TOO_LONG, _OUT_OF_RANGE, _TRUNCATED = 1, 2, 3, 4
_READ_ERRORS = {
    _BAD_CHARACTER: "a character outside '0' to 'o'",
    _TOO_LONG: f"a number of more than {_MAX_CHARS} characters",
    _OUT_OF_RANGE: f"a run length below 0 or above {MAX_PIXELS}",
    _TRUNCATED: "the last number is cut off",
}


@compiled
def _put_number(buffer, position, number):  # type: ignore[no-untyped-def]
    """Write one signed number at `position`, return the position after it."""
    while True:
        group = number & 31
        number >>= 5
        # Done when only the sign remains and the group's highest bit already shows that sign.
        if number == (-1 if group & 16 else 0):
            buffer[position] = 48 + group
            return position + 1
        buffer[position] = 48 + 32 + group
        position += 1


@compiled
def _write_numbers(lengths):  # type: ignore[no-untyped-def]
    buffer = np.empty(_MAX_CHARS * lengths.size, np.uint8)
    end = 0
    for m in range(lengths.size):
        end = _put_number(buffer, end, lengths[m] - lengths[m - 2] if m > 2 else lengths[m])
    return buffer, end


@compiled
def read_numbers(characters):  # type: ignore[no-untyped-def]
    """Run lengths [S] of which the first `num_runs` are filled, their number, an error code or 0, and its position."""
    lengths = np.empty(characters.size, np.int64)
    num_runs = 0
    number = 0
    num_groups = 0
    for i in range(characters.size):
        group = characters[i] - 48
        if group < 0 or group > 63:
            return lengths, num_runs, _BAD_CHARACTER, i
        if num_groups == _MAX_CHARS:
            return lengths, num_runs, _TOO_LONG, i
        number |= (group & 31) << (5 * num_groups)
        num_groups += 1
        if group & 32:
            continue
        if group & 16:
            number -= 1 << (5 * num_groups)
        if num_runs > 2:
            number += lengths[num_runs - 2]
        if number < 0 or number > MAX_PIXELS:
            return lengths, num_runs, _OUT_OF_RANGE, i
        lengths[num_runs] = number
        num_runs += 1
        number = 0
        num_groups = 0
    return lengths, num_runs, _TRUNCATED if num_groups else 0, characters.size


# ------------------------------------------------------------------------------------------------------------ checks


def _checked_lengths(counts: bytes, height: int, width: int) -> NDArray[np.int64]:
    lengths = decode_counts(counts)
    _check_total(int(lengths.sum()), height, width)
    return lengths


def _check_total(num_pixels: int, height: int, width: int) -> None:
    if height < 1 or width < 1 or num_pixels != height * width:
        raise ValueError(f"runs add up to {num_pixels} pixels, but the image has {height} x {width} = {height * width}")


def _xywh(x0: int, y0: int, x1: int, y1: int) -> tuple[float, float, float, float]:
    """(x, y, width, height) of a box given by its first and last pixel, both inclusive."""
    return (float(x0), float(y0), float(x1 - x0 + 1), float(y1 - y0 + 1))
