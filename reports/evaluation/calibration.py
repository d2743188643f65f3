"""Calibration of probabilities, and performance at operating points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.calibration import POINTS, log_odds, odds_groups, operating_points
from histoblend.models.resampling import draw_slides, slide_groups
from histoblend.reports.evaluation.ladder import SPLITS

#: Number of bins of a reliability curve, with equal numbers of patches.
BINS = 10

DECOMPOSITION = ("brier", "reliability", "resolution", "uncertainty", "ece")
RATES = (
    "sensitivity", "specificity", "precision", "negative_value", "accuracy", "even_precision", "even_negative_value",
)  # fmt: skip
RECALIBRATION = ("slope", "intercept", "in_the_large")
#: Newton steps of a recalibration before it counts as not converged.
_STEPS = 30


def assign_bins(probability: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Bin of each patch, ndarray of shape (n,) int. Bins have equal numbers of patches; ties share a bin."""
    inner = np.quantile(probability, np.arange(1, bins) / bins, method="inverted_cdf")
    bin_of_patch = np.searchsorted(np.unique(inner), probability, side="left")
    return np.unique(bin_of_patch, return_inverse=True)[1]


def decompose(labels: np.ndarray, probability: np.ndarray, bins: np.ndarray) -> dict[str, float]:
    """Decompose the Brier score into three parts, and compute the expected calibration error.

    Parameters
    ----------
    labels : ndarray of shape (n,), 0 or 1
    probability : ndarray of shape (n,), float, 0 to 1
    bins : ndarray of shape (n,), int
        From :func:`assign_bins`.

    Returns
    -------
    dict from str to float
        ``brier``: the Brier score. It equals reliability − resolution + uncertainty, except for differences between
        probabilities within a bin.
        ``reliability``: mean squared difference between a bin's mean probability and its share of positives. Lower is
        better.
        ``resolution``: spread of the bins' shares of positives. Higher is better.
        ``uncertainty``: variance of the labels.
        ``ece``: mean absolute difference between a bin's mean probability and its share of positives, weighted by
        patches.

    References
    ----------
    Murphy (1973), J Appl Meteorol 12(4):595-600. Naeini, Cooper & Hauskrecht (2015), AAAI (expected calibration error).
    """
    sums = _bin_sums(labels, probability, bins, np.zeros(len(labels), np.int32))
    values = _decompose(sums.toarray().reshape(1, -1, 4))
    return dict(zip(DECOMPOSITION, map(float, values[0]), strict=True))


def _bin_sums(labels: np.ndarray, probability: np.ndarray, bins: np.ndarray, units: np.ndarray) -> Any:
    """Patches, positives, and sums of probabilities and squared errors per unit and bin: sparse, (units, 4 · bins)."""
    from scipy.sparse import csr_array

    columns = (np.ones(len(labels)), labels, probability, (labels - probability) ** 2)
    values = np.stack(columns, axis=1).astype(np.float64)
    cells = 4 * bins[:, None] + np.arange(4)
    rows = np.broadcast_to(units[:, None], cells.shape)
    shape = (int(units.max()) + 1, 4 * (int(bins.max()) + 1))
    return csr_array((values.ravel(), (rows.ravel(), cells.ravel())), shape=shape)


def _decompose(sums: np.ndarray) -> np.ndarray:
    """Compute `DECOMPOSITION` from the sums of each draw; maps (draws, bins, 4) to (draws, 5)."""
    patches, positives, probability, squared = np.moveaxis(sums, 2, 0)
    total = patches.sum(axis=1, keepdims=True)
    base = positives.sum(axis=1, keepdims=True) / total
    size = np.maximum(patches, 1e-300)  # an empty bin has no weight
    share, mean = positives / size, probability / size
    weight = patches / total
    parts = (squared / total, weight * (mean - share) ** 2, weight * (share - base) ** 2, weight * np.abs(mean - share))
    brier, reliability, resolution, error = (part.sum(axis=1) for part in parts)
    uncertainty = (base * (1 - base))[:, 0]
    return np.stack([brier, reliability, resolution, uncertainty, error], axis=1)


def _comparable_patches(
    predictions: pd.DataFrame, models: Sequence[str]
) -> Iterator[tuple[str, list[str], pd.DataFrame, np.ndarray]]:
    """Yield, per split and set of predicted patches: split name, models, patches and resampling units."""
    for split, name in SPLITS.items():
        part = predictions[predictions.split == split]
        models_by_gaps: dict[bytes, list[str]] = {}
        for model in models:
            models_by_gaps.setdefault(part[f"prob_{model}"].notna().to_numpy().tobytes(), []).append(model)
        for gaps, group in models_by_gaps.items():
            present = part[np.frombuffer(gaps, dtype=bool)]
            if len(present):
                yield name, group, present, slide_groups(present.slide)


def calibration_tables(
    predictions: pd.DataFrame, models: Sequence[str], *, draws: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reliability curves and Brier score decompositions of each model, with 95 % bands from resampling slides.

    A reliability curve is the share of positives by predicted probability. Reliability and calibration error cannot be
    negative, and few slides bias them upwards, so resampled values are more often above the estimate than below.

    Parameters
    ----------
    predictions : DataFrame
        ``slide, split, label, prob_<model>``. Patches without a probability are left out.
    models : sequence of str
    draws, seed : int
        For the bootstrap. Models with the same patches share the draws.

    Returns
    -------
    reliability : DataFrame
        ``model, split (oof|test), bin, patches, probability, share, share_low, share_high``. Bins are computed per
        split.
    decomposition : DataFrame
        ``model, split, measure, value, low, high``, with the measures of :func:`decompose`.
    """
    curves, parts = [], []
    for split, group, part, units in _comparable_patches(predictions, models):
        labels = part.label.to_numpy()
        probabilities = [part[f"prob_{model}"].to_numpy() for model in group]
        sums = [_bin_sums(labels, column, assign_bins(column), units) for column in probabilities]
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
    """Share of positives in each bin, (draws, bins); NaN if a draw leaves a bin empty."""
    patches, positives = sums[..., 0], sums[..., 1]
    return np.divide(positives, patches, out=np.full_like(patches, np.nan), where=patches > 0)


def _curve(model: str, split: str, sums: np.ndarray, band: tuple[np.ndarray, np.ndarray]) -> pd.DataFrame:
    """Reliability curve of one model on one split, one row per bin."""
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
    """Concatenate the frames, ordered by model and, within a model, as given."""
    rank = {model: position for position, model in enumerate(models)}
    table = pd.concat(frames, ignore_index=True)
    return table.sort_values("model", key=lambda column: column.map(rank), kind="stable", ignore_index=True)


def out_of_fold_thresholds(predictions: pd.DataFrame, model: str) -> tuple[pd.DataFrame, dict[str, float]]:
    """Choose the threshold of each operating point on out-of-fold predictions.

    Parameters
    ----------
    predictions : DataFrame
        ``split, fold, label, prob_<model>``.
    model : str

    Returns
    -------
    cuts : DataFrame
        The threshold for each patch. Rows as in `predictions`, one column per point of
        :data:`models.calibration.POINTS`. A training patch gets the threshold chosen on the other folds, or 0.5 if
        these lack a class. Any other patch gets the threshold chosen on all folds.
    thresholds : dict from str to float
        The thresholds chosen on all folds, which are used for new patches.
    """
    train = predictions[(predictions.split == "train") & predictions[f"prob_{model}"].notna()]
    thresholds = operating_points(train.label.to_numpy(), train[f"prob_{model}"].to_numpy())
    cuts = pd.DataFrame(thresholds, index=predictions.index)
    for fold in train.fold.unique():
        rest = train[train.fold != fold]
        fold_thresholds = dict.fromkeys(POINTS, 0.5)
        if rest.label.nunique() > 1:
            fold_thresholds = operating_points(rest.label.to_numpy(), rest[f"prob_{model}"].to_numpy())
        cuts.loc[train.index[train.fold == fold], list(fold_thresholds)] = list(fold_thresholds.values())
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
    """Performance at each operating point, with 95 % intervals from resampling slides.

    Parameters
    ----------
    predictions : DataFrame
        ``slide, split, label, prob_<model>``.
    cuts : DataFrame
        The threshold for each patch. Rows as in `predictions`, one column per operating point. Thresholds of training
        patches must be chosen without their fold.
    model : str
    thresholds : mapping from str to float
        Thresholds for new patches.
    draws, seed : int

    Returns
    -------
    DataFrame
        ``point, split, threshold`` and each of `RATES` with ``_low`` and ``_high``. A rate is NaN if undefined, such as
        precision if no patch is called positive. ``even_precision`` and ``even_negative_value`` are PPV and NPV if half
        of the patches are positive. Their odds, multiplied by the odds of another prevalence, give PPV and NPV and
        their intervals there.
    """
    rows = []
    for name, _, part, units in _comparable_patches(predictions, [model]):
        positive = part.label.to_numpy() == 1
        for point in POINTS:
            called = part[f"prob_{model}"].to_numpy() >= cuts.loc[part.index, point].to_numpy()
            cells = (called & positive, called & ~positive, ~called & ~positive, ~called & positive)
            sums = np.stack([np.bincount(units, weights=cell) for cell in cells], axis=1)
            whole = _rates(sums.sum(axis=0)[None])[0]
            drawn = np.concatenate([_rates(counts @ sums) for counts in draw_slides(len(sums), draws, seed)])
            low, high = _interval(drawn)
            row: dict[str, object] = {"point": point, "split": name, "threshold": thresholds[point]}
            for index, rate in enumerate(RATES):
                row |= {rate: whole[index], f"{rate}_low": low[index], f"{rate}_high": high[index]}
            rows.append(row)
    return pd.DataFrame(rows)


def _rates(cells: np.ndarray) -> np.ndarray:
    """Compute `RATES` from true and false positives, true and false negatives; maps (draws, 4) to (draws, 7)."""
    true_positive, false_positive, true_negative, false_negative = cells.T
    sensitivity = _ratio(true_positive, true_positive + false_negative)
    specificity = _ratio(true_negative, true_negative + false_positive)
    return np.stack(
        [
            sensitivity,
            specificity,
            _ratio(true_positive, true_positive + false_positive),
            _ratio(true_negative, true_negative + false_negative),
            (true_positive + true_negative) / cells.sum(axis=1),
            _ratio(sensitivity, sensitivity + 1 - specificity),
            _ratio(specificity, specificity + 1 - sensitivity),
        ],
        axis=1,
    )


def _ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Quotient of two columns; NaN where the total is 0 or NaN."""
    return np.divide(part, total, out=np.full(len(part), np.nan), where=total > 0)


def recalibration_table(predictions: pd.DataFrame, model: str, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Calibration slope and intercept of a model, with 95 % intervals from resampling slides.

    The labels are regressed on the log-odds of the probabilities by logistic regression. A slope of 1 and an intercept
    of 0 are ideal. A slope below 1 means that probabilities are too extreme. The calibration in the large is the
    intercept if the slope is fixed at 1: above 0, probabilities are too low on average.

    Parameters
    ----------
    predictions : DataFrame
        ``slide, split, label, prob_<model>``. Patches without a probability are left out.
    model : str
    draws, seed : int

    Returns
    -------
    DataFrame
        ``model, split (oof|test), measure, value, low, high``, with the measures of `RECALIBRATION`. A value is NaN if
        a class is missing or the scores separate the classes; draws of this kind are left out of the interval.

    References
    ----------
    Cox (1958), Biometrika 45(3-4):562-565. Van Calster et al. (2019), BMC Medicine 17:230.
    """
    frames = []
    for name, _, part, units in _comparable_patches(predictions, [model]):
        labels, odds = part.label.to_numpy(np.float64), log_odds(part[f"prob_{model}"].to_numpy())
        whole = recalibrate(labels, odds, np.ones(len(labels)))
        cells, label, mean = _group_by_odds(labels, odds, units)
        drawn = [
            recalibrate(label, mean, weights, start=whole)
            for counts in draw_slides(cells.shape[0], draws, seed)
            for weights in counts @ cells
        ]
        low, high = _interval(np.array(drawn))
        frame = {"model": model, "split": name, "measure": RECALIBRATION, "value": whole, "low": low, "high": high}
        frames.append(pd.DataFrame(frame))
    return pd.concat(frames, ignore_index=True)


def _group_by_odds(labels: np.ndarray, odds: np.ndarray, units: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
    """Patches per unit and group of nearly equal log-odds (sparse), and each group's label and mean log-odds."""
    from scipy.sparse import csr_array

    group = odds_groups(labels, odds)
    sizes = np.bincount(group)
    cells = csr_array((np.ones(len(group)), (units, group)), shape=(int(units.max()) + 1, len(sizes)))
    return cells, np.bincount(group, labels) / sizes, np.bincount(group, odds) / sizes


def recalibrate(
    labels: np.ndarray, odds: np.ndarray, weights: np.ndarray, *, start: np.ndarray | None = None
) -> np.ndarray:
    """Fit a recalibration by maximum likelihood.

    Parameters
    ----------
    labels : ndarray of shape (n,), float, 0 or 1
    odds : ndarray of shape (n,), float
        Log-odds of the probabilities.
    weights : ndarray of shape (n,), float
        How often each patch counts.
    start : ndarray of shape (3,), optional
        Result for similar weights, which saves steps.

    Returns
    -------
    ndarray of shape (3,)
        `RECALIBRATION`; NaN where there is no finite maximum.
    """
    slope, intercept, shift = (1.0, 0.0, 0.0) if start is None or np.isnan(start).any() else start
    columns = np.stack([odds, np.ones_like(odds)], axis=1)
    both = _maximise(columns, np.zeros_like(odds), labels, weights, np.array([slope, intercept]))
    return np.append(both, _maximise(columns[:, 1:], odds, labels, weights, np.array([shift])))


def _maximise(
    columns: np.ndarray, offset: np.ndarray, labels: np.ndarray, weights: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """Maximise the likelihood of a logistic regression by Newton's method, halving steps that lower it."""
    from scipy.special import expit

    def loss(candidate: np.ndarray) -> float:
        odds = columns @ candidate + offset
        return float(weights @ (np.logaddexp(0, odds) - labels * odds))

    missing = np.full(len(numbers), np.nan)
    if weights @ labels == 0 or weights @ (1 - labels) == 0:
        return missing
    current = loss(numbers)
    for _ in range(_STEPS):
        probability = expit(columns @ numbers + offset)
        curvature = weights * probability * (1 - probability)
        information = columns.T @ (curvature[:, None] * columns)
        # Scores that separate the classes, or a single score, leave no information.
        if np.linalg.cond(information) > 1e12:
            return missing
        step = np.linalg.solve(information, columns.T @ (weights * (labels - probability)))
        while (changed := loss(numbers + step)) > current and np.abs(step).max() > 1e-9:
            step /= 2
        numbers, current = numbers + step, changed
        if np.abs(step).max() < 1e-7:
            return numbers
    return missing


def _interval(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval along the first axis, over draws without NaN; NaN if all draws are NaN."""
    # nanquantile warns about columns that are all NaN; their interval is NaN.
    without_empty = np.where(np.isnan(drawn).all(axis=0), 0.0, drawn)
    low, high = np.nanquantile(without_empty, [0.025, 0.975], axis=0)
    empty = np.isnan(drawn).all(axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)
