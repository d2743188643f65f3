"""How far probabilities can be believed, and what decisions at stated operating points come to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from models.calibration import POINTS
from models.resampling import draw_slides, slide_groups
from reports.ladder import SPLITS

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
    units = np.zeros(len(labels), np.int32)
    values = _decompose(_bin_sums(labels, probability, bins, units), np.ones((1, 1)))
    return dict(zip(DECOMPOSITION, map(float, values[0]), strict=True))


def _bin_sums(labels: np.ndarray, probability: np.ndarray, bins: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Patches, positives, sum of probabilities and of squared errors of each unit and bin: (units, bins, 4)."""
    shape = (int(units.max()) + 1, int(bins.max()) + 1)
    cells = units.astype(np.int64) * shape[1] + bins
    columns = (np.ones(len(labels)), labels, probability, (labels - probability) ** 2)
    sums = [np.bincount(cells, weights=column, minlength=shape[0] * shape[1]) for column in columns]
    return np.stack(sums, axis=1).reshape(*shape, 4)


def _drawn_sums(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over the units of each draw, (draws, bins, k)."""
    return (counts.astype(np.float64) @ sums.reshape(len(sums), -1)).reshape(len(counts), *sums.shape[1:])


def _decompose(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Rows of `DECOMPOSITION` under each draw of units, (draws, 5)."""
    patches, positives, probability, squared = np.moveaxis(_drawn_sums(sums, counts), 2, 0)
    total = patches.sum(axis=1, keepdims=True)
    base = positives.sum(axis=1, keepdims=True) / total
    size = np.maximum(patches, 1e-300)  # an empty bin weighs nothing
    share, mean = positives / size, probability / size
    weight = patches / total
    parts = (squared / total, weight * (mean - share) ** 2, weight * (share - base) ** 2, weight * np.abs(mean - share))
    brier, reliability, resolution, error = (part.sum(axis=1) for part in parts)
    uncertainty = (base * (1 - base))[:, 0]
    return np.stack([brier, reliability, resolution, uncertainty, error], axis=1)


def _parts(predictions: pd.DataFrame, model: str) -> Iterator[tuple[str, pd.DataFrame, np.ndarray]]:
    """Name, patches that have a prediction, and resampling units of each split."""
    for split, name in SPLITS.items():
        part = predictions[(predictions.split == split) & predictions[f"prob_{model}"].notna()]
        if len(part):
            yield name, part, slide_groups(part.slide)


def reliability_table(predictions: pd.DataFrame, model: str, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Reliability curve: the share of positives where a model says so much, with 95 % bands from resampling slides.

    Returns
    -------
    DataFrame
        ``split (oof|test), bin, patches, probability, share, share_low, share_high``; bins are those of the split.
    """
    frames = []
    for name, part, units in _parts(predictions, model):
        bins = bin_numbers(part[f"prob_{model}"].to_numpy())
        sums = _bin_sums(part.label.to_numpy(), part[f"prob_{model}"].to_numpy(), bins, units)
        drawn = [_drawn_sums(sums[:, :, :2], counts) for counts in draw_slides(len(sums), draws, seed)]
        patches, positives = np.moveaxis(np.concatenate(drawn), 2, 0)
        low, high = _interval(np.divide(positives, patches, out=np.full_like(patches, np.nan), where=patches > 0))
        whole = sums.sum(axis=0)
        frames.append(
            pd.DataFrame(
                {
                    "split": name,
                    "bin": np.arange(1, len(whole) + 1),
                    "patches": whole[:, 0].astype(int),
                    "probability": whole[:, 2] / whole[:, 0],
                    "share": whole[:, 1] / whole[:, 0],
                    "share_low": low,
                    "share_high": high,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def decomposition_table(predictions: pd.DataFrame, model: str, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Brier decomposition and expected calibration error, with 95 % intervals from resampling slides.

    Reliability and calibration error cannot fall below zero, and few slides lift them: resampled values lie above the
    estimate more often than below.

    Returns
    -------
    DataFrame
        ``split, measure, value, low, high``; measures are those of :func:`decompose`.
    """
    frames = []
    for name, part, units in _parts(predictions, model):
        probability = part[f"prob_{model}"].to_numpy()
        sums = _bin_sums(part.label.to_numpy(), probability, bin_numbers(probability), units)
        whole = _decompose(sums, np.ones((1, len(sums))))[0]
        low, high = _interval(
            np.concatenate([_decompose(sums, counts) for counts in draw_slides(len(sums), draws, seed)])
        )
        frames.append(pd.DataFrame({"split": name, "measure": DECOMPOSITION, "value": whole, "low": low, "high": high}))
    return pd.concat(frames, ignore_index=True)


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
    for name, part, units in _parts(predictions, model):
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
