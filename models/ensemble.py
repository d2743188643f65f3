"""Ensemble: combines and calibrates the probabilities of several models.

Everything here is fitted on out-of-fold predictions only: each patch's probability comes from a fit without its slide.
For nested scores, combiner, calibrator and thresholds are chosen and fitted on the other folds and judged on the
held-out fold. One leak remains. The members' predictions for the other folds come from fits that used the labels of the
held-out fold, so a member's weight reflects a little how well its features fit there. The effect is second-order: the
tests show that a member of pure noise gains nothing. Removing it would require fitting all members again for each fold.
The test slides are not used at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
)
from histoblend.models.combiners import COMBINERS, INNER_FOLDS, Combiner, fit_combiner
from histoblend.models.file_checks import STORED, read_as
from histoblend.models.heads.inner_folds import inner_folds
from histoblend.models.names import with_means
from histoblend.models.resampling import auc_draws, check_scores, mean_draws, slide_groups


@dataclass(frozen=True)
class Ensemble:
    """A fitted ensemble: members, combiner, calibrator and decision thresholds.

    Attributes
    ----------
    members : tuple of str
        Models, in the order of the columns that :meth:`predict` takes.
    slide_means : bool
        Whether members' means over the patch's slide are combined too. The combiner's inputs are then the members,
        followed by the means of those that :func:`models.names.with_means` lists.
    combiner : Combiner
    calibrator : Calibrator
    thresholds : dict from str to float
        One for each of :data:`models.calibration.POINTS`; a probability at or above it counts as positive.
    prevalence : float
        Share of positives among the training patches.
    """

    __pydantic_config__ = STORED

    members: tuple[str, ...]
    slide_means: bool
    combiner: Combiner
    calibrator: Calibrator
    thresholds: dict[str, float]
    prevalence: float

    def __post_init__(self) -> None:
        inputs = len(self.members) + self.slide_means * len(with_means(self.members))
        if not self.members or len(self.combiner.weights) != inputs:
            raise ValueError(f"combiner must have {inputs} weights; got {len(self.combiner.weights)}.")
        if set(self.thresholds) != set(POINTS):
            raise ValueError(f"thresholds must be {', '.join(POINTS)}; got {', '.join(self.thresholds)}.")
        if not 0 < self.prevalence < 1:
            raise ValueError(f"prevalence must be above 0 and below 1; got {self.prevalence}.")

    def predict(self, probabilities: np.ndarray, means: np.ndarray | None = None) -> np.ndarray:
        """Calibrated probability of each row, ndarray of shape (n,), float64.

        A row's result does not depend on the other rows.

        Parameters
        ----------
        probabilities : ndarray of shape (n, members), float64, 0 to 1
        means : ndarray of shape (n, members), float64, 0 to 1, optional
            Needed with ``slide_means``: from :func:`models.slide_means.slide_means`, over all patches of each slide.

        Raises
        ------
        InputError
            The shape differs, or a probability is not between 0 and 1.
        """
        table = np.asarray(probabilities, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != len(self.members):
            raise InputError(
                f"probabilities must have one column for each of {', '.join(self.members)}; got shape {table.shape}."
            )
        invalid = ~((table >= 0) & (table <= 1))
        if invalid.any():
            row, column = (int(indices[0]) for indices in np.nonzero(invalid))
            raise InputError(
                f"probabilities must be between 0 and 1; got {table[row, column]} from {self.members[column]} in row "
                f"{row}. Remove such rows, or use an ensemble without that member."
            )
        if self.slide_means and (means is None or means.shape != table.shape):
            shape = None if means is None else means.shape
            raise ValueError(f"means must have the shape of probabilities, {table.shape}; got {shape}.")
        inputs = combiner_inputs(self.members, table, means if self.slide_means else None)
        return self.calibrator.predict(self.combiner.predict(inputs))

    def to_dict(self) -> dict[str, Any]:
        """Return the content as plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Any) -> Ensemble:
        """Make an ensemble from the result of :meth:`to_dict`.

        Raises
        ------
        InputError
            An entry is missing or unknown, or its length does not match the number of members.
        """
        return read_as(cls, content, "ensemble")


@dataclass(frozen=True)
class Fitted:
    """A fitted ensemble, and the comparisons that led to it.

    Attributes
    ----------
    ensemble : Ensemble
    scores : dict from str to ndarray of shape (n,)
        By combiner: its uncalibrated score of each row when fitted on the other folds.
    compared : list of dict
        ``combiner, calibrator, auc, auc_behind, auc_spread, log_loss, log_loss_behind, log_loss_spread, chosen``, one
        dict per combiner. ``behind`` is the difference from the best combiner, ``spread`` its standard error.
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

    Each combiner is fitted on all folds but one and scores that fold. Its calibrator is chosen on these scores
    (:func:`models.calibration.choose_calibrator`). The choice is the simplest combiner within one standard error of the
    best in AUC and also in calibrated log loss, because an ensemble must give both a good ranking and good
    probabilities. Standard errors are those of paired differences over resampled slides. Thresholds are chosen on the
    cross-fitted probabilities of the chosen combiner. With fewer than two usable folds, the result is the mean without
    calibration.

    Parameters
    ----------
    members : sequence of str
    probabilities : ndarray of shape (n, members), float64, 0 to 1
        Out-of-fold predictions.
    labels : ndarray of shape (n,), 0 or 1; both must occur
    groups : ndarray of shape (n,)
        Slide of each row; any values that can be compared.
    folds : ndarray of shape (n,), int
    means : ndarray of shape (n, members), float64, 0 to 1, optional
        Means over each patch's slide, from :func:`models.slide_means.slide_means`, as further inputs.
    combiners : sequence of str
        Candidates.
    draws, seed : int
        For resampling slides and for inner folds.

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
    """Inputs of the combiner: probabilities and, if given, the informative slide means, side by side."""
    return probabilities if means is None else np.concatenate([probabilities, means[:, with_means(members)]], axis=1)


def usable_parts(labels: np.ndarray, units: np.ndarray, folds: np.ndarray, seed: int) -> list[np.ndarray]:
    """Row numbers of each fold. New folds by slide if a fold leaves the others one class only; empty if impossible."""
    parts = [np.flatnonzero(folds == number) for number in np.unique(folds)]
    return parts if leave_both(labels, parts) else [part for _, part in inner_folds(labels, units, INNER_FOLDS, seed)]


def hold_out(
    kind: str, table: np.ndarray, labels: np.ndarray, units: np.ndarray, parts: Sequence[np.ndarray], seed: int
) -> np.ndarray:
    """Score each part by the combiner fitted on the other parts; ndarray of shape (n,)."""
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
    """Judge the combiners; choose the simplest within a standard error of the best in both AUC and log loss."""
    from sklearn.metrics import roc_auc_score

    table = np.stack(list(scores.values()), axis=1)
    losses = log_losses(labels, np.stack([calibrations[kind].probability for kind in scores], axis=1))
    auc, loss = np.array([roc_auc_score(labels, column) for column in table.T]), losses.mean(axis=0)
    auc_behind, auc_spread = _behind(auc, auc_draws(labels, table, units, draws=draws, seed=seed), draws)
    loss_behind, loss_spread = _behind(-loss, -mean_draws(losses, units, draws=draws, seed=seed), draws)
    near_best = (auc_behind <= auc_spread) & (loss_behind <= loss_spread)
    # If no combiner is near the best in both, AUC decides.
    chosen = int(np.argmax(near_best if near_best.any() else auc_behind <= auc_spread))
    return [
        {
            "combiner": kind,
            "calibrator": calibrations[kind].calibrator.kind,
            "auc": float(auc[index]),
            "auc_behind": float(auc_behind[index]),
            "auc_spread": float(auc_spread[index]),
            "log_loss": float(loss[index]),
            "log_loss_behind": float(loss_behind[index]),
            "log_loss_spread": float(loss_spread[index]),
            "chosen": index == chosen,
        }
        for index, kind in enumerate(scores)
    ]


def _behind(score: np.ndarray, drawn: np.ndarray, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Difference of each score from the best, and its standard error over resampled slides."""
    best = int(np.argmax(score))
    # If most draws have a single class, combiners cannot be distinguished: the infinite error selects the simplest.
    distinguishable = 2 * len(drawn) >= draws
    standard_error = (drawn[:, [best]] - drawn).std(axis=0, ddof=1) if distinguishable else np.full(len(score), np.inf)
    return score[best] - score, standard_error
