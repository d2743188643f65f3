"""Ensemble: several models' probabilities combined, chosen and calibrated on predictions for slides not learned from.

What is fitted here sees out-of-fold predictions only: a patch's probability under each member, from a fit that held its
slide out. Nested scores hold out once more: combiner, calibrator and thresholds are chosen and fitted on the other
folds and judged on this one. One path stays open. The members' predictions for the other folds come from fits that have
seen this fold's labels, so a member's weight knows a little of how well its features fit here. It is second-order (a
member that is pure noise gains nothing by it, as the tests show) and closing it would take every member's folds anew
for each fold. The held-out test slides are untouched by all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histoblend.data.errors import InputError
from histoblend.models.calibration import (
    POINTS,
    Calibrator,
    CalibratorChoice,
    choose_calibrator,
    fit_log_loss,
    log_losses,
    log_odds,
    operating_points,
    read_numbers,
)
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.heads.logistic import CHOOSE_ON, LogisticHead
from histoblend.models.resampling import auc_draws, check_scores, mean_draws, slide_groups

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
        One a member: of probabilities ("mean"), of ranks ("rank") or of log-odds ("weights", "stack").
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
        if self.kind == "mean":
            return _weigh(probabilities, weights)
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

    "mean" is the plain mean of probabilities. "rank" is the mean share of the reference patches that a member scores
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


@dataclass(frozen=True)
class Ensemble:
    """Members, how they are combined, calibrated and cut: all that a prediction needs.

    Attributes
    ----------
    members : tuple of str
        Models, in the order of the columns that :meth:`predict` takes.
    combiner : Combiner
    calibrator : Calibrator
    thresholds : dict from str to float
        For each of :data:`models.calibration.POINTS`; a probability at or above it counts as positive.
    prevalence : float
        Share of positives among the patches that it was fitted on.
    """

    members: tuple[str, ...]
    combiner: Combiner
    calibrator: Calibrator
    thresholds: dict[str, float]
    prevalence: float

    def predict(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrated probability of each row, ndarray of shape (n,), float64.

        A row's result does not depend on the other rows.

        Parameters
        ----------
        probabilities : ndarray of shape (n, members), float64, 0 to 1

        Raises
        ------
        InputError
            The shape is another one, or a probability is no number between 0 and 1.
        """
        table = np.asarray(probabilities, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != len(self.members):
            raise InputError(
                f"probabilities must have a column for each of {', '.join(self.members)}; got shape {table.shape}."
            )
        wrong = ~((table >= 0) & (table <= 1))
        if wrong.any():
            row, column = (int(place[0]) for place in np.nonzero(wrong))
            raise InputError(
                f"probabilities must be between 0 and 1; got {table[row, column]} from {self.members[column]} in row "
                f"{row}. Leave such rows out, or use an ensemble without that member."
            )
        return self.calibrator.predict(self.combiner.predict(table))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        combiner = self.combiner
        return {
            "members": list(self.members),
            "combiner": {
                "kind": combiner.kind,
                "weights": list(combiner.weights),
                "intercept": combiner.intercept,
                "strength": combiner.strength,
                "knots": [list(values) for values in combiner.knots],
                "ranks": [list(values) for values in combiner.ranks],
            },
            "calibrator": self.calibrator.to_dict(),
            "thresholds": dict(self.thresholds),
            "prevalence": self.prevalence,
        }

    @classmethod
    def from_dict(cls, content: Any) -> Ensemble:
        """Read what :meth:`to_dict` gave.

        Raises
        ------
        InputError
            A part is missing, of an unknown kind, or of another length than the members.
        """
        wanted = ("members", "combiner", "calibrator", "thresholds", "prevalence")
        if not isinstance(content, Mapping) or set(content) != set(wanted):
            raise InputError(f"an ensemble must hold {', '.join(wanted)}; got something else. Get the file again.")
        listed, thresholds = content["members"], content["thresholds"]
        if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
            raise InputError(f"members of an ensemble must be names; got {listed!r}. Get the file again.")
        if not isinstance(thresholds, Mapping):
            raise InputError(f"thresholds of an ensemble must have names; got {thresholds!r}. Get the file again.")
        members = tuple(listed)
        numbers = read_numbers(
            {name: [value] for name, value in thresholds.items()} | {"": [content["prevalence"]]},
            "thresholds and prevalence",
        )
        prevalence = numbers.pop("")[0]
        if set(numbers) != set(POINTS) or not 0 < prevalence < 1:
            raise InputError(
                f"an ensemble must hold thresholds for {', '.join(POINTS)} and a prevalence above 0 and below 1; got "
                f"{', '.join(numbers)} and {prevalence}. Get the file again."
            )
        return cls(
            members,
            _read_combiner(content["combiner"], len(members)),
            Calibrator.from_dict(content["calibrator"]),
            {name: values[0] for name, values in numbers.items()},
            prevalence,
        )


def _read_combiner(content: Any, members: int) -> Combiner:
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


@dataclass(frozen=True)
class Fitted:
    """An ensemble, and how it came to be what it is.

    Attributes
    ----------
    ensemble : Ensemble
    scores : dict from str to ndarray of shape (n,)
        Of each way to combine: what it gives for each row when fitted on the other folds, not calibrated.
    compared : list of dict
        ``combiner, calibrator, auc, auc_behind, auc_spread, log_loss, log_loss_behind, log_loss_spread, chosen``, one
        for each way to combine: ``behind`` is what it lacks to the best one, ``spread`` the standard error of that.
    calibration : CalibratorChoice
    """

    ensemble: Ensemble
    scores: dict[str, np.ndarray]
    compared: list[dict[str, Any]]
    calibration: CalibratorChoice


def fit_ensemble(
    members: Sequence[str],
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    *,
    combiners: Sequence[str] = COMBINERS,
    draws: int = 500,
    seed: int = 0,
) -> Fitted:
    """Choose a combiner, a calibrator and thresholds, and fit them on all rows.

    Every combiner is fitted on all folds but one and gives scores for that one; on these its calibrator is chosen
    (:func:`models.calibration.choose_calibrator`). The simplest combiner is taken that is worse than the best by no
    more than one standard error in AUC, and likewise in log loss, calibrated as it would be: both the order of patches
    and the probability itself are what an ensemble is for. Standard errors are those of paired differences over
    resampled slides. The cross-fitted probabilities of the one that was taken choose the thresholds. With fewer than
    two usable folds there is nothing to choose by: the mean is taken as it is.

    Parameters
    ----------
    members : sequence of str
    probabilities : ndarray of shape (n, members), float64, 0 to 1
        Out-of-fold predictions.
    labels : ndarray of shape (n,), 0 or 1; both must occur
    groups : ndarray of shape (n,)
        Slide of each row, anything that compares equal.
    folds : ndarray of shape (n,), int
    combiners : sequence of str
        To choose from.
    draws, seed : int
        For resampling slides and inner folds.

    Returns
    -------
    Fitted

    References
    ----------
    Breiman, Friedman, Olshen & Stone (1984), Classification and Regression Trees, section 3.4.3 (one standard error).
    """
    labels, table = check_scores(labels, probabilities)
    units = slide_groups(np.asarray(groups, dtype=object))
    parts = usable_parts(labels, units, folds, seed)
    kinds = [kind for kind in COMBINERS if kind in combiners] if len(parts) > 1 else ["mean"]
    scores = {kind: hold_out(kind, table, labels, units, parts, seed) for kind in kinds}
    calibrations = {
        kind: choose_calibrator(score, labels, units, parts, draws=draws, seed=seed) for kind, score in scores.items()
    }
    compared = _compare(scores, calibrations, labels, units, draws, seed)
    chosen = next(row["combiner"] for row in compared if row["chosen"])
    calibration = calibrations[chosen]
    ensemble = Ensemble(
        tuple(members),
        fit_combiner(chosen, table, labels, units, seed),
        calibration.calibrator,
        operating_points(labels, calibration.probability),
        float(labels.mean()),
    )
    return Fitted(ensemble, scores, compared, calibration)


def usable_parts(labels: np.ndarray, units: np.ndarray, folds: np.ndarray, seed: int) -> list[np.ndarray]:
    """Rows of each fold, or of new folds by slide where there is but one; none where a rest would lack a class."""
    parts = [np.flatnonzero(folds == number) for number in np.unique(folds)]
    if len(parts) < 2:
        parts = [part for _, part in inner_folds(labels, units, INNER_FOLDS, seed)]
    rest = [np.delete(labels, part) for part in parts]
    covered = sum(map(len, parts)) == len(labels)
    return parts if covered and all(np.unique(left).size == 2 for left in rest) else []


def hold_out(
    kind: str, table: np.ndarray, labels: np.ndarray, units: np.ndarray, parts: Sequence[np.ndarray], seed: int
) -> np.ndarray:
    """What a combiner gives for each part when fitted on the others, ndarray of shape (n,)."""
    if kind == "mean" or len(parts) < 2:
        return fit_combiner("mean", table, labels, units, seed).predict(table)
    score = np.empty(len(table))
    for part in parts:
        rest = np.setdiff1d(np.arange(len(table)), part, assume_unique=True)
        score[part] = fit_combiner(kind, table[rest], labels[rest], units[rest], seed).predict(table[part])
    return score


def _compare(
    scores: Mapping[str, np.ndarray],
    calibrations: Mapping[str, CalibratorChoice],
    labels: np.ndarray,
    units: np.ndarray,
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Judge the combiners and mark the simplest one that is within a standard error of the best, twice."""
    from sklearn.metrics import roc_auc_score

    table = np.stack(list(scores.values()), axis=1)
    losses = log_losses(labels, np.stack([calibrations[kind].probability for kind in scores], axis=1))
    auc, loss = np.array([roc_auc_score(labels, column) for column in table.T]), losses.mean(axis=0)
    auc_behind, auc_spread = _behind(auc, auc_draws(labels, table, units, draws=draws, seed=seed), draws)
    loss_behind, loss_spread = _behind(-loss, -mean_draws(losses, units, draws=draws, seed=seed), draws)
    near = (auc_behind <= auc_spread) & (loss_behind <= loss_spread)
    # Where the best in one is far from the best in the other, ranking decides.
    chosen = int(np.argmax(near if near.any() else auc_behind <= auc_spread))
    return [
        {
            "combiner": kind,
            "calibrator": calibrations[kind].calibrator.kind,
            "auc": float(auc[place]),
            "auc_behind": float(auc_behind[place]),
            "auc_spread": float(auc_spread[place]),
            "log_loss": float(loss[place]),
            "log_loss_behind": float(loss_behind[place]),
            "log_loss_spread": float(loss_spread[place]),
            "chosen": place == chosen,
        }
        for place, kind in enumerate(scores)
    ]


def _behind(score: np.ndarray, drawn: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """What each score lacks to the best, and the standard error of that over resampled slides."""
    best = int(np.argmax(score))
    # Where most draws hold one class, nothing can be told apart, and the simplest is as good as any.
    told = 2 * len(drawn) >= draws
    spread = (drawn[:, [best]] - drawn).std(axis=0, ddof=1) if told else np.full(len(score), np.inf)
    return score[best] - score, spread


@dataclass(frozen=True)
class Nested:
    """What the whole procedure, choices included, gives for folds that it has not seen.

    Attributes
    ----------
    probability : ndarray of shape (n,), float64
    thresholds : dict from str to ndarray of shape (n,)
        For each operating point: the threshold that the other folds gave.
    single : ndarray of shape (n,), float64
        Probability of the member that was best, by AUC, on the other folds.
    choices : list of dict
        ``fold, combiner, calibrator, single`` a fold.
    """

    probability: np.ndarray
    thresholds: dict[str, np.ndarray]
    single: np.ndarray
    choices: list[dict[str, Any]]


def nest(
    members: Sequence[str],
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    *,
    combiners: Sequence[str] = COMBINERS,
    draws: int = 500,
    seed: int = 0,
) -> Nested:
    """Hold out every fold once from :func:`fit_ensemble`, choices and all; the parameters are the same.

    Where all rows are of one fold, new ones are made by slide, as :func:`fit_ensemble` makes them. A fold whose rest
    lacks a class is predicted by the plain mean, cut at one half.
    """
    from sklearn.metrics import roc_auc_score

    labels, table = check_scores(labels, probabilities)
    groups = np.asarray(groups, dtype=object)
    if np.unique(folds).size < 2:
        folds = np.zeros(len(labels), dtype=int)
        for number, part in enumerate(usable_parts(labels, slide_groups(groups), folds, seed)):
            folds[part] = number
    probability, single = np.empty(len(labels)), np.empty(len(labels))
    thresholds = {name: np.full(len(labels), 0.5) for name in POINTS}
    choices = []
    for fold in np.unique(folds):
        out, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if np.unique(labels[rest]).size < 2:
            probability[out], single[out] = table[out].mean(axis=1), table[out, 0]
            continue
        aucs = [roc_auc_score(labels[rest], column) for column in table[rest].T]
        best = int(np.argmax(aucs))
        fitted = fit_ensemble(
            members, table[rest], labels[rest], groups[rest], folds[rest], combiners=combiners, draws=draws, seed=seed
        ).ensemble
        probability[out], single[out] = fitted.predict(table[out]), table[out, best]
        for name, threshold in fitted.thresholds.items():
            thresholds[name][out] = threshold
        choices.append(
            {
                "fold": int(fold),
                "combiner": fitted.combiner.kind,
                "calibrator": fitted.calibrator.kind,
                "single": members[best],
            }
        )
    return Nested(probability, thresholds, single, choices)


def without_each(
    kind: str, probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, folds: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Held-out scores of a combiner with all members (first column), and without each in turn.

    Parameters
    ----------
    kind : str
        One of :data:`COMBINERS`; it is not chosen anew.
    probabilities : ndarray of shape (n, members), float64, 0 to 1
    labels : ndarray of shape (n,), 0 or 1
    groups, folds : ndarray of shape (n,)
    seed : int

    Returns
    -------
    ndarray of shape (n, 1 + members), float64
        Missing where there is no other member.
    """
    labels, table = check_scores(labels, probabilities)
    units = slide_groups(np.asarray(groups, dtype=object))
    parts = usable_parts(labels, units, folds, seed)
    columns = [hold_out(kind, table, labels, units, parts, seed)]
    for place in range(table.shape[1]):
        others = np.delete(table, place, axis=1)
        alone = others.shape[1] == 0
        columns.append(np.full(len(table), np.nan) if alone else hold_out(kind, others, labels, units, parts, seed))
    return np.stack(columns, axis=1)


def error_correlations(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Correlation (Pearson) of members' errors, label minus probability, ndarray of shape (members, members).

    Missing where a member's error never changes.
    """
    errors = np.asarray(labels)[:, None] - np.asarray(probabilities, dtype=np.float64)
    centred = errors - errors.mean(axis=0)
    size = np.sqrt((centred**2).sum(axis=0))
    size[size < 1e-12] = np.nan
    return (centred / size).T @ (centred / size)
