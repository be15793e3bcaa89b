"""Which rows of the other run are compared: all, or, of a run that is much larger than the one on the page, some.

A night of a thousand new images comes after a first night of millions. So that the page of such a night takes the time
of a small run, at most `_TIMES` as many images of the other run are read. If most images of the smaller run are in both
runs, these are wanted: the published tables say between which keys each part lies. Else the other run is a sample of
its own, and random shards are as good as all.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from pipeline.page.figures.runs import ShownRun
from pipeline.page.figures.tallies import BEFORE, NOW, load, rows
from pipeline.tables.run_rows import Part, parts_of_run
from pipeline.tables.spill_database import ScratchDatabase

_TIMES, _ALWAYS = 2, 200_000  # times the images of the run on the page; so many images are read of any other run
_SEED = 0


@dataclass(frozen=True)
class Sampled:
    """What was read of a run that is too large to be read as a whole.

    images: how many images of the run were read, of `of_images`. shared: only images that both runs have.
    """

    images: int
    of_images: int
    shared: bool


def load_other(scratch: ScratchDatabase, run: ShownRun, other: ShownRun) -> Sampled | None:
    """Make the tables of BEFORE, beside those of NOW. None: they hold all rows of the run. RunError as of `load`."""
    most = max(_TIMES * run.report.num_images, _ALWAYS)
    if other.report.num_images <= most:
        load(scratch, other, BEFORE)
        return None
    parts = parts_of_run(other.output, other.run_id, other.record.plan.num_shards, other.report.num_images)
    near = _near(parts, scratch)
    chosen = _some(near, most)
    load(scratch, other, BEFORE, shards=[part.shard for part in chosen], shared_with=NOW)
    in_near, read = _images(near), _images(chosen)
    common, now = (_count(scratch, query) for query in (f"{BEFORE}_images", f"{NOW}_images WHERE status = 'ok'"))
    if common and common * in_near > 0.5 * read * min(now, other.report.num_ok):
        return Sampled(read, other.report.num_images, shared=True)
    chosen = _some(parts, most)
    load(scratch, other, BEFORE, shards=[part.shard for part in chosen])
    return Sampled(_images(chosen), other.report.num_images, shared=False)


def _near(parts: Sequence[Part], scratch: ScratchDatabase) -> list[Part]:
    """The parts whose keys lie between the first and the last key of a shard of NOW, or may lie there."""
    spans = [
        (one["first"], one["last"])
        for one in rows(
            scratch,
            f"SELECT min(image_key) AS first, max(image_key) AS last FROM {NOW}_images GROUP BY shard ORDER BY first",
        )
    ]
    firsts, lasts = [first for first, _ in spans], list(accumulate((last for _, last in spans), max))

    def is_near(part: Part) -> bool:
        if part.first_key is None or part.last_key is None:
            return True
        begun = bisect_right(firsts, part.last_key)  # spans that begin before the part ends
        return begun > 0 and lasts[begun - 1] >= part.first_key

    return [part for part in parts if is_near(part)]


def _some(parts: Sequence[Part], most: int) -> list[Part]:
    """Parts by chance, the same each time, with at most `most` images together, but one part at least."""
    order = [parts[place] for place in np.random.default_rng(_SEED).permutation(len(parts))]
    upto = list(accumulate(part.num_images for part in order))
    return order[: max(1, bisect_right(upto, most))]


def _images(parts: Sequence[Part]) -> int:
    return sum(part.num_images for part in parts)


def _count(scratch: ScratchDatabase, of: str) -> int:
    [one] = rows(scratch, f"SELECT count(*) AS images FROM {of}")
    return int(one["images"])
