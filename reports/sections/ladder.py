"""The Ladder section: table, forest plot, ROC curves, and each family alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from histoblend.models.metrics import METRICS
from histoblend.models.names import RUNGS, SINGLE_FAMILIES, split_model_name
from histoblend.reports.evaluation.pairing import best_model
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section
from histoblend.reports.sections.centres import centre_rows, centre_words
from histoblend.reports.within_slides import between_words, has_within, within_words
from histoblend.reports.words import FAMILY_WORDS, RUNG_WORDS, difference, direction, head_words, model_words, span

#: Kinds of models that ROC curves compare at first.
ROC_RUNGS = ("colour", "handcrafted", "embeddings", "cnn", "ensemble")
SPLIT_WORDS = {"oof": "out-of-fold", "test": "test"}


class Score(NamedTuple):
    """A column of the ladder, which the table has once per split; at first it shows those that are `shown`."""

    name: str
    heading: str
    shown: bool = False
    is_gain: bool = False


SCORES = (
    Score("auc", "AUC", shown=True),
    Score("auc_within", "AUC within slides", shown=True),
    Score("gain", "Gain in AUC", shown=True, is_gain=True),
    Score("gain_within", "Gain within slides", is_gain=True),
    Score("gain_between", "Gain between slides", is_gain=True),
    Score("average_precision", "Average precision"),
    Score("brier", "Brier score"),
    Score("accuracy", "Accuracy"),
)
#: Costs of a model: column, heading, digits, and whether the table shows them at first.
COSTS = (
    ("seconds_per_1000", "Core-seconds per 1,000 patches", 1, True),
    ("seconds", "Core-seconds", 0, False),
    ("peak_mb", "Peak MB", 0, False),
)


def ladder_section(
    ladder: pd.DataFrame,
    curves: pd.DataFrame,
    families: Mapping[str, tuple[int, float]],
    centres: pd.DataFrame | None = None,
) -> Section:
    """Show every rung, its gain and its cost.

    Parameters
    ----------
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`.
    curves : DataFrame
        From :func:`reports.evaluation.ladder.roc_table`.
    families : mapping from name to (columns, milliseconds)
        Number of columns of each family of handcrafted features, and its time per patch on one core.
    centres : DataFrame, optional
        From :func:`reports.evaluation.centres.score_centres`.

    Returns
    -------
    Section
    """
    # Families alone have a separate table: among the rungs they would hide the ladder.
    rungs = ladder[~ladder.rung.isin(SINGLE_FAMILIES)]
    within = has_within(rungs)
    splits = [split for split in SPLIT_WORDS if (rungs.split == split).any()]
    metrics = ["auc", "auc_within", *METRICS[1:]] if within else METRICS
    forest = [(figures.METRIC_WORDS[name][0], figures.forest(rungs, name)) for name in metrics]
    shown = _shown_at_first(rungs)
    roc = [(SPLIT_WORDS[split], figures.roc(curves, split, shown)) for split in dict.fromkeys(curves.split)]
    alone = _alone_rows(ladder, families, splits)
    scores = [score for score in SCORES if within or not score.name.endswith(("within", "between"))]
    return Section(
        "ladder",
        "Ladder",
        {
            "splits": [SPLIT_WORDS[split] for split in splits],
            "scores": [score._asdict() for score in scores],
            "costs": COSTS,
            "rows": _ladder_rows(rungs, scores, splits),
            "sizes": _size_words(rungs, splits),
            "constant": _constant_words(rungs, splits),
            "alone": alone,
            "alone_words": _alone_words(alone),
            "within": within,
            "within_words": within_words(rungs),
            "between_words": between_words(rungs),
            "centre_words": centre_words(centres),
            "centres": centre_rows(centres),
        },
        charts={
            "forest": Chart(_forest_words(rungs), forest),
            "roc": Chart("ROC curves. The AUC column of the ladder has the areas under them.", roc),
        },
        tables={"ladder": ladder, "roc": curves} | ({} if centres is None else {"centres": centres}),
        finding=_finding(rungs),
    )


def _shown_at_first(rungs: pd.DataFrame) -> set[str]:
    """Models whose ROC curves are shown at first: the best of each of `ROC_RUNGS`, and the best of all."""
    oof = rungs[(rungs.split == "oof") & (rungs.rung != RUNGS[0])].sort_values("auc", ascending=False, kind="stable")
    tops = oof.drop_duplicates("rung")
    return {*tops.model[tops.rung.isin(ROC_RUNGS)], *([best_model(rungs)] if len(oof) else [])}


def _finding(rungs: pd.DataFrame) -> str:
    """Name the best model with its AUC, and compare it with the model below it."""
    if not (rungs.rung != RUNGS[0]).any():
        return ""
    rows = rungs[rungs.model == best_model(rungs)].set_index("split").to_dict("index")
    best = rows["oof"]
    places = {"oof": "out of fold", "test": "on test slides"}
    scores = [f"{_score(rows[split])} {words}" for split, words in places.items() if split in rows]
    text = f"{_sentence_case(model_words(best['model']))} ranks patches best: AUC {', '.join(scores)}"
    if isinstance(best["below"], str) and not pd.isna(best["gain"]):
        other = "its best member" if best["rung"] == "ensemble" else model_words(best["below"])
        text += f"; difference from {other}: {difference(best['gain'], best['gain_low'], best['gain_high'])}"
    return f"{text}."


def _score(row: Mapping[Any, Any]) -> str:
    interval = "" if pd.isna(row["auc_low"]) else f" ({span(row['auc_low'], row['auc_high'])})"
    return f"{row['auc']:.3f}{interval}"


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _size_words(rungs: pd.DataFrame, splits: Sequence[str]) -> str:
    parts = []
    for split in splits:
        rows = rungs[rungs.split == split]
        slides = f" of {rows.slides.max()} slides" if rows.slides.max() else ""
        parts.append(f"{rows.patches.max():,} {SPLIT_WORDS[split]} patches{slides}")
    return " and ".join(parts)


def _constant_words(rungs: pd.DataFrame, splits: Sequence[str]) -> str:
    """Scores of the model without any column, which are not worth a row; empty if it was not evaluated."""
    rows = rungs[rungs.rung == RUNGS[0]].set_index("split")
    parts = [
        f"{SPLIT_WORDS[split]} AUC {rows.auc[split]:.3f}, average precision {rows.average_precision[split]:.3f}, "
        f"Brier score {rows.brier[split]:.3f}"
        for split in splits
        if split in rows.index
    ]
    return "; ".join(parts)


def _ladder_rows(rungs: pd.DataFrame, scores: Sequence[Score], splits: Sequence[str]) -> list[dict[str, Any]]:
    """One row per model with its scores on each split side by side."""
    rows = []
    models = [model for model in dict.fromkeys(rungs.model) if model != RUNGS[0]]
    for model in models:
        parts = rungs[rungs.model == model].set_index("split").to_dict("index")
        rung, head = split_model_name(model)
        first = next(iter(parts.values()))
        rows.append(
            {
                "rung": _sentence_case(RUNG_WORDS[rung]),
                "head": "" if head is None else head_words(head),
                "best": model == best_model(rungs),
                "below": model_words(first["below"]) if isinstance(first["below"], str) else "",
                "cells": [_cell(parts.get(split), score) for score in scores for split in splits],
                "costs": [first[name] for name, *_ in COSTS],
            }
        )
    return rows


def _cell(row: Mapping[Any, Any] | None, score: Score) -> dict[str, Any]:
    """Value of a score with its interval, the column's properties, and for a gain what its interval shows."""
    value, low, high = (float("nan"),) * 3 if row is None else (row[score.name + end] for end in ("", "_low", "_high"))
    side = {1: "up", -1: "down", 0: "open", None: ""}[direction(low, high)] if score.is_gain else ""
    return {**score._asdict(), "value": value, "low": low, "high": high, "mark": side}


def _alone_rows(
    ladder: pd.DataFrame, families: Mapping[str, tuple[int, float]], splits: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per family of handcrafted features, best first, with the scores of each head on each split."""
    alone = ladder[ladder.rung.isin(SINGLE_FAMILIES)]
    # Colour alone is a rung; it is repeated among the families.
    heads = list(dict.fromkeys(alone["head"]))
    rows = []
    for family, (columns, cost) in families.items() if heads else ():
        part = ladder[(ladder.rung == family) & ladder["head"].isin(heads)].set_index(["head", "split"])
        if part.empty:
            continue
        scores = [
            (head_words(head), SPLIT_WORDS[split], *(part[name].get((head, split)) for name in _AUC))
            for head in heads
            for split in splits
        ]
        rows.append({"family": FAMILY_WORDS[family], "columns": columns, "cost": cost, "scores": scores})
    return sorted(rows, key=lambda row: -_best_score(row)[2])


_AUC = ("auc", "auc_low", "auc_high")


def _best_score(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Best out-of-fold score of a family: head, split, AUC and interval."""
    out_of_fold = [score for score in row["scores"] if score[1] == SPLIT_WORDS["oof"] and not pd.isna(score[2])]
    return max(out_of_fold, key=lambda score: score[2])


def _alone_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """Name the best and the worst family; empty without families."""
    if not rows:
        return ""
    texts = [
        f"“{row['family']}” ({row['columns']} columns), out-of-fold AUC {_best_score(row)[2]:.3f} with "
        f"{_best_score(row)[0]}"
        for row in (rows[0], rows[-1])
    ]
    return f"Best family: {texts[0]}." + (f" Worst: {texts[1]}." if len(rows) > 1 else "")


def _forest_words(ladder: pd.DataFrame) -> str:
    oof = ladder[ladder.split == "oof"].to_dict("records")
    parts = [f"{figures.short_name(row['model'])} {row['auc']:.3f}" for row in oof]
    return "Forest plot of each model's score with its 95 % interval. Out-of-fold AUC: " + ", ".join(parts) + "."
