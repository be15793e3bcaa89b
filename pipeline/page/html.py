"""The HTML of the page: one file without references to anything outside of it.

Text of others goes into HTML through Jinja's escaping, and to the script as JSON that cannot end its element. The
policy in the page allows its own script and style by their hashes, and nothing else: whatever slipped through would
not run.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.page import charts
from pipeline.page.make import Page

_TEMPLATE = Path(__file__).parent / "template"
MOST_CLASSES = 60  # rows of the table of classes in the HTML; the script adds the others on request


def write_html(page: Page, picture_names: list[str] | None = None) -> str:
    """The HTML. `picture_names`: addresses of the pictures, if they lie beside the page."""
    import jinja2  # of an extra, as markupsafe
    from markupsafe import Markup

    figures = page.figures
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(_FORMATS)
    style = (_TEMPLATE / "page.css").read_text() + _class_colours(figures["classes"])
    script = "\n".join((_TEMPLATE / name).read_text() for name in ("masks.js", "gallery.js", "page.js"))

    def figure(path: str, kind: str) -> Any:
        """A figure as a `data` element, which says where it stands in report.json."""
        value = figure_at(figures, path)
        text = "–" if value is None else _FORMATS[kind](value)
        form = Markup('<data class="figure" value="{}" data-figure="{}" data-format="{}">{}</data>')
        return form.format("" if value is None else value, path, kind, text)

    return environment.get_template("report.html.j2").render(
        f=figures,
        thumbnails=page.thumbnails,
        figure=figure,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        # Pictures beside the page: 'self' is a store that serves the page, file: a disk.
        image_sources="data:" if picture_names is None else "data: 'self' file:",
        charts={name: Markup(svg) for name, svg in _charts(figures).items()},
        data=_data(page, picture_names),
        most_classes=MOST_CLASSES,
    )


def figure_at(figures: Any, path: str) -> Any:
    """The value at a path such as `classes.3.pixels`."""
    for name in path.split("."):
        figures = figures[int(name)] if isinstance(figures, list) else figures[name]
    return figures


def _charts(figures: dict[str, Any]) -> dict[str, str]:
    """SVG by name, "" where there is nothing to draw."""
    speed, against = figures["speed"], figures["against"] or {}
    matrix = _matrix(figures)
    found = {
        "funnel": charts.funnel(figures["funnel"]),
        "over_time": speed["over_time"] and charts.over_time(speed["over_time"]),
        "steps": speed["step_ms"] and charts.steps(speed["step_ms"]),
        "busy": speed["device_busy"] and charts.devices_busy(speed["device_busy"]),
        "classes": figures["classes"] and charts.class_shares(figures["classes"]),
        "changes": against.get("shown") and charts.class_changes(against["classes"][: against["shown"]]),
        "matrix": matrix and charts.matrix(matrix),
        "scores": figures["scores"] and charts.scores(figures["scores"]),
        "areas": figures["areas"] and charts.areas(figures["areas"]),
    }
    return {name: charts.render(chart, name) if chart else "" for name, chart in found.items()}


def _matrix(figures: dict[str, Any]) -> list[dict[str, Any]]:
    panoptic = (figures["truth"] or {}).get("panoptic")
    return panoptic["matrix"] if panoptic else []


def _data(page: Page, picture_names: list[str] | None) -> dict[str, Any]:
    """What the script draws from."""
    described = page.figures["gallery"]["images"]
    images = [
        {
            "key": figures["image_key"],
            "w": one.picture.width,
            "h": one.picture.height,
            "src": (picture_names[place] if picture_names else one.picture.uri) if one.picture.data else "",
            "now": one.segments,
            "before": one.before,
            "of": one.num_drawn,
        }
        for place, (one, figures) in enumerate(zip(page.gallery.images, described, strict=True))
    ]
    before = (page.figures["against"] or {}).get("classes", ())
    names = {one["category_id"]: one["name"] for one in (*before, *page.figures["classes"])}
    for cell in _matrix(page.figures):
        names |= {cell["true_id"]: cell["true"], cell["found_id"]: cell["found"]}
    return {"images": images, "names": names, "figures": page.figures}


def _class_colours(classes: list[dict[str, Any]]) -> str:
    """Rules that give swatches the colours of their categories; the policy forbids styles in attributes."""
    return "".join(f".c-{place}{{--c:{one['colour']}}}\n" for place, one in enumerate(classes[:MOST_CLASSES]))


def _hash(text: str) -> str:
    """The source of a Content-Security-Policy that allows an inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _bytes(value: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M} UTC"


def _short(key: str) -> str:
    """The last part of a URI, which is what people call an image."""
    return re.split("[/#]", key.rstrip("/"))[-1] or key


_FORMATS: dict[str, Callable[[Any], str]] = {
    "count": lambda value: f"{value:,}",
    "percent": charts.percent,
    "points": lambda value: f"{100 * value:+.2f}",
    "number": lambda value: f"{value:,.1f}",
    "score": lambda value: f"{value:.2f}",
    "bytes": _bytes,
    "duration": _duration,
    "moment": _moment,
    "text": str,
    "short": _short,
}
