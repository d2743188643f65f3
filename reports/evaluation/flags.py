"""Compare error rates of models between patches that the audit flagged and other patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.resampling import draw_slides, percentile_interval, slide_groups
from histoblend.reports.evaluation.ladder import SPLITS, rows_with_predictions
from histoblend.reports.words import INCONCLUSIVE, difference, direction, percent

#: If flagged patches come from fewer slides, an interval from resampling slides would be meaningless.
FEWEST_SLIDES = 5

COLUMNS = [
    "flag", "split", "model", "patches", "slides", "errors", "rate_flagged", "rate_others", "difference", "low", "high",
]  # fmt: skip


def flag_errors(
    predictions: pd.DataFrame,
    flags: pd.DataFrame,
    thresholds: Mapping[str, float | np.ndarray],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Error rates of flagged patches and of the other patches, for each flag, split and model.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, split, label, prob_<model>``.
    flags : DataFrame
        ``patch_id`` and one bool column per flag. May include patches that were dropped.
    thresholds : mapping from model to float or ndarray of shape (n,)
        Threshold of each model to evaluate, or one per row. A score at or above it counts as positive.
    draws, seed : int
        For the interval of the difference.

    Returns
    -------
    DataFrame
        ``flag, split (oof|test), model, patches, slides, errors, rate_flagged, rate_others, difference, low, high``.
        There is one row per flag, split and model, if any evaluated patch has the flag. ``slides`` counts known slides.
        The interval comes from resampling slides. It is NaN if the flagged patches come from fewer than `FEWEST_SLIDES`
        slides. A patch without a known slide counts as a slide of its own.
    """
    names = [str(name) for name in flags.columns if name != "patch_id"]
    is_flagged = flags.set_index("patch_id")[names].reindex(predictions.patch_id).fillna(False).to_numpy(dtype=bool)
    rows = []
    for split, split_name in SPLITS.items():
        for model, threshold in thresholds.items():
            evaluated = rows_with_predictions(predictions, model) & (predictions.split == split).to_numpy()
            part = predictions[evaluated]
            cut = np.broadcast_to(threshold, len(predictions))[evaluated]
            wrong = ((part[f"prob_{model}"] >= cut) != (part.label == 1)).to_numpy()
            groups = slide_groups(part.slide)
            for name, flagged in zip(names, is_flagged[evaluated].T, strict=True):
                if flagged.any() and not flagged.all():
                    known = {"slides": part.slide[flagged].nunique()}
                    row = {"flag": name, "split": split_name, "model": model}
                    rows.append({**row, **_compare(wrong, flagged, groups, draws, seed), **known})
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values("flag", key=lambda column: column.map(names.index), kind="stable", ignore_index=True)


def _compare(wrong: np.ndarray, flagged: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> dict[str, float]:
    """Error rates of flagged and other patches, and their difference with its interval."""
    units = int(groups.max()) + 1
    rates = wrong[flagged].mean(), wrong[~flagged].mean()
    interval: tuple[Any, Any] = (np.nan, np.nan)
    if len(np.unique(groups[flagged])) >= FEWEST_SLIDES:
        # Sums per slide, so that the cost of a draw depends on slides, not on patches.
        parts = [wrong & flagged, flagged, wrong & ~flagged, ~flagged]
        sums = np.stack([np.bincount(groups, weights=part, minlength=units) for part in parts], axis=1)
        drawn = np.concatenate([counts @ sums for counts in draw_slides(units, draws, seed)])
        drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
        interval = percentile_interval(drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3])
    return {
        "patches": int(flagged.sum()),
        "errors": int(wrong[flagged].sum()),
        "rate_flagged": float(rates[0]),
        "rate_others": float(rates[1]),
        "difference": float(rates[0] - rates[1]),
        "low": float(interval[0]),
        "high": float(interval[1]),
    }


def flag_words(table: pd.DataFrame, model: str) -> list[str]:
    """Say for which flags one model makes more or fewer errors, in one text per split."""
    part = table[table.model == model]
    if part.empty:
        return ["No predicted patch was flagged by the audit."]
    titles = {"oof": "Out-of-fold", "test": "Test slides"}
    return [
        f"{title}: {_split_words(part[part.split == split])}"
        for split, title in titles.items()
        if (part.split == split).any()
    ]


def _split_words(part: pd.DataFrame) -> str:
    """Words on the flags of one model on one split."""
    compared = part[part.low.notna()]
    sides = [direction(low, high) for low, high in zip(compared.low, compared.high, strict=True)]
    clear = compared[[side != 0 for side in sides]]
    sentences = [
        f"Patches flagged “{row['flag'].replace('_', ' ')}” are misclassified "
        f"{'more' if row['difference'] > 0 else 'less'} often than others: {percent(row['rate_flagged'])} against "
        f"{percent(row['rate_others'])}, difference {difference(row['difference'], row['low'], row['high'])}, "
        f"{row['patches']} patches{_of_slides(row['slides'])}."
        for row in clear.to_dict("records")
    ]
    unclear = [name.replace("_", " ") for name, side in zip(compared.flag, sides, strict=True) if side == 0]
    few = [
        f"{row['flag'].replace('_', ' ')} ({row['errors']} of {row['patches']} wrong)"
        for row in part[part.low.isna()].to_dict("records")
    ]
    if unclear:
        sentences.append(f"{INCONCLUSIVE[0].upper()}{INCONCLUSIVE[1:]}: {', '.join(unclear)}.")
    if few:
        rare = (
            f"Found in fewer than {FEWEST_SLIDES} slides"
            if part.slides.any()
            else f"Fewer than {FEWEST_SLIDES} patches"
        )
        sentences.append(f"{rare}, too few to compare: {', '.join(few)}.")
    if len(compared) > 1 and len(clear):
        sentences.append(f"{len(compared)} flags were compared, and about one in twenty differs by chance alone.")
    return " ".join(sentences)


def _of_slides(slides: int) -> str:
    return f" of {slides} slides" if slides else ""
