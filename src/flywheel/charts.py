"""Plots as Vega-Lite specifications, drawn to SVG or PNG without a browser or a network.

A policy has one colour everywhere, from the palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
Text and axes take the colour of what surrounds them, so that a drawing fits a dark page as well as a light one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Spec = dict[str, Any]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
COLOURS = {
    "hierarchical": "#D55E00",
    "flat": "#0072B2",
    "expert": "#009E73",
    "noisy_expert": "#E69F00",
    "chat": "#CC79A7",
    "recorded": "#56B4E9",
    "random": "#999999",
}
"""Roles of policies that have a colour of their own; others draw theirs from the palette by their name."""
INK = "currentColor"
TEXT = 13
"""Size of words in pixels. Pages draw them smaller, for their fonts may be wider than those measured here."""
_AXIS = {
    "labelColor": INK,
    "titleColor": INK,
    "domainColor": INK,
    "tickColor": INK,
    "gridColor": INK,
    "gridOpacity": 0.15,
    "domainOpacity": 0.4,
    "tickOpacity": 0.4,
    "labelFontSize": TEXT,
    "titleFontSize": TEXT,
    "titleFontWeight": "normal",
}
_CONFIG: Spec = {
    "font": "system-ui, sans-serif",
    "view": {"stroke": None},
    "axis": _AXIS,
    "legend": {
        "labelColor": INK,
        "titleColor": INK,
        "labelFontSize": TEXT,
        "titleFontSize": TEXT,
        "orient": "bottom",
        "columns": 4,
    },
    "range": {"category": list(PALETTE)},
}


def colour(policy: str) -> str:
    """The colour of a policy's role."""
    digest = hashlib.blake2b(policy.encode(), digest_size=1).digest()[0]
    return COLOURS.get(policy) or PALETTE[digest % len(PALETTE)]


def svg(spec: Spec) -> str:
    """A drawing to stand inside a page. Fields of specifications are our own words: Vega reads dots and brackets in
    them, so that what users name their columns is only ever a title."""
    import vl_convert

    return str(vl_convert.vegalite_to_svg(_whole(spec)))


def write_png(spec: Spec, path: Path) -> None:
    """A drawing on white, for where SVG cannot be shown."""
    import vl_convert

    dark = {"background": "white", "config": _with_ink(_CONFIG, "#222222")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(vl_convert.vegalite_to_png({**_whole(spec), **dark}, ppi=130))


def rates_by_iteration(rows: Sequence[Row], title: str = "P(verified) on held-out test tasks") -> Spec:
    """A line a policy with its 95 % intervals. Rows: iteration, policy, rate, low, high, tasks."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    iterations = sorted({row["iteration"] for row in rows})
    beside = {policy: 0.04 * (place - (len(policies) - 1) / 2) for place, policy in enumerate(policies)}
    points = [{**row, "x": row["iteration"] + beside[row["policy"]], "about": _about(row)} for row in rows]
    x = {
        "field": "x",
        "type": "quantitative",
        "title": "iteration",
        "axis": {"values": iterations, "format": "d", "grid": False},
        "scale": {"domain": [iterations[0] - 0.3, iterations[-1] + 0.3], "nice": False} if iterations else {},
    }
    return {
        "width": 460,
        "height": 260,
        "data": {"values": points},
        "encoding": {"x": x, "color": _by_policy(policies), "description": {"field": "about"}},
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": _interval(title)},
            {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"y": _share("rate", title)}},
            {"mark": {"type": "point", "filled": True, "size": 70}, "encoding": {"y": _share("rate", title)}},
        ],
    }


def rates_by_bucket(rows: Sequence[Row], bucket: str, title: str = "P(verified)") -> Spec:
    """Points with 95 % intervals by policy in each bucket, in the order of the rows. Rows: bucket, policy, rate, low,
    high, tasks."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    order = list(dict.fromkeys(row["bucket"] for row in rows))
    x = {"field": "bucket", "type": "ordinal", "title": bucket, "sort": order, "axis": {"labelAngle": 0}}
    return {
        "width": {"step": 24},
        "height": 220,
        "data": {"values": [{**row, "about": _about(row)} for row in rows]},
        "encoding": {
            "x": x,
            "xOffset": {"field": "policy", "sort": policies},
            "color": _by_policy(policies),
            "description": {"field": "about"},
        },
        "layer": [
            {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": _interval(title)},
            {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"y": _share("rate", title)}},
        ],
    }


def stacked_bars(rows: Sequence[Row], x: str, y: str, part: str) -> Spec:
    """Horizontal bars of counts or seconds, a bar a value of `y`, divided by `part`."""
    segments = [
        {"x": row[x], "y": row[y], "part": row[part], "about": f"{row[y]}, {row[part]}: {row[x]:,.4g}"} for row in rows
    ]
    return {
        "width": 420,
        "height": {"step": 26},
        "data": {"values": segments},
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": x},
            "y": {"field": "y", "type": "nominal", "title": None, "sort": None},
            "color": {"field": "part", "type": "nominal", "title": None},
            "description": {"field": "about"},
        },
    }


def bars(rows: Sequence[Row], x: str, y: str, title: str = "") -> Spec:
    """Horizontal bars, a bar a value of `y`. `title`: of the numbers, else their key."""
    return {
        "width": 420,
        "height": {"step": 22},
        "data": {"values": [{"x": row[x], "y": row[y]} for row in rows]},
        "mark": {"type": "bar", "color": PALETTE[0]},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": title or x},
            "y": {"field": "y", "type": "nominal", "title": None, "sort": None, "axis": {"labelLimit": 260}},
        },
    }


def lines(
    rows: Sequence[Row], x: str, y: str, series: str, *, title: str = "", width: int = 460, height: int = 160
) -> Spec:
    """A line a series over numbers. `title`: of the horizontal axis, else its key."""
    ticks = {"tickMinStep": 1} if all(isinstance(row[x], int) for row in rows) else {}
    return {
        "width": width,
        "height": height,
        "data": {"values": [{"x": row[x], "y": row[y], "series": row[series]} for row in rows]},
        "mark": {"type": "line", "strokeWidth": 1.5, "point": len(rows) <= 60},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "title": title or x, "axis": {"grid": False, **ticks}},
            "y": {"field": "y", "type": "quantitative", "title": None, "scale": {"zero": False}},
            "color": {"field": "series", "type": "nominal", "title": None},
        },
    }


def reliability_diagram(rows: Sequence[Row]) -> Spec:
    """The share of true successes against what was predicted. Rows: verifier, predicted, observed, count."""
    diagonal = [{"predicted": 0, "observed": 0}, {"predicted": 1, "observed": 1}]
    axes = {
        "x": {"field": "predicted", "type": "quantitative", "title": "completion, 0 where integrity is denied"},
        "y": {"field": "observed", "type": "quantitative", "title": "share of true successes"},
    }
    by = {"color": {"field": "verifier", "type": "nominal", "title": None}}
    size = {"size": {"field": "count", "type": "quantitative", "title": "trajectories"}}
    return {
        "width": 380,
        "height": 340,
        "layer": [
            {
                "data": {"values": diagonal},
                "mark": {"type": "line", "color": "#888888", "strokeDash": [4, 3]},
                "encoding": axes,
            },
            {"data": {"values": list(rows)}, "mark": "line", "encoding": axes | by},
            {"data": {"values": list(rows)}, "mark": {"type": "point", "filled": True}, "encoding": axes | by | size},
        ],
    }


def _whole(spec: Spec) -> Spec:
    schema = "https://vega.github.io/schema/vega-lite/v6.json"
    return {"$schema": schema, "background": None, "padding": 4, "config": _CONFIG, **spec}


def _with_ink(config: Any, ink: str) -> Any:
    if isinstance(config, dict):
        return {name: _with_ink(value, ink) for name, value in config.items()}
    return ink if config == INK else config


def _by_policy(policies: Iterable[str]) -> Spec:
    domain = list(policies)
    scale = {"domain": domain, "range": [colour(policy) for policy in domain]}
    return {"field": "policy", "type": "nominal", "title": None, "scale": scale}


def _share(field: str, title: str) -> Spec:
    axis = {"format": "%", "tickCount": 5}
    return {"field": field, "type": "quantitative", "title": title, "axis": axis, "scale": {"domain": [0, 1]}}


def _interval(title: str) -> Spec:
    return {"y": _share("low", title), "y2": {"field": "high"}}


def _about(row: Row) -> str:
    """What a reader who points at it, or cannot see it, is told."""
    interval = f"{row['rate']:.1%} ({row['low']:.1%} to {row['high']:.1%}) of {row['tasks']} tasks"
    return f"{row['policy']}, {row.get('iteration', row.get('bucket'))}: {interval}"
