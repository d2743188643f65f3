"""Evaluation of an ensemble: nested folds, the score without each member, and error correlations between members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histoblend.models.calibration import POINTS
from histoblend.models.combiners import COMBINERS
from histoblend.models.ensemble import combiner_inputs, fit_ensemble, hold_out, usable_parts
from histoblend.models.resampling import check_scores, slide_groups


@dataclass(frozen=True)
class NestedPredictions:
    """Nested predictions: the whole procedure, choices included, applied to folds that it has not seen.

    Attributes
    ----------
    probability : ndarray of shape (n,), float64
    thresholds : dict from str to ndarray of shape (n,)
        For each operating point, the threshold from the other folds.
    single : ndarray of shape (n,), float64
        Probability of the member with the best AUC on the other folds.
    choices : list of dict
        ``fold, combiner, calibrator, single`` for each fold.
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
    means: np.ndarray | None = None,
    combiners: Sequence[str] = COMBINERS,
    draws: int = 500,
    seed: int = 0,
) -> NestedPredictions:
    """Apply :func:`fit_ensemble` with each fold held out in turn; the parameters are the same.

    If all rows are in one fold, new folds by slide are made as in :func:`fit_ensemble`. If the other folds lack a
    class, a fold is predicted by the mean of probabilities with thresholds of 0.5.
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
        held_out, rest = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if np.unique(labels[rest]).size < 2:
            probability[held_out], single[held_out] = table[held_out].mean(axis=1), table[held_out, 0]
            continue
        aucs = [roc_auc_score(labels[rest], column) for column in table[rest].T]
        best = int(np.argmax(aucs))
        fitted = fit_ensemble(
            members,
            table[rest],
            labels[rest],
            groups[rest],
            folds[rest],
            means=None if means is None else means[rest],
            combiners=combiners,
            draws=draws,
            seed=seed,
        ).ensemble
        probability[held_out] = fitted.predict(table[held_out], None if means is None else means[held_out])
        single[held_out] = table[held_out, best]
        for name, threshold in fitted.thresholds.items():
            thresholds[name][held_out] = threshold
        choices.append(
            {
                "fold": int(fold),
                "combiner": fitted.combiner.kind,
                "calibrator": fitted.calibrator.kind,
                "single": members[best],
            }
        )
    return NestedPredictions(probability, thresholds, single, choices)


def without_each(
    kind: str,
    members: Sequence[str],
    probabilities: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    folds: np.ndarray,
    *,
    means: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Held-out scores of a combiner with all members (first column), then without each member and its slide mean.

    Parameters
    ----------
    kind : str
        One of :data:`COMBINERS`; it is not chosen again.
    members : sequence of str
    probabilities : ndarray of shape (n, members), float64, 0 to 1
    labels : ndarray of shape (n,), 0 or 1
    groups, folds : ndarray of shape (n,)
    seed : int

    Returns
    -------
    ndarray of shape (n, 1 + members), float64
        NaN if there is no other member.
    """
    labels, table = check_scores(labels, probabilities)
    units = slide_groups(np.asarray(groups, dtype=object))
    parts = usable_parts(labels, units, folds, seed)
    columns = [hold_out(kind, combiner_inputs(members, table, means), labels, units, parts, seed)]
    for column in range(table.shape[1]):
        if table.shape[1] == 1:
            columns.append(np.full(len(table), np.nan))
            continue
        names = [*members[:column], *members[column + 1 :]]
        others = np.delete(table, column, axis=1)
        other_means = None if means is None else np.delete(means, column, axis=1)
        columns.append(hold_out(kind, combiner_inputs(names, others, other_means), labels, units, parts, seed))
    return np.stack(columns, axis=1)


def error_correlations(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Pearson correlations of the members' errors (label minus probability), ndarray of shape (members, members).

    NaN for members whose error is constant.
    """
    errors = np.asarray(labels)[:, None] - np.asarray(probabilities, dtype=np.float64)
    centred = errors - errors.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    norm[norm < 1e-12] = np.nan
    return (centred / norm).T @ (centred / norm)
