"""Shapley values: the contribution of each feature to a model's log odds, per patch and on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.families import parse_column
from histoblend.models.calibration import EXPLANATION_LIMIT, log_odds
from histoblend.models.heads.head import Head
from histoblend.models.inspection.importance import COLUMNS
from histoblend.models.resampling import mean_draws, percentile_interval

#: Features that are not single columns: embeddings and, in an ensemble, a network without columns and the members'
#: means over the patch's slide.
EMBEDDING, NETWORK, SLIDE_MEAN = "embedding", "network", "slide-mean"
#: Single columns of these families have no meaning, so their Shapley values are added up.
TOGETHER = (EMBEDDING, NETWORK, SLIDE_MEAN)

#: Most patches that a model is explained on.
EXPLAINED_PATCHES = 1000


@dataclass(frozen=True)
class ShapleyValues:
    """Shapley values of one model: the log odds of each patch, divided among the features.

    Attributes
    ----------
    features : list of str
        Names of columns. A family in `TOGETHER` is one feature, named after the family.
    shares : ndarray of shape (n, features), dtype float64
        Log odds that each feature adds to each patch.
    values : ndarray of shape (n, features), dtype float32
        Values of the features; missing for a family.
    base : float
        Log odds without any feature. The base plus a patch's shares is the model's log odds.
    """

    features: list[str]
    shares: np.ndarray
    values: np.ndarray
    base: float

    @property
    def log_odds(self) -> np.ndarray:
        """The model's log odds of each patch, ndarray of shape (n,)."""
        return np.asarray(self.base + self.shares.sum(axis=1))

    def percentiles(self) -> np.ndarray:
        """Percentile rank of each value among the patches, 0 to 100, shape (n, features); missing for a family."""
        ranks = pd.DataFrame(self.values).rank().to_numpy()
        return np.asarray(100 * (ranks - 1) / max(len(ranks) - 1, 1))


def attribute(head: Head, X: np.ndarray, columns: Sequence[str]) -> ShapleyValues:
    """Compute Shapley values of a model's predictions.

    Parameters
    ----------
    head : Head
        Fitted.
    X : ndarray of shape (n, columns), float
        Patches of held-out slides.
    columns : sequence of str
        Names, ``family_statistic_channel_region``.

    Returns
    -------
    ShapleyValues

    Raises
    ------
    ValueError
        The shapes do not agree, or there is no patch.

    References
    ----------
    Lundberg & Lee (2017), Advances in Neural Information Processing Systems 30. Lundberg et al. (2020), Nat Mach
    Intell 2:56-67 (exact, path-dependent values for trees: an absent feature follows the training patches per split).
    """
    if X.ndim != 2 or X.shape[1] != len(columns) or not len(X):
        raise ValueError(f"X must have shape (n, {len(columns)}), n at least 1; got {X.shape}.")
    shares, base = head.contributions(X)
    return sum_together(shares, X, columns, base)


def sum_together(shares: np.ndarray, X: np.ndarray, columns: Sequence[str], base: float) -> ShapleyValues:
    """Shapley values from contributions of single columns (n, columns): columns of `TOGETHER` are added up."""
    families = np.array([parse_column(name).family for name in columns])
    single = np.flatnonzero(~np.isin(families, TOGETHER))
    joint = [family for family in TOGETHER if (families == family).any()]
    sums = [shares[:, families == family].sum(axis=1) for family in joint]
    no_values = np.full((len(X), len(joint)), np.nan, np.float32)
    return ShapleyValues(
        [str(columns[index]) for index in single.tolist()] + joint,
        np.column_stack([shares[:, single], *sums]),
        np.column_stack([X[:, single].astype(np.float32), no_values]),
        base,
    )


def shapley_importance(
    attribution: ShapleyValues, groups: np.ndarray, *, draws: int = 1000, seed: int = 0, model: str = ""
) -> pd.DataFrame:
    """Mean absolute Shapley value of each feature and of each family.

    Parameters
    ----------
    attribution : ShapleyValues
    groups : ndarray of shape (n,), int
        Slides of the patches, from :func:`models.resampling.slide_groups`.
    draws, seed : int
        Draws of slides for the intervals.
    model : str
        Written into the table.

    Returns
    -------
    DataFrame
        :data:`models.inspection.importance.COLUMNS` with measure "shap": one row per feature, then one row per family,
        without ``feature``. A family's values are summed within each patch before the absolute value is taken.
        ``value`` is the mean over patches, ``spread`` the standard deviation of the slide means, ``low`` and ``high``
        the 95 % interval from resampling slides.
    """
    single = [index for index, name in enumerate(attribution.features) if name not in TOGETHER]
    parsed = {index: parse_column(attribution.features[index]) for index in single}
    rows: list[list[str | None]] = [[model, "shap", attribution.features[index], *parsed[index]] for index in single]
    members: dict[str, list[int]] = {}
    for index, name in enumerate(attribution.features):
        members.setdefault(parsed[index].family if index in parsed else name, []).append(index)
    rows += [[model, "shap", None, family, None, None, None] for family in members]
    joint = [attribution.shares[:, indices].sum(axis=1) for indices in members.values()]
    sizes = np.abs(np.column_stack([attribution.shares[:, single], *joint]))
    low, high = percentile_interval(mean_draws(sizes, groups, draws=draws, seed=seed))
    slides = pd.DataFrame(sizes).groupby(groups).mean()
    table = pd.DataFrame(rows, columns=COLUMNS[:7])
    return table.assign(value=sizes.mean(axis=0), spread=slides.std(ddof=1).to_numpy(), low=low, high=high)[COLUMNS]


def choose_cases(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, int]:
    """Choose example patches whose Shapley values are of interest.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,), float
        Probabilities of the positive class.
    threshold : float
        A score at or above it counts as positive.

    Returns
    -------
    dict from str to int
        Kind of case to the row of its patch: the most confident correct patches, the worst errors, and the patch of
        each class that is closest to the threshold in log odds. A kind without a patch is left out. No patch is chosen
        twice.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    distance = np.abs(log_odds(scores, EXPLANATION_LIMIT) - log_odds(np.array(threshold), EXPLANATION_LIMIT))
    positive, above = labels == 1, scores >= threshold
    kinds = {
        "confident and right: positive": (positive & above, -scores),
        "confident and right: negative": (~positive & ~above, scores),
        "worst false positive": (~positive & above, -scores),
        "worst false negative": (positive & ~above, scores),
        "borderline positive": (positive, distance),
        "borderline negative": (~positive, distance),
    }
    chosen: dict[str, int] = {}
    for case, (possible, order) in kinds.items():
        rows = np.setdiff1d(np.flatnonzero(possible), list(chosen.values()))
        if len(rows):
            chosen[case] = int(rows[np.argmin(order[rows])])
    return chosen
