"""Combiners turn the probabilities of several members into one score: mean, ranks, non-negative weights or stacking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histoblend.models.calibration import fit_log_loss, log_losses, log_odds
from histoblend.models.file_checks import STORED
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic import CHOOSE_ON, LogisticHead

#: All combiners, simplest first. A later one is chosen only if it is clearly better.
COMBINERS = ("mean", "rank", "weights", "stack")
#: Candidate penalties that shrink non-negative weights towards their mean; strongest first.
PENALTIES = (1.0, 0.1, 0.01, 0.001)
#: Candidates for ``C``, scikit-learn's inverse penalty, of logistic stacking.
STRENGTHS = (0.003, 0.03, 0.3, 3.0)
#: Folds inside the training rows of a combiner, for choosing its penalty.
INNER_FOLDS = 3
#: Number of points that store a member's distribution of probabilities, for ranks.
KNOTS = 257


@dataclass(frozen=True)
class Combiner:
    """A fitted combiner: several probabilities to one score between 0 and 1.

    Attributes
    ----------
    kind : str
        One of :data:`COMBINERS`.
    weights : tuple of float
        One per input: of ranks ("rank") or of log-odds ("mean", "weights", "stack").
    intercept : float
        Added to the weighted log-odds.
    strength : float or None
        The chosen penalty, or ``C`` of logistic regression.
    knots, ranks : tuple of tuple of float
        For "rank": increasing probabilities of each member, and the share of reference patches below each.
    """

    __pydantic_config__ = STORED

    kind: str
    weights: tuple[float, ...]
    intercept: float = 0.0
    strength: float | None = None
    knots: tuple[tuple[float, ...], ...] = ()
    ranks: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in COMBINERS:
            raise ValueError(f"combiner must be one of {', '.join(COMBINERS)}; got {self.kind!r}.")
        lengths = [[len(values) for values in table] for table in (self.knots, self.ranks)]
        expected = len(self.weights) if self.kind == "rank" else 0
        if lengths[0] != lengths[1] or len(lengths[0]) != expected or 0 in lengths[0]:
            raise ValueError(f"combiner {self.kind!r} must have {expected} lists of knots, and as many ranks.")
        if any(np.any(np.diff(values) <= 0) for values in self.knots):
            raise ValueError("the knots of combiner 'rank' must increase.")

    def predict(self, probabilities: np.ndarray) -> np.ndarray:
        """Score of each row of ``probabilities`` (n, members), ndarray of shape (n,), float64."""
        from scipy.special import expit

        weights = np.asarray(self.weights)
        if self.kind == "rank":
            columns = [
                np.interp(column, knots, ranks)
                for column, knots, ranks in zip(probabilities.T, self.knots, self.ranks, strict=True)
            ]
            return _weighted_sum(np.stack(columns, axis=1), weights)
        return expit(_weighted_sum(log_odds(probabilities), weights) + self.intercept)


def _weighted_sum(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of each row. The order of addition does not depend on the number of rows."""
    total = np.zeros(len(table))
    for column, weight in zip(table.T, weights, strict=True):
        total += weight * column
    return total


def fit_combiner(kind: str, probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Combiner:
    """Fit one combiner.

    - "mean": the mean of log-odds.
    - "rank": the share of reference patches with a lower score, averaged over members.
    - "weights": non-negative weights on log-odds. The penalty shrinks them towards their mean; a strong
      penalty gives equal weights with a fitted slope.
    - "stack": logistic regression on log-odds, whose weights may be negative.

    The penalty of the last two is chosen by the log loss on inner folds by slide.

    Parameters
    ----------
    kind : str
        One of :data:`COMBINERS`.
    probabilities : ndarray of shape (n, members), float64, 0 to 1
        Out-of-fold.
    labels : ndarray of shape (n,), 0 or 1; both must occur
    groups : ndarray of shape (n,), int
        Slide of each row.
    seed : int

    Returns
    -------
    Combiner

    References
    ----------
    Wolpert (1992), Neural Networks 5(2):241-259. Breiman (1996), Machine Learning 24:49-64 (non-negative weights).
    """
    equal = (1 / probabilities.shape[1],) * probabilities.shape[1]
    if kind == "mean":
        return Combiner(kind, equal)
    if kind == "rank":
        knots, ranks = zip(*(_reference(column) for column in probabilities.T), strict=True)
        return Combiner(kind, equal, knots=knots, ranks=ranks)
    odds = log_odds(probabilities)
    if kind == "weights":
        return _fit_weights(odds, labels, groups, seed)
    head = LogisticHead(STRENGTHS, INNER_FOLDS, seed=seed).fit(odds, labels, groups)
    weights = head.coef_[0] / head.scale_
    return Combiner(kind, tuple(map(float, weights)), float(head.intercept_[0] - head.mean_ @ weights), float(head.C_))


def _reference(column: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """A subset of one member's distinct probabilities, and their mean ranks as shares."""
    values, counts = np.unique(column, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / len(column)
    kept = np.unique(np.linspace(0, len(values) - 1, KNOTS).round().astype(int))
    return tuple(map(float, values[kept])), tuple(map(float, ranks[kept]))


def _fit_weights(odds: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Combiner:
    """Fit the "weights" combiner; ``odds`` are log-odds (n, members)."""
    rows = np.arange(len(odds))
    if len(rows) > CHOOSE_ON:
        rows = np.sort(np.random.default_rng(seed).choice(rows, CHOOSE_ON, replace=False))
    losses: dict[float, list[float]] = {penalty: [] for penalty in PENALTIES}
    for train, part in inner_folds(labels[rows], groups[rows], INNER_FOLDS, seed):
        weights = None
        for penalty in PENALTIES:
            weights = _weights(odds[rows[train]], labels[rows[train]], penalty, weights)
            scores = 1 / (1 + np.exp(-(odds[rows[part]] @ weights[:-1] + weights[-1])))
            losses[penalty].append(float(log_losses(labels[rows[part]], scores).sum()))
    # The strongest penalty wins a tie, and is used if there are too few slides for inner folds.
    chosen = min(PENALTIES, key=lambda penalty: (sum(losses[penalty]), -penalty))
    weights = _weights(odds, labels, chosen, None)
    return Combiner("weights", tuple(map(float, weights[:-1])), float(weights[-1]), chosen)


def _weights(odds: np.ndarray, labels: np.ndarray, penalty: float, start: np.ndarray | None) -> np.ndarray:
    """Weights of the members, then the intercept; ``penalty`` shrinks the weights towards their mean."""
    members = odds.shape[1]
    quadratic = np.zeros((members + 1, members + 1))
    quadratic[:members, :members] = penalty * (np.eye(members) - 1 / members)
    initial = np.append(np.full(members, 1 / members), 0.0) if start is None else start
    lower = [0.0] * members + [-np.inf]
    return fit_log_loss(
        np.column_stack([odds, np.ones(len(odds))]), labels, lower=lower, penalty=quadratic, start=initial
    )
