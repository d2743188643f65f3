"""Shapley values as figures: a beeswarm over many patches, a waterfall for one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from histoblend.models.inspection.shapley import Attribution
from histoblend.reports.page import figures
from histoblend.reports.words import signed

#: Features and patches of a beeswarm, and features of a waterfall.
SWARM_FEATURES = 15
SWARM_PATCHES = 200
WATERFALL_FEATURES = 10

#: From low to high, in colours that no kind of colour blindness folds.
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


def _leading(found: Attribution, most: int) -> list[int]:
    """Features by falling mean size of their shares."""
    order = np.argsort(-np.abs(found.shares).mean(axis=0), kind="stable")
    return [int(place) for place in order[:most]]


def _swarm_rows(found: Attribution) -> np.ndarray:
    """Patches of a beeswarm: all, or evenly spaced ones; their order has nothing to do with their scores."""
    return np.unique(np.linspace(0, len(found.shares) - 1, SWARM_PATCHES).round().astype(int))


def swarm_table(found: Attribution, explained: pd.DataFrame) -> pd.DataFrame:
    """``feature, patch_id, value, log_odds`` of what a beeswarm shows."""
    rows, places = _swarm_rows(found), _leading(found, SWARM_FEATURES)
    return pd.DataFrame(
        {
            "feature": np.repeat([found.features[place] for place in places], len(rows)),
            "patch_id": np.tile(explained.patch_id.to_numpy()[rows], len(places)),
            "value": found.values[rows][:, places].T.ravel(),
            "log_odds": found.shares[rows][:, places].T.ravel(),
        }
    )


def share_table(found: Attribution, row: int) -> pd.DataFrame:
    """``feature, value, log_odds`` of one patch, by falling size; the base first."""
    order = np.argsort(-np.abs(found.shares[row]), kind="stable")
    names = ["(without any feature)", *(found.features[place] for place in order)]
    log_odds = np.concatenate([[found.base], found.shares[row][order]])
    return pd.DataFrame(
        {"feature": names, "value": np.concatenate([[np.nan], found.values[row][order]]), "log_odds": log_odds}
    )


def spread_out(values: np.ndarray, width: float = 0.36) -> np.ndarray:
    """Shift points aside so that a row of them shows how densely they lie.

    Parameters
    ----------
    values : ndarray of shape (n,), float
        Places along the row.
    width : float
        Largest shift, where points lie most densely.

    Returns
    -------
    ndarray of shape (n,), dtype float64
        Between −`width` and `width`, the same at every call.
    """
    from scipy.ndimage import gaussian_filter1d

    if not len(values) or np.ptp(values) == 0:
        return (_radical_inverse(len(values)) - 0.5) * 2 * width
    edges = np.linspace(values.min(), values.max(), 129)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, 127)
    density = gaussian_filter1d(np.bincount(place, minlength=128).astype(np.float64), 2.0)[place]
    shift = np.empty(len(values))
    # Along the row, so that neighbours go to different sides.
    shift[np.argsort(values, kind="stable")] = _radical_inverse(len(values)) - 0.5
    return np.asarray(shift * 2 * width * density / density.max())


def _radical_inverse(count: int) -> np.ndarray:
    """The first numbers of van der Corput's sequence: evenly spread over 0 to 1 wherever it is cut."""
    numbers, found, weight = np.arange(1, count + 1), np.zeros(count), 0.5
    while numbers.any():
        found += weight * (numbers & 1)
        numbers, weight = numbers >> 1, weight / 2
    return found


def beeswarm(found: Attribution) -> figures.Figure:
    """Draw the shares of single patches for the leading features: right of the line speaks for a positive."""
    rows, places = _swarm_rows(found), _leading(found, SWARM_FEATURES)[::-1]
    percentiles = found.percentiles()
    data: list[figures.Figure] = []
    for row, place in enumerate(places):
        name, shares = figures.plain(found.features[place]), found.shares[rows, place]
        marker: figures.Figure = {"color": figures.INK}
        words = ""
        if np.isfinite(percentiles[:, place]).all():
            colour = np.round(percentiles[rows, place]).astype(int)
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
                "hovertemplate": f"{name}<br>adds %{{x:.3f}} to the log odds{words}<extra></extra>",
            }
        )
    frame = _named_rows([figures.plain(found.features[place]) for place in places], "added to the log odds", 42)
    return {"data": data, "layout": frame}


def waterfall(found: Attribution, row: int, percentiles: np.ndarray) -> figures.Figure:
    """Draw how one patch's log odds come about, from the base up: the leading features, and all others as one.

    Parameters
    ----------
    found : Attribution
    row : int
    percentiles : ndarray of shape (n, features)
        From :meth:`Attribution.percentiles`.
    """
    steps = _steps(found, row, percentiles[row])
    sizes = np.array([step for _, _, step in steps])
    starts = found.base + np.concatenate([[0.0], np.cumsum(sizes)[:-1]])
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
    frame = _named_rows([label for label, _, _ in steps], "log odds of a positive", 42)
    ends = [*starts.tolist(), float(found.base + sizes.sum())]
    _mark_ends(frame, ends, len(steps))
    return {"data": [bars], "layout": frame}


def _steps(found: Attribution, row: int, percentiles: np.ndarray) -> list[tuple[str, str, float]]:
    """Label, what hovering adds to it, and share, from the bottom up: all other features first, the largest last."""
    order = np.argsort(-np.abs(found.shares[row]), kind="stable")
    leading, rest = order[:WATERFALL_FEATURES], order[WATERFALL_FEATURES:]
    steps = []
    for place in leading:
        value, percentile = found.values[row, place], percentiles[place]
        label, more = figures.plain(found.features[place]), ""
        if np.isfinite(value):
            label += f" = {value:.3g}".replace("-", "−")
            more = f" (percentile {percentile:.0f})"
        steps.append((label, more, float(found.shares[row, place])))
    if len(rest):
        steps.append((f"{len(rest):,} other features", "", float(found.shares[row, rest].sum())))
    return steps[::-1]


def _mark_ends(frame: figures.Figure, ends: Sequence[float], rows: int) -> None:
    """Put the base below and the sum above a waterfall's rows; `ends` are where steps begin, and the sum."""
    room = 0.16 * max(max(ends) - min(ends), 0.5)
    left, right = min(ends) - room, max(ends) + room
    frame["xaxis"] |= {"range": [round(left, 3), round(right, 3)], "zeroline": False}
    frame["yaxis"]["range"] = [-1.1, rows + 0.3]
    frame["shapes"] = [_upright(ends[0], "dot"), _upright(ends[-1], "solid")]
    for x, words, y in ((ends[0], "base", -0.75), (ends[-1], "this patch", rows + 0.05)):
        # Towards the middle, so that nothing is cut off at either side.
        side: figures.Figure = {"xanchor": "left", "xshift": 5}
        if x > (left + right) / 2:
            side = {"xanchor": "right", "xshift": -5}
        text: figures.Figure = {"text": f"{words} {signed(x)}", "font": {"size": 12}, "showarrow": False}
        frame["annotations"].append({"x": round(x, 4), "y": y, **side, **text})


def _named_rows(labels: Sequence[str], title: str, per_row: int) -> figures.Figure:
    """Rows from the bottom up, each with its name, escaped, above it: beside it, it would leave no room on a phone."""
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
