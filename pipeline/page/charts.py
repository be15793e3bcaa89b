"""The charts of the page: Vega-Lite specifications, rendered to SVG when the page is written.

The page holds no charting program: an SVG needs no script, no network and some hundred nodes. Colours are variables of
the page's style sheet, so that a chart follows light and dark. Names from outside are values of the data, never part of
an expression or a format.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

_WIDTH = 360  # of the text of a chart as it is drawn on a phone
_ROW = 24
_MOST_ROWS = 20
_NAMES = 150  # of the width, at most, for names of rows
_WIDER = 1.4  # how much wider text may be in a browser than Vega thinks
# A link of a chart must be absolute to pass Vega's check of addresses; the page makes it a place in itself again.
_HERE = "https://page.invalid/"
_CONFIG: dict[str, Any] = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "tickCount": 4,
    },
    "legend": {
        "labelColor": "var(--soft)",
        "labelFontSize": 12,
        "orient": "top",
        "title": None,
        "symbolType": "square",
    },
}

Chart = dict[str, Any]
Rows = Sequence[dict[str, Any]]


def render(chart: Chart, name: str) -> str:
    """The SVG of a chart; `name` is one of its own in the page."""
    import vl_convert  # of an extra

    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": None,
        "width": _WIDTH,
        "autosize": {"type": "fit", "contains": "padding"},
        "padding": {"left": 2, "top": 2, "right": 14, "bottom": 2},
        "config": _CONFIG,
        **chart,
    }
    svg = str(vl_convert.vegalite_to_svg(spec))
    # Ids of clip paths are the same in each chart.
    svg = re.sub(r'(\bid="|url\(#)(clip|gradient)', rf"\1{name}-\2", svg)
    return svg.replace(f'xlink:href="{_HERE}#', 'href="#')


def funnel(steps: Rows) -> Chart:
    """A bar for each step, from listed to ok."""
    values = [
        {"name": one["name"], "images": one["images"], "step": one["step"], "label": f"{one['images']:,}"}
        for one in steps
    ]
    most = max((one["images"] for one in values), default=0)
    kinds = {"failed": "var(--bad)", "ok": "var(--accent)"}
    names = list(dict.fromkeys(one["step"] for one in values))
    colour = {
        "field": "step",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": names, "range": [kinds.get(name, "var(--bar)") for name in names]},
    }
    return {
        "data": {"values": values},
        "height": _ROW * max(1, len(values)),
        "encoding": {"y": _names("name", values)},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.62}},
                "encoding": {
                    "x": {
                        "field": "images",
                        "type": "quantitative",
                        "axis": None,
                        "scale": {"domain": [0, 1.3 * most or 1]},
                    },
                    "color": colour,
                },
            },
            _text("images", "label"),
        ],
    }


def over_time(points: Rows) -> Chart:
    """Images per second from the first shard to the last receipt."""
    return {
        "data": {"values": list(points)},
        "height": 170,
        "mark": {
            "type": "area",
            "interpolate": "step",
            "color": "var(--accent)",
            "fillOpacity": 0.18,
            "line": {"color": "var(--accent)", "strokeWidth": 1.5},
        },
        "encoding": {
            "x": {
                "field": "time",
                "type": "temporal",
                "scale": {"type": "utc"},
                "axis": {"title": "time (UTC)", "grid": False, "tickCount": 4, "labelFlush": True},
            },
            "y": {
                "field": "images_per_second",
                "type": "quantitative",
                "axis": {"title": "images per second", "format": "~g"},
            },
        },
    }


def steps(step_ms: dict[str, float]) -> Chart:
    """Milliseconds of an image in each step, with their shares."""
    total = sum(step_ms.values()) or 1.0
    values = [
        {"name": name, "ms": ms, "label": f"{ms:,.1f} ms · {100 * ms / total:.0f} %"} for name, ms in step_ms.items()
    ]
    return _bars(values, "ms", room=1.65)


def devices_busy(busy: dict[str, float]) -> Chart:
    """The share of its time for which each device was busy; of many devices, how many were how busy."""
    if len(busy) > _MOST_ROWS:
        return {
            "data": {"values": [{"busy": min(share, 1.0)} for share in busy.values()]},
            "height": 170,
            "mark": {"type": "bar", "color": "var(--accent)"},
            "encoding": {
                "x": {
                    "field": "busy",
                    "type": "quantitative",
                    "bin": {"extent": [0, 1], "step": 0.05},
                    "axis": {"title": "share of the time busy", "format": ".0%", "grid": False},
                },
                "y": {"aggregate": "count", "type": "quantitative", "axis": {"title": "devices"}},
            },
        }
    values = [{"name": name, "busy": share, "label": f"{share:.0%}"} for name, share in busy.items()]
    return _bars(values, "busy", room=1.2, least=1.0)


def class_shares(classes: Rows) -> Chart:
    """The categories with the most pixels; a bar opens the gallery of its category."""
    values = [
        {
            "name": one["name"],
            "share": one["pixel_share"] or 0.0,
            "label": percent(one["pixel_share"] or 0.0),
            "colour": one["colour"],
            "href": f"{_HERE}#class={one['category_id']}",
            "says": f"{one['name']}: {one['segments']:,} segments, open their images",
        }
        for one in classes[:_MOST_ROWS]
    ]
    most = max((one["share"] for one in values), default=0)
    return {
        "data": {"values": values},
        "height": _ROW * max(1, len(values)),
        "encoding": {"y": _names("name", values)},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.62}, "stroke": "var(--edge)", "strokeWidth": 0.5},
                "encoding": {
                    "x": {
                        "field": "share",
                        "type": "quantitative",
                        "axis": None,
                        "scale": {"domain": [0, 1.2 * most or 1]},
                    },
                    "color": {"field": "colour", "type": "nominal", "scale": None},
                    "href": {"field": "href", "type": "nominal"},
                    "description": {"field": "says"},
                },
            },
            _text("share", "label"),
        ],
    }


def class_changes(changes: Rows) -> Chart:
    """The categories whose pixel share changed most, in points, with confidence intervals."""
    values = [
        {
            "name": one["name"],
            "change": 100 * one["change"],
            "low": 100 * one["low"],
            "high": 100 * one["high"],
            "clear": "clear" if one["is_clear"] else "not clear",
        }
        for one in changes[:_MOST_ROWS]
    ]
    colour = {
        "field": "clear",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": ["clear", "not clear"], "range": ["var(--accent)", "var(--soft)"]},
    }
    axis = {"title": "change of the pixel share, points", "format": "+~f"}
    return {
        "data": {"values": values},
        "height": _ROW * max(2, len(values) + 1),
        "encoding": {"y": _names("name", values), "color": colour},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"x": {"field": "low", "type": "quantitative", "axis": axis}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {"x": {"field": "change", "type": "quantitative"}},
            },
            {
                "data": {"values": [{"zero": 0}]},
                "mark": {"type": "rule", "color": "var(--soft)", "strokeDash": [3, 3]},
                "encoding": {"x": {"field": "zero", "type": "quantitative"}, "y": None, "color": None},
            },
        ],
    }


def matrix(cells: Rows) -> Chart:
    """Which class is found where another is true, as shares of the true class; a cell opens its images."""
    values = [
        {
            **{name: one[name] for name in ("true", "found", "share")},
            "href": f"{_HERE}#{_place_of(one)}",
            "says": f"{one['true']} found as {one['found']}: {percent(one['share'])} of the pixels, open their images",
        }
        for one in cells
        if one["pixels"]
    ]
    rows = list(dict.fromkeys(one["true"] for one in cells))
    columns = list(dict.fromkeys(one["found"] for one in cells))
    x_axis = {
        "title": "found",
        "orient": "top",
        "ticks": False,
        "domain": False,
        "grid": True,
        "labelAngle": -90,
        "labelAlign": "left",
        "labelBaseline": "middle",
        "labelLimit": 90,
        "labelColor": "var(--ink)",
        "minExtent": 104,
        "tickBand": "extent",
    }
    y = _names("true", [{"true": name} for name in rows])
    y["axis"] |= {"grid": True, "tickBand": "extent"}
    return {
        "data": {"values": values},
        "height": 20 * max(1, len(rows)) + 120,
        "mark": {"type": "rect", "fill": "var(--accent)", "stroke": "var(--line)", "strokeWidth": 0.5},
        "encoding": {
            "x": {"field": "found", "type": "nominal", "sort": None, "scale": {"domain": columns}, "axis": x_axis},
            "y": {**y, "scale": {"domain": rows}},
            "fillOpacity": {
                "field": "share",
                "type": "quantitative",
                "legend": None,
                "scale": {"type": "sqrt", "domain": [0, 1], "range": [0.05, 1]},
            },
            "href": {"field": "href", "type": "nominal"},
            "description": {"field": "says"},
        },
    }


def _place_of(cell: dict[str, Any]) -> str:
    if cell["true_id"] == cell["found_id"]:
        return f"class={cell['true_id']}"
    return f"cell={cell['true_id']},{cell['found_id']}"


def scores(bins: Rows) -> Chart:
    """Segments by score, things above stuff."""
    x = {
        "field": "from",
        "type": "quantitative",
        "bin": "binned",
        "axis": {"title": "score", "grid": False, "tickCount": 5},
        "scale": {"domain": [min((one["from"] for one in bins), default=0), 1], "nice": False},
    }
    return _histogram(bins, x)


def areas(bins: Rows) -> Chart:
    """Segments by area, in bins of a doubling."""
    x = {
        "field": "from",
        "type": "quantitative",
        "bin": "binned",
        "axis": {
            "title": "area, pixels",
            "grid": False,
            "tickCount": 6,
            "labelExpr": "format(pow(2, datum.value), '.2~s')",
        },
        "scale": {"zero": False, "nice": False},
    }
    powers = [{**one, "from": math.log2(one["from"]), "to": math.log2(one["to"])} for one in bins]
    return _histogram(powers, x)


def _histogram(bins: Rows, x: dict[str, Any]) -> Chart:
    values = [{**one, "kind": "things" if one["isthing"] else "stuff"} for one in bins]
    return {
        "data": {"values": values},
        "height": 190,
        "mark": {"type": "bar", "stroke": "var(--card)", "strokeWidth": 0.5},
        "encoding": {
            "x": x,
            "x2": {"field": "to"},
            "y": {"field": "segments", "type": "quantitative", "axis": {"title": "segments", "format": "~s"}},
            "color": {
                "field": "kind",
                "type": "nominal",
                "scale": {"domain": ["things", "stuff"], "range": ["var(--accent)", "var(--second)"]},
            },
        },
    }


def _bars(values: Iterable[dict[str, Any]], field: str, room: float, least: float = 0.0) -> Chart:
    """Labelled bars; `room`: how much longer the axis is than the longest bar, for its label."""
    values = list(values)
    most = max([least, *(one[field] for one in values)])
    x = {"field": field, "type": "quantitative", "axis": None, "scale": {"domain": [0, room * most or 1]}}
    return {
        "data": {"values": values},
        "height": _ROW * max(1, len(values)),
        "encoding": {"y": _names("name", values)},
        "layer": [
            {"mark": {"type": "bar", "height": {"band": 0.62}, "color": "var(--accent)"}, "encoding": {"x": x}},
            _text(field, "label"),
        ],
    }


def percent(share: float) -> str:
    """`12.3 %`; another digit of a share that would be 0.0 %."""
    return f"{100 * share:.1f} %" if share >= 0.0005 or not share else f"{max(100 * share, 0.0001):.1g} %"


def _names(field: str, values: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The axis with the names of rows. The browser's font may be wider than the one that Vega measures with."""
    longest = max((len(str(one[field])) for one in values), default=0)
    axis = {
        "title": None,
        "ticks": False,
        "domain": False,
        "labelPadding": 8,
        "labelColor": "var(--ink)",
        "labelLimit": (_NAMES - 16) / _WIDER,
        "minExtent": min(_NAMES, 8 * longest + 12),
    }
    return {"field": field, "type": "nominal", "sort": None, "axis": axis}


def _text(x: str, label: str) -> Chart:
    return {
        "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 12, "color": "var(--soft)"},
        "encoding": {"x": {"field": x, "type": "quantitative"}, "text": {"field": label, "type": "nominal"}},
    }
