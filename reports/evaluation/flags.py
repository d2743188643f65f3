"""Whether models err more on patches that the audit flagged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from histoblend.models.resampling import draw_slides, percentile_interval, slide_groups
from histoblend.reports.evaluation.ladder import judged_rows
from histoblend.reports.words import signed

#: With flagged patches in fewer slides, an interval from resampling slides would describe luck.
FEWEST_SLIDES = 5

COLUMNS = ["flag", "model", "patches", "slides", "errors", "rate_flagged", "rate_others", "difference", "low", "high"]


def flag_errors(
    predictions: pd.DataFrame,
    flags: pd.DataFrame,
    thresholds: Mapping[str, float],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of errors among flagged patches against the others, for each flag and model.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, label, prob_<model>``; held-out predictions, of every split.
    flags : DataFrame
        ``patch_id`` and a column of bool a flag; patches that were dropped may be among them.
    thresholds : mapping from model to float
        Models to judge; a score at or above it counts as positive.
    draws, seed : int
        For the interval of the difference.

    Returns
    -------
    DataFrame
        ``flag, model, patches, slides, errors, rate_flagged, rate_others, difference, low, high``, a row a flag that
        any judged patch bears and a model; ``slides`` counts known ones. The interval, from resampling slides, is
        missing where flagged patches stand in fewer than `FEWEST_SLIDES` slides. A patch of no known slide stands for
        one.
    """
    names = [str(name) for name in flags.columns if name != "patch_id"]
    found = flags.set_index("patch_id")[names].reindex(predictions.patch_id).fillna(False).to_numpy(dtype=bool)
    rows = []
    for model, cut in thresholds.items():
        judged = judged_rows(predictions, model)
        part = predictions[judged]
        wrong = ((part[f"prob_{model}"] >= cut) != (part.label == 1)).to_numpy()
        groups = slide_groups(part.slide)
        for name, flagged in zip(names, found[judged].T, strict=True):
            if flagged.any() and not flagged.all():
                known = {"slides": part.slide[flagged].nunique()}
                rows.append({"flag": name, "model": model, **_compare(wrong, flagged, groups, draws, seed), **known})
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values("flag", key=lambda column: column.map(names.index), kind="stable", ignore_index=True)


def _compare(wrong: np.ndarray, flagged: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> dict[str, float]:
    """Rates of error of flagged patches and of the others, and the difference with its interval."""
    units = int(groups.max()) + 1
    rates = wrong[flagged].mean(), wrong[~flagged].mean()
    ends: tuple[Any, Any] = (np.nan, np.nan)
    if len(np.unique(groups[flagged])) >= FEWEST_SLIDES:
        # Sums a slide, so that a draw costs no more than there are slides.
        parts = [wrong & flagged, flagged, wrong & ~flagged, ~flagged]
        sums = np.stack([np.bincount(groups, weights=part, minlength=units) for part in parts], axis=1)
        drawn = np.concatenate([counts @ sums for counts in draw_slides(units, draws, seed)])
        drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
        ends = percentile_interval(drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3])
    return {
        "patches": int(flagged.sum()),
        "errors": int(wrong[flagged].sum()),
        "rate_flagged": float(rates[0]),
        "rate_others": float(rates[1]),
        "difference": float(rates[0] - rates[1]),
        "low": float(ends[0]),
        "high": float(ends[1]),
    }


def flag_words(table: pd.DataFrame, model: str) -> str:
    """Say which flags go with more, or fewer, errors of one model."""
    part = table[table.model == model]
    if part.empty:
        return "No patch that was predicted bears a flag of the audit."
    judged = part[part.low.notna()]
    clear = judged[(judged.low > 0) | (judged.high < 0)]
    sentences = [
        f"Patches flagged “{row['flag'].replace('_', ' ')}” are judged wrongly "
        f"{'more' if row['difference'] > 0 else 'less'} often than others: {row['rate_flagged']:.0%} against "
        f"{row['rate_others']:.0%}, a difference of {signed(row['difference'])} (95 % interval {signed(row['low'])} to "
        f"{signed(row['high'])}, {row['patches']} patches{_of_slides(row['slides'])})."
        for row in clear.to_dict("records")
    ]
    unclear = [name.replace("_", " ") for name in judged.flag if name not in set(clear.flag)]
    few = [
        f"{row['flag'].replace('_', ' ')} ({row['errors']} of {row['patches']} wrong)"
        for row in part[part.low.isna()].to_dict("records")
    ]
    if unclear:
        sentences.append(f"No difference is shown (interval includes zero) for: {', '.join(unclear)}.")
    if few:
        rare = (
            f"Found in fewer than {FEWEST_SLIDES} slides"
            if part.slides.any()
            else f"Fewer than {FEWEST_SLIDES} patches"
        )
        sentences.append(f"{rare}, too few to compare: {', '.join(few)}.")
    if len(judged) > 1 and len(clear):
        sentences.append(f"Of {len(judged)} flags compared, one in twenty would stand out by chance.")
    return " ".join(sentences)


def _of_slides(slides: int) -> str:
    return f" of {slides} slides" if slides else ""
