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
from histoblend.data.splits import leave_both
from histoblend.models.calibration import (
    POINTS,
    Calibrator,
    CalibratorChoice,
    choose_calibrator,
    log_losses,
    operating_points,
    read_numbers,
)
from histoblend.models.combiners import COMBINERS, INNER_FOLDS, Combiner, fit_combiner, read_combiner
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.names import with_means
from histoblend.models.resampling import auc_draws, check_scores, mean_draws, slide_groups


@dataclass(frozen=True)
class Ensemble:
    """Members, how they are combined, calibrated and cut: all that a prediction needs.

    Attributes
    ----------
    members : tuple of str
        Models, in the order of the columns that :meth:`predict` takes.
    slide_means : bool
        Whether members' means over the patch's slide are combined too: the combiner's inputs are the members and, after
        them, the means of those that :func:`models.names.with_means` names.
    combiner : Combiner
    calibrator : Calibrator
    thresholds : dict from str to float
        For each of :data:`models.calibration.POINTS`; a probability at or above it counts as positive.
    prevalence : float
        Share of positives among the patches that it was fitted on.
    """

    members: tuple[str, ...]
    slide_means: bool
    combiner: Combiner
    calibrator: Calibrator
    thresholds: dict[str, float]
    prevalence: float

    def predict(self, probabilities: np.ndarray, means: np.ndarray | None = None) -> np.ndarray:
        """Calibrated probability of each row, ndarray of shape (n,), float64.

        A row's result does not depend on the other rows.

        Parameters
        ----------
        probabilities : ndarray of shape (n, members), float64, 0 to 1
        means : ndarray of shape (n, members), float64, 0 to 1, optional
            With ``slide_means``: from :func:`models.slide_means.slide_means`, over all patches of each slide.

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
        if self.slide_means and (means is None or means.shape != table.shape):
            got = None if means is None else means.shape
            raise ValueError(f"means must have the shape of probabilities, {table.shape}; got {got}.")
        inputs = combiner_inputs(self.members, table, means if self.slide_means else None)
        return self.calibrator.predict(self.combiner.predict(inputs))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        combiner = self.combiner
        return {
            "members": list(self.members),
            "slide_means": self.slide_means,
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
        wanted = ("members", "slide_means", "combiner", "calibrator", "thresholds", "prevalence")
        if not isinstance(content, Mapping) or set(content) != set(wanted):
            raise InputError(f"an ensemble must hold {', '.join(wanted)}; got something else. Get the file again.")
        listed, thresholds, means = content["members"], content["thresholds"], content["slide_means"]
        if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
            raise InputError(f"members of an ensemble must be names; got {listed!r}. Get the file again.")
        if not isinstance(means, bool):
            raise InputError(f"slide_means of an ensemble must be true or false; got {means!r}. Get the file again.")
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
            means,
            read_combiner(content["combiner"], len(members) + means * len(with_means(members))),
            Calibrator.from_dict(content["calibrator"]),
            {name: values[0] for name, values in numbers.items()},
            prevalence,
        )


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
    means: np.ndarray | None = None,
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
    means : ndarray of shape (n, members), float64, 0 to 1, optional
        The same over each patch's slide, from :func:`models.slide_means.slide_means`: combined too.
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
    labels, table = check_scores(labels, combiner_inputs(members, probabilities, means))
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
        means is not None,
        fit_combiner(chosen, table, labels, units, seed),
        calibration.calibrator,
        operating_points(labels, calibration.probability),
        float(labels.mean()),
    )
    return Fitted(ensemble, scores, compared, calibration)


def combiner_inputs(members: Sequence[str], probabilities: np.ndarray, means: np.ndarray | None) -> np.ndarray:
    """Members' probabilities and, where they are combined too, means over slides that say something, side by side."""
    return probabilities if means is None else np.concatenate([probabilities, means[:, with_means(members)]], axis=1)


def usable_parts(labels: np.ndarray, units: np.ndarray, folds: np.ndarray, seed: int) -> list[np.ndarray]:
    """Rows of each fold, or of new folds by slide where a rest would lack a class; none where no division does it."""
    parts = [np.flatnonzero(folds == number) for number in np.unique(folds)]
    return parts if leave_both(labels, parts) else [part for _, part in inner_folds(labels, units, INNER_FOLDS, seed)]


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
