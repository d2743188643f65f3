"""Comparison of several runs: ladders, paired differences on the same patches, and different settings."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.errors import InputError
from histoblend.models.metrics import METRICS
from histoblend.models.names import RUNGS, SINGLE_FAMILIES
from histoblend.reports.evaluation.ladder import rungs_below
from histoblend.reports.evaluation.pairing import BEST, Pairing, RunResults, best_model, differences, pair
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.words import INCONCLUSIVE, decimal, direction, model_words, signed, signed_span, span

#: One colour per run; there are no more that are easy to tell apart.
COLOURS = (figures.BLUE, figures.VERMILLION, figures.GREEN, figures.PURPLE, figures.ORANGE, figures.SKY, figures.BROWN)
SYMBOLS = ("circle", "diamond-open", "square", "triangle-up-open", "star", "circle-open", "diamond")
SPLIT_WORDS = {"oof": "out-of-fold", "test": "test slides"}
#: The model that compares backbones, and the settings that distinguish them.
EMBEDDED, BACKBONE_KEYS = "logistic_embeddings", ("embeddings.backbone", "embeddings.size", "embeddings.weights")
#: What the interval of a difference in AUC shows, and the mark of a table's row; 0 if it includes 0.
SIDES = {1: "better", -1: "worse", 0: INCONCLUSIVE}
MARKS = {1: "up", -1: "down", 0: "open"}


def changed(mappings: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Keys whose values differ between runs: ``key`` and one column per run, None where a run lacks the key."""
    keys = sorted({key for mapping in mappings for key in mapping})
    rows = [
        [key, *(mapping.get(key) for mapping in mappings)]
        for key in keys
        if any(mapping.get(key) != mappings[0].get(key) for mapping in mappings)
    ]
    return pd.DataFrame(rows, columns=["key", *range(len(mappings))], dtype=object)


def comparison_sections(runs: Sequence[RunResults], *, draws: int = 1000, seed: int = 0) -> list[Section]:
    """Build all sections of a comparison.

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
        There are too few or too many runs, or two runs have the same name.
    """
    names = [run.name for run in runs]
    if not 2 <= len(set(names)) == len(names) <= len(COLOURS):
        raise InputError(f"RUNS must name 2 to {len(COLOURS)} different runs; got {' '.join(names) or 'none'}.")
    pairs = [(one, two, pair(one, two)) for one, two in itertools.combinations(runs, 2)]
    tables = [differences(*each, draws=draws, seed=seed) for each in pairs]
    filled = [table for table in tables if len(table)]
    paired = pd.concat(filled, ignore_index=True) if filled else tables[0]
    return [
        Section(
            "comparison",
            "Verdict",
            {"reached": _results(runs), "pairs": [_pair_words(*each, paired) for each in pairs]},
            finding=_best_run(runs),
        ),
        _ladders_section(runs),
        *_backbones_section(runs, paired),
        _paired_section(pairs, paired),
        _settings_section(runs),
    ]


def _best_run(runs: Sequence[RunResults]) -> str:
    """Name the run with the highest out-of-fold AUC."""
    rows = []
    for run in runs:
        row = run.ladder[(run.ladder.model == best_model(run.ladder)) & (run.ladder.split == "oof")].iloc[0]
        rows.append((run.name, row))
    name, row = max(rows, key=lambda item: item[1].auc)
    return (
        f"“{name}” has the highest out-of-fold AUC, {row.auc:.3f} ({span(row.auc_low, row.auc_high)}), with "
        f"{model_words(row.model)}."
    )


def _results(runs: Sequence[RunResults]) -> list[str]:
    """One sentence per run: its best model and the model's AUC."""
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
    """Say which of two runs has the better best model, and on which patches, or why they cannot be compared."""
    title = f"{two.name} compared with {one.name}"
    if pairing.refused:
        return f"{title}: not paired because {pairing.refused}"
    rows = paired[(paired["first"] == one.name) & (paired["second"] == two.name) & (paired.model == BEST)]
    if rows.empty:
        return (
            f"{title}: no interval can be computed, because the common patches have one class only or too few slides "
            "with both."
        )
    texts = []
    for row in rows.to_dict("records"):
        on = f"{row['patches']:,} common patches" + (f" of {row['slides']} slides" if row["slides"] else "")
        side = SIDES[direction(row["auc_low"], row["auc_high"]) or 0]
        interval = signed_span(row["auc_low"], row["auc_high"])
        texts.append(f"{SPLIT_WORDS[row['split']]} {side}, {signed(row['auc'])} ({interval}; {on})")
    own, other = model_words(rows.second_model.iloc[0]), model_words(rows.first_model.iloc[0])
    models = f"both {own}" if own == other else f"{own} against {other}"
    return f"{title}: {models}. AUC: {'; '.join(texts)}.{_pairing_words(pairing)}"


def _pairing_words(pairing: Pairing) -> str:
    text = f" {pairing.left_out:,} patches are in one run only and are excluded." if pairing.left_out else ""
    if pairing.other_folds:
        text += " The folds differ, so the models that predicted a patch out of fold were trained on different slides."
    return text


def _ladders_section(runs: Sequence[RunResults]) -> Section:
    """Every rung of every run: a table, and one forest plot per metric and split."""
    whole = pd.concat(
        [run.ladder[~run.ladder.rung.isin(SINGLE_FAMILIES)].assign(run=run.name) for run in runs], ignore_index=True
    )
    models = list(rungs_below(list(dict.fromkeys(whole.model))))
    splits = [split for split in SPLIT_WORDS if (whole.split == split).any()]
    rows = [
        {"model": model, "split": split, "cells": [_cell(run.ladder, model, split) for run in runs]}
        for model in models
        if model != RUNGS[0]  # its AUC says nothing
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
    alt = "Forest plot of each model's score with its 95 % interval, one colour per run. The table has the numbers."
    everywhere = sum(all((run.ladder.model == model).any() for run in runs) for model in models)
    return Section(
        "ladders",
        "Ladders",
        content,
        charts={"ladders": Chart(alt, variants)},
        tables={"ladders": table},
        finding=f"{everywhere} of {len(models)} models are in every run.",
    )


def _cell(ladder: pd.DataFrame, model: str, split: str) -> dict[str, Any] | None:
    rows = ladder[(ladder.model == model) & (ladder.split == split)]
    return None if rows.empty else {str(key): value for key, value in rows.iloc[0].items()}


def _forest(
    whole: pd.DataFrame, runs: Sequence[RunResults], models: Sequence[str], split: str, metric: str
) -> figures.Figure:
    """Dots with intervals: one row per model, one colour per run."""
    data = []
    for i, run in enumerate(runs):
        part = whole[(whole.run == run.name) & (whole.split == split)]
        data.append(_dots(part, run.name, metric, models, i, len(runs), figures.plain(run.name)))
    frame = figures.rows_layout(
        [figures.row_name(model) for model in models], figures.METRIC_WORDS[metric][1], per_row=20 + 12 * len(runs)
    )
    return {"data": data, "layout": frame}


def _dots(
    part: pd.DataFrame, name: str, metric: str, models: Sequence[str], index: int, count: int, words: str
) -> figures.Figure:
    """Trace number `index` of `count`: each row of `part` at its model's height, shifted to avoid overlap."""
    heights = {model: len(models) - 1 - i for i, model in enumerate(models)}
    shift = 0.6 * (0.5 - (index + 0.5) / count)
    rows = part.to_dict("records")
    text = [
        f"{'best of each' if row['model'] == BEST else figures.short_name(row['model'])}, {words}<br>"
        f"{decimal(row[metric])} ({span(row[f'{metric}_low'], row[f'{metric}_high'])})"
        for row in rows
    ]
    return figures.points(
        figures.plain(name),
        COLOURS[index % len(COLOURS)],
        SYMBOLS[index % len(SYMBOLS)],
        part[metric],
        part[f"{metric}_low"],
        part[f"{metric}_high"],
        [heights[row["model"]] + shift for row in rows],
        text,
    )


def _backbones_section(runs: Sequence[RunResults], paired: pd.DataFrame) -> list[Section]:
    """Backbones side by side, by logistic regression on their embeddings alone; nothing unless they differ."""
    kept = [run for run in runs if ((run.ladder.model == EMBEDDED) & (run.ladder.split == "oof")).any()]
    if len({tuple(run.settings.get(key) for key in BACKBONE_KEYS) for run in kept}) < 2:
        return []
    rows = [_backbone_row(run, kept[0], paired) for run in kept]
    table = pd.DataFrame(rows)
    best = max(rows, key=lambda row: row["auc"])
    finding = f"{best['backbone']} has the highest out-of-fold AUC, {decimal(best['auc'])}."
    return [Section("backbones", "Backbones", {"rows": rows}, tables={"backbones": table}, finding=finding)]


def _backbone_row(run: RunResults, first: RunResults, paired: pd.DataFrame) -> dict[str, Any]:
    """AUC of a run's embeddings, its gain over the first run, its cost, and the worst effect of altered stains."""
    model = run.ladder[run.ladder.model == EMBEDDED].set_index("split")
    backbone, size, weights = (str(run.settings.get(key, "–")) for key in BACKBONE_KEYS)
    backbone += f" ({weights})" if weights not in ("–", "imagenet") else ""
    row: dict[str, Any] = {"run": run.name, "backbone": backbone, "size": size, "cost": run.embedding_cost}
    row |= {name: float(model[name]["oof"]) for name in ("auc", "auc_low", "auc_high")}
    row["test"] = float(model["auc"].get("test", np.nan))
    gain = paired[(paired["first"] == first.name) & (paired["second"] == run.name)]
    gain = gain[(gain.model == EMBEDDED) & (gain.split == "oof")]
    for name in ("", "_low", "_high"):
        row[f"gain{name}"] = float(gain[f"auc{name}"].iloc[0]) if len(gain) else np.nan
    stain = pd.DataFrame() if run.stain is None else run.stain[run.stain.model == EMBEDDED].sort_values("change")
    for name in ("change", "change_low", "change_high"):
        row[name] = float(stain[name].iloc[0]) if len(stain) else np.nan
    return row


def _paired_section(pairs: Sequence[tuple[RunResults, RunResults, Pairing]], paired: pd.DataFrame) -> Section:
    """Differences on common patches, and why some pairs of runs have none."""
    notes = [
        f"{two.name} compared with {one.name}: "
        + (f"not paired because {pairing.refused}" if pairing.refused else _common_patches(pairing))
        for one, two, pairing in pairs
    ]
    if paired.empty:
        absent = "No two of these runs can be compared patch by patch. " + " ".join(notes)
        return Section("paired", "Paired differences", None, absent=absent, nav="Paired")
    models = [BEST, *rungs_below([model for model in dict.fromkeys(paired.model) if model != BEST])]
    rows = records(paired)
    for row in rows:
        row["mark"] = MARKS[direction(row["auc_low"], row["auc_high"]) or 0]
        row["words"] = "best of each" if row["model"] == BEST else model_words(row["model"])
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
    alt = "Paired differences in AUC with 95 % intervals, one row per model. The table has the numbers."
    return Section(
        "paired",
        "Paired differences",
        content,
        charts={"paired": Chart(alt, variants)},
        tables={"paired": paired},
        nav="Paired",
        finding=f"{sum(row['mark'] != 'open' for row in rows)} of {len(rows)} differences in AUC have a 95 % interval "
        "that excludes 0.",
    )


def _common_patches(pairing: Pairing) -> str:
    """Say how many patches and slides two runs share, in the training and test sets."""
    parts = []
    for split, words in (("train", "out-of-fold"), ("test", "test")):
        rows = pairing.first[pairing.first.split == split]
        if len(rows):
            slides = rows.slide.nunique()
            parts.append(f"{len(rows):,} {words} patches" + (f" of {slides} slides" if slides else ""))
    return f"in common {' and '.join(parts)}.{_pairing_words(pairing)}"


def _settings_section(runs: Sequence[RunResults]) -> Section:
    """Different settings, and differences in data, code and machine."""
    names = [run.name for run in runs]
    tables, content = {}, {}
    for key, mappings in (("settings", [run.settings for run in runs]), ("made", [run.made for run in runs])):
        table = changed(mappings)
        content[key] = [["–" if value is None else value for value in row] for row in table.to_numpy().tolist()]
        tables[f"differences-{key}"] = table.set_axis(["key", *names], axis=1)
    counts = [len(content[key]) for key in ("settings", "made")]
    finding = f"Different settings: {counts[0]}. Differences in data, code, versions and machine: {counts[1]}."
    return Section("settings", "What differs", content | {"runs": names}, tables=tables, finding=finding)
