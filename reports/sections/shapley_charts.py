"""Figures of Shapley values: a beeswarm of many patches, a waterfall of one patch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from histoblend.models.inspection.shapley import ShapleyValues
from histoblend.reports.page import figures
from histoblend.reports.sections.feature_words import feature_name
from histoblend.reports.words import signed

#: Number of features and patches of a beeswarm, and of features of a waterfall.
SWARM_FEATURES = 12
SWARM_PATCHES = 80
WATERFALL_FEATURES = 10

#: Colours from low to high, distinct for every kind of colour blindness.
_COLOURS: figures.Figure = {
    "colorscale": [[0, figures.BLUE], [0.5, "#B8B8B8"], [1, figures.VERMILLION]],
    "cmin": 0,
    "cmax": 100,
}
_BAR: figures.Figure = {
    "title": {"text": "value’s percentile", "side": "top"},
    "orientation": "h",
    "thickness": 8,
    "len": 0.5,
    "tickvals": [0, 50, 100],
    "x": 1,
    "xanchor": "right",
    "y": 1.005,
    "yanchor": "bottom",
}


def _leading(attribution: ShapleyValues, count: int) -> list[int]:
    """Columns of the features with the largest mean absolute contributions."""
    order = np.argsort(-np.abs(attribution.shares).mean(axis=0), kind="stable")
    return [int(column) for column in order[:count]]


def _label(attribution: ShapleyValues, column: int) -> str:
    """Escaped plain name of a feature."""
    return figures.plain(feature_name(attribution.features[column]))


def _swarm_rows(attribution: ShapleyValues) -> np.ndarray:
    """Patches of a beeswarm: all, or evenly spaced ones. Their order does not depend on their scores."""
    return np.unique(np.linspace(0, len(attribution.shares) - 1, SWARM_PATCHES).round().astype(int))


def swarm_table(attribution: ShapleyValues, explained: pd.DataFrame) -> pd.DataFrame:
    """Table of a beeswarm: ``feature, patch_id, value, log_odds``."""
    rows, columns = _swarm_rows(attribution), _leading(attribution, SWARM_FEATURES)
    return pd.DataFrame(
        {
            "feature": np.repeat([attribution.features[column] for column in columns], len(rows)),
            "patch_id": np.tile(explained.patch_id.to_numpy()[rows], len(columns)),
            "value": attribution.values[rows][:, columns].T.ravel(),
            "log_odds": attribution.shares[rows][:, columns].T.ravel(),
        }
    )


def share_table(attribution: ShapleyValues, row: int) -> pd.DataFrame:
    """``feature, value, log_odds`` of one patch: the base value, then contributions from largest to smallest."""
    order = np.argsort(-np.abs(attribution.shares[row]), kind="stable")
    names = ["(without any feature)", *(attribution.features[column] for column in order)]
    log_odds = np.concatenate([[attribution.base], attribution.shares[row][order]])
    return pd.DataFrame(
        {"feature": names, "value": np.concatenate([[np.nan], attribution.values[row][order]]), "log_odds": log_odds}
    )


def spread_out(values: np.ndarray, width: float = 0.36) -> np.ndarray:
    """Shift points vertically so that a row of points shows its density.

    Parameters
    ----------
    values : ndarray of shape (n,), float
        Positions along the row.
    width : float
        Largest shift, used where points are densest.

    Returns
    -------
    ndarray of shape (n,), dtype float64
        Between −`width` and `width`. The result is deterministic.
    """
    from scipy.ndimage import gaussian_filter1d

    if not len(values) or np.ptp(values) == 0:
        return (_radical_inverse(len(values)) - 0.5) * 2 * width
    edges = np.linspace(values.min(), values.max(), 129)
    bin_index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, 127)
    density = gaussian_filter1d(np.bincount(bin_index, minlength=128).astype(np.float64), 2.0)[bin_index]
    shift = np.empty(len(values))
    # In the order of the row, so that neighbours are shifted to different sides.
    shift[np.argsort(values, kind="stable")] = _radical_inverse(len(values)) - 0.5
    return np.asarray(shift * 2 * width * density / density.max())


def _radical_inverse(count: int) -> np.ndarray:
    """First numbers of the van der Corput sequence, spread evenly over 0 to 1 for every `count`."""
    numbers, inverse, weight = np.arange(1, count + 1), np.zeros(count), 0.5
    while numbers.any():
        inverse += weight * (numbers & 1)
        numbers, weight = numbers >> 1, weight / 2
    return inverse


def beeswarm(attribution: ShapleyValues) -> figures.Figure:
    """Draw contributions to single patches for the leading features; values above 0 increase the log-odds."""
    rows, columns = _swarm_rows(attribution), _leading(attribution, SWARM_FEATURES)[::-1]
    percentiles = attribution.percentiles()
    data: list[figures.Figure] = []
    for row, column in enumerate(columns):
        name, shares = _label(attribution, column), attribution.shares[rows, column]
        marker: figures.Figure = {"color": figures.INK}
        words = ""
        if np.isfinite(percentiles[:, column]).all():
            colour = np.round(percentiles[rows, column]).astype(int)
            marker = {"color": colour.tolist()} | _COLOURS
            if not any("colorbar" in each["marker"] for each in data):
                marker |= {"showscale": True, "colorbar": _BAR}
            words = "<br>value at percentile %{marker.color:.0f}"
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": figures.numbers(shares, 3),
                "y": figures.numbers(row + spread_out(shares), 2),
                "marker": marker | {"size": 5, "opacity": 0.8},
                "hovertemplate": f"{name}<br>adds %{{x:.3f}} to the log-odds{words}<extra></extra>",
            }
        )
    frame = _named_rows([_label(attribution, column) for column in columns], "contribution to the log-odds", 42)
    return {"data": data, "layout": frame}


def waterfall(attribution: ShapleyValues, row: int, percentiles: np.ndarray) -> figures.Figure:
    """Draw contributions to one patch's log-odds, from the base value up: leading features, and the sum of the others.

    Parameters
    ----------
    attribution : ShapleyValues
    row : int
    percentiles : ndarray of shape (n, features)
        From :meth:`ShapleyValues.percentiles`.
    """
    steps = _steps(attribution, row, percentiles[row])
    sizes = np.array([step for _, _, step in steps])
    starts = attribution.base + np.concatenate([[0.0], np.cumsum(sizes)[:-1]])
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(steps))),
        "x": figures.numbers(sizes, 4),
        "base": figures.numbers(starts, 4),
        "width": 0.42,
        "marker": {"color": [figures.VERMILLION if step > 0 else figures.BLUE for step in sizes]},
        "text": [signed(step) for step in sizes],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertext": [f"{label}{more}<br>adds {signed(step)}" for label, more, step in steps],
        "hoverinfo": "text",
    }
    frame = _named_rows([label for label, _, _ in steps], "log-odds of a positive", 42)
    ends = [*starts.tolist(), float(attribution.base + sizes.sum())]
    _mark_ends(frame, ends, len(steps))
    return {"data": [bars], "layout": frame}


def _steps(attribution: ShapleyValues, row: int, percentiles: np.ndarray) -> list[tuple[str, str, float]]:
    """Label, hover text and contribution, from the bottom up: the other features first, the largest last."""
    order = np.argsort(-np.abs(attribution.shares[row]), kind="stable")
    leading, rest = order[:WATERFALL_FEATURES], order[WATERFALL_FEATURES:]
    steps = []
    for column in leading:
        value, percentile = attribution.values[row, column], percentiles[column]
        label, more = _label(attribution, int(column)), ""
        if np.isfinite(value):
            label += f" = {value:.3g}".replace("-", "−")
            more = f" (percentile {percentile:.0f})"
        steps.append((label, more, float(attribution.shares[row, column])))
    if len(rest):
        steps.append((f"{len(rest):,} other features", "", float(attribution.shares[row, rest].sum())))
    return steps[::-1]


def _mark_ends(frame: figures.Figure, ends: Sequence[float], rows: int) -> None:
    """Label a waterfall's base value below its rows and the sum above; `ends` has all starts of steps and the sum."""
    room = 0.16 * max(max(ends) - min(ends), 0.5)
    left, right = min(ends) - room, max(ends) + room
    frame["xaxis"] |= {"range": [round(left, 3), round(right, 3)], "zeroline": False}
    frame["yaxis"]["range"] = [-1.1, rows + 0.3]
    frame["shapes"] = [_upright(ends[0], "dot"), _upright(ends[-1], "solid")]
    for x, words, y in ((ends[0], "base value", -0.75), (ends[-1], "this patch", rows + 0.05)):
        # Text extends towards the middle, so that it is not cut off at the sides.
        side: figures.Figure = {"xanchor": "left", "xshift": 5}
        if x > (left + right) / 2:
            side = {"xanchor": "right", "xshift": -5}
        text: figures.Figure = {"text": f"{words} {signed(x)}", "font": {"size": 12}, "showarrow": False}
        frame["annotations"].append({"x": round(x, 4), "y": y, **side, **text})


def _named_rows(labels: Sequence[str], title: str, per_row: int) -> figures.Figure:
    """Rows from the bottom up, each with its escaped name above it: names at the side leave no room on a phone."""
    frame = figures.layout(
        xaxis={
            "title": {"text": title, "standoff": 8},
            "zeroline": True,
            "zerolinecolor": figures.INK,
            "automargin": True,
        },
        yaxis={"visible": False, "range": [-0.7, len(labels) - 0.2], "fixedrange": True},
        height=110 + per_row * len(labels),
        showlegend=False,
    )
    frame["annotations"] = [
        {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": row + 0.42,
            "text": label,
            "showarrow": False,
            "align": "left",
            "font": {"size": 11},
        }
        for row, label in enumerate(labels)
    ]
    return frame


def _upright(x: float, dash: str) -> figures.Figure:
    line = {"color": figures.INK, "dash": dash, "width": 1.5}
    return {
        "type": "line",
        "x0": round(x, 4),
        "x1": round(x, 4),
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": line,
        "layer": "below",
    }
