"""The log of a training: rows of losses and validations, as JSON lines, as a line of text, or as a plot."""

import io
import json
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from pipeline.store.json_records import STRICT, parse_record

LOG_FILE = "log.jsonl"
PLOT_FILE = "loss.png"

Row = dict[str, Any]
_ROW: TypeAdapter[Row] = TypeAdapter(dict[str, int | float | None], config=STRICT)

# Validation metrics: key in a row -> title in the plot.
FIGURES = {
    "PQ": "PQ",
    "PQ_things": "PQ things",
    "PQ_stuff": "PQ stuff",
    "AP": "AP of masks",
    "mIoU": "mIoU",
    "pAcc": "pixel accuracy",
}


def to_lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def from_lines(data: bytes) -> list[Row]:
    """The inverse of `to_lines`. ValueError if a line is no row."""
    return [parse_record(_ROW, line) for line in data.splitlines()]


def as_text(row: Row, num_iterations: int) -> str:
    """`1,200/20,000  loss 14.203 (class 0.412 mask 0.301 dice 0.633)  lr 1.0e-04  4.1 it/s`"""
    parts = [f"{row['iteration']:,}/{num_iterations:,}"]
    if "loss" in row:
        terms = " ".join(f"{name.removeprefix('loss_')} {row[name]:.3f}" for name in row if name.startswith("loss_"))
        parts += [f"loss {row['loss']:.3f} ({terms})", f"lr {row['learning_rate']:.1e}"]
        parts += [f"{row['iterations_per_second']:.2f} it/s"]
    for name, title in FIGURES.items():
        if name in row:
            none = "none (the ground truth has no segment for it)"
            parts.append(f"{title} {none if row[name] is None else f'{100 * row[name]:.2f}'}")
    return "  ".join(parts)


def plot(rows: Sequence[Row]) -> bytes:
    """A PNG with the loss by iteration and, below it, the validation metrics, if any."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which has global state and looks for a display

    validated = [row for row in rows if any(row.get(name) is not None for name in FIGURES)]
    figure = Figure(figsize=(8, 7 if validated else 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if validated else 1, 1, sharex=True, squeeze=False)[:, 0]
    trained = [row for row in rows if "loss" in row]
    axes[0].plot([row["iteration"] for row in trained], [row["loss"] for row in trained], linewidth=0.8)
    axes[0].set(ylabel="loss (all predictions)", yscale="log")
    if validated:
        for name, title in FIGURES.items():
            points = [(row["iteration"], 100 * row[name]) for row in validated if row.get(name) is not None]
            if points:
                axes[1].plot(*zip(*points, strict=True), marker=".", label=title)
        axes[1].set(ylabel="validation, percent", ylim=(0, 100))
        axes[1].legend(loc="upper left")
    axes[-1].set(xlabel="iteration")
    for axis in axes:
        axis.grid(alpha=0.3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    return png.getvalue()
