"""How a model does within each slide, with intervals: inside one slide, its patches are the sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from histoblend.models.metrics import slide_table
from histoblend.reports.figures import BLUE, ORANGE, VERMILLION, layout, numbers, plain, rule, shorten
from histoblend.reports.ladder import SPLITS, judged_rows
from histoblend.reports.verdict import span

#: Rows that the figure holds at most: the lowest.
MOST_ROWS = 60

#: What the chooser says of each figure.
METRIC_WORDS = {
    "auc": "AUC (one class: share right)",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
_MARKS = {
    "auc": ("AUC", BLUE, "circle"),
    "sensitivity": ("sensitivity", VERMILLION, "diamond"),
    "specificity": ("specificity", ORANGE, "square"),
}
_BISECTIONS = 60


def score_slides(predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Metrics within each slide: ``model, split, slide, patches, rarer, prevalence, mean_score, brier, auc``."""
    parts = []
    for split, name in SPLITS.items():
        part = predictions[predictions.split == split]
        for model in models if len(part) else ():
            present = part[judged_rows(part, model)]
            table = slide_table(present.label.to_numpy(), present[f"prob_{model}"].to_numpy(), present.slide)
            table.insert(0, "split", name)
            table.insert(0, "model", model)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def auc_interval(
    auc: np.ndarray, positives: np.ndarray, negatives: np.ndarray, *, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of an area under the ROC curve from independent patches.

    Newcombe's method 5: a score interval on Hanley and McNeil's variance with both sample sizes replaced by their mean.
    Unlike DeLong's it exists where a class has a single patch and where all pairs are in the right order, which within
    a slide is common.

    Parameters
    ----------
    auc : ndarray of shape (n,), float, 0 to 1
    positives, negatives : ndarray of shape (n,), int, at least 1
    level : float

    Returns
    -------
    low, high : ndarray of shape (n,), dtype float64, 0 to 1

    References
    ----------
    Newcombe (2006), Stat Med 25(4):559-573.
    Hanley & McNeil (1982), Radiology 143(1):29-36.
    """
    auc, positives, negatives = (np.asarray(values, np.float64) for values in (auc, positives, negatives))
    z = norm.ppf((1 + level) / 2)
    # An area and its mirror image have mirrored intervals.
    return _lower_end(auc, positives, negatives, z), 1 - _lower_end(1 - auc, positives, negatives, z)


def _lower_end(auc: np.ndarray, positives: np.ndarray, negatives: np.ndarray, z: float) -> np.ndarray:
    """Smallest area from which the observed one lies no more than z standard errors away."""
    others = (positives + negatives) / 2 - 1
    low, high = np.zeros_like(auc), auc.copy()
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        spread = 1 + others * ((1 - middle) / (2 - middle) + middle / (1 + middle))
        error = np.sqrt(middle * (1 - middle) * spread / (positives * negatives))
        outside = auc - middle > z * error
        low, high = np.where(outside, middle, low), np.where(outside, high, middle)
    return high


def share_interval(right: np.ndarray, total: np.ndarray, *, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a share of independent patches.

    Parameters
    ----------
    right, total : ndarray of shape (n,), int
    level : float

    Returns
    -------
    low, high : ndarray of shape (n,), dtype float64, 0 to 1

    References
    ----------
    Wilson (1927), J Am Stat Assoc 22(158):209-212.
    """
    right, total = np.asarray(right, np.float64), np.asarray(total, np.float64)
    z = norm.ppf((1 + level) / 2)
    share, spread = right / total, z**2 / total
    half = z * np.sqrt(share * (1 - share) / total + spread / (4 * total))
    low, high = (share + spread / 2 - half) / (1 + spread), (share + spread / 2 + half) / (1 + spread)
    return low.clip(0, 1), high.clip(0, 1)


def slide_intervals(predictions: pd.DataFrame, slides: pd.DataFrame, thresholds: Mapping[str, float]) -> pd.DataFrame:
    """Every metric of several models within each slide, with its interval.

    Parameters
    ----------
    predictions : DataFrame
        ``slide, split, label, prob_<model>``.
    slides : DataFrame
        From :func:`score_slides`.
    thresholds : mapping from model to float
        Models to judge; a score at or above it counts as positive.

    Returns
    -------
    DataFrame
        ``model, split, slide, metric, patches, positives, value, low, high``: "sensitivity" and "specificity" where a
        slide has patches of that class, "auc" where it has both.
    """
    parts = []
    for model, cut in thresholds.items():
        present = predictions[judged_rows(predictions, model) & predictions.slide.notna().to_numpy()]
        frame = pd.DataFrame(
            {
                "split": present.split.map(SPLITS).to_numpy(),
                "slide": present.slide.to_numpy(),
                "positives": (present.label == 1).to_numpy(),
                "found": ((present.label == 1) & (present[f"prob_{model}"] >= cut)).to_numpy(),
                "spared": ((present.label == 0) & (present[f"prob_{model}"] < cut)).to_numpy(),
                "patches": 1,
            }
        )
        counts = frame.groupby(["split", "slide"], as_index=False).sum()
        counts = counts.merge(slides.loc[slides.model == model, ["split", "slide", "auc"]], on=["split", "slide"])
        parts += _with_intervals(counts.assign(model=model))
    columns = ["model", "split", "slide", "metric", "patches", "positives", "value", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def _with_intervals(counts: pd.DataFrame) -> list[pd.DataFrame]:
    """One table a metric, of the slides that have it."""
    negatives = counts.patches - counts.positives
    mixed, sick, well = counts[counts.auc.notna()], counts[counts.positives > 0], counts[negatives > 0]
    ends = auc_interval(mixed.auc.to_numpy(), mixed.positives.to_numpy(), negatives[mixed.index].to_numpy())
    parts = [mixed.assign(metric="auc", value=mixed.auc, low=ends[0], high=ends[1])]
    for metric, part, right, total in (
        ("sensitivity", sick, sick.found, sick.positives),
        ("specificity", well, well.spared, negatives[well.index]),
    ):
        low, high = share_interval(right.to_numpy(), total.to_numpy())
        parts.append(part.assign(metric=metric, value=right / total, low=low, high=high))
    return parts


def forest_rows(intervals: pd.DataFrame, model: str, metric: str) -> pd.DataFrame:
    """Rows of one figure, lowest value first; with "auc", a slide of one class is judged by the share that is right."""
    part = intervals[intervals.model == model]
    one_class = (part.positives == 0) | (part.positives == part.patches)
    wanted = (part.metric == metric) | (one_class if metric == "auc" else False)
    return part[wanted].sort_values(["value", "high", "slide"], kind="stable", ignore_index=True)


def slide_forest(intervals: pd.DataFrame, model: str, metric: str) -> dict[str, Any]:
    """Draw one metric of one model within each slide, worst on top; of more than `MOST_ROWS` slides the worst.

    Parameters
    ----------
    intervals : DataFrame
        From :func:`slide_intervals`.
    model : str
    metric : {"auc", "sensitivity", "specificity"}
    """
    rows = forest_rows(intervals, model, metric).head(MOST_ROWS)
    places = len(rows) - 1 - np.arange(len(rows))
    data = []
    for name, (words, colour, symbol) in _MARKS.items():
        for split in SPLITS.values():
            mine = ((rows.metric == name) & (rows.split == split)).to_numpy()
            if mine.any():
                shown = words if metric != "auc" or name == "auc" else f"{words}, one class only"
                shape = f"{symbol}-open" if split == "test" else symbol
                ends = f"{shown}, {'test' if split == 'test' else 'out-of-fold'}"
                data.append(_trace(rows[mine], places[mine].tolist(), ends, colour, shape))
    axis = {"tickvals": places.tolist(), "ticktext": [shorten(slide) for slide in rows.slide], "zeroline": False}
    drawn = layout(
        yaxis={**axis, "range": [-0.7, len(rows) - 0.3], "automargin": True, "ticklabelstandoff": 6},
        xaxis={
            "title": {"text": "within the slide", "standoff": 8},
            "zeroline": False,
            "range": [-0.02, 1.02],
            "automargin": True,
        },
        height=130 + 19 * len(rows),
    )
    drawn["shapes"] = [rule(0.5)] if metric == "auc" else []
    return {"data": data, "layout": drawn}


def _trace(rows: pd.DataFrame, places: list[int], name: str, colour: str, symbol: str) -> dict[str, Any]:
    bars = {"type": "data", "symmetric": False, "color": colour, "thickness": 1.5, "width": 0}
    bars |= {"array": numbers(rows.high - rows.value, 4), "arrayminus": numbers(rows.value - rows.low, 4)}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": numbers(rows.value, 4),
        "y": places,
        "text": [
            f"slide {plain(row['slide'])}<br>{name}: {row['value']:.3f} ({span(row['low'], row['high'])})<br>"
            f"{row['patches']} patches, {row['positives']} positive"
            for row in rows.to_dict("records")
        ],
        "hoverinfo": "text",
        "error_x": bars,
        "marker": {"color": colour, "symbol": symbol, "size": 8, "line": {"width": 1.5, "color": colour}},
    }
