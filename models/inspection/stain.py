"""Whether models rely on stain: slides in two groups by their stain, who tells them apart, and stains shifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from histoblend.data.splits import find_folds
from histoblend.features.handcrafted.families import parse_column
from histoblend.models.heads.logistic import LogisticHead
from histoblend.models.metrics import measure, slide_table
from histoblend.models.resampling import auc_draws, percentile_interval, slide_groups

#: With fewer slides a division in two says nothing.
FEWEST_SLIDES = 8
#: A group of fewer slides is a few odd slides, not a way of staining.
FEWEST_IN_GROUP = 3
#: Below this probability, and from this difference on, stain and label are called confounded.
P_LIMIT = 0.01
DIFFERENCE_LIMIT = 0.2

#: The strength of shifted stains that is spoken of: the network's training alters them as much unless told otherwise.
SPOKEN_STRENGTH = 0.1
#: From this AUC on, a family of features is said to tell the two groups of slides apart.
TELLS = 0.8
#: Slides, and patches of each, on which families are asked for the group at most: slides are the sample.
ASKED_SLIDES = 100
ASKED_PATCHES = 24
#: Folds by slide, and the penalty of the logistic regression that is asked, the same for every family.
ASKED_FOLDS = 5
ASKED_STRENGTH = 0.01
#: What the groups are made from: it tells them apart by construction.
OWN_FAMILY = "stain"

#: The family's columns that hold the stain vectors: haematoxylin's red, green and blue, then eosin's.
VECTORS = tuple(
    f"stain_{part}_{stain}_whole" for stain in ("haematoxylin", "eosin") for part in ("red", "green", "blue")
)
_FALLBACK = "stain_fallback_both_whole"


@dataclass(frozen=True)
class StainGroups:
    """Slides divided in two by stain.

    Attributes
    ----------
    slides : DataFrame
        ``slide, group (A|B), prevalence, patches``, and the slide's stain vectors where they are known (`VECTORS`);
        group A has the larger mean share of positives.
    difference : float
        Mean share of positives over the slides of group A minus that of group B, 0 to 1.
    p : float
        How often a random division of the slides into groups of these sizes differs as much, 0 to 1.
    """

    slides: pd.DataFrame
    difference: float
    p: float

    @property
    def confounded(self) -> bool:
        """Whether stain goes with the label more than chance and in a size that matters."""
        return self.p < P_LIMIT and self.difference >= DIFFERENCE_LIMIT

    def words(self) -> str:
        """Say what was found, in two sentences."""
        means = self.slides.groupby("group").prevalence.agg(["mean", "size"])
        a, b = means.loc["A"], means.loc["B"]
        found = (
            f"By their stain the slides fall into two groups, of {a['size']:.0f} and {b['size']:.0f}, with "
            f"{100 * a['mean']:.0f} % and {100 * b['mean']:.0f} % positives a slide (P {self._p_words()})."
        )
        if self.confounded:
            return (
                f"Stain and label go together. {found} A model can score by recognising the stain instead of tumour, "
                "and will fail where the two part: believe its AUC within each group rather than over both."
            )
        little = "too small a difference to doubt the scores for" if self.p < P_LIMIT else "no more than chance does"
        return f"{found} That is {little}."

    def _p_words(self) -> str:
        return "< 0.001" if self.p < 0.001 else f"= {self.p:.3f}"


def stain_groups(
    values: np.ndarray,
    columns: Sequence[str],
    labels: np.ndarray,
    slides: pd.Series,
    *,
    seed: int = 0,
    draws: int = 9999,
) -> StainGroups | None:
    """Divide slides in two by their stain vectors, and compare the share of positives.

    A slide's stain is the median of its patches' stain vectors (family "stain"; patches whose vectors could not be
    estimated are left out). Its six numbers are standardised over slides and divided by k-means with two centres.
    Labels enter only afterwards: groups differ by the mean of their slides' shares of positives, and slides are
    shuffled between the groups for the probability.

    Parameters
    ----------
    values : ndarray of shape (n, k), float32
        Handcrafted features.
    columns : sequence of str
        Names of the k columns.
    labels : ndarray of shape (n,), 0 or 1
    slides : Series of str
        Slide of each patch; missing where unknown.
    seed : int
    draws : int
        Random divisions.

    Returns
    -------
    StainGroups or None
        None without the family, with fewer than `FEWEST_SLIDES` slides, and where one group would hold fewer than
        `FEWEST_IN_GROUP`.

    References
    ----------
    Macenko et al. (2009), IEEE ISBI, 1107-1110 (stain vectors).
    Howard et al. (2021), Nat Commun 12:4423 (stain as a shortcut for the label).
    """
    place = {name: number for number, name in enumerate(columns)}
    if _FALLBACK not in place:
        return None
    known = slides.notna().to_numpy()
    usable = known & (np.asarray(values[:, place[_FALLBACK]]) < 0.5)
    vectors = pd.DataFrame(np.asarray(values[:, [place[name] for name in VECTORS]], dtype=np.float64))
    stains = vectors[usable].groupby(slides.to_numpy()[usable]).median()
    if len(stains) < FEWEST_SLIDES:
        return None
    group = _divide(stains.to_numpy(), seed)
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
    return StainGroups(table, difference, _chance(prevalence, group, difference, np.random.default_rng(seed), draws))


def group_scores(groups: StainGroups, predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    """Count each stain group, and judge a model within it.

    Parameters
    ----------
    groups : StainGroups
    predictions : DataFrame
        ``slide, label, prob_<model>``; out-of-fold and test patches together, each scored by a model that has not seen
        its slide.
    model : str

    Returns
    -------
    DataFrame
        ``group, slides, patches, prevalence, auc``; the AUC is missing where a group has one class.
    """
    of = predictions.slide.map(groups.slides.set_index("slide").group)
    rows = []
    for name in ("A", "B"):
        part = predictions[(of == name).to_numpy()]
        both = part.label.nunique() == 2
        auc = roc_auc_score(part.label, part[f"prob_{model}"]) if both else np.nan
        rows.append((name, part.slide.nunique(), len(part), part.label.mean(), auc))
    return pd.DataFrame(rows, columns=["group", "slides", "patches", "prevalence", "auc"])


@dataclass(frozen=True)
class StainView:
    """What the report shows of stain.

    Attributes
    ----------
    groups : StainGroups, optional
        None where the slides cannot be divided.
    scores : DataFrame, optional
        From :func:`group_table`.
    slides : DataFrame, optional
        From :func:`group_slides`.
    families : DataFrame, optional
        From :func:`stain_families`.
    shifted : DataFrame, optional
        From :func:`shift_curves`.
    absent : str
        Why `shifted` is missing.
    trained : float
        Strength at which the fine-tuned network saw altered stains in training; 0 for none.
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
    """Judge every model within each stain group.

    Parameters
    ----------
    groups : StainGroups
    predictions : DataFrame
        ``slide, label, prob_<model>``; out-of-fold and test patches together, each scored by a model that has not seen
        its slide. A model may lack patches.
    models : sequence of str
    draws : int
        Resamplings of the group's slides behind each interval.
    seed : int

    Returns
    -------
    DataFrame
        ``model`` and the columns of :func:`group_scores`, then ``auc_low, auc_high``, the 95 % interval of the AUC;
        missing where a group has one class.
    """
    of = predictions.slide.map(groups.slides.set_index("slide").group)
    tables = []
    for model in models:
        has = predictions[f"prob_{model}"].notna()
        table = group_scores(groups, predictions[has], model)
        ends = []
        for name in table.group:
            part = predictions[(has & (of == name)).to_numpy()]
            scores = part[[f"prob_{model}"]].to_numpy()
            ends.append(_ends(part.label.to_numpy(), scores, slide_groups(part.slide), draws, seed)[:, 0])
        table["auc_low"], table["auc_high"] = np.array(ends).T
        table.insert(0, "model", model)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def group_slides(groups: StainGroups, predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Judge every model within each slide of the groups.

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
    of = groups.slides.set_index("slide").group
    tables = []
    for model in models:
        part = predictions[predictions[f"prob_{model}"].notna() & predictions.slide.isin(of.index)]
        table = slide_table(part.label.to_numpy(), part[f"prob_{model}"].to_numpy(), part.slide)
        table.insert(0, "group", table.slide.map(of))
        table.insert(0, "model", model)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def stain_families(
    values: np.ndarray,
    columns: Sequence[str],
    groups: StainGroups,
    slides: pd.Series,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame | None:
    """Ask each family of columns for the stain group of slides that it was not fitted on.

    Logistic regression on the family's columns learns the group from the other folds, which are made by slide. At most
    `ASKED_PATCHES` patches of a slide, and `ASKED_SLIDES` slides, are drawn, so that slides count about alike.

    Parameters
    ----------
    values : ndarray of shape (n, k), float32
    columns : sequence of str
        Names of the k columns, ``family_statistic_channel_region``.
    groups : StainGroups
    slides : Series of str
        Slide of each patch; missing where unknown.
    draws : int
        Resamplings of slides behind the intervals.
    seed : int

    Returns
    -------
    DataFrame or None
        ``family, columns, auc, low, high, patches, slides``, best first: how well patches of group A are told from
        those of group B. None where a group has but one of the slides that were drawn.
    """
    of = slides.map(groups.slides.set_index("slide").group)
    rows = _some_of_each(slides.where(of.notna()), np.random.default_rng(seed))
    labels = (of.to_numpy()[rows] == "A").astype(int)
    names = slides.to_numpy(dtype=object)[rows]
    places: dict[str, list[int]] = {}
    for place, column in enumerate(columns):
        places.setdefault(parse_column(column).family, []).append(place)
    table = np.asarray(values[rows])
    sizes = pd.Series(labels).groupby(names).first().value_counts()
    folds = find_folds(labels, names, max(2, min(ASKED_FOLDS, int(sizes.min()))), seed)
    if not folds:
        return None
    scores = np.column_stack([_asked(table[:, part], labels, folds, seed) for part in places.values()])
    low, high = _ends(labels, scores, slide_groups(names), draws, seed)
    found = pd.DataFrame(
        {
            "family": list(places),
            "columns": [len(part) for part in places.values()],
            "auc": measure(labels, scores, 0.5)[:, 0],
            "low": low,
            "high": high,
            "patches": len(rows),
            "slides": len(set(names)),
        }
    )
    return found.sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def shift_curves(
    predictions: pd.DataFrame,
    models: Sequence[str],
    thresholds: Mapping[str, float],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge every model on patches whose stains were altered, against the same patches as they are.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, label, alteration, strength, draw, prob_<model>``: the same patches in each alteration,
        strength and draw; strength 0, of one draw, is the patches as they are.
    models : sequence of str
    thresholds : mapping from model to float
        Probability from which on a patch counts as positive.
    draws : int
        Resamplings of slides behind the intervals; the same for all models and strengths, so that differences are
        paired.
    seed : int

    Returns
    -------
    DataFrame
        ``model, alteration, strength, auc, change, moved, turned, patches, slides``, a row a model, alteration and
        strength; ``auc`` and ``change`` (against strength 0) have ``_low`` and ``_high`` beside them. Over the draws of
        a strength: the mean AUC, the mean absolute change of probability, and the share of patches that change the side
        of the threshold.
    """
    ordered = predictions.sort_values(["strength", "alteration", "draw", "patch_id"], kind="stable")
    views = ordered[["alteration", "strength", "draw"]].drop_duplicates(ignore_index=True)
    first = ordered.iloc[: len(ordered) // len(views)]
    labels, units = first.label.to_numpy(), slide_groups(first.slide)
    # (views, patches, models), then a column a model and view
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
            point, several = (aucs[:, :, inside].mean(2) - base * aucs[:, :, 0] for aucs in (auc, drawn))
            table[name] = point[0]
            table[f"{name}_low"], table[f"{name}_high"] = _interval(several, draws)
        table["moved"], table["turned"] = moved.mean((0, 1)), turned.mean((0, 1))
        tables.append(table.assign(patches=len(first), slides=int(units.max()) + 1))
    return pd.concat(tables, ignore_index=True)


def _interval(values: np.ndarray, draws: int) -> np.ndarray:
    """Low and high of each column; missing where more than half of the draws lacked a class."""
    if 2 * len(values) < draws:
        return np.full((2, values.shape[1]), np.nan)
    return np.stack(percentile_interval(values))


def _ends(labels: np.ndarray, scores: np.ndarray, units: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Low and high of each column's AUC, ndarray of shape (2, k); missing where no interval can be told."""
    if len(np.unique(labels)) < 2:
        return np.full((2, scores.shape[1]), np.nan)
    return _interval(auc_draws(labels, scores, units, draws=draws, seed=seed), draws)


def _some_of_each(slides: pd.Series, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most `ASKED_PATCHES` patches of at most `ASKED_SLIDES` slides, drawn at random and sorted."""
    parts = list(slides.groupby(slides.to_numpy()).indices.values())
    if len(parts) > ASKED_SLIDES:
        parts = [parts[place] for place in np.sort(rng.choice(len(parts), ASKED_SLIDES, replace=False))]
    return np.sort(np.concatenate([rng.permutation(part)[:ASKED_PATCHES] for part in parts]))


def _asked(values: np.ndarray, labels: np.ndarray, folds: list[np.ndarray], seed: int) -> np.ndarray:
    """Probability of group A for each row, from a fit on the other folds, ndarray of shape (n,)."""
    from threadpoolctl import threadpool_limits

    found = np.empty(len(labels))
    with threadpool_limits(1):
        for out in folds:
            inside = np.setdiff1d(np.arange(len(labels)), out, assume_unique=True)
            head = LogisticHead(strengths=(ASKED_STRENGTH,), seed=seed).fit(values[inside], labels[inside])
            found[out] = head.predict_proba(values[out])[:, 1]
    return found


def _divide(stains: np.ndarray, seed: int) -> np.ndarray:
    """Two groups of rows, ndarray of bool."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    spread = stains.std(axis=0)
    scaled = (stains - stains.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    with threadpool_limits(1):
        return KMeans(2, n_init=20, random_state=seed).fit_predict(scaled).astype(bool)


def _chance(
    prevalence: np.ndarray, group: np.ndarray, difference: float, rng: np.random.Generator, draws: int
) -> float:
    """How often shuffled slides differ as much, in either direction; the division at hand counts as one draw."""
    shuffled = rng.permuted(np.broadcast_to(prevalence, (draws, len(prevalence))), axis=1)
    size = int(group.sum())
    first = shuffled[:, :size].mean(axis=1)
    others = shuffled[:, size:].mean(axis=1)
    return float((1 + np.count_nonzero(np.abs(first - others) >= difference - 1e-12)) / (1 + draws))
