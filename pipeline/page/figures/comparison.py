"""What changed between two runs: by category with bootstrap confidence intervals, and by image.

Legend: G groups of images, C categories, B resamples.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.page.figures.other_rows import Sampled
from pipeline.page.figures.runs import ShownRun
from pipeline.page.figures.tallies import BEFORE, NOW, rows
from pipeline.tables.spill_database import ScratchDatabase, out_of_room

RESAMPLES = 1000
CONFIDENCE = 0.95
# Images are resampled one by one up to this many, and beyond as this many random groups: time and memory are bounded,
# and groups of independent images vary as images do.
_MOST_GROUPS = 1000
_SEED = 0
_MOST_SHOWN, _LEAST_SHOWN = 15, 5e-6  # categories in the section on changes; the smallest change that rounds to a digit


def compare(scratch: ScratchDatabase, run: ShownRun, other: ShownRun, sampled: Sampled | None) -> dict[str, Any]:
    """Compare the loaded rows of `run` with those of `other`; makes the table `changes`, a row per image of both.

    `sampled` says which rows of `other` are loaded, if these are not all.

    If most images of the smaller run are in both, both are compared on these images alone and resampled as pairs;
    else each run is taken as a sample of its own.
    """
    with out_of_room():
        scratch.connection.execute(_CHANGES)
    [counts] = rows(
        scratch,
        f"""
        SELECT (SELECT count(*) FROM changes) AS common,
               (SELECT count(*) FROM changes WHERE change > 0 OR segments_now <> segments_before) AS changed,
               (SELECT avg(change) FROM changes) AS mean_change,
               (SELECT count(*) FROM {NOW}_images WHERE status = 'ok') AS now,
               (SELECT count(*) FROM {BEFORE}_images WHERE status = 'ok') AS before
        """,
    )
    paired = counts["common"] > 0.5 * min(counts["now"], counts["before"])
    classes = _by_class(scratch, paired)
    return {
        "run_id": other.run_id,
        "tables": other.tables,
        "finished": other.report.finished_at,
        "model": other.record.model.name,
        "fingerprint": other.record.fingerprint,
        "same_fingerprint": other.record.fingerprint == run.record.fingerprint,
        "other_settings": _other_settings(run, other),
        "images_in_both": counts["common"],
        "images_before": counts["before"] if sampled is None else other.report.num_ok,
        "sampled": None if sampled is None else asdict(sampled),
        "images_changed": counts["changed"],
        "mean_change": counts["mean_change"],
        "paired": paired,
        "confidence": CONFIDENCE,
        "classes": classes,
        "shown": sum(abs(one["change"]) >= _LEAST_SHOWN for one in classes[:_MOST_SHOWN]),
    }


# The change of an image: which share of its pixels at least has another category, told by the areas of categories. A
# pixel in no segment counts as a category of its own; masks that overlap may make a share greater than 1.
_CHANGES = f"""
    CREATE OR REPLACE TABLE changes AS
    WITH common AS (
        SELECT n.image_key, n.height::BIGINT * n.width AS pixels
        FROM {NOW}_images n JOIN {BEFORE}_images b USING (image_key)
        WHERE n.status = 'ok' AND b.status = 'ok' AND n.height = b.height AND n.width = b.width
    ), pairs AS (
        SELECT coalesce(n.image_key, b.image_key) AS image_key,
               coalesce(n.pixels, 0) AS now, coalesce(b.pixels, 0) AS before,
               coalesce(n.segments, 0) AS segments_now, coalesce(b.segments, 0) AS segments_before
        FROM {NOW}_pairs n FULL JOIN {BEFORE}_pairs b USING (image_key, category_id)
    ), by_image AS (
        SELECT image_key, sum(abs(now - before)) AS differing, sum(now) AS now, sum(before) AS before,
               sum(segments_now)::BIGINT AS segments_now, sum(segments_before)::BIGINT AS segments_before
        FROM pairs GROUP BY image_key
    )
    SELECT image_key, coalesce(segments_now, 0) AS segments_now, coalesce(segments_before, 0) AS segments_before,
           (coalesce(differing, 0) + abs(coalesce(now, 0) - coalesce(before, 0))) / 2 / pixels AS change
    FROM common LEFT JOIN by_image USING (image_key)
"""


def _other_settings(run: ShownRun, other: ShownRun) -> list[dict[str, Any]]:
    """Settings that change results, and weights, in which the runs differ."""
    now, before = ({**one.record.results, "weights": one.record.model.weights_sha256[:12]} for one in (run, other))
    return [
        {"name": name, "now": now.get(name), "before": before.get(name)}
        for name in sorted({*now, *before})
        if now.get(name) != before.get(name) and name != "model"
    ]


def _by_class(scratch: ScratchDatabase, paired: bool) -> list[dict[str, Any]]:
    only = "SEMI JOIN changes USING (image_key)" if paired else ""
    names = rows(
        scratch,
        f"""
        SELECT category_id, first(name ORDER BY is_now DESC) AS name, first(isthing ORDER BY is_now DESC) AS isthing
        FROM (
            SELECT *, true AS is_now FROM {NOW}_categories UNION ALL SELECT *, false FROM {BEFORE}_categories
        ) GROUP BY category_id ORDER BY category_id
        """,
    )
    if not names:
        return []
    places = {one["category_id"]: place for place, one in enumerate(names)}
    now, before = (_groups(scratch, prefix, only, places) for prefix in (NOW, BEFORE))
    intervals = bootstrap(now, before, paired)
    changed = [
        {
            **one,
            **{name: float(values[place]) for name, values in intervals.items()},
            "is_clear": bool(intervals["low"][place] > 0 or intervals["high"][place] < 0),
        }
        for one, place in zip(names, range(len(names)), strict=True)
    ]
    return sorted(changed, key=lambda one: (-abs(one["change"]), one["category_id"]))


Groups = tuple[NDArray[np.float64], NDArray[np.float64]]  # pixels by group and category [G, C]; of all images [G]


def _groups(scratch: ScratchDatabase, prefix: str, only: str, places: dict[int, int]) -> Groups:
    """The pixels of each category, and of all images, by group of images. Equal keys give equal groups in both runs."""
    with out_of_room():
        scratch.connection.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE grouped AS
            SELECT image_key, height::BIGINT * width AS pixels,
                   (row_number() OVER (ORDER BY hash(image_key), image_key) - 1) % {_MOST_GROUPS} AS place
            FROM (SELECT * FROM {prefix}_images WHERE status = 'ok') {only}
            """
        )
    totals = rows(scratch, "SELECT place, sum(pixels)::DOUBLE AS pixels FROM grouped GROUP BY place ORDER BY place")
    all_G = np.array([one["pixels"] for one in totals])
    of_GC = np.zeros((len(all_G), len(places)))
    for one in rows(
        scratch,
        f"""
        SELECT place, category_id, sum(p.pixels)::DOUBLE AS pixels
        FROM {prefix}_pairs p JOIN grouped USING (image_key) GROUP BY ALL
        """,
    ):
        of_GC[one["place"], places[one["category_id"]]] = one["pixels"]
    return of_GC, all_G


def bootstrap(now: Groups, before: Groups, paired: bool) -> dict[str, NDArray[np.float64]]:
    """By category [C]: the pixel share in both runs, the change, and the bounds of its percentile interval.

    Groups are drawn with replacement RESAMPLES times; `paired`: the same groups of both runs.
    """
    rng = np.random.default_rng(_SEED)

    def draw(groups: Groups) -> NDArray[np.float64]:
        number = len(groups[1])
        return rng.multinomial(number, np.full(number, 1 / number), size=RESAMPLES).astype(np.float64)

    def shares(groups: Groups, weights_BG: NDArray[np.float64]) -> NDArray[np.float64]:
        of_GC, all_G = groups
        total_B = weights_BG @ all_G
        return (weights_BG @ of_GC) / np.maximum(total_B, 1)[:, None]

    weights_BG = draw(now) if len(now[1]) else np.zeros((RESAMPLES, 0))
    other_BG = weights_BG if paired else draw(before) if len(before[1]) else np.zeros((RESAMPLES, 0))
    changes_BC = shares(now, weights_BG) - shares(before, other_BG)
    share_C, before_C = (shares(groups, np.ones((1, len(groups[1]))))[0] for groups in (now, before))
    tail = (1 - CONFIDENCE) / 2
    low_C, high_C = np.quantile(changes_BC, [tail, 1 - tail], axis=0)
    return {"share": share_C, "share_before": before_C, "change": share_C - before_C, "low": low_C, "high": high_C}
