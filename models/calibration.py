"""Calibration of scores, decision thresholds, and correction for another prevalence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.models.file_checks import STORED
from histoblend.models.resampling import check_scores, mean_draws, percentile_interval

#: Log-odds are taken of probabilities clipped this far from 0 and 1. This limits log-odds to ±13.8.
LIMIT = 1e-6

#: The same for ranking or explaining single patches, where confident ones must still differ: ±27.6.
EXPLANATION_LIMIT = 1e-12

#: Calibrators are fitted on groups of nearly equal log-odds if there are more rows than this.
MOST_UNGROUPED = 20_000

#: Operating points, and the sensitivity or specificity required by the first two.
POINTS = ("sensitivity-0.95", "specificity-0.95", "best-f1", "youden")
TARGET_RATE = 0.95


def log_odds(probability: np.ndarray, limit: float = LIMIT) -> np.ndarray:
    """Natural logarithm of the odds, float64; probabilities are first clipped to `limit` and 1 − `limit`."""
    clipped = np.clip(np.asarray(probability, dtype=np.float64), limit, 1 - limit)
    return np.log(clipped) - np.log1p(-clipped)


def log_losses(labels: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Log loss of each patch in nats, in the shape of ``probability``; bounded by :data:`LIMIT`."""
    odds = log_odds(probability)
    signs = np.where(np.asarray(labels) == 1, 1.0, -1.0)
    return np.logaddexp(0, -odds * signs.reshape(signs.shape + (1,) * (odds.ndim - 1)))


def odds_groups(labels: np.ndarray, odds: np.ndarray) -> np.ndarray:
    """Number the groups of rows with one label and nearly equal log-odds, so that a fit needs few rows.

    Returns
    -------
    ndarray of shape (n,), int
        0 to groups − 1, without gaps. There are at most a few thousand groups for any number of rows.
    """
    bins = np.rint(100 * odds).astype(np.int64)
    bins -= bins.min()
    keys = np.asarray(labels).astype(np.int64) * (bins.max() + 1) + bins
    return np.asarray((np.cumsum(np.bincount(keys) > 0) - 1)[keys])


def soft_targets(labels: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Targets of a fit in place of 1 and 0, ndarray of shape (n,): (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2).

    They keep slopes finite when scores separate the classes. ``weights`` says how often each row counts.

    References
    ----------
    Platt (1999), Advances in Large Margin Classifiers, 61-74.
    """
    positive = np.asarray(labels) == 1
    counts = np.ones(len(positive)) if weights is None else weights
    positives, negatives = counts[positive].sum(), counts[~positive].sum()
    return np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def fit_log_loss(
    columns: np.ndarray,
    labels: np.ndarray,
    *,
    lower: Sequence[float],
    penalty: np.ndarray | None = None,
    start: np.ndarray | None = None,
    counts: np.ndarray | None = None,
) -> np.ndarray:
    """Fit the weights of a sum of columns, interpreted as log-odds, by minimising the mean log loss.

    Parameters
    ----------
    columns : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), 0 or 1
        Softened by :func:`soft_targets`.
    lower : sequence of k float
        Lower bound of each weight; ``-inf`` for none.
    penalty : ndarray of shape (k, k), optional
        Q in ½ wᵀQw, which is added to the mean log loss; symmetric and positive semidefinite.
    start : ndarray of shape (k,), optional
        Initial weights.
    counts : ndarray of shape (n,), optional
        How often each row counts; once by default.

    Returns
    -------
    ndarray of shape (k,), dtype float64
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    targets = soft_targets(labels, counts)
    width = columns.shape[1]
    times, total = (1, len(columns)) if counts is None else (counts, counts.sum())
    quadratic = np.zeros((width, width)) if penalty is None else penalty

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = columns @ weights
        penalty_gradient = quadratic @ weights
        loss = np.average(np.logaddexp(0, odds) - targets * odds, weights=counts) + weights @ penalty_gradient / 2
        return loss, columns.T @ (times * (expit(odds) - targets)) / total + penalty_gradient

    initial = np.maximum(np.zeros(width), np.asarray(lower)) if start is None else start
    result = minimize(
        objective,
        initial,
        jac=True,
        method="L-BFGS-B",
        bounds=[(low if np.isfinite(low) else None, None) for low in lower],
        options={"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-8},
    )
    return np.asarray(result.x, dtype=np.float64)


@dataclass(frozen=True)
class Calibrator:
    """A monotonic map from a score between 0 and 1 to a probability.

    Attributes
    ----------
    kind : str
        Row of :data:`CALIBRATORS`.
    numbers : mapping from str to tuple of float
        Fitted parameters.
    """

    __pydantic_config__ = STORED

    kind: str = "none"
    numbers: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in CALIBRATORS:
            raise ValueError(f"calibrator must be one of {', '.join(CALIBRATORS)}; got {self.kind!r}.")
        names, sizes = CALIBRATORS[self.kind].names, {len(values) for values in self.numbers.values()}
        if set(self.numbers) != set(names) or len(sizes) > 1 or 0 in sizes:
            raise ValueError(f"calibrator {self.kind!r} must have the numbers {names}; got {sorted(self.numbers)}.")
        if self.kind != "isotonic" and sizes - {1}:
            raise ValueError(f"calibrator {self.kind!r} must have one number for each of {names}; got more.")
        if self.kind == "isotonic" and np.any(np.diff(self.numbers["from"]) <= 0):
            raise ValueError("the scores of calibrator 'isotonic' must increase; they do not.")

    def predict(self, score: np.ndarray) -> np.ndarray:
        """Calibrated probability of each score, float64, shape kept."""
        return CALIBRATORS[self.kind].apply(np.asarray(score, dtype=np.float64), self.numbers)


def fit_calibrator(kind: str, score: np.ndarray, labels: np.ndarray) -> Calibrator:
    """Fit one kind of calibrator.

    Parameters
    ----------
    kind : str
        Row of :data:`CALIBRATORS`.
    score : ndarray of shape (n,), 0 to 1
        From a model that has not seen these patches.
    labels : ndarray of shape (n,), 0 or 1

    Returns
    -------
    Calibrator

    References
    ----------
    Platt (1999), Advances in Large Margin Classifiers, 61-74. Guo, Pleiss, Sun & Weinberger (2017), ICML
    (temperature). Zadrozny & Elkan (2002), KDD (isotonic). Kull, Silva Filho & Flach (2017), AISTATS (beta).
    """
    labels, table = check_scores(labels, score)
    return Calibrator(kind, CALIBRATORS[kind].fit(table[:, 0], labels))


@dataclass(frozen=True)
class _Method:
    """How to fit and apply one kind of calibrator, and the names of its numbers."""

    names: tuple[str, ...]
    fit: Callable[[np.ndarray, np.ndarray], dict[str, tuple[float, ...]]]
    apply: Callable[[np.ndarray, Mapping[str, tuple[float, ...]]], np.ndarray]


def _linear(
    names: tuple[str, ...], columns: Callable[[np.ndarray], list[np.ndarray]], lower: tuple[float, ...]
) -> _Method:
    """A calibrator whose log-odds are a weighted sum of columns."""

    def table(score: np.ndarray) -> np.ndarray:
        return np.stack(columns(score), axis=-1)

    def fit(score: np.ndarray, labels: np.ndarray) -> dict[str, tuple[float, ...]]:
        start = np.where(np.isfinite(lower), 1.0, 0.0)
        rows, counts = table(score), None
        if len(score) > MOST_UNGROUPED:
            groups = odds_groups(labels, log_odds(score))
            counts = np.bincount(groups)
            rows = np.stack([np.bincount(groups, column) / counts for column in rows.T], axis=1)
            labels = (np.bincount(groups, labels) / counts).round().astype(np.int64)
        weights = fit_log_loss(rows, labels, lower=lower, start=start, counts=counts)
        return {name: (float(weight),) for name, weight in zip(names, weights, strict=True)}

    def apply(score: np.ndarray, numbers: Mapping[str, tuple[float, ...]]) -> np.ndarray:
        from scipy.special import expit

        return expit(sum(numbers[name][0] * column for name, column in zip(names, columns(score), strict=True)))

    return _Method(names, fit, apply)


def _platt(score: np.ndarray) -> list[np.ndarray]:
    return [log_odds(score), np.ones_like(score)]


def _beta(score: np.ndarray) -> list[np.ndarray]:
    clipped = np.clip(score, LIMIT, 1 - LIMIT)
    return [np.log(clipped), -np.log1p(-clipped), np.ones_like(score)]


def _fit_isotonic(score: np.ndarray, labels: np.ndarray) -> dict[str, tuple[float, ...]]:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(out_of_bounds="clip").fit(score, labels)
    # Seeing n patches of one class does not make the other impossible.
    limit = 1 / (len(labels) + 2)
    probabilities = np.clip(model.y_thresholds_, limit, 1 - limit)
    return {"from": tuple(map(float, model.X_thresholds_)), "to": tuple(map(float, probabilities))}


def _apply_isotonic(score: np.ndarray, numbers: Mapping[str, tuple[float, ...]]) -> np.ndarray:
    return np.interp(score, numbers["from"], numbers["to"])


#: All calibrators, simplest first. The simpler one wins a tie.
CALIBRATORS: dict[str, _Method] = {
    "none": _Method((), lambda score, labels: {}, lambda score, numbers: score),
    "temperature": _linear(("slope",), lambda score: [log_odds(score)], (0.0,)),
    "platt": _linear(("slope", "intercept"), _platt, (0.0, -np.inf)),
    "beta": _linear(("low", "high", "intercept"), _beta, (0.0, 0.0, -np.inf)),
    "isotonic": _Method(("from", "to"), _fit_isotonic, _apply_isotonic),
}


@dataclass(frozen=True)
class CalibratorChoice:
    """The chosen calibrator, and how all kinds compare.

    Attributes
    ----------
    calibrator : Calibrator
        Fitted on all rows.
    probability : ndarray of shape (n,), float64
        Cross-fitted: each row is calibrated by a fit on the other parts.
    compared : list of dict
        ``calibrator, log_loss, brier, gain, gain_low, gain_high, chosen``, one dict per kind. The gain is the decrease
        of the log loss from no calibration, with its 95 % interval from resampling slides.
    """

    calibrator: Calibrator
    probability: np.ndarray
    compared: list[dict[str, Any]]


def choose_calibrator(
    score: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    parts: Sequence[np.ndarray],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> CalibratorChoice:
    """Calibrate only if this reliably lowers the log loss.

    Each kind is cross-fitted: it is fitted on all parts but one and judged on that part. A kind is a candidate if the
    95 % interval of its gain in mean log loss, from resampling slides, is above 0. The choice is the simplest candidate
    within one standard error of the best; the standard error is that of their paired difference. Without candidates,
    or with fewer than two parts, scores are not calibrated.

    Parameters
    ----------
    score : ndarray of shape (n,), 0 to 1
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,), int
        Resampling unit of each row, from :func:`models.resampling.slide_groups`.
    parts : sequence of ndarray of int
        Row numbers of each part. The parts cover all rows and share no slide.
    draws, seed : int

    Returns
    -------
    CalibratorChoice
    """
    kinds = list(CALIBRATORS) if len(parts) > 1 else ["none"]
    cross_fitted = np.stack([_cross_fit(kind, score, labels, parts) for kind in kinds], axis=1)
    losses = log_losses(labels, cross_fitted)
    mean = losses.mean(axis=0)
    drawn = mean_draws(losses, groups, draws=draws, seed=seed)
    low, high = percentile_interval(drawn[:, :1] - drawn)
    candidates = [index for index in range(1, len(kinds)) if low[index] > 0]
    chosen = 0
    if candidates:
        best = min(candidates, key=lambda index: mean[index])
        standard_error = (drawn - drawn[:, [best]]).std(axis=0, ddof=1)
        chosen = next(index for index in candidates if mean[index] - mean[best] <= standard_error[index])
    compared = [
        {
            "calibrator": kind,
            "log_loss": float(mean[index]),
            "brier": float(np.mean((cross_fitted[:, index] - labels) ** 2)),
            "gain": float(mean[0] - mean[index]),
            "gain_low": float(low[index]),
            "gain_high": float(high[index]),
            "chosen": index == chosen,
        }
        for index, kind in enumerate(kinds)
    ]
    return CalibratorChoice(fit_calibrator(kinds[chosen], score, labels), cross_fitted[:, chosen], compared)


def _cross_fit(kind: str, score: np.ndarray, labels: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Calibrate each part by a fit on the others; ndarray of shape (n,)."""
    if kind == "none":
        return np.asarray(score, dtype=np.float64)
    probability = np.empty(len(score))
    for part in parts:
        others = np.setdiff1d(np.arange(len(score)), part, assume_unique=True)
        probability[part] = fit_calibrator(kind, score[others], labels[others]).predict(score[part])
    return probability


def operating_points(labels: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Decision thresholds for several purposes; a probability at or above the threshold counts as positive.

    Pass out-of-fold predictions: thresholds chosen on a model's own training patches are too high.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1; both must occur
    probability : ndarray of shape (n,), float

    Returns
    -------
    dict from str to float
        - ``sensitivity-0.95``: the highest threshold with a sensitivity of at least 95 %
        - ``specificity-0.95``: the lowest threshold with a specificity of at least 95 %
        - ``best-f1``: the threshold with the largest F1
        - ``youden``: see :func:`youden_threshold`

        Each is one of the probabilities. ``specificity-0.95`` is the next number above all of them if too many
        negatives share the highest.
    """
    cuts, true_positives, false_positives = _counts(labels, probability)
    sensitive = int(np.argmax(true_positives >= TARGET_RATE * true_positives[-1] - 1e-9))
    specific = np.flatnonzero(false_positives <= (1 - TARGET_RATE) * false_positives[-1] + 1e-9)
    f1 = 2 * true_positives / (true_positives[-1] + true_positives + false_positives)
    return {
        "sensitivity-0.95": float(cuts[sensitive]),
        "specificity-0.95": float(cuts[specific[-1]] if len(specific) else np.nextafter(cuts[0], np.inf)),
        "best-f1": float(cuts[np.argmax(f1)]),
        "youden": youden_threshold(labels, probability),
    }


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Threshold with the largest sensitivity + specificity; a score at or above it counts as positive.

    Pass out-of-fold predictions: each from a model that saw neither the patch nor its slide.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,), float

    Returns
    -------
    float
        One of `scores`, the highest if several are equally good; 0.5 if none is better than chance.

    References
    ----------
    Youden (1950), Cancer 3(1):32-35.
    """
    cuts, true_positives, false_positives = _counts(labels, scores)
    # Youden's J times positives times negatives: integers, so ties are exact.
    gain = true_positives * false_positives[-1] - false_positives * true_positives[-1]
    best = int(np.argmax(gain))
    return float(cuts[best]) if gain[best] > 0 else 0.5


def _counts(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores in decreasing order, and the numbers of positives and negatives at or above each."""
    labels, table = check_scores(labels, scores)
    order = np.argsort(-table[:, 0], kind="stable")
    ranked, positive = table[order, 0], labels[order] == 1
    last = np.append(ranked[1:] != ranked[:-1], True)
    return ranked[last], np.cumsum(positive)[last], np.cumsum(~positive)[last]


def shift_prevalence(probability: np.ndarray, old: float, new: float) -> np.ndarray:
    """Correct probabilities for a prevalence that differs from that of the training patches.

    The odds are multiplied by the ratio of the odds of the two prevalences. This is valid if only the shares of
    positives and negatives change, not how they look. The ranking does not change.

    Parameters
    ----------
    probability : ndarray, float, 0 to 1
    old, new : float
        Share of positives in training and in use; above 0 and below 1.

    Returns
    -------
    ndarray, float64, shape kept

    Raises
    ------
    InputError
        A prevalence is not above 0 and below 1.

    References
    ----------
    Saerens, Latinne & Decaestecker (2002), Neural Computation 14(1):21-41, equation 2.4.
    """
    for share in (old, new):
        if not 0 < share < 1:
            raise InputError(f"prevalence must be above 0 and below 1; got {share}. Give a share such as 0.4.")
    values = np.asarray(probability, dtype=np.float64)
    positive, negative = values * (new / old), (1 - values) * ((1 - new) / (1 - old))
    return positive / (positive + negative)
