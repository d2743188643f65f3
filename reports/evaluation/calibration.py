"""How far probabilities can be believed, and what decisions at stated operating points come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.calibration import POINTS, operating_points
from histoblend.models.resampling import draw_slides, slide_groups
from histoblend.reports.evaluation.ladder import SPLITS

#: Bins of equal numbers of patches that probabilities are looked at in.
BINS = 10

DECOMPOSITION = ("brier", "reliability", "resolution", "uncertainty", "ece")
RATES = ("sensitivity", "specificity", "precision", "negative_value", "accuracy")


def bin_numbers(probability: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin of each patch, ndarray of shape (n,) int: equal numbers of patches, equal probabilities never apart."""
    inner = np.quantile(probability, np.arange(1, bins) / bins, method="inverted_cdf")
    found = np.searchsorted(np.unique(inner), probability, side="left")
    return np.unique(found, return_inverse=True)[1]


def decompose(labels: np.ndarray, probability: np.ndarray, bins: np.ndarray) -> dict[str, float]:
    """Brier score in three parts, and the expected calibration error.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    probability : ndarray of shape (n,), float, 0 to 1
    bins : ndarray of shape (n,), int
        From :func:`bin_numbers`.

    Returns
    -------
    dict from str to float
        ``brier``; ``reliability`` (mean squared distance of a bin's mean probability from its share of positives, lower
        is better), ``resolution`` (how far the bins' shares lie apart, higher is better) and ``uncertainty`` (of the
        labels alone): reliability − resolution + uncertainty is the Brier score, but for what probabilities differ
        within a bin. ``ece``: mean distance between the two, weighted by patches.

    References
    ----------
    Murphy (1973), J Appl Meteorol 12(4):595-600. Naeini, Cooper & Hauskrecht (2015), AAAI (expected calibration error).
    """
    sums = _bin_sums(labels, probability, bins, np.zeros(len(labels), np.int32))
    values = _decompose(sums.toarray().reshape(1, -1, 4))
    return dict(zip(DECOMPOSITION, map(float, values[0]), strict=True))


def _bin_sums(labels: np.ndarray, probability: np.ndarray, bins: np.ndarray, units: np.ndarray) -> Any:
    """Patches, positives, sum of probabilities and of squared errors of each unit and bin: sparse, (units, 4 bins)."""
    from scipy.sparse import csr_array

    columns = (np.ones(len(labels)), labels, probability, (labels - probability) ** 2)
    values = np.stack(columns, axis=1).astype(np.float64)
    places = 4 * bins[:, None] + np.arange(4)
    rows = np.broadcast_to(units[:, None], places.shape)
    shape = (int(units.max()) + 1, 4 * (int(bins.max()) + 1))
    return csr_array((values.ravel(), (rows.ravel(), places.ravel())), shape=shape)


def _decompose(sums: np.ndarray) -> np.ndarray:
    """Rows of `DECOMPOSITION` from the sums of each draw, (draws, bins, 4) into (draws, 5)."""
    patches, positives, probability, squared = np.moveaxis(sums, 2, 0)
    total = patches.sum(axis=1, keepdims=True)
    base = positives.sum(axis=1, keepdims=True) / total
    size = np.maximum(patches, 1e-300)  # an empty bin weighs nothing
    share, mean = positives / size, probability / size
    weight = patches / total
    parts = (squared / total, weight * (mean - share) ** 2, weight * (share - base) ** 2, weight * np.abs(mean - share))
    brier, reliability, resolution, error = (part.sum(axis=1) for part in parts)
    uncertainty = (base * (1 - base))[:, 0]
    return np.stack([brier, reliability, resolution, uncertainty, error], axis=1)


def _parts(
    predictions: pd.DataFrame, models: Sequence[str]
) -> Iterator[tuple[str, list[str], pd.DataFrame, np.ndarray]]:
    """Name of each split, models with predictions for the same patches, these patches and their resampling units."""
    for split, name in SPLITS.items():
        part = predictions[predictions.split == split]
        alike: dict[bytes, list[str]] = {}
        for model in models:
            alike.setdefault(part[f"prob_{model}"].notna().to_numpy().tobytes(), []).append(model)
        for gaps, group in alike.items():
            present = part[np.frombuffer(gaps, dtype=bool)]
            if len(present):
                yield name, group, present, slide_groups(present.slide)


def calibration_tables(
    predictions: pd.DataFrame, models: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reliability curves and the Brier score's parts of each model, with 95 % bands from resampling slides.

    A curve is the share of positives where a model says so much. Reliability and calibration error cannot fall below
    zero, and few slides lift them: resampled values lie above the estimate more often than below.

    Parameters
    ----------
    predictions : DataFrame
        ``slide, split, label, prob_<model>``; where a probability is missing, the patch is left out.
    models : sequence of str
    draws, seed : int
        For the bootstrap; models with the same patches share the draws.

    Returns
    -------
    reliability : DataFrame
        ``model, split (oof|test), bin, patches, probability, share, share_low, share_high``; bins are those of the
        split.
    decomposition : DataFrame
        ``model, split, measure, value, low, high``; measures are those of :func:`decompose`.
    """
    curves, parts = [], []
    for split, group, part, units in _parts(predictions, models):
        labels = part.label.to_numpy()
        probabilities = [part[f"prob_{model}"].to_numpy() for model in group]
        sums = [_bin_sums(labels, column, bin_numbers(column), units) for column in probabilities]
        drawn: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in group]
        for counts in draw_slides(sums[0].shape[0], draws, seed):
            for kept, table in zip(drawn, sums, strict=True):
                cells = (counts @ table).reshape(len(counts), -1, 4)
                kept.append((_shares(cells), _decompose(cells)))
        for model, kept, table in zip(group, drawn, sums, strict=True):
            shares, values = (np.concatenate(pieces) for pieces in zip(*kept, strict=True))
            whole = table.sum(axis=0).reshape(1, -1, 4)
            curves.append(_curve(model, split, whole[0], _interval(shares)))
            low, high = _interval(values)
            frame = {"measure": DECOMPOSITION, "value": _decompose(whole)[0], "low": low, "high": high}
            parts.append(pd.DataFrame({"model": model, "split": split, **frame}))
    return _by_model(curves, models), _by_model(parts, models)


def _shares(sums: np.ndarray) -> np.ndarray:
    """Share of positives in each bin, (draws, bins); missing where a draw leaves a bin empty."""
    patches, positives = sums[..., 0], sums[..., 1]
    return np.divide(positives, patches, out=np.full_like(patches, np.nan), where=patches > 0)


def _curve(model: str, split: str, sums: np.ndarray, band: tuple[np.ndarray, np.ndarray]) -> pd.DataFrame:
    """One model's reliability on one split, a row a bin."""
    return pd.DataFrame(
        {
            "model": model,
            "split": split,
            "bin": np.arange(1, len(sums) + 1),
            "patches": sums[:, 0].astype(int),
            "probability": sums[:, 2] / sums[:, 0],
            "share": sums[:, 1] / sums[:, 0],
            "share_low": band[0],
            "share_high": band[1],
        }
    )


def _by_model(frames: list[pd.DataFrame], models: Sequence[str]) -> pd.DataFrame:
    """Join, models in their order; within one, splits as they came."""
    rank = {model: place for place, model in enumerate(models)}
    table = pd.concat(frames, ignore_index=True)
    return table.sort_values("model", key=lambda column: column.map(rank), kind="stable", ignore_index=True)


def cross_thresholds(predictions: pd.DataFrame, model: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """Thresholds of each operating point, chosen on out-of-fold predictions.

    Parameters
    ----------
    predictions : DataFrame
        ``split, fold, label, prob_<model>``.
    model : str

    Returns
    -------
    cuts : DataFrame
        Rows as in `predictions`, a column a point of :data:`models.calibration.POINTS`: what each patch may be judged
        by. A training patch is judged by what the other folds give, or by one half where these lack a class; any other
        by what all folds give.
    thresholds : dict from str to float
        What all folds give, which new patches are judged by.
    """
    train = predictions[(predictions.split == "train") & predictions[f"prob_{model}"].notna()]
    thresholds = operating_points(train.label.to_numpy(), train[f"prob_{model}"].to_numpy())
    cuts = pd.DataFrame(thresholds, index=predictions.index)
    for fold in train.fold.unique():
        rest = train[train.fold != fold]
        found = dict.fromkeys(POINTS, 0.5)
        if rest.label.nunique() > 1:
            found = operating_points(rest.label.to_numpy(), rest[f"prob_{model}"].to_numpy())
        cuts.loc[train.index[train.fold == fold], list(found)] = list(found.values())
    return cuts, thresholds


def operating_table(
    predictions: pd.DataFrame,
    cuts: pd.DataFrame,
    model: str,
    thresholds: Mapping[str, float],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """What comes of deciding at each operating point, with 95 % intervals from resampling slides.

    Parameters
    ----------
    predictions : DataFrame
        ``slide, split, label, prob_<model>``.
    cuts : DataFrame
        Rows as in `predictions`; a column an operating point with the threshold that each patch is judged by: in
        training one that its fold had no part in.
    model : str
    thresholds : mapping from str to float
        Those that new patches are judged by.
    draws, seed : int

    Returns
    -------
    DataFrame
        ``point, split, threshold`` and each of `RATES` with ``_low`` and ``_high``; missing where it has no meaning,
        such as precision where nothing is called positive.
    """
    rows = []
    for name, _, part, units in _parts(predictions, [model]):
        positive = part.label.to_numpy() == 1
        for point in POINTS:
            called = part[f"prob_{model}"].to_numpy() >= cuts.loc[part.index, point].to_numpy()
            cells = (called & positive, called & ~positive, ~called & ~positive, ~called & positive)
            sums = np.stack([np.bincount(units, weights=cell) for cell in cells], axis=1)
            whole = _rates(sums.sum(axis=0)[None])[0]
            drawn = np.concatenate([_rates(counts @ sums) for counts in draw_slides(len(sums), draws, seed)])
            low, high = _interval(drawn)
            row: dict[str, object] = {"point": point, "split": name, "threshold": thresholds[point]}
            for place, rate in enumerate(RATES):
                row |= {rate: whole[place], f"{rate}_low": low[place], f"{rate}_high": high[place]}
            rows.append(row)
    return pd.DataFrame(rows)


def _rates(cells: np.ndarray) -> np.ndarray:
    """Rates of `RATES` from true and false positives, true and false negatives, (draws, 4) into (draws, 5)."""
    found, wrong, left, missed = cells.T
    pairs = ((found, found + missed), (left, left + wrong), (found, found + wrong), (left, left + missed))
    rates = [np.divide(top, all_, out=np.full(len(cells), np.nan), where=all_ > 0) for top, all_ in pairs]
    return np.stack([*rates, (found + left) / cells.sum(axis=1)], axis=1)


def _interval(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval along the first axis over draws in which a value has a meaning; missing where none has."""
    # nanquantile warns of columns without any number; there the answer is the missing number itself.
    filled = np.where(np.isnan(drawn).all(axis=0), 0.0, drawn)
    low, high = np.nanquantile(filled, [0.025, 0.975], axis=0)
    empty = np.isnan(drawn).all(axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)
