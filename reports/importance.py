"""What models rely on: permutation on held-out slides, gain and coefficients, by feature and by family."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from features.table import parse_column
from models.resampling import percentile_interval
from reports.metrics import bootstrap, measure

#: Measures that are taken of a whole family at once: those of its columns do not add up to it.
JOINT = ("permutation", "shap")

PARTS = ("family", "statistic", "channel", "region")
COLUMNS = ["model", "measure", "feature", *PARTS, "value", "spread", "low", "high"]


def fitted_importance(
    values: np.ndarray, columns: Sequence[str], *, measure: Literal["gain", "coefficient"], model: str = ""
) -> pd.DataFrame:
    """Put what a fitted model says of its own columns into the tidy form.

    Parameters
    ----------
    values : ndarray of shape (features,) or (fits, features)
        Share of gain, or coefficients in units of one standard deviation. Several fits (folds) give a mean and a
        spread (standard deviation).
    columns : sequence of str
        Names, ``family_statistic_channel_region``.
    measure : {"gain", "coefficient"}
    model : str

    Returns
    -------
    DataFrame
        `COLUMNS`, a row a feature, in the order of `columns`; ``low`` and ``high`` are missing.

    Raises
    ------
    ValueError
        As many values as columns are expected.
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if table.ndim != 2 or table.shape[1] != len(columns):
        raise ValueError(f"values must hold {len(columns)} columns; got shape {np.shape(values)}.")
    rows = pd.DataFrame([parse_column(name) for name in columns], columns=list(PARTS))
    rows = rows.assign(
        model=model, measure=measure, feature=list(columns), value=table.mean(0), low=np.nan, high=np.nan
    )
    rows["spread"] = table.std(0, ddof=1) if len(table) > 1 else np.nan
    return rows[COLUMNS]


def permutation_importance(
    predict: Callable[[np.ndarray], np.ndarray],
    X: np.ndarray,
    y: np.ndarray,
    columns: Sequence[str],
    groups: np.ndarray,
    *,
    repeats: int = 5,
    seed: int = 0,
    by: Literal["column", "family", "region"] = "column",
    together: Collection[str] = (),
    draws: int = 200,
    max_rows: int | None = 5000,
    model: str = "",
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Drop in AUC on held-out slides when columns are shuffled between patches, one by one or a family at once.

    Shuffling one of several correlated columns shows little, since the others stand in for it; shuffling their family
    together shows what the model would lose. Every unit is shuffled by the same permutations, and all intervals share
    the draws of slides, so that units compare without extra noise.

    Parameters
    ----------
    predict : callable
        Takes (n, features) and returns the probability of a positive, (n,).
    X : ndarray of shape (n, features), float
        Patches of slides that the model has never seen. It is copied once and left as it was.
    y : ndarray of shape (n,), 0 or 1
    columns : sequence of str
        Names of X's columns, ``family_statistic_channel_region``.
    groups : ndarray of shape (n,), int
        Slides, from :func:`models.resampling.slide_groups`.
    repeats : int
        Shuffles per unit.
    seed : int
    by : {"column", "family", "region"}
        What is shuffled together.
    together : collection of str
        Families that are shuffled as one unit even by column, such as embeddings, whose columns mean nothing alone.
    draws : int
        Draws of slides for the interval of the mean drop.
    max_rows : int or None
        More patches than this are thinned at random, to bound the time; None keeps all.
    model : str
        Goes into the table.
    progress : callable, optional
        Called with 1 after each unit.

    Returns
    -------
    DataFrame
        `COLUMNS`, a row a unit: ``value`` the mean drop over shuffles, ``spread`` their standard deviation, ``low`` and
        ``high`` the 95 % interval of the mean drop from resampling slides. A unit of several columns has no
        ``feature``.

    Raises
    ------
    ValueError
        Shapes do not agree, or `y` holds one class.
    InputError
        Too few slides for an interval.

    References
    ----------
    Breiman (2001), Machine Learning 45:5-32, section 10. Fisher, Rudin & Dominici (2019), JMLR 20(177).
    """
    if X.shape != (len(y), len(columns)) or len(groups) != len(y):
        raise ValueError(f"X must have shape {(len(y), len(columns))}, groups {len(y)}; got {X.shape}, {len(groups)}.")
    rng = np.random.default_rng(seed)
    rows = np.arange(len(y))
    if max_rows is not None and len(y) > max_rows:
        rows = np.sort(rng.choice(len(y), max_rows, replace=False))
    table, labels = np.array(X[rows]), np.asarray(y)[rows]
    units = np.unique(groups[rows], return_inverse=True)[1]
    orders = [rng.permutation(len(rows)) for _ in range(repeats)]

    def judge(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn = bootstrap(labels, scores, 0.5, units, draws=draws, seed=seed)
        return measure(labels, scores, 0.5)[:, 0], drawn.values[:, :, 0]

    whole, whole_drawn = judge(predict(table))
    found = []
    for names, members in _units(columns, by, together):
        point, drawn = judge(_shuffled_scores(predict, table, members, orders))
        drops = whole - point
        low, high = percentile_interval((whole_drawn - drawn).mean(1))
        spread = drops.std(ddof=1) if repeats > 1 else np.nan
        found.append([model, "permutation", *names, drops.mean(), spread, low, high])
        if progress is not None:
            progress(1)
    return pd.DataFrame(found, columns=COLUMNS)


def sum_by_family(importances: pd.DataFrame) -> pd.DataFrame:
    """Collect the importances of whole families.

    Parameters
    ----------
    importances : DataFrame
        Tidy, any models and measures.

    Returns
    -------
    DataFrame
        ``model, measure, family, value, spread, low, high, features``: gain summed; coefficients summed by size; for
        `JOINT` the families that were shuffled, or whose shares were added up, together (single columns' values do not
        add up to that, and are left out).
    """
    single = importances.feature.notna()
    fitted = importances[single & ~importances.measure.isin(JOINT)]
    sums = fitted.assign(value=fitted.value.abs()).groupby(["model", "measure", "family"], sort=False, as_index=False)
    summed = sums.agg(value=("value", "sum"), features=("feature", "size"))
    joint = importances[~single & importances.family.notna() & importances.region.isna()]
    joint = joint.drop_duplicates(["model", "measure", "family"])
    sizes = importances[single].drop_duplicates(["model", "feature"]).groupby(["model", "family"]).size()
    joint = joint.assign(features=[sizes.get(key, np.nan) for key in zip(joint.model, joint.family, strict=True)])
    names = ["model", "measure", "family", "value", "spread", "low", "high", "features"]
    return pd.concat([summed.reindex(columns=names), joint[names]], ignore_index=True)


def _units(
    columns: Sequence[str], by: str, together: Collection[str]
) -> Iterator[tuple[tuple[str | None, ...], list[int]]]:
    """Yield (feature, family, statistic, channel, region) and column numbers of what is shuffled together."""
    parts = [parse_column(name) for name in columns]
    joint: dict[tuple[str | None, ...], list[int]] = {}
    for i, (name, part) in enumerate(zip(columns, parts, strict=True)):
        if by == "region":
            key: tuple[str | None, ...] = (None, None, None, None, part.region)
        elif by == "family" or part.family in together:
            key = (None, part.family, None, None, None)
        elif by == "column":
            key = (name, *part)
        else:
            raise ValueError(f"by must be 'column', 'family' or 'region'; got {by!r}.")
        joint.setdefault(key, []).append(i)
    yield from joint.items()


def _shuffled_scores(
    predict: Callable[[np.ndarray], np.ndarray], table: np.ndarray, members: list[int], orders: list[np.ndarray]
) -> np.ndarray:
    """Scores (n, shuffles) with the member columns shuffled; `table` is changed in place and put back."""
    kept = table[:, members]
    try:
        scores = []
        for order in orders:
            table[:, members] = kept[order]
            scores.append(predict(table))
        return np.stack(scores, 1)
    finally:
        table[:, members] = kept
