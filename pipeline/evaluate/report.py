"""The tables that are printed at the end of an evaluation. Scores are percent here, fractions in the JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from pipeline.telemetry.console import output_console


def print_evaluation(report: dict[str, Any]) -> None:
    """Print which images were compared, then one table per metric."""
    console = output_console()
    for kind, truth in report["ground_truth"].items():
        console.print(f"{kind} ground truth {truth['place']}: {_images(truth['images'])}")
        if truth["warning"] is not None:
            console.print(f"WARNING: {truth['warning']}")
    for table in _tables(report):
        console.print(table)
    for warning in _warnings(report):
        console.print(f"WARNING: {warning}")


def _warnings(report: dict[str, Any]) -> Iterator[str]:
    """Figures that say little, and why."""
    semantic = report.get("semantic")
    if semantic is not None and semantic["n"] <= 1 < len(semantic["per_class"]):
        found = [entry["name"] for entry in semantic["per_class"] if entry["pixels"]]
        yield (
            f"only {len(found)} of {len(semantic['per_class'])} classes {'have' if not found else 'has'} pixels in the "
            f"ground truth ({', '.join(found) or 'none'}); all other pixels are ignored (--ignore-label, "
            "--reduce-zero-label)"
        )
    for name, title in (("panoptic", "PQ"), ("segm", "AP")):
        figures = report.get(name)
        if figures is not None and (figures["all"]["PQ"] if name == "panoptic" else figures["AP"]) is None:
            yield f"there is no {title}, because the ground truth of the scored images has no segment"


def _images(counts: dict[str, Any]) -> str:
    """`5,000 images, 4,998 scored; 1 failed in the run (decode_failed 1), 1 not in the run: scored as if empty`"""
    codes = ", ".join(f"{code} {count}" for code, count in counts["failed_by_code"].items())
    lacking = [
        *([f"{counts['failed']:,} failed in the run ({codes})"] if counts["failed"] else []),
        *([f"{counts['missing']:,} not in the run"] if counts["missing"] else []),
    ]
    text = f"{counts['in_ground_truth']:,} images, {counts['with_result']:,} with a result"
    if lacking:
        text += f"; {' and '.join(lacking)} count as images in which nothing was found"
    if counts["ignored"]:
        text += f"; {counts['ignored']:,} images of the run are not in the ground truth and were ignored"
    return text


def _tables(report: dict[str, Any]) -> Iterator[Table]:
    run = f"run {report['run_id']}"
    if "panoptic" in report:
        rows = {group: report["panoptic"][group] for group in ("all", "things", "stuff")}
        yield _table(f"panoptic quality, {run}", ("PQ", "SQ", "RQ"), rows, count_classes=True)
    if "semantic" in report:
        yield _table(
            f"semantic, {run}", ("mIoU", "fwIoU", "mAcc", "pAcc"), {"all": report["semantic"]}, count_classes=True
        )
    rows = {title: report[kind] for kind, title in (("segm", "masks"), ("bbox", "boxes")) if kind in report}
    for title, letters in (("average precision", "AP"), ("average recall", "AR")):  # one table would be too wide for 80
        if rows:
            names = [name for name in next(iter(rows.values())) if name.startswith(letters)]
            yield _table(f"{title}, {run}", names, rows)


def _table(title: str, names: Sequence[str], rows: dict[str, dict[str, Any]], count_classes: bool = False) -> Table:
    """A line for each of `rows`, a column for each of `names`; `count_classes` adds the number of averaged classes."""
    table = Table(title=title, title_justify="left")
    for head in ("", *names, *(["classes"] if count_classes else [])):
        table.add_column(head, justify="right", no_wrap=True)
    for name, figures in rows.items():
        table.add_row(name, *_row(figures, *names), *([str(figures["n"])] if count_classes else []))
    return table


def _row(figures: dict[str, Any], *names: str) -> tuple[str, ...]:
    return tuple("-" if figures[name] is None else f"{100 * figures[name]:.2f}" for name in names)
