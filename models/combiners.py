"""Combiners: several members' probabilities into one score, by means, ranks, non-negative weights or stacking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.models.calibration import fit_log_loss, log_losses, log_odds, read_numbers
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic import CHOOSE_ON, LogisticHead

#: The ways to combine, simplest first: a later one has to earn its place.
COMBINERS = ("mean", "rank", "weights", "stack")
#: What non-negative weights are drawn towards their mean with; strongest first.
PENALTIES = (1.0, 0.1, 0.01, 0.001)
#: What logistic stacking chooses from: scikit-learn's inverse penalty.
STRENGTHS = (0.003, 0.03, 0.3, 3.0)
#: Folds inside the rows that a combiner is fitted on, for choosing its strength.
INNER_FOLDS = 3
#: Points that a member's distribution of probabilities is kept with, for ranks.
KNOTS = 257


@dataclass(frozen=True)
class Combiner:
    """Several probabilities into one score between 0 and 1.

    Attributes
    ----------
    kind : str
        One of :data:`COMBINERS`.
    weights : tuple of float
        One an input: of ranks ("rank") or of log-odds ("mean", "weights", "stack").
    intercept : float
        Added to the weighted log-odds.
    strength : float or None
        The penalty that was chosen, or logistic regression's ``C``.
    knots, ranks : tuple of tuple of float
        For "rank": rising probabilities of each member, and the share of the reference patches below each.
    """

    kind: str
    weights: tuple[float, ...]
    intercept: float = 0.0
    strength: float | None = None
    knots: tuple[tuple[float, ...], ...] = ()
    ranks: tuple[tuple[float, ...], ...] = ()

    def predict(self, probabilities: np.ndarray) -> np.ndarray:
        """Score of each row of ``probabilities`` (n, members), ndarray of shape (n,), float64."""
        from scipy.special import expit

        weights = np.asarray(self.weights)
        if self.kind == "rank":
            columns = [
                np.interp(column, knots, ranks)
                for column, knots, ranks in zip(probabilities.T, self.knots, self.ranks, strict=True)
            ]
            return _weigh(np.stack(columns, axis=1), weights)
        return expit(_weigh(log_odds(probabilities), weights) + self.intercept)


def _weigh(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of each row, added up in one order whatever the number of rows."""
    total = np.zeros(len(table))
    for column, weight in zip(table.T, weights, strict=True):
        total += weight * column
    return total


def fit_combiner(kind: str, probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Combiner:
    """Fit one way to combine.

    "mean" is the plain mean of log-odds. "rank" is the mean share of the reference patches that a member scores
    lower. "weights" are non-negative weights on log-odds, drawn towards their own mean, so that the strongest penalty
    gives equal weights with a fitted slope. "stack" is logistic regression on log-odds, whose weights may be negative.
    The strength of the last two is what the log loss on inner folds by slide prefers.

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
    """Probabilities of one member, thinned, and their mean ranks as shares."""
    values, counts = np.unique(column, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2) / len(column)
    kept = np.unique(np.linspace(0, len(values) - 1, KNOTS).round().astype(int))
    return tuple(map(float, values[kept])), tuple(map(float, ranks[kept]))


def _fit_weights(odds: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> Combiner:
    """Non-negative weights; ``odds`` are log-odds (n, members)."""
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
    # The strongest penalty on a tie, and where there are too few slides to choose.
    chosen = min(PENALTIES, key=lambda penalty: (sum(losses[penalty]), -penalty))
    found = _weights(odds, labels, chosen, None)
    return Combiner("weights", tuple(map(float, found[:-1])), float(found[-1]), chosen)


def _weights(odds: np.ndarray, labels: np.ndarray, penalty: float, start: np.ndarray | None) -> np.ndarray:
    """Weights of the members and, last, the intercept; ``penalty`` draws the weights towards their mean."""
    members = odds.shape[1]
    quadratic = np.zeros((members + 1, members + 1))
    quadratic[:members, :members] = penalty * (np.eye(members) - 1 / members)
    first = np.append(np.full(members, 1 / members), 0.0) if start is None else start
    lower = [0.0] * members + [-np.inf]
    return fit_log_loss(
        np.column_stack([odds, np.ones(len(odds))]), labels, lower=lower, penalty=quadratic, start=first
    )


def read_combiner(content: Any, members: int) -> Combiner:
    """The combiner of a stored ensemble."""
    kind = content.get("kind") if isinstance(content, Mapping) else None
    if kind not in COMBINERS:
        raise InputError(f"combiner must be one of {', '.join(COMBINERS)}; got {kind!r}. Get the file again.")
    strength = content.get("strength")
    numbers = read_numbers(
        {"weights": content.get("weights"), "intercept": [content.get("intercept")]}
        | ({} if strength is None else {"strength": [strength]}),
        "numbers of the combiner",
    )
    if not all(isinstance(content.get(name, []), list) for name in ("knots", "ranks")):
        raise InputError("references of the combiner must be lists of numbers; they are not. Get the file again.")
    tables = {
        name: tuple(read_numbers({name: values}, f"{name} of the combiner")[name] for values in content.get(name, ()))
        for name in ("knots", "ranks")
    }
    lengths = [[len(values) for values in table] for table in tables.values()]
    rows = members if kind == "rank" else 0
    if len(numbers["weights"]) != members or lengths[0] != lengths[1] or len(lengths[0]) != rows or 0 in lengths[0]:
        raise InputError(
            f"combiner {kind!r} of {members} members must hold as many weights{' and references' if rows else ''}; got "
            f"{len(numbers['weights'])} and {len(lengths[0])}. Get the file again."
        )
    if any(np.any(np.diff(values) <= 0) for values in tables["knots"]):
        raise InputError("the references of combiner 'rank' must rise; they do not. Get the file again.")
    found = numbers["strength"][0] if "strength" in numbers else None
    return Combiner(kind, numbers["weights"], numbers["intercept"][0], found, tables["knots"], tables["ranks"])
