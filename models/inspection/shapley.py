"""Shapley values: what each feature adds to a model's log odds, patch by patch and on the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from histoblend.features.handcrafted.families import parse_column
from histoblend.models.calibration import CLOSEST, log_odds
from histoblend.models.heads.head import Head
from histoblend.models.inspection.importance import COLUMNS
from histoblend.models.resampling import mean_draws, percentile_interval

#: Columns of these families mean nothing one by one; their shares are added up.
TOGETHER = ("embedding",)

#: Patches that a model is explained on, at most.
EXPLAINED_PATCHES = 1000


@dataclass(frozen=True)
class Attribution:
    """Log odds of patches, shared out among the features of one model.

    Attributes
    ----------
    features : list of str
        Names of columns; a family of `TOGETHER` is one feature, under its own name.
    shares : ndarray of shape (n, features), dtype float64
        Log odds that a feature adds to a patch.
    values : ndarray of shape (n, features), dtype float32
        Values of the features; missing for a family.
    base : float
        Log odds without any feature; with a patch's shares it adds up to the model's log odds.
    """

    features: list[str]
    shares: np.ndarray
    values: np.ndarray
    base: float

    @property
    def log_odds(self) -> np.ndarray:
        """Log odds that the model gives each patch, ndarray of shape (n,)."""
        return np.asarray(self.base + self.shares.sum(axis=1))

    def percentiles(self) -> np.ndarray:
        """Place of each value among the patches', 0 to 100, ndarray of shape (n, features); missing for a family."""
        ranks = pd.DataFrame(self.values).rank().to_numpy()
        return np.asarray(100 * (ranks - 1) / max(len(ranks) - 1, 1))


def attribute(head: Head, X: np.ndarray, columns: Sequence[str]) -> Attribution:
    """Share out what a model says of patches.

    Parameters
    ----------
    head : Head
        Fitted.
    X : ndarray of shape (n, columns), float
        Patches of slides that the head has never seen.
    columns : sequence of str
        Names, ``family_statistic_channel_region``.

    Returns
    -------
    Attribution

    Raises
    ------
    ValueError
        Shapes do not agree, or there is no patch.

    References
    ----------
    Lundberg & Lee (2017), Advances in Neural Information Processing Systems 30. Lundberg et al. (2020), Nat Mach
    Intell 2:56-67 (exact values for trees, which expect of a feature what the patches that passed a split had).
    """
    if X.ndim != 2 or X.shape[1] != len(columns) or not len(X):
        raise ValueError(f"X must have shape (n, {len(columns)}), n at least 1; got {X.shape}.")
    shares, base = head.contributions(X)
    families = np.array([parse_column(name).family for name in columns])
    single = np.flatnonzero(~np.isin(families, TOGETHER))
    joint = [family for family in TOGETHER if (families == family).any()]
    sums = [shares[:, families == family].sum(axis=1) for family in joint]
    missing = np.full((len(X), len(joint)), np.nan, np.float32)
    return Attribution(
        [str(columns[place]) for place in single.tolist()] + joint,
        np.column_stack([shares[:, single], *sums]),
        np.column_stack([X[:, single].astype(np.float32), missing]),
        base,
    )


def shapley_importance(
    found: Attribution, groups: np.ndarray, *, draws: int = 1000, seed: int = 0, model: str = ""
) -> pd.DataFrame:
    """Mean size of the shares, of each feature and of each family together.

    Parameters
    ----------
    found : Attribution
    groups : ndarray of shape (n,), int
        Slides of the patches, from :func:`models.resampling.slide_groups`.
    draws, seed : int
        Draws of slides for the intervals.
    model : str
        Goes into the table.

    Returns
    -------
    DataFrame
        As :data:`models.inspection.importance.COLUMNS`, measure "shap", a row a feature, then a row a family without
        ``feature``, whose shares are added up within each patch before their size is taken. ``value`` is the mean over
        patches, ``spread`` the standard deviation of slides' means, ``low`` and ``high`` the 95 % interval from
        resampling slides.
    """
    single = [place for place, name in enumerate(found.features) if name not in TOGETHER]
    parts = {place: parse_column(found.features[place]) for place in single}
    rows: list[list[str | None]] = [[model, "shap", found.features[place], *parts[place]] for place in single]
    members: dict[str, list[int]] = {}
    for place, name in enumerate(found.features):
        members.setdefault(parts[place].family if place in parts else name, []).append(place)
    rows += [[model, "shap", None, family, None, None, None] for family in members]
    joint = [found.shares[:, places].sum(axis=1) for places in members.values()]
    sizes = np.abs(np.column_stack([found.shares[:, single], *joint]))
    low, high = percentile_interval(mean_draws(sizes, groups, draws=draws, seed=seed))
    slides = pd.DataFrame(sizes).groupby(groups).mean()
    table = pd.DataFrame(rows, columns=COLUMNS[:7])
    return table.assign(value=sizes.mean(axis=0), spread=slides.std(ddof=1).to_numpy(), low=low, high=high)[COLUMNS]


def choose_cases(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, int]:
    """Choose the patches whose shares are worth a look.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    scores : ndarray of shape (n,), float
        Probabilities of a positive.
    threshold : float
        A score at or above it counts as positive.

    Returns
    -------
    dict from str to int
        What a patch stands for, to its row: confident and right, worst on the wrong side, and the two closest to the
        threshold in log odds, one of each class. A kind that no patch is of is left out; no patch stands twice.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    distance = np.abs(log_odds(scores, CLOSEST) - log_odds(np.array(threshold), CLOSEST))
    positive, above = labels == 1, scores >= threshold
    wanted = {
        "confident and right: positive": (positive & above, -scores),
        "confident and right: negative": (~positive & ~above, scores),
        "worst false positive": (~positive & above, -scores),
        "worst false negative": (positive & ~above, scores),
        "borderline positive": (positive, distance),
        "borderline negative": (~positive, distance),
    }
    chosen: dict[str, int] = {}
    for case, (possible, order) in wanted.items():
        rows = np.setdiff1d(np.flatnonzero(possible), list(chosen.values()))
        if len(rows):
            chosen[case] = int(rows[np.argmin(order[rows])])
    return chosen
