"""Shapley values of an ensemble: contributions of its members' columns, weighted as the ensemble weights members."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from histoblend.models.calibration import log_odds
from histoblend.models.ensemble import Ensemble
from histoblend.models.inspection.shapley import NETWORK, SLIDE_MEAN, ShapleyValues
from histoblend.models.names import with_means


@dataclass(frozen=True)
class Blending:
    """How an ensemble weights the log-odds of its members.

    Attributes
    ----------
    members : list of str
    weights : list of float
        Factor of each member's log-odds in the ensemble's log-odds.
    mean_weights : list of float
        Factor of the mean log-odds over the patch's slide, 0 for members whose means are not used.
    intercept : float
    calibrated : bool
        Whether the sum is the ensemble's calibrated log-odds. Otherwise it is the log-odds before calibration.
    """

    members: list[str]
    weights: list[float]
    mean_weights: list[float]
    intercept: float
    calibrated: bool


def blending(ensemble: Ensemble) -> Blending | None:
    """Weights of an ensemble's members; None if it combines ranks, which is no sum of log-odds.

    Temperature and Platt scaling are linear in log-odds, so they are part of the weights.
    """
    combiner, calibrator = ensemble.combiner, ensemble.calibrator
    if combiner.kind == "rank":
        return None
    calibrated = calibrator.kind in ("none", "temperature", "platt")
    numbers = calibrator.numbers if calibrated else {}
    slope, shift = (numbers.get(name, (default,))[0] for name, default in (("slope", 1.0), ("intercept", 0.0)))
    count = len(ensemble.members)
    weights = slope * np.asarray(combiner.weights)
    mean_weights = np.zeros(count)
    if ensemble.slide_means:
        mean_weights[with_means(ensemble.members)] = weights[count:]
    intercept = slope * combiner.intercept + shift
    return Blending(list(ensemble.members), weights[:count].tolist(), mean_weights.tolist(), intercept, calibrated)


def network_shares(probability: np.ndarray, usual: float) -> ShapleyValues:
    """Attribution of a network without columns: one feature, the distance of its log-odds from the `usual` ones."""
    odds = log_odds(np.asarray(probability, dtype=np.float64))
    return ShapleyValues([NETWORK], odds[:, None] - usual, np.full((len(odds), 1), np.nan, np.float32), usual)


def combine_shares(
    blend: Blending, members: Mapping[str, ShapleyValues], means: np.ndarray | None, usual: np.ndarray | None
) -> ShapleyValues:
    """Shapley values of an ensemble of additive log-odds.

    Parameters
    ----------
    blend : Blending
    members : mapping from member to ShapleyValues
        Of the same patches.
    means : ndarray of shape (n, members), float64, 0 to 1, or None
        Means over each patch's slide; only needed if a mean weight is not 0. They become one feature, `SLIDE_MEAN`.
    usual : ndarray of shape (members,) or None
        Mean of the log-odds of `means` over training patches, which is part of the base.

    Returns
    -------
    ShapleyValues
        Features of all members. A feature of several members is added up.
    """
    names = list(dict.fromkeys(name for member in blend.members for name in members[member].features))
    rows = len(members[blend.members[0]].shares)
    position = {name: number for number, name in enumerate(names)}
    shares, values = np.zeros((rows, len(names))), np.full((rows, len(names)), np.nan, np.float32)
    base = blend.intercept
    for member, weight in zip(blend.members, blend.weights, strict=True):
        places = [position[name] for name in members[member].features]
        shares[:, places] += weight * members[member].shares
        values[:, places] = members[member].values
        base += weight * members[member].base
    if means is not None and usual is not None and any(blend.mean_weights):
        weights = np.asarray(blend.mean_weights)
        names.append(SLIDE_MEAN)
        shares = np.column_stack([shares, (log_odds(means) - usual) @ weights])
        values = np.column_stack([values, np.full(rows, np.nan, np.float32)])
        base += float(usual @ weights)
    return ShapleyValues(names, shares, values, float(base))
