"""What more labels would bring: learning curves with intervals, and power laws fitted to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.models.calibration import log_losses
from histoblend.models.inspection.learning_curve import Curve
from histoblend.models.inspection.new_slides import calibration_error
from histoblend.models.resampling import auc_of_draws, draw_slides, percentile_interval
from histoblend.models.slide_pairs import SlidePairs

#: Slides to add. The alternative is as many more patches of the slides that are there.
MORE_SLIDES = 10
#: Exponents of the fitted power law.
EXPONENTS = (0.25, 0.5, 1.0, 2.0)
#: Fewest sizes of a curve that a power law is fitted to.
FEWEST_SIZES = 4
#: With fewer patches of the rarer label, a slide does not count as the worst.
FEW_PATCHES = 5

AXES = {"slides": "slides", "patches": "patches_per_slide"}
METRICS = ("auc", "auc_within", "log_loss")


@dataclass(frozen=True)
class Forecast:
    """Scores against the number of labels, and what more labels would bring.

    Attributes
    ----------
    points : DataFrame
        One row per axis and size, smallest first: ``axis, slides, patches_per_slide, patches, seconds``, each of
        `METRICS` with ``_low`` and ``_high``, ``worst`` (lowest AUC of a slide), ``calibration_error`` (of all
        patches), and ``fitted`` (AUC of the power law, NaN without one).
    gains : DataFrame
        ``axis, metric, patches`` (to be labelled), ``gain, low, high, exponent``, one row per axis and metric with a
        power law.
    """

    points: pd.DataFrame
    gains: pd.DataFrame


def forecast(
    curve: Curve, labels: np.ndarray, slides: np.ndarray, *, per_slide: float = 0.0, draws: int, seed: int
) -> Forecast:
    """Score a learning curve, fit power laws, and extrapolate.

    A metric is fitted as a + b n^(−c) by least squares, with c of `EXPONENTS`. Each resample scores all sizes on the
    same slides, resamples the repeats of each size, and fits again. So intervals contain the uncertainty of the slides
    that judge, of the slides that were drawn, and of the fit, but not that of the form of the curve.

    Parameters
    ----------
    curve : Curve
    labels, slides : ndarray of shape (n,), int
        Of the scored patches; slides as codes without gaps.
    per_slide : float
        Mean number of labelled patches per slide, if the scored patches are only a sample of them; 0 if they are all.
    draws, seed : int

    References
    ----------
    Hestness et al. (2017), arXiv:1712.00409 (power laws of learning curves). Rao and Wu (1988), J Am Stat Assoc
    83(401):231-241 (resampling of few units).
    """
    values = _resampled(curve, labels, slides, draws, seed)
    rng = np.random.default_rng(seed)
    count = int(slides.max()) + 1
    per_slide = per_slide or len(labels) / count
    steps = {"slides": (count, count + MORE_SLIDES), "patches": (per_slide, per_slide * (1 + MORE_SLIDES / count))}
    tables, gains = [], []
    for axis, number in AXES.items():
        members = _members(curve.points, axis)
        table = pd.DataFrame([_describe(curve, columns, labels, slides) for columns in members])
        table.insert(0, "axis", axis)
        # One repeat fewer than there are: otherwise the mean of few repeats varies too little (Rao and Wu 1988).
        repeats = [rng.integers(len(columns), size=(draws, max(1, len(columns) - 1))) for columns in members]
        table["fitted"] = np.nan
        for metric in METRICS:
            means = np.stack(
                [
                    np.append(
                        values[metric][0, columns].mean(),
                        np.take_along_axis(values[metric][1:, columns], chosen, axis=1).mean(axis=1),
                    )
                    for columns, chosen in zip(members, repeats, strict=True)
                ],
                axis=1,
            )
            drawn = means[1:][~np.isnan(means[1:]).any(axis=1)]
            table[metric] = means[0]
            table[f"{metric}_low"], table[f"{metric}_high"] = (
                percentile_interval(drawn) if len(drawn) else (np.nan,) * 2
            )
            if len(members) < FEWEST_SIZES or not len(drawn) or np.isnan(means[0]).any():
                continue
            change, fitted, exponent = _extrapolate(
                table[number].to_numpy(), np.vstack([means[:1], drawn]), steps[axis]
            )
            interval = map(float, percentile_interval(change[1:]))
            gains.append((axis, metric, round(MORE_SLIDES * per_slide), change[0], *interval, exponent))
            if metric == "auc":
                table["fitted"] = fitted
        tables.append(table)
    names = ["axis", "metric", "patches", "gain", "low", "high", "exponent"]
    return Forecast(pd.concat(tables, ignore_index=True), pd.DataFrame(gains, columns=names))


def _resampled(curve: Curve, labels: np.ndarray, slides: np.ndarray, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Each metric of each point, on all slides and then on resampled slides: float64 (1 + draws, points)."""
    codes, units = slides.astype(np.int32), int(slides.max()) + 1
    counts = np.concatenate([np.ones((1, units), np.int32), *draw_slides(units, draws, seed)])
    losses, sizes = log_losses(labels, curve.scores), np.bincount(slides)
    values = {metric: np.empty((len(counts), len(curve.points))) for metric in METRICS}
    for number, score in enumerate(curve.scores.T.astype(np.float64)):
        auc = auc_of_draws(labels, score, codes)(counts)
        pairs = SlidePairs(labels, score, codes, np.ones(len(labels), dtype=bool))
        values["auc"][:, number] = auc
        values["auc_within"][:, number] = pairs(counts, auc[:, None])[:, 0, 0]
        values["log_loss"][:, number] = counts @ np.bincount(slides, losses[:, number]) / (counts @ sizes)
    return values


def _members(points: pd.DataFrame, axis: str) -> list[np.ndarray]:
    """Columns of the scores of each size of an axis, smallest size first; all slides and patches are last."""
    on_axis = points[(points["axis"] == axis) & (points["size"] > 0)]
    sizes = [group.index.to_numpy() for _, group in on_axis.groupby("size", sort=True)]
    return [*sizes, points.index[points["size"] == 0].to_numpy()]


def _describe(curve: Curve, columns: np.ndarray, labels: np.ndarray, slides: np.ndarray) -> dict[str, float]:
    part = curve.points.iloc[columns]
    scores = curve.scores[:, columns].T
    return {
        "slides": part["slides"].mean(),
        "patches_per_slide": part["patches_per_slide"].mean(),
        "patches": (part["slides"] * part["patches_per_slide"]).mean(),
        "seconds": part["seconds"].mean(),
        "worst": float(np.mean([_worst_slide(labels, score, slides) for score in scores])),
        "calibration_error": float(np.mean([calibration_error(labels, score) for score in scores])),
    }


def _worst_slide(labels: np.ndarray, scores: np.ndarray, slides: np.ndarray) -> float:
    """Lowest AUC of a slide with enough patches of both labels; NaN without one."""
    from sklearn.metrics import roc_auc_score

    positives, sizes = np.bincount(slides, labels), np.bincount(slides)
    rows = [slides == slide for slide in np.flatnonzero(np.minimum(positives, sizes - positives) >= FEW_PATCHES)]
    return min((float(roc_auc_score(labels[row], scores[row])) for row in rows), default=np.nan)


def _extrapolate(x: np.ndarray, values: np.ndarray, step: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit power laws, and evaluate them.

    Parameters
    ----------
    x : ndarray of shape (sizes,)
    values : ndarray of shape (1 + draws, sizes)
    step : tuple of float
        From which size to which.

    Returns
    -------
    change : ndarray of shape (1 + draws,)
        Change of the fitted value over the step.
    fitted : ndarray of shape (sizes,)
        Fitted values of the first row.
    exponent : float
        Exponent of the first row.
    """
    best = np.full(len(values), np.inf)
    change, exponents = np.zeros(len(values)), np.zeros(len(values))
    fitted = np.empty(len(x))
    for exponent in EXPONENTS:
        design = np.stack([np.ones(len(x)), x**-exponent], axis=1)
        weights = values @ np.linalg.pinv(design).T
        predicted = weights @ design.T
        error = np.square(values - predicted).sum(axis=1)
        better = error < best
        best[better], exponents[better] = error[better], exponent
        change[better] = weights[better, 1] * (step[1] ** -exponent - step[0] ** -exponent)
        if better[0]:
            fitted = predicted[0]
    return change, fitted, float(exponents[0])
