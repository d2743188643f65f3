"""Calibration on new slides: the error of each slide, and what recalibration on some of its patches changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from histoblend.models.calibration import fit_calibrator, log_losses, log_odds
from histoblend.models.resampling import draw_slides, percentile_interval

#: Bins of equal numbers of patches, and fewest patches in each.
BINS = 10
FEWEST_IN_BIN = 8
#: Labelled patches of a new slide.
LABELLED = (20, 50, 100)
#: Patches of a slide that must be left to judge on.
FEWEST_JUDGED = 20
#: Fewest slides for an interval.
FEWEST_SLIDES = 3
#: Random choices of the labelled patches, and of labels of a calibrated model.
CHOICES = 20
#: Ways to recalibrate: a shift of the log-odds alone, and Platt's slope and shift.
WAYS = ("shift", "platt")


def calibration_error(labels: np.ndarray, probability: np.ndarray) -> float:
    """Expected calibration error, 0 to 1: mean difference of probability and share of positives over bins.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    probability : ndarray of shape (n,), float

    Returns
    -------
    float
        Bins have equal numbers of patches: `BINS`, or fewer with at least `FEWEST_IN_BIN` patches each.

    References
    ----------
    Naeini, Cooper & Hauskrecht (2015), AAAI (expected calibration error).
    """
    order = np.argsort(probability, kind="stable")
    gaps = (np.asarray(probability, dtype=np.float64) - labels)[order]
    parts = np.array_split(gaps, max(1, min(BINS, len(gaps) // FEWEST_IN_BIN)))
    return float(sum(abs(part.sum()) for part in parts) / len(gaps))


def slide_calibration(labels: np.ndarray, probability: np.ndarray, slides: np.ndarray, *, seed: int) -> pd.DataFrame:
    """Calibration error of each slide, and its value by chance.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    probability : ndarray of shape (n,), float
        Of a model that has not seen the patch's slide.
    slides : ndarray of shape (n,), object
    seed : int

    Returns
    -------
    DataFrame
        ``slide, patches, positives`` (share), ``bias`` (mean probability minus share of positives), ``error`` and
        ``chance``, the mean error of a perfectly calibrated model with these probabilities. Slides with fewer than
        `FEWEST_JUDGED` patches are left out.
    """
    rows = []
    for slide, part in _by_slide(slides):
        if len(part) < FEWEST_JUDGED:
            continue
        truth, scores = labels[part], probability[part]
        rng = np.random.default_rng([seed, int(part[0])])
        chance = np.mean([calibration_error(rng.random(len(part)) < scores, scores) for _ in range(CHOICES)])
        error = calibration_error(truth, scores)
        rows.append((slide, len(part), truth.mean(), scores.mean() - truth.mean(), error, float(chance)))
    return pd.DataFrame(rows, columns=["slide", "patches", "positives", "bias", "error", "chance"])


def recalibration_gains(
    labels: np.ndarray, probability: np.ndarray, slides: np.ndarray, *, draws: int, seed: int
) -> pd.DataFrame:
    """Change of the log loss if a model is recalibrated on some labelled patches of each new slide.

    The labelled patches are chosen at random. The loss is that of the other patches of the slide.

    Parameters
    ----------
    labels, probability, slides
        As for :func:`slide_calibration`.
    draws, seed : int

    Returns
    -------
    DataFrame
        ``judged ("all" slides, or "mixed": those with both labels), labelled, way, slides, before, change, low, high``:
        mean log loss over slides before, and its change with the 95 % interval from resampling slides. Only slides with
        `FEWEST_JUDGED` further patches count, so slides differ between numbers of labelled patches.
    """
    rows = []
    for labelled in LABELLED:
        parts = [part for _, part in _by_slide(slides) if len(part) >= labelled + FEWEST_JUDGED]
        losses = [_losses(labels[part], probability[part], labelled, [seed, int(part[0])]) for part in parts]
        mixed = [index for index, part in enumerate(parts) if 0 < labels[part].sum() < len(part)]
        for judged, kept in (("all", range(len(parts))), ("mixed", mixed)):
            if len(kept) < FEWEST_SLIDES:
                continue
            table = np.stack([losses[index] for index in kept])
            changes = table[:, 1:] - table[:, :1]
            drawn = np.concatenate([counts @ changes / len(kept) for counts in draw_slides(len(kept), draws, seed)])
            low, high = percentile_interval(drawn)
            for number, way in enumerate(WAYS):
                change = (changes[:, number].mean(), low[number], high[number])
                rows.append((judged, labelled, way, len(kept), table[:, 0].mean(), *change))
    names = ["judged", "labelled", "way", "slides", "before", "change", "low", "high"]
    return pd.DataFrame(rows, columns=names)


def _losses(labels: np.ndarray, probability: np.ndarray, labelled: int, seed: list[int]) -> np.ndarray:
    """Mean log loss of a slide's other patches: unchanged, and recalibrated in each of `WAYS`."""
    rng = np.random.default_rng(seed)
    losses = np.empty((CHOICES, 1 + len(WAYS)))
    for choice in range(CHOICES):
        order = rng.permutation(len(labels))
        chosen, judged = order[:labelled], order[labelled:]
        shifted = _shift(labels[chosen], probability[chosen], probability[judged])
        platt = fit_calibrator("platt", probability[chosen], labels[chosen]).predict(probability[judged])
        table = np.stack([probability[judged], shifted, platt], axis=1)
        losses[choice] = log_losses(labels[judged], table).mean(axis=0)
    return np.asarray(losses.mean(axis=0))


def _shift(labels: np.ndarray, probability: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Add to the log-odds so that the mean probability equals the share of positives, with half a patch of each label.

    The two half patches keep the shift finite if all labels are equal.
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    odds = log_odds(probability)
    share = (labels.sum() + 0.5) / (len(labels) + 1)
    shift = brentq(lambda added: expit(odds + added).mean() - share, -30, 30)
    return np.asarray(expit(log_odds(others) + shift))


def _by_slide(slides: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for slide, rows in pd.Series(slides).groupby(slides).indices.items():
        yield str(slide), np.asarray(rows)
