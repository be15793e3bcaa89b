"""Make the page of a run: its figures, its gallery, the HTML around both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from m2f_core import __version__
from m2f_core.masks.colours import category_colour
from pipeline.page.figures import tallies
from pipeline.page.figures.comparison import compare
from pipeline.page.figures.other_rows import load_other
from pipeline.page.figures.quality import quality
from pipeline.page.figures.queries import queries
from pipeline.page.figures.runs import ShownRun, earlier_runs, find_run, funnel, other_run, provenance, speed
from pipeline.page.figures.sample import CONDITION_COLUMNS, choose, make_by_image
from pipeline.page.figures.truth import load_scores, read_truth
from pipeline.page.images.gallery import Gallery, make_gallery
from pipeline.page.images.overlays import write_overlays
from pipeline.page.images.thumbnails import thumbnails
from pipeline.page.settings import ReportSettings
from pipeline.schema import IMAGES, REASONS
from pipeline.shown_text import printable_lines, showing, shown
from pipeline.tables.conditions import columns_of_condition
from pipeline.tables.spill_database import ScratchDatabase

_MEMORY_MIB = 320  # of DuckDB: the page of any run fits into 1 GiB
_MOST_FAILURES = 60  # examples


@dataclass
class Page:
    """Every figure of the page, as report.json holds them, and the pictures beside them."""

    figures: dict[str, Any]
    gallery: Gallery = field(default_factory=Gallery)
    thumbnails: dict[str, str] = field(default_factory=dict)  # of failed images: data URI by shown key
    overlays: dict[str, int] = field(default_factory=dict)  # how many are written, and how many images are unreadable


def make_page(settings: ReportSettings) -> tuple[ShownRun, Page]:
    """The page of the run that the settings name. RunError with one line if it cannot be made."""
    named = set() if settings.where is None else columns_of_condition(settings.where, CONDITION_COLUMNS)
    run = find_run(settings.tables, settings.run_id)
    earlier = earlier_runs(run)
    other = other_run(settings, run, earlier)
    scratch = ScratchDatabase(_MEMORY_MIB)
    try:
        # A condition may come from a command line, and must not read files.
        scratch.connection.execute("SET enable_external_access = false")
        tallies.load(scratch, run, tallies.NOW, [name for name in IMAGES.names if name in named])
        return run, _page(settings, run, earlier, other, scratch)
    finally:
        scratch.close()


def _page(
    settings: ReportSettings,
    run: ShownRun,
    earlier: Sequence[ShownRun],
    other: ShownRun | None,
    scratch: ScratchDatabase,
) -> Page:
    """The page of a run whose rows are loaded."""
    against = None if other is None else compare(scratch, run, other, load_other(scratch, run, other))
    truth = read_truth(settings, run)
    load_scores(scratch, truth)
    make_by_image(scratch, compared=other is not None)
    figures: dict[str, Any] = {
        "program": f"m2f-pipeline {__version__}",
        "run": provenance(run, earlier),
        "totals": tallies.totals(scratch),
        "funnel": funnel(run.report, REASONS),
        "speed": speed(run),
        **tallies.histograms(scratch),
        "against": against,
        "truth": truth.figures,
        "failures": tallies.failures(scratch, _MOST_FAILURES),
        "quality": quality(scratch),
    }
    figures["classes"] = _classes(scratch, run, figures)
    sample = choose(scratch, settings.sample)
    gallery = make_gallery(settings, run, other, sample)
    figures["gallery"] = {
        "images": [{**one, **truth.of(one["image_key"])} for one in gallery.described()],
        "of_images": figures["totals"]["ok"],
        "pictures": settings.images,
        "left_out_for_size": gallery.left_out,
    }
    largest = figures["classes"][0]["name"] if figures["classes"] else "person"
    lines = [{"title": one["title"], "text": printable_lines(one["text"])} for one in queries(run, largest)]
    failed = () if settings.images == "none" else figures["failures"]["examples"]
    small = {shown(key): uri for key, uri in thumbnails(run, failed).items()}
    page = Page({**_shown(figures, showing()), "queries": lines}, gallery, small)
    if settings.overlays is not None:
        page.overlays = write_overlays(scratch, run, settings.overlays, settings.where, sample)
    return page


def _classes(scratch: ScratchDatabase, run: ShownRun, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """The categories that occur, with their colours, and their changes against the other run."""
    found = tallies.classes(scratch, tallies.NOW, figures["totals"]["pixels"])
    places = {category["id"]: place for place, category in enumerate(run.record.model.categories)}
    changes = {one["category_id"]: one for one in (figures["against"] or {}).get("classes", ())}
    for one in found:
        place = places.setdefault(one["category_id"], len(places))
        one["colour"] = "#{:02x}{:02x}{:02x}".format(*category_colour(place))
        changed = changes.get(one["category_id"])
        one["change"] = None if changed is None else {n: changed[n] for n in ("change", "low", "high", "is_clear")}
    return found


def _shown(value: Any, show: Callable[[str], str]) -> Any:
    """`value` with all its texts as people may see them: without secrets and without active characters."""
    if isinstance(value, str):
        return show(value)
    if isinstance(value, dict):
        return {show(str(name)): _shown(one, show) for name, one in value.items()}
    return [_shown(one, show) for one in value] if isinstance(value, list | tuple) else value
