"""Decision curves: what deciding by a model is worth, whatever a false alarm costs against a miss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.names import RUNGS
from histoblend.models.resampling import draw_slides, slide_groups
from histoblend.reports.evaluation.ladder import SPLITS

#: Threshold probabilities: how sure one must be before a patch is called positive.
THRESHOLDS = np.arange(1, 100) / 100

ALL, NONE = "treat-all", "treat-none"


def main_models(ladder: pd.DataFrame, model: str) -> list[str]:
    """`model`, and the best head of every other rung by out-of-fold AUC, in ladder order; chance is left out."""
    oof = ladder[(ladder.split == "oof") & ladder.rung.isin(RUNGS[1:])]
    rung = oof[oof.model == model].rung.iloc[0]
    best = oof.loc[oof.groupby("rung").auc.idxmax()]
    kept = {model, *best.model[best.rung != rung]}
    return [name for name in oof.model if name in kept]


def net_benefit_table(
    predictions: pd.DataFrame, models: Sequence[str], best: str, *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Net benefit of deciding by each model, by calling all patches positive, and by calling none so.

    A threshold probability p says that a missed positive is (1 − p) / p times as bad as a false alarm. Net benefit is
    the share of patches that are rightly called positive, less the share of false alarms times p / (1 − p).

    Parameters
    ----------
    predictions : DataFrame
        ``slide, split, label, prob_<model>``; patches that lack a prediction of one model are left out for all.
    models : sequence of str
    best : str
        One of them, which gets 95 % bands from resampling slides.
    draws, seed : int

    Returns
    -------
    DataFrame
        ``split, model, threshold, patches, net_benefit, low, high, gain, gain_low, gain_high``, a row a model
        (:data:`ALL` and :data:`NONE` among them) and threshold of :data:`THRESHOLDS`. ``gain`` is what `best` adds to
        the better of the two ways that need no model, and like ``low`` and ``high`` missing for all others.

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
        labels, one = part.label.to_numpy(), np.ones((1, len(part)))
        single = np.arange(len(part))
        for model, column in zip(models, columns, strict=True):
            cells = _cells(labels, part[column].to_numpy(), single)
            benefit = _net_benefit(_called(cells, one))[0]
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
    """Patches of each unit by class and by how many thresholds call them positive: sparse, (units, 2 × 100)."""
    from scipy.sparse import csr_array

    passed = np.searchsorted(THRESHOLDS, probability, side="right")
    width = len(THRESHOLDS) + 1
    places = labels.astype(np.int64) * width + passed
    return csr_array((np.ones(len(labels)), (units, places)), shape=(int(units.max()) + 1, 2 * width))


def _called(cells: Any, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of positives, and of false and right alarms at each threshold, under each draw of units."""
    drawn = (counts @ cells).reshape(len(counts), 2, -1)
    total = drawn.sum(axis=(1, 2))[:, None]
    # A patch that k thresholds call positive is called so by the first k.
    alarms = drawn[:, :, ::-1].cumsum(axis=2)[:, :, -2::-1]
    return drawn[:, 1].sum(axis=1) / total[:, 0], alarms[:, 0] / total, alarms[:, 1] / total


def _net_benefit(called: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Net benefit at each threshold, (draws, thresholds)."""
    _, wrong, right = called
    return right - wrong * THRESHOLDS / (1 - THRESHOLDS)


def _treat_all(prevalence: np.ndarray) -> np.ndarray:
    """Net benefit of calling every patch positive, (draws, thresholds)."""
    return prevalence[:, None] - (1 - prevalence[:, None]) * THRESHOLDS / (1 - THRESHOLDS)


def _bands(
    labels: np.ndarray, probability: np.ndarray, slides: pd.Series, draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Bands of one model's net benefit, and of what it adds to the better way without a model."""
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
    """Runs of thresholds at which the model's gain lies above zero with its whole interval, first and last of each."""
    part = curve[(curve.model == model) & (curve.split == split)]
    runs: list[tuple[float, float]] = []
    before = False
    for threshold, low in zip(part.threshold, part.gain_low, strict=True):
        if low > 0:
            runs = [*runs[:-1], (runs[-1][0], threshold)] if before else [*runs, (threshold, threshold)]
        before = low > 0
    return runs
