"""Whether stain tells the label: slides in two groups by their stain, and the share of positives in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

#: With fewer slides a division in two says nothing.
FEWEST_SLIDES = 8
#: A group of fewer slides is a few odd slides, not a way of staining.
FEWEST_IN_GROUP = 3
#: Below this probability, and from this difference on, stain and label are called confounded.
P_LIMIT = 0.01
DIFFERENCE_LIMIT = 0.2

_VECTORS = tuple(
    f"stain_{part}_{stain}_whole" for stain in ("haematoxylin", "eosin") for part in ("red", "green", "blue")
)
_FALLBACK = "stain_fallback_both_whole"


@dataclass(frozen=True)
class StainGroups:
    """Slides divided in two by stain.

    Attributes
    ----------
    slides : DataFrame
        ``slide, group (A|B), prevalence, patches``; group A has the larger mean share of positives.
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
    vectors = pd.DataFrame(np.asarray(values[:, [place[name] for name in _VECTORS]], dtype=np.float64))
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
