"""Calibration: what makes a score a probability, where to cut it, and what another prevalence does to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.models.resampling import check_scores, mean_draws, percentile_interval

#: Probabilities are kept this far from 0 and 1 before their log-odds are taken: ±13.8.
LIMIT = 1e-6

#: The same where single patches are ranked or explained, and confident ones must still differ: ±27.6.
CLOSEST = 1e-12

#: Operating points, and the share that the first two ask for.
POINTS = ("sensitivity-0.95", "specificity-0.95", "best-f1", "youden")
WANTED = 0.95


def log_odds(probability: np.ndarray, limit: float = LIMIT) -> np.ndarray:
    """Natural logarithm of the odds, float64; probabilities closer than `limit` to 0 or 1 are moved there."""
    kept = np.clip(np.asarray(probability, dtype=np.float64), limit, 1 - limit)
    return np.log(kept) - np.log1p(-kept)


def log_losses(labels: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Log loss of each patch in nats, ndarray of the shape of ``probability``; bounded by :data:`LIMIT`."""
    odds = log_odds(probability)
    signs = np.where(np.asarray(labels) == 1, 1.0, -1.0)
    return np.logaddexp(0, -odds * signs.reshape(signs.shape + (1,) * (odds.ndim - 1)))


def soft_targets(labels: np.ndarray) -> np.ndarray:
    """What a fit aims at instead of 1 and 0, ndarray of shape (n,): (N₊ + 1) / (N₊ + 2) and 1 / (N₋ + 2).

    It keeps slopes finite where scores separate the classes.

    References
    ----------
    Platt (1999), Advances in Large Margin Classifiers, 61-74.
    """
    positive = np.asarray(labels) == 1
    return np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2))


def fit_log_loss(
    columns: np.ndarray,
    labels: np.ndarray,
    *,
    lower: Sequence[float],
    penalty: np.ndarray | None = None,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Weights of a sum of columns, read as log-odds, that make the mean log loss smallest.

    Parameters
    ----------
    columns : ndarray of shape (n, k), float64
    labels : ndarray of shape (n,), 0 or 1
        Softened by :func:`soft_targets`.
    lower : sequence of k float
        Smallest weight of each column; ``-inf`` for none.
    penalty : ndarray of shape (k, k), optional
        Q of half of wᵀQw, which is added to the mean log loss; symmetric and not negative.
    start : ndarray of shape (k,), optional

    Returns
    -------
    ndarray of shape (k,), dtype float64
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    targets = soft_targets(labels)
    count, width = columns.shape
    quadratic = np.zeros((width, width)) if penalty is None else penalty

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = columns @ weights
        pull = quadratic @ weights
        loss = np.mean(np.logaddexp(0, odds) - targets * odds) + weights @ pull / 2
        return loss, columns.T @ (expit(odds) - targets) / count + pull

    first = np.maximum(np.zeros(width), np.asarray(lower)) if start is None else start
    found = minimize(
        objective,
        first,
        jac=True,
        method="L-BFGS-B",
        bounds=[(low if np.isfinite(low) else None, None) for low in lower],
        options={"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-8},
    )
    return np.asarray(found.x, dtype=np.float64)


@dataclass(frozen=True)
class Calibrator:
    """A monotonic map from a score between 0 and 1 to a probability.

    Attributes
    ----------
    kind : str
        Row of :data:`CALIBRATORS`.
    numbers : mapping from str to tuple of float
        What was fitted.
    """

    kind: str = "none"
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def predict(self, score: np.ndarray) -> np.ndarray:
        """Calibrated probability of each score, float64, shape kept."""
        return CALIBRATORS[self.kind].apply(np.asarray(score, dtype=np.float64), self.numbers)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"kind": self.kind, "numbers": {name: list(values) for name, values in self.numbers.items()}}

    @classmethod
    def from_dict(cls, content: Any) -> Calibrator:
        """Read what :meth:`to_dict` gave.

        Raises
        ------
        InputError
            The kind is unknown, or its numbers are not those that it needs.
        """
        kind = content.get("kind") if isinstance(content, Mapping) else None
        if kind not in CALIBRATORS:
            raise InputError(f"calibrator must be one of {', '.join(CALIBRATORS)}; got {kind!r}. Get the file again.")
        numbers = read_numbers(content.get("numbers"), "numbers of the calibrator")
        names, sizes = CALIBRATORS[kind].names, [len(values) for values in numbers.values()]
        if set(numbers) != set(names) or (sizes and (min(sizes) < 1 or max(sizes) > min(sizes))):
            raise InputError(f"calibrator {kind!r} must hold {names}; got {sorted(numbers)}. Get the file again.")
        if kind != "isotonic" and any(size > 1 for size in sizes):
            raise InputError(
                f"calibrator {kind!r} must hold a number for each of {names}; got more. Get the file again."
            )
        if kind == "isotonic" and np.any(np.diff(numbers["from"]) <= 0):
            raise InputError("the scores of calibrator 'isotonic' must rise; they do not. Get the file again.")
        return cls(kind, numbers)


def read_numbers(content: Any, words: str) -> dict[str, tuple[float, ...]]:
    """Lists of finite numbers by name, as they come from JSON.

    Raises
    ------
    InputError
        Something else came.
    """
    try:
        numbers = {str(name): tuple(float(value) for value in values) for name, values in dict(content).items()}
    except (TypeError, ValueError) as error:
        raise InputError(f"{words} must be lists of numbers; got {content!r}. Get the file again.") from error
    if not all(np.isfinite(values).all() for values in numbers.values()):
        raise InputError(f"{words} must be finite; got {content!r}. Get the file again.")
    return numbers


def fit_calibrator(kind: str, score: np.ndarray, labels: np.ndarray) -> Calibrator:
    """Fit one kind of calibrator.

    Parameters
    ----------
    kind : str
        Row of :data:`CALIBRATORS`.
    score : ndarray of shape (n,), 0 to 1
        Of patches that the scoring model has not seen.
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
    """How one kind is fitted and applied, and the names of its numbers."""

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
        found = fit_log_loss(table(score), labels, lower=lower, start=start)
        return {name: (float(value),) for name, value in zip(names, found, strict=True)}

    def apply(score: np.ndarray, numbers: Mapping[str, tuple[float, ...]]) -> np.ndarray:
        from scipy.special import expit

        return expit(sum(numbers[name][0] * column for name, column in zip(names, columns(score), strict=True)))

    return _Method(names, fit, apply)


def _platt(score: np.ndarray) -> list[np.ndarray]:
    return [log_odds(score), np.ones_like(score)]


def _beta(score: np.ndarray) -> list[np.ndarray]:
    kept = np.clip(score, LIMIT, 1 - LIMIT)
    return [np.log(kept), -np.log1p(-kept), np.ones_like(score)]


def _fit_isotonic(score: np.ndarray, labels: np.ndarray) -> dict[str, tuple[float, ...]]:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(out_of_bounds="clip").fit(score, labels)
    # n patches of one class do not make the other impossible.
    rest = 1 / (len(labels) + 2)
    heights = np.clip(model.y_thresholds_, rest, 1 - rest)
    return {"from": tuple(map(float, model.X_thresholds_)), "to": tuple(map(float, heights))}


def _apply_isotonic(score: np.ndarray, numbers: Mapping[str, tuple[float, ...]]) -> np.ndarray:
    return np.interp(score, numbers["from"], numbers["to"])


#: The whole registry, simplest first: on a tie the simpler one is taken.
CALIBRATORS: dict[str, _Method] = {
    "none": _Method((), lambda score, labels: {}, lambda score, numbers: score),
    "temperature": _linear(("slope",), lambda score: [log_odds(score)], (0.0,)),
    "platt": _linear(("slope", "intercept"), _platt, (0.0, -np.inf)),
    "beta": _linear(("low", "high", "intercept"), _beta, (0.0, 0.0, -np.inf)),
    "isotonic": _Method(("from", "to"), _fit_isotonic, _apply_isotonic),
}


@dataclass(frozen=True)
class CalibratorChoice:
    """Which calibrator was taken, and why.

    Attributes
    ----------
    calibrator : Calibrator
        Fitted on all rows.
    probability : ndarray of shape (n,), float64
        Cross-fitted: each row calibrated by what the other parts taught.
    compared : list of dict
        ``calibrator, log_loss, brier, gain, gain_low, gain_high, chosen`` of each kind; the gain is what the log loss
        falls by against no calibration, with its 95 % interval from resampling slides.
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
    """Calibrate only where that is reliably better than to leave scores as they are.

    Every kind is fitted on all parts but one and judged on that one. A kind is a candidate when the 95 % interval, from
    resampling slides, of what it takes off the mean log loss lies above 0. Of the candidates the simplest is taken that
    is worse than the best of them by no more than one standard error of their paired difference. Without candidates, or
    with fewer than two parts, scores stay as they are.

    Parameters
    ----------
    score : ndarray of shape (n,), 0 to 1
    labels : ndarray of shape (n,), 0 or 1
    groups : ndarray of shape (n,), int
        Resampling unit of each row, from :func:`models.resampling.slide_groups`.
    parts : sequence of ndarray of int
        Rows of each part; together all rows, no slide in two.
    draws, seed : int

    Returns
    -------
    CalibratorChoice
    """
    kinds = list(CALIBRATORS) if len(parts) > 1 else ["none"]
    crossed = np.stack([_cross_fit(kind, score, labels, parts) for kind in kinds], axis=1)
    losses = log_losses(labels, crossed)
    mean = losses.mean(axis=0)
    drawn = mean_draws(losses, groups, draws=draws, seed=seed)
    low, high = percentile_interval(drawn[:, :1] - drawn)
    sure = [place for place in range(1, len(kinds)) if low[place] > 0]
    chosen = 0
    if sure:
        best = min(sure, key=lambda place: mean[place])
        spread = (drawn - drawn[:, [best]]).std(axis=0, ddof=1)
        chosen = next(place for place in sure if mean[place] - mean[best] <= spread[place])
    compared = [
        {
            "calibrator": kind,
            "log_loss": float(mean[place]),
            "brier": float(np.mean((crossed[:, place] - labels) ** 2)),
            "gain": float(mean[0] - mean[place]),
            "gain_low": float(low[place]),
            "gain_high": float(high[place]),
            "chosen": place == chosen,
        }
        for place, kind in enumerate(kinds)
    ]
    return CalibratorChoice(fit_calibrator(kinds[chosen], score, labels), crossed[:, chosen], compared)


def _cross_fit(kind: str, score: np.ndarray, labels: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Each part calibrated by a fit on the others, ndarray of shape (n,)."""
    if kind == "none":
        return np.asarray(score, dtype=np.float64)
    probability = np.empty(len(score))
    for part in parts:
        others = np.setdiff1d(np.arange(len(score)), part, assume_unique=True)
        probability[part] = fit_calibrator(kind, score[others], labels[others]).predict(score[part])
    return probability


def operating_points(labels: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Thresholds for stated purposes; a probability at or above one counts as positive.

    Give it out-of-fold predictions: a threshold chosen on what a model was fitted on would be too high.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1; both must occur
    probability : ndarray of shape (n,), float

    Returns
    -------
    dict from str to float
        ``sensitivity-0.95``: the highest threshold that finds 95 % of the positives; ``specificity-0.95``: the lowest
        that leaves 95 % of the negatives alone; ``best-f1``; ``youden``: :func:`youden_threshold`. Each is one of the
        probabilities, or the next number above them where even the highest is shared by too many negatives.
    """
    cuts, found, wrong = _counts(labels, probability)
    sensitive = int(np.argmax(found >= WANTED * found[-1] - 1e-9))
    fine = np.flatnonzero(wrong <= (1 - WANTED) * wrong[-1] + 1e-9)
    f1 = 2 * found / (found[-1] + found + wrong)
    return {
        "sensitivity-0.95": float(cuts[sensitive]),
        "specificity-0.95": float(cuts[fine[-1]] if len(fine) else np.nextafter(cuts[0], np.inf)),
        "best-f1": float(cuts[np.argmax(f1)]),
        "youden": youden_threshold(labels, probability),
    }


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """Score from which on a patch counts as positive, chosen where sensitivity + specificity is largest.

    Give it out-of-fold predictions: each stems from a model that saw neither the patch nor its slide.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,), float

    Returns
    -------
    float
        One of `scores`, the highest when several are as good; 0.5 when none does better than chance.

    References
    ----------
    Youden (1950), Cancer 3(1):32-35.
    """
    cuts, found, wrong = _counts(labels, scores)
    # Compared as integers, so that a tie is a tie: J times positives times negatives.
    gain = found * wrong[-1] - wrong * found[-1]
    best = int(np.argmax(gain))
    return float(cuts[best]) if gain[best] > 0 else 0.5


def _counts(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores, falling, with the positives and the negatives at or above each."""
    labels, table = check_scores(labels, scores)
    order = np.argsort(-table[:, 0], kind="stable")
    ranked, positive = table[order, 0], labels[order] == 1
    last = np.append(ranked[1:] != ranked[:-1], True)
    return ranked[last], np.cumsum(positive)[last], np.cumsum(~positive)[last]


def shift_prevalence(probability: np.ndarray, old: float, new: float) -> np.ndarray:
    """Probabilities where positives are more, or less, common than where the model was fitted.

    The odds are multiplied by the ratio of the odds of the two prevalences. It holds where positives and negatives look
    as they did before and only their shares differ; the ranking stays what it was.

    Parameters
    ----------
    probability : ndarray, float, 0 to 1
    old, new : float
        Share of positives where the model was fitted, and where it is used; above 0 and below 1.

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
