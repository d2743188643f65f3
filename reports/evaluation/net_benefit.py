"""Decision curves: the net benefit of a model over a range of costs of false alarms and misses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.names import RUNGS
from histoblend.models.resampling import draw_slides, slide_groups
from histoblend.reports.evaluation.ladder import SPLITS

#: Threshold probabilities at which a patch is called positive.
THRESHOLDS = np.arange(1, 100) / 100

ALL, NONE = "treat-all", "treat-none"


def main_models(ladder: pd.DataFrame, model: str) -> list[str]:
    """`model` and the best head of every other rung by out-of-fold AUC, in ladder order, without ``prevalence``."""
    oof = ladder[(ladder.split == "oof") & ladder.rung.isin(RUNGS[1:])]
    rung = oof[oof.model == model].rung.iloc[0]
    best = oof.loc[oof.groupby("rung").auc.idxmax()]
    kept = {model, *best.model[best.rung != rung]}
    return [name for name in oof.model if name in kept]


def net_benefit_table(
    predictions: pd.DataFrame, models: Sequence[str], best: str, *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Net benefit of each model, of calling all patches positive and of calling none positive.

    A threshold probability p means that a missed positive is (1 − p) / p times as bad as a false alarm. Net benefit is
    the share of true positives minus the share of false positives times p / (1 − p).

    Parameters
    ----------
    predictions : DataFrame
        ``slide, split, label, prob_<model>``. Patches without a prediction of one model are left out for all models.
    models : sequence of str
    best : str
        The model that gets 95 % bands from resampling slides.
    draws, seed : int

    Returns
    -------
    DataFrame
        ``split, model, threshold, patches, net_benefit, low, high, gain, gain_low, gain_high``, one row per model
        (including :data:`ALL` and :data:`NONE`) and threshold of :data:`THRESHOLDS`. ``gain`` is the net benefit of
        `best` minus that of the better of :data:`ALL` and :data:`NONE`. For other models, ``gain`` and all bands are
        NaN.

    References
    ----------
    Vickers & Elkin (2006), Med Decis Making 26(6):565-574.
    """
    columns = [f"prob_{model}" for model in models]
    shared = predictions[predictions[columns].notna().all(axis=1)]
    frames = []
    for split, name in SPLITS.items():
        part = shared[shared.split == split]
        if part.empty:
            continue
        labels, one_draw = part.label.to_numpy(), np.ones((1, len(part)))
        single_unit = np.arange(len(part))
        for model, column in zip(models, columns, strict=True):
            cells = _cells(labels, part[column].to_numpy(), single_unit)
            benefit = _net_benefit(_called(cells, one_draw))[0]
            bands = _bands(labels, part[column].to_numpy(), part.slide, draws, seed) if model == best else {}
            frames.append(_frame(name, model, len(part), benefit, bands))
        frames.append(_frame(name, ALL, len(part), _treat_all(np.array([labels.mean()]))[0], {}))
        frames.append(_frame(name, NONE, len(part), np.zeros(len(THRESHOLDS)), {}))
    return pd.concat(frames, ignore_index=True)


def _frame(split: str, model: str, patches: int, benefit: np.ndarray, bands: dict[str, np.ndarray]) -> pd.DataFrame:
    frame = pd.DataFrame({"split": split, "model": model, "threshold": THRESHOLDS, "patches": patches})
    frame["net_benefit"] = benefit
    for name in ("low", "high", "gain", "gain_low", "gain_high"):
        frame[name] = bands.get(name, np.nan)
    return frame


def _cells(labels: np.ndarray, probability: np.ndarray, units: np.ndarray) -> Any:
    """Patches per unit, class and number of thresholds that call them positive: sparse, (units, 2 × 100)."""
    from scipy.sparse import csr_array

    passed = np.searchsorted(THRESHOLDS, probability, side="right")
    width = len(THRESHOLDS) + 1
    columns = labels.astype(np.int64) * width + passed
    return csr_array((np.ones(len(labels)), (units, columns)), shape=(int(units.max()) + 1, 2 * width))


def _called(cells: Any, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of positives, false positives and true positives at each threshold, for each draw of units."""
    drawn = (counts @ cells).reshape(len(counts), 2, -1)
    total = drawn.sum(axis=(1, 2))[:, None]
    # A patch called positive by k thresholds is called positive by the first k.
    alarms = drawn[:, :, ::-1].cumsum(axis=2)[:, :, -2::-1]
    return drawn[:, 1].sum(axis=1) / total[:, 0], alarms[:, 0] / total, alarms[:, 1] / total


def _net_benefit(called: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Net benefit at each threshold, (draws, thresholds)."""
    _, false_positive, true_positive = called
    return true_positive - false_positive * THRESHOLDS / (1 - THRESHOLDS)


def _treat_all(prevalence: np.ndarray) -> np.ndarray:
    """Net benefit of calling every patch positive, (draws, thresholds)."""
    return prevalence[:, None] - (1 - prevalence[:, None]) * THRESHOLDS / (1 - THRESHOLDS)


def _bands(
    labels: np.ndarray, probability: np.ndarray, slides: pd.Series, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Bands of one model's net benefit and of its gain over the better of calling all or none positive."""
    units = slide_groups(slides)
    cells = _cells(labels, probability, units)

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for counts in draw_slides(cells.shape[0], draws, seed):
            called = _called(cells, counts)
            benefit = _net_benefit(called)
            yield benefit, benefit - np.maximum(_treat_all(called[0]), 0)

    benefit, gain = (np.concatenate(pieces) for pieces in zip(*pairs(), strict=True))
    whole = _called(cells, np.ones((1, cells.shape[0])))
    low, high = np.quantile(benefit, [0.025, 0.975], axis=0)
    gain_low, gain_high = np.quantile(gain, [0.025, 0.975], axis=0)
    point = _net_benefit(whole)[0] - np.maximum(_treat_all(whole[0])[0], 0)
    return {"low": low, "high": high, "gain": point, "gain_low": gain_low, "gain_high": gain_high}


def useful_range(curve: pd.DataFrame, model: str, split: str = "oof") -> list[tuple[float, float]]:
    """Ranges of thresholds, (first, last), at which the interval of the model's gain is entirely above 0."""
    part = curve[(curve.model == model) & (curve.split == split)]
    ranges: list[tuple[float, float]] = []
    in_range = False
    for threshold, low in zip(part.threshold, part.gain_low, strict=True):
        if low > 0:
            ranges = [*ranges[:-1], (ranges[-1][0], threshold)] if in_range else [*ranges, (threshold, threshold)]
        in_range = low > 0
    return ranges
