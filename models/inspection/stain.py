"""Whether models rely on stain: groups of slides by stain, families that predict the group, and shifted stains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from histoblend.data.splits import find_folds
from histoblend.data.storage.arrays import StoredRows
from histoblend.features.handcrafted.families import parse_column
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.metrics import measure, slide_table
from histoblend.models.resampling import auc_draws, percentile_interval, slide_groups

#: Fewest slides for which two groups are formed. With fewer, the groups mean nothing.
FEWEST_SLIDES = 8
#: Fewest slides in a group. Fewer slides are outliers, not a staining protocol.
FEWEST_IN_GROUP = 3
#: Stain and label count as confounded below this P value and from this difference on.
P_LIMIT = 0.01
DIFFERENCE_LIMIT = 0.2

#: Strength of shifted stains that the report's text describes. It is the default strength of the training jitter.
REPORTED_STRENGTH = 0.1
#: AUC from which on a family of features counts as telling the two groups of slides apart.
SEPARATES_FROM_AUC = 0.8
#: Most slides, and most patches per slide, for predicting the group from a family. The slides are the sample.
FAMILY_SLIDES = 100
FAMILY_PATCHES = 24
#: Folds by slide, and strength of the logistic regression. Both are the same for every family.
FAMILY_FOLDS = 5
FAMILY_STRENGTH = 0.01
#: Family that the groups are made from. It tells them apart by construction.
OWN_FAMILY = "stain"

#: Columns of the stain vectors: red, green and blue of haematoxylin, then of eosin.
VECTORS = tuple(
    f"stain_{part}_{stain}_whole" for stain in ("haematoxylin", "eosin") for part in ("red", "green", "blue")
)
_FALLBACK = "stain_fallback_both_whole"


@dataclass(frozen=True)
class StainGroups:
    """Slides in two groups by stain.

    Attributes
    ----------
    slides : DataFrame
        ``slide, group (A|B), prevalence, patches``, and the slide's stain vectors if known (`VECTORS`). Group A has the
        larger mean share of positives.
    difference : float
        Mean share of positives over the slides of group A minus that of group B, 0 to 1.
    p : float
        P value of a permutation test: how often random groups of the same sizes differ at least as much, 0 to 1.
    """

    slides: pd.DataFrame
    difference: float
    p: float

    @property
    def confounded(self) -> bool:
        """Whether the groups differ in label both significantly and by a relevant amount."""
        return self.p < P_LIMIT and self.difference >= DIFFERENCE_LIMIT

    def words(self) -> str:
        """Describe the groups in a few sentences."""
        means = self.slides.groupby("group").prevalence.agg(["mean", "size"])
        a, b = means.loc["A"], means.loc["B"]
        groups = (
            f"Clustered by stain, the slides form two groups, of {a['size']:.0f} and {b['size']:.0f}, with "
            f"{100 * a['mean']:.0f} % and {100 * b['mean']:.0f} % positives per slide on average (P {self._p_text()})."
        )
        if self.confounded:
            return (
                f"Stain and label are confounded. {groups} A model can score well by recognising the stain instead of "
                "tumour, and then fail on other slides. Trust the AUC within each group more than the AUC over both."
            )
        if self.p < P_LIMIT:
            return f"{groups} This difference is too small to cast doubt on the scores."
        return f"{groups} This difference can be due to chance."

    def _p_text(self) -> str:
        return "< 0.001" if self.p < 0.001 else f"= {self.p:.3f}"


def stain_groups(
    values: np.ndarray | StoredRows,
    columns: Sequence[str],
    labels: np.ndarray,
    slides: pd.Series,
    *,
    seed: int = 0,
    draws: int = 9999,
) -> StainGroups | None:
    """Cluster slides into two groups by their stain vectors, and compare the share of positives.

    A slide's stain is the median of its patches' stain vectors (family "stain"), without patches whose vectors could
    not be estimated. The six values are standardised over slides and clustered by k-means with two centres. Labels are
    used only afterwards, in a permutation test of the difference in mean share of positives per slide.

    Parameters
    ----------
    values : ndarray or StoredRows of shape (n, k), float32
        Handcrafted features.
    columns : sequence of str
        Names of the k columns.
    labels : ndarray of shape (n,), 0 or 1
    slides : Series of str
        Slide of each patch; missing where unknown.
    seed : int
    draws : int
        Permutations of the test.

    Returns
    -------
    StainGroups or None
        None without the family, with fewer than `FEWEST_SLIDES` slides, or if a group would have fewer than
        `FEWEST_IN_GROUP` slides.

    References
    ----------
    Macenko et al. (2009), IEEE ISBI, 1107-1110 (stain vectors).
    Howard et al. (2021), Nat Commun 12:4423 (stain as a shortcut for the label).
    """
    index = {name: number for number, name in enumerate(columns)}
    if _FALLBACK not in index:
        return None
    known = slides.notna().to_numpy()
    usable = known & (np.asarray(values[:, index[_FALLBACK]]) < 0.5)
    vectors = pd.DataFrame(np.asarray(values[:, [index[name] for name in VECTORS]], dtype=np.float64))
    stains = vectors[usable].groupby(slides.to_numpy()[usable]).median()
    if len(stains) < FEWEST_SLIDES:
        return None
    group = _cluster_slides(stains.to_numpy(), seed)
    if min(group.sum(), (~group).sum()) < FEWEST_IN_GROUP:
        return None
    shares = pd.Series(labels[known]).groupby(slides.to_numpy()[known]).agg(["mean", "size"]).loc[stains.index]
    prevalence = shares["mean"].to_numpy()
    if prevalence[group].mean() < prevalence[~group].mean():
        group = ~group
    difference = float(prevalence[group].mean() - prevalence[~group].mean())
    table = pd.DataFrame(
        {
            "slide": stains.index.astype(str),
            "group": np.where(group, "A", "B"),
            "prevalence": prevalence,
            "patches": shares["size"].to_numpy(),
            **dict(zip(VECTORS, stains.to_numpy().T, strict=True)),
        }
    )
    return StainGroups(
        table, difference, _permutation_p(prevalence, group, difference, np.random.default_rng(seed), draws)
    )


def group_scores(groups: StainGroups, predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    """Describe each stain group, and evaluate a model within it.

    Parameters
    ----------
    groups : StainGroups
    predictions : DataFrame
        ``slide, label, prob_<model>``. Each patch was scored by a model that was not trained on its slide.
    model : str

    Returns
    -------
    DataFrame
        ``group, slides, patches, prevalence, auc``; the AUC is missing if a group has one class only.
    """
    group_of = predictions.slide.map(groups.slides.set_index("slide").group)
    rows = []
    for name in ("A", "B"):
        part = predictions[(group_of == name).to_numpy()]
        both = part.label.nunique() == 2
        auc = roc_auc_score(part.label, part[f"prob_{model}"]) if both else np.nan
        rows.append((name, part.slide.nunique(), len(part), part.label.mean(), auc))
    return pd.DataFrame(rows, columns=["group", "slides", "patches", "prevalence", "auc"])


@dataclass(frozen=True)
class StainView:
    """Content of the report's stain section.

    Attributes
    ----------
    groups : StainGroups, optional
        None if the slides cannot be grouped.
    scores : DataFrame, optional
        From :func:`group_table`.
    slides : DataFrame, optional
        From :func:`group_slides`.
    families : DataFrame, optional
        From :func:`stain_families`.
    shifted : DataFrame, optional
        From :func:`shift_curves`.
    absent : str
        Reason why `shifted` is missing.
    trained : float
        Strength of the stain jitter in the training of the fine-tuned network; 0 for none.
    """

    groups: StainGroups | None = None
    scores: pd.DataFrame | None = None
    slides: pd.DataFrame | None = None
    families: pd.DataFrame | None = None
    shifted: pd.DataFrame | None = None
    absent: str = ""
    trained: float = 0.0


def group_table(
    groups: StainGroups, predictions: pd.DataFrame, models: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Evaluate every model within each stain group.

    Parameters
    ----------
    groups : StainGroups
    predictions : DataFrame
        ``slide, label, prob_<model>`` as for :func:`group_scores`. A model's probability may be missing.
    models : sequence of str
    draws : int
        Number of resamplings of the group's slides for each interval.
    seed : int

    Returns
    -------
    DataFrame
        ``model`` and the columns of :func:`group_scores`, then ``auc_low, auc_high``, the 95 % interval of the AUC. It
        is missing if a group has one class only.
    """
    group_of = predictions.slide.map(groups.slides.set_index("slide").group)
    tables = []
    for model in models:
        scored = predictions[f"prob_{model}"].notna()
        table = group_scores(groups, predictions[scored], model)
        intervals = []
        for name in table.group:
            part = predictions[(scored & (group_of == name)).to_numpy()]
            scores = part[[f"prob_{model}"]].to_numpy()
            intervals.append(_auc_intervals(part.label.to_numpy(), scores, slide_groups(part.slide), draws, seed)[:, 0])
        table["auc_low"], table["auc_high"] = np.array(intervals).T
        table.insert(0, "model", model)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def group_slides(groups: StainGroups, predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Evaluate every model within each slide of the groups.

    Parameters
    ----------
    groups : StainGroups
    predictions : DataFrame
        As for :func:`group_table`.
    models : sequence of str

    Returns
    -------
    DataFrame
        ``model, group`` and the columns of :func:`models.metrics.slide_table`.
    """
    group_of = groups.slides.set_index("slide").group
    tables = []
    for model in models:
        part = predictions[predictions[f"prob_{model}"].notna() & predictions.slide.isin(group_of.index)]
        table = slide_table(part.label.to_numpy(), part[f"prob_{model}"].to_numpy(), part.slide)
        table.insert(0, "group", table.slide.map(group_of))
        table.insert(0, "model", model)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def stain_families(
    values: np.ndarray | StoredRows,
    columns: Sequence[str],
    groups: StainGroups,
    slides: pd.Series,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame | None:
    """Measure how well each family of columns predicts the stain group of unseen slides.

    A logistic regression on the family's columns is cross-validated with folds by slide. At most `FAMILY_PATCHES`
    patches per slide and `FAMILY_SLIDES` slides are drawn, so that slides have similar weight.

    Parameters
    ----------
    values : ndarray or StoredRows of shape (n, k), float32
    columns : sequence of str
        Names of the k columns, ``family_statistic_channel_region``.
    groups : StainGroups
    slides : Series of str
        Slide of each patch; missing where unknown.
    draws : int
        Number of resamplings of slides for the intervals.
    seed : int

    Returns
    -------
    DataFrame or None
        ``family, columns, auc, low, high, patches, slides``, best first. The AUC measures how well patches of group A
        are told from those of group B. None if a group has only one of the drawn slides.
    """
    group_of = slides.map(groups.slides.set_index("slide").group)
    rows = _sample_rows(slides.where(group_of.notna()), np.random.default_rng(seed))
    labels = (group_of.to_numpy()[rows] == "A").astype(int)
    names = slides.to_numpy(dtype=object)[rows]
    families: dict[str, list[int]] = {}
    for index, column in enumerate(columns):
        families.setdefault(parse_column(column).family, []).append(index)
    table = np.asarray(values[rows])
    sizes = pd.Series(labels).groupby(names).first().value_counts()
    folds = find_folds(labels, names, max(2, min(FAMILY_FOLDS, int(sizes.min()))), seed)
    if not folds:
        return None
    scores = np.column_stack([_predict_group(table[:, part], labels, folds, seed) for part in families.values()])
    low, high = _auc_intervals(labels, scores, slide_groups(names), draws, seed)
    results = pd.DataFrame(
        {
            "family": list(families),
            "columns": [len(part) for part in families.values()],
            "auc": measure(labels, scores, 0.5)[:, 0],
            "low": low,
            "high": high,
            "patches": len(rows),
            "slides": len(set(names)),
        }
    )
    return results.sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def shift_curves(
    predictions: pd.DataFrame,
    models: Sequence[str],
    thresholds: Mapping[str, float],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Evaluate every model on patches with altered stains, and compare with the original patches.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, label, alteration, strength, draw, prob_<model>``, with the same patches for each alteration,
        strength and draw. Strength 0 has one draw: the original patches.
    models : sequence of str
    thresholds : mapping from model to float
        Probability from which on a patch counts as positive.
    draws : int
        Number of resamplings of slides for the intervals. All models and strengths share them, so differences are
        paired.
    seed : int

    Returns
    -------
    DataFrame
        ``model, alteration, strength, auc, change, moved, turned, patches, slides``, one row per model, alteration and
        strength, averaged over draws. ``auc`` and ``change`` (against strength 0) also have ``_low`` and ``_high``.
        ``moved`` is the mean absolute change of probability, ``turned`` the share of patches that change class.
    """
    ordered = predictions.sort_values(["strength", "alteration", "draw", "patch_id"], kind="stable")
    views = ordered[["alteration", "strength", "draw"]].drop_duplicates(ignore_index=True)
    first = ordered.iloc[: len(ordered) // len(views)]
    labels, units = first.label.to_numpy(), slide_groups(first.slide)
    # First (views, patches, models), then one column per model and view.
    scores = ordered[[f"prob_{model}" for model in models]].to_numpy().reshape(len(views), len(first), len(models))
    flat = scores.transpose(1, 2, 0).reshape(len(first), -1)
    auc = measure(labels, flat, 0.5)[:, 0].reshape(1, len(models), len(views))
    drawn = auc_draws(labels, flat, units, draws=draws, seed=seed).reshape(-1, len(models), len(views))
    cuts = np.array([thresholds[model] for model in models])
    tables = []
    for alteration, strength in views[["alteration", "strength"]].drop_duplicates().itertuples(index=False):
        inside = ((views.alteration == alteration) & (views.strength == strength)).to_numpy()
        moved, turned = np.abs(scores[inside] - scores[0]), (scores[inside] >= cuts) != (scores[0] >= cuts)
        table = pd.DataFrame({"model": list(models)}).assign(alteration=alteration, strength=strength)
        for name, base in (("auc", 0.0), ("change", 1.0)):
            point, resampled = (aucs[:, :, inside].mean(2) - base * aucs[:, :, 0] for aucs in (auc, drawn))
            table[name] = point[0]
            table[f"{name}_low"], table[f"{name}_high"] = _interval(resampled, draws)
        table["moved"], table["turned"] = moved.mean((0, 1)), turned.mean((0, 1))
        tables.append(table.assign(patches=len(first), slides=int(units.max()) + 1))
    return pd.concat(tables, ignore_index=True)


def _interval(values: np.ndarray, draws: int) -> np.ndarray:
    """Lower and upper end for each column; missing if more than half of the draws lacked a class."""
    if 2 * len(values) < draws:
        return np.full((2, values.shape[1]), np.nan)
    return np.stack(percentile_interval(values))


def _auc_intervals(labels: np.ndarray, scores: np.ndarray, units: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Lower and upper end of each column's AUC, ndarray of shape (2, k); missing if there is no interval."""
    if len(np.unique(labels)) < 2:
        return np.full((2, scores.shape[1]), np.nan)
    return _interval(auc_draws(labels, scores, units, draws=draws, seed=seed), draws)


def _sample_rows(slides: pd.Series, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most `FAMILY_PATCHES` patches of at most `FAMILY_SLIDES` slides, drawn at random and sorted."""
    by_slide = list(slides.groupby(slides.to_numpy()).indices.values())
    if len(by_slide) > FAMILY_SLIDES:
        by_slide = [by_slide[number] for number in np.sort(rng.choice(len(by_slide), FAMILY_SLIDES, replace=False))]
    return np.sort(np.concatenate([rng.permutation(rows)[:FAMILY_PATCHES] for rows in by_slide]))


def _predict_group(values: np.ndarray, labels: np.ndarray, folds: list[np.ndarray], seed: int) -> np.ndarray:
    """Out-of-fold probability of group A for each row, ndarray of shape (n,)."""
    from threadpoolctl import threadpool_limits

    probability = np.empty(len(labels))
    with threadpool_limits(1):
        for held_out in folds:
            train = np.setdiff1d(np.arange(len(labels)), held_out, assume_unique=True)
            head = LogisticHead(strengths=(FAMILY_STRENGTH,), seed=seed).fit(values[train], labels[train])
            probability[held_out] = head.predict_proba(values[held_out])[:, 1]
    return probability


def _cluster_slides(stains: np.ndarray, seed: int) -> np.ndarray:
    """Cluster the rows into two groups, ndarray of bool."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    spread = stains.std(axis=0)
    scaled = (stains - stains.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    with threadpool_limits(1):
        return KMeans(2, n_init=20, random_state=seed).fit_predict(scaled).astype(bool)


def _permutation_p(
    prevalence: np.ndarray, group: np.ndarray, difference: float, rng: np.random.Generator, draws: int
) -> float:
    """Two-sided P value: how often shuffled slides differ as much. The observed grouping counts as one draw."""
    shuffled = rng.permuted(np.broadcast_to(prevalence, (draws, len(prevalence))), axis=1)
    size = int(group.sum())
    first = shuffled[:, :size].mean(axis=1)
    others = shuffled[:, size:].mean(axis=1)
    return float((1 + np.count_nonzero(np.abs(first - others) >= difference - 1e-12)) / (1 + draws))
