"""What people see at the end of an evaluation. Scores are percent here, fractions in the JSON."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def print_evaluation(report: dict[str, Any]) -> None:
    """Which images were compared, then one table a metric."""
    console = Console(highlight=False, soft_wrap=True)
    for kind, truth in report["ground_truth"].items():
        console.print(f"{kind} ground truth {truth['place']}: {_images(truth['images'])}", markup=False)
    titles = {"panoptic": "panoptic quality", "semantic": "semantic", "segm": "masks", "bbox": "boxes"}
    for kind, title in titles.items():
        if kind in report:
            console.print(_table(f"{title}, run {report['run_id']}", kind, report[kind]))


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
        text += f"; {counts['ignored']:,} images of the run are not in it and were ignored"
    return text


def _table(title: str, kind: str, figures: dict[str, Any]) -> Table:
    if kind == "panoptic":
        rows = [(group, figures[group]) for group in ("all", "things", "stuff")]
        return _grid(
            title, ("", "PQ", "SQ", "RQ", "classes"), [(g, *_row(f, "PQ", "SQ", "RQ"), f["n"]) for g, f in rows]
        )
    if kind == "semantic":
        names: Sequence[str] = ("mIoU", "fwIoU", "mAcc", "pAcc")
        return _grid(title, (*names, "classes"), [(*_row(figures, *names), figures["n"])])
    names = [name for name in figures if name != "per_class"]
    return _grid(title, names, [_row(figures, *names)])


def _grid(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in head:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _row(figures: dict[str, Any], *names: str) -> tuple[str, ...]:
    return tuple("-" if figures[name] is None else f"{100 * figures[name]:.2f}" for name in names)
