"""Several runs side by side: their ladders, paired differences on the same patches, and what was set otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from histoblend.data.errors import InputError
from histoblend.models.metrics import METRICS
from histoblend.models.names import ALONE
from histoblend.reports.evaluation.ladder import rungs_below
from histoblend.reports.evaluation.pairing import BEST, Pairing, RunResults, best_model, differences, pair
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.words import model_words, signed, span

#: As many as there are colours that are easily told apart.
COLOURS = (figures.BLUE, figures.VERMILLION, figures.GREEN, figures.PURPLE, figures.ORANGE, figures.SKY, figures.BROWN)
SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "star", "circle-open", "diamond")
SPLIT_WORDS = {"oof": "out-of-fold", "test": "test slides"}


def changed(mappings: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Keys whose values are not the same in all runs: ``key`` and a column a run, None where a run lacks the key."""
    keys = sorted({key for mapping in mappings for key in mapping})
    rows = [
        [key, *(mapping.get(key) for mapping in mappings)]
        for key in keys
        if any(mapping.get(key) != mappings[0].get(key) for mapping in mappings)
    ]
    return pd.DataFrame(rows, columns=["key", *range(len(mappings))], dtype=object)


def comparison_sections(runs: Sequence[RunResults], *, draws: int = 1000, seed: int = 0) -> list[Section]:
    """Everything that a comparison shows.

    Parameters
    ----------
    runs : sequence of RunResults
        Two to seven.
    draws, seed : int

    Returns
    -------
    list of Section

    Raises
    ------
    InputError
        There are fewer or more runs, or a name stands twice.
    """
    names = [run.name for run in runs]
    if not 2 <= len(set(names)) == len(names) <= len(COLOURS):
        raise InputError(f"RUNS must name 2 to {len(COLOURS)} different runs; got {' '.join(names) or 'none'}.")
    pairs = [(one, two, pair(one, two)) for one, two in itertools.combinations(runs, 2)]
    tables = [differences(*each, draws=draws, seed=seed) for each in pairs]
    found = [table for table in tables if len(table)]
    paired = pd.concat(found, ignore_index=True) if found else tables[0]
    return [
        Section(
            "comparison",
            "Verdict",
            {"reached": _reached(runs), "pairs": [_pair_words(*each, paired) for each in pairs]},
        ),
        _ladders_section(runs),
        _paired_section(pairs, paired),
        _settings_section(runs),
    ]


def _reached(runs: Sequence[RunResults]) -> list[str]:
    """A sentence a run: its best model and what that reaches."""
    sentences = []
    for run in runs:
        model = best_model(run.ladder)
        rows = run.ladder[run.ladder.model == model].set_index("split")
        scores = [
            f"{words} {rows.auc[split]:.3f} ({span(rows.auc_low[split], rows.auc_high[split])})"
            for split, words in SPLIT_WORDS.items()
            if split in rows.index
        ]
        sentences.append(f"{run.name}: {model_words(model)}, AUC {'; '.join(scores)}.")
    return sentences


def _pair_words(one: RunResults, two: RunResults, pairing: Pairing, paired: pd.DataFrame) -> str:
    """Say which of two runs' best models is better, on which patches, or why that cannot be said."""
    title = f"{two.name} against {one.name}"
    if pairing.refused:
        return f"{title}: not paired, since {pairing.refused}"
    rows = paired[(paired["first"] == one.name) & (paired["second"] == two.name) & (paired.model == BEST)]
    if rows.empty:
        return (
            f"{title}: the common patches hold one class, or too few slides of both, so no difference has an interval."
        )
    texts = []
    for row in rows.to_dict("records"):
        on = f"{row['patches']:,} common patches" + (f" of {row['slides']} slides" if row["slides"] else "")
        side = "better" if row["auc_low"] > 0 else "worse" if row["auc_high"] < 0 else "not shown to be better or worse"
        texts.append(
            f"{SPLIT_WORDS[row['split']]} {side}, {signed(row['auc'])} ({signed(row['auc_low'])} to "
            f"{signed(row['auc_high'])}; {on})"
        )
    models = " against ".join(model_words(row) for row in (rows.second_model.iloc[0], rows.first_model.iloc[0]))
    return f"{title}, each with its best model ({models}): AUC {'; '.join(texts)}.{_pairing_words(pairing)}"


def _pairing_words(pairing: Pairing) -> str:
    text = f" {pairing.left_out:,} patches stand in one run only and are left out." if pairing.left_out else ""
    if pairing.other_folds:
        text += " Their folds differ, so out of fold a patch was predicted by models that learned from other slides."
    return text


def _ladders_section(runs: Sequence[RunResults]) -> Section:
    """Every rung of every run, in a table and as a forest plot a metric and split."""
    whole = pd.concat(
        [run.ladder[~run.ladder.rung.isin(ALONE)].assign(run=run.name) for run in runs], ignore_index=True
    )
    models = list(rungs_below(list(dict.fromkeys(whole.model))))
    splits = [split for split in SPLIT_WORDS if (whole.split == split).any()]
    rows = [
        {"model": model, "split": split, "cells": [_cell(run.ladder, model, split) for run in runs]}
        for model in models
        for split in splits
        if ((whole.model == model) & (whole.split == split)).any()
    ]
    variants = [
        (f"{figures.METRIC_WORDS[metric][0]}, {SPLIT_WORDS[split]}", _forest(whole, runs, models, split, metric))
        for split in splits
        for metric in METRICS
    ]
    content = {"runs": [run.name for run in runs], "rows": rows}
    table = whole[["run", *(column for column in whole if column != "run")]]
    alt = "Forest plot of each model's score with its 95 % interval, a colour a run; the table holds the numbers."
    return Section("ladders", "Ladders", content, charts={"ladders": Chart(alt, variants)}, tables={"ladders": table})


def _cell(ladder: pd.DataFrame, model: str, split: str) -> dict[str, Any] | None:
    rows = ladder[(ladder.model == model) & (ladder.split == split)]
    return None if rows.empty else {str(key): value for key, value in rows.iloc[0].items()}


def _forest(
    whole: pd.DataFrame, runs: Sequence[RunResults], models: Sequence[str], split: str, metric: str
) -> figures.Figure:
    """Dots with intervals, a row a model and a colour a run."""
    data = []
    for i, run in enumerate(runs):
        part = whole[(whole.run == run.name) & (whole.split == split)]
        data.append(_dots(part, run.name, metric, models, i, len(runs), figures.plain(run.name)))
    frame = figures.rows_layout(
        [figures.short_name(model) for model in models], figures.METRIC_WORDS[metric][1], per_row=20 + 12 * len(runs)
    )
    return {"data": data, "layout": frame}


def _dots(
    part: pd.DataFrame, name: str, metric: str, models: Sequence[str], place: int, count: int, words: str
) -> figures.Figure:
    """One trace of a forest plot: rows of `part` at their model's height, shifted so that traces do not overlap."""
    heights = {model: len(models) - 1 - i for i, model in enumerate(models)}
    shift = 0.6 * (0.5 - (place + 0.5) / count)
    rows = part.to_dict("records")
    text = [
        f"{'best of each' if row['model'] == BEST else figures.short_name(row['model'])}, {words}<br>{row[metric]:.3f} "
        f"({row[f'{metric}_low']:.3f} to {row[f'{metric}_high']:.3f})".replace("-", "−")
        for row in rows
    ]
    return figures.points(
        figures.plain(name),
        COLOURS[place % len(COLOURS)],
        SYMBOLS[place % len(SYMBOLS)],
        part[metric],
        part[f"{metric}_low"],
        part[f"{metric}_high"],
        [heights[row["model"]] + shift for row in rows],
        text,
    )


def _paired_section(pairs: Sequence[tuple[RunResults, RunResults, Pairing]], paired: pd.DataFrame) -> Section:
    """Differences on common patches, and why some runs have none."""
    notes = [
        f"{two.name} against {one.name}: "
        + (f"not paired, since {pairing.refused}" if pairing.refused else _common(pairing))
        for one, two, pairing in pairs
    ]
    if paired.empty:
        absent = "No two of these runs can be compared patch by patch. " + " ".join(notes)
        return Section("paired", "Paired differences", None, absent=absent, nav="Paired")
    models = [BEST, *rungs_below([model for model in dict.fromkeys(paired.model) if model != BEST])]
    rows = records(paired)
    for row in rows:
        row["mark"] = "up" if row["auc_low"] > 0 else "down" if row["auc_high"] < 0 else "open"
        row["words"] = "best of each" if row["model"] == BEST else figures.short_name(row["model"])
    variants = []
    for split in dict.fromkeys(paired.split):
        data = []
        for i, (one, two, _) in enumerate(pairs):
            part = paired[(paired["first"] == one.name) & (paired["second"] == two.name) & (paired.split == split)]
            if len(part):
                name = f"{two.name} − {one.name}"
                data.append(_dots(part, name, "auc", models, i, len(pairs), figures.plain(name)))
        labels = ["best of each" if model == BEST else figures.short_name(model) for model in models]
        frame = figures.rows_layout(labels, "difference in AUC", per_row=24 + 12 * len(pairs))
        frame["shapes"] = [figures.rule(0.0)]
        variants.append((SPLIT_WORDS[split], {"data": data, "layout": frame}))
    content = {"notes": notes, "rows": rows, "several": len(pairs) > 1, "count": len(rows)}
    alt = "Paired differences in AUC with 95 % intervals, a row a model; the table holds the numbers."
    return Section(
        "paired",
        "Paired differences",
        content,
        charts={"paired": Chart(alt, variants)},
        tables={"paired": paired},
        nav="Paired",
    )


def _common(pairing: Pairing) -> str:
    """Say how many patches and slides two runs share, in training and in test."""
    parts = []
    for split, words in (("train", "out-of-fold"), ("test", "test")):
        rows = pairing.first[pairing.first.split == split]
        if len(rows):
            slides = rows.slide.nunique()
            parts.append(f"{len(rows):,} {words} patches" + (f" of {slides} slides" if slides else ""))
    return f"{' and '.join(parts)} in common.{_pairing_words(pairing)}"


def _settings_section(runs: Sequence[RunResults]) -> Section:
    """What was set otherwise, and what else tells the runs apart."""
    names = [run.name for run in runs]
    tables, content = {}, {}
    for key, mappings in (("settings", [run.settings for run in runs]), ("made", [run.made for run in runs])):
        table = changed(mappings)
        content[key] = [["–" if value is None else value for value in row] for row in table.to_numpy().tolist()]
        tables[f"differences-{key}"] = table.set_axis(["key", *names], axis=1)
    return Section("settings", "What differs", content | {"runs": names}, tables=tables)
