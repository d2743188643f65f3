"""The Errors section: the best model's most confident errors, its errors by slide, and among flagged patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.patches import CENTRE, Patches, rows_of_patches
from histoblend.models.calibration import log_odds
from histoblend.models.names import RUNGS, SINGLE_FAMILIES
from histoblend.reports.evaluation.decisions import DEFAULT_POINT, DecisionsView
from histoblend.reports.evaluation.flags import FEWEST_SLIDES, flag_errors, flag_words
from histoblend.reports.evaluation.ladder import SPLITS, rows_with_predictions
from histoblend.reports.evaluation.slides import slide_intervals
from histoblend.reports.page.figures import BLUE, ORANGE, VERMILLION, layout, numbers, plain, rule, short_name, shorten
from histoblend.reports.page.images import centre_box, photo_uri
from histoblend.reports.page.section import Chart, Section
from histoblend.reports.sections.data_card import DataCard
from histoblend.reports.words import model_words, percent, span

#: Number of models in the chart of slides. The CSV table has all models.
DRAWN = 4
#: Most pictures for each kind of error and split, and most per slide among them.
GALLERY_SIZE = 6
GALLERY_PER_SLIDE = 2
#: Most pictures per slide in the gallery by slide, and most in total.
EACH_SLIDE = 2
MAX_BY_SLIDE = 30

TITLES = {"false-positives": "labelled negative, scored high", "false-negatives": "labelled positive, scored low"}
SPLIT_WORDS = {"oof": "out-of-fold", "test": "test slides"}


def errors_section(
    predictions: pd.DataFrame,
    slides: pd.DataFrame,
    ladder: pd.DataFrame,
    model: str,
    patches: Patches,
    flags: pd.DataFrame | None = None,
    decisions: DecisionsView | None = None,
    *,
    card: DataCard | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Section:
    """Show the most confident errors, each slide's scores, and error rates of flagged patches.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, split, label, prob_<model>``.
    slides : DataFrame
        From :func:`reports.evaluation.slides.score_slides`.
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`: models and their thresholds.
    model : str
        Best model; the patches shown are its errors.
    patches : Patches
        Patches of `predictions`, in any order.
    flags : DataFrame, optional
        Flags of the audit: ``patch_id`` and one bool column per flag.
    decisions : DecisionsView, optional
        If it is about `model`, its thresholds are used instead of the ladder's.
    card : DataCard, optional
        States the size of a pixel.
    draws, seed : int
        For intervals that resample slides.

    Returns
    -------
    Section

    Raises
    ------
    ValueError
        A shown patch is not among `patches`.
    """
    thresholds: dict[str, float | np.ndarray] = {**model_thresholds(ladder, model)}
    if decisions is not None and decisions.model == model:
        thresholds[model] = decisions.cuts.set_index("patch_id").threshold.loc[predictions.patch_id].to_numpy()
    drawn = best_of_rungs(ladder, model)
    intervals = slide_intervals(predictions, slides, thresholds)
    shown = choose_errors(predictions, model, thresholds[model])
    tables = {"slides": slides, "slides-intervals": intervals, "patches-shown": shown}
    judged = None
    if flags is not None:
        judged = tables["errors-by-flag"] = flag_errors(predictions, flags, thresholds, draws=draws, seed=seed)
    counts = count_errors(predictions, model, thresholds[model])
    rows = slides[slides.model == model]
    largest = rows.groupby("split").size().max() if len(rows) else 0
    content = {
        "model": model,
        "known": bool(predictions.slide.notna().any()),
        "threshold": _threshold_words(thresholds[model], decisions),
        "counts": [{**row, "words": SPLIT_WORDS[row["split"]]} for row in counts],
        "slides": rows.sort_values("auc").to_dict("records"),
        "lengths": [(card or DataCard()).length(pixels) for pixels in (patches.pixels.shape[2], CENTRE)],
        "most": MAX_ROWS if largest > MAX_ROWS else None,
        "fewest": FEWEST_SLIDES,
        "flags": None if judged is None else _flag_rows(judged, model),
        "flag_words": [] if judged is None else flag_words(judged, model),
        **_galleries(shown, patches, flags),
    }
    finding = errors_finding(counts, model)
    return Section("errors", "Errors", content, charts=_charts(intervals, drawn), tables=tables, finding=finding)


def errors_finding(counts: list[dict[str, Any]], model: str) -> str:
    """Say how many patches of each split are wrong, and on how few slides half of the errors are."""
    parts = [
        f"{percent(row['errors'] / row['patches'], 1)} of the "
        f"{'out-of-fold' if row['split'] == 'oof' else 'test'} patches "
        f"({row['errors']:,} of {row['patches']:,}; {row['false_negatives']:,} are missed tumour)"
        for row in counts
    ]
    words = model_words(model)
    text = f"{words[0].upper()}{words[1:]} misclassifies {' and '.join(parts)}"
    first = counts[0]
    if not first["half"]:
        return f"{text}."
    return (
        f"{text}; {first['half']} of {first['slides']} slides have half of the "
        f"{'out-of-fold' if first['split'] == 'oof' else 'test'} errors."
    )


def _threshold_words(threshold: float | np.ndarray, decisions: DecisionsView | None) -> str:
    """Say which threshold decides what an error is."""
    if np.ndim(threshold) == 0 or decisions is None:
        return f"The threshold is that of the ladder, {threshold:.3f}."
    operating = decisions.operating[decisions.operating.point == DEFAULT_POINT]
    return (
        f"The threshold is that of the default operating point, {operating.threshold.iloc[0]:.3f}. Each fold uses the "
        "threshold chosen on the other folds."
    )


def model_thresholds(ladder: pd.DataFrame, best: str) -> dict[str, float]:
    """Threshold of each model on the ladder, except prevalence and families alone; the best model first."""
    rungs = ladder[~ladder.rung.isin((*SINGLE_FAMILIES, RUNGS[0]))]
    thresholds = dict(zip(rungs.model.astype(str), rungs.threshold.astype(float), strict=True))
    return {best: float(ladder[ladder.model == best].threshold.iloc[0])} | thresholds


def best_of_rungs(ladder: pd.DataFrame, best: str) -> list[str]:
    """The best model, then the best head of each of the best other rungs; at most `DRAWN` models."""
    rows = ladder[(ladder.split == "oof") & ~ladder.rung.isin((*SINGLE_FAMILIES, RUNGS[0]))]
    tops = rows.sort_values("auc", ascending=False, kind="stable").drop_duplicates("rung").model
    return list(dict.fromkeys([best, *map(str, tops)]))[:DRAWN]


def choose_errors(predictions: pd.DataFrame, model: str, threshold: float | np.ndarray) -> pd.DataFrame:
    """Choose example patches: worst false positives and negatives, each slide's worst, those nearest the threshold.

    The worst error is the one furthest from the threshold in log-odds. A group has at most `GALLERY_SIZE` patches per
    split, and at most `GALLERY_PER_SLIDE` per slide, so that one unusual slide does not fill it. In the group
    ``"slide"``, slides with the most errors come first, with at most `EACH_SLIDE` patches per slide and `MAX_BY_SLIDE`
    in total.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, split, label, prob_<model>``.
    model : str
    threshold : float or ndarray of shape (n,)
        One threshold, or one per row.

    Returns
    -------
    DataFrame
        ``group, patch_id, slide, split, label, score, wrong``. Groups are the keys of `TITLES`, ``"slide"`` and
        ``"borderline"``. Rows are in the order of the page.
    """
    table = predictions[["patch_id", "slide", "split", "label"]].assign(score=predictions[f"prob_{model}"])
    table = table.assign(cut=threshold)[rows_with_predictions(predictions, model)]
    distance = np.abs(log_odds(table.score.to_numpy()) - log_odds(table.cut.to_numpy(np.float64)))
    table = table.assign(wrong=(table.score >= table.cut) != (table.label == 1), distance=distance)
    errors = table[table.wrong].sort_values(["distance", "patch_id"], ascending=[False, True], kind="stable")
    confident = {"false-positives": errors[errors.label == 0], "false-negatives": errors[errors.label == 1]}
    closest = table.sort_values(["distance", "patch_id"], kind="stable")
    parts = [_few_of_each_slide(group, split, name) for split in SPLITS for name, group in confident.items()]
    parts.append(_worst_of_slides(errors).assign(group="slide"))
    parts += [_few_of_each_slide(closest, split, "borderline") for split in SPLITS]
    columns = ["group", "patch_id", "slide", "split", "label", "score", "wrong"]
    return pd.concat(parts, ignore_index=True)[columns]


def _few_of_each_slide(group: pd.DataFrame, split: str, name: str) -> pd.DataFrame:
    """First patches of a group in one split, with at most `GALLERY_PER_SLIDE` per slide."""
    part = group[group.split == split]
    few = part.slide.isna() | (part.groupby("slide").cumcount() < GALLERY_PER_SLIDE)
    return part[few].head(GALLERY_SIZE).assign(group=name)


def _worst_of_slides(errors: pd.DataFrame) -> pd.DataFrame:
    """Each slide's worst errors, slides with the most errors first."""
    known = errors[errors.slide.notna()]
    counts = known.slide.value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable")
    ranks = {slide: rank for rank, slide in enumerate(counts.index)}
    worst = known.assign(turn=known.groupby("slide").cumcount(), rank=known.slide.map(ranks).astype(int))
    # Take one picture per slide, then a second, and so on: each slide gets one before any slide gets several.
    kept = worst[worst.turn < EACH_SLIDE].sort_values(["turn", "rank"], kind="stable").head(MAX_BY_SLIDE)
    return kept.sort_values(["rank", "turn"], kind="stable").drop(columns=["turn", "rank"])


def count_errors(predictions: pd.DataFrame, model: str, threshold: float | np.ndarray) -> list[dict[str, Any]]:
    """Numbers of patches and errors of each split.

    Returns
    -------
    list of dict
        ``split, patches, positives, negatives, false_positives, false_negatives, errors, slides, half``. ``half`` is
        the smallest number of slides that together have at least half of the errors; 0 without errors or slides.
    """
    evaluated = rows_with_predictions(predictions, model)
    called = (predictions[f"prob_{model}"] >= threshold)[evaluated]
    part = predictions[evaluated].assign(called=called, split=predictions.split.map(SPLITS))
    rows = []
    for split in SPLITS.values():
        some = part[part.split == split]
        if some.empty:
            continue
        positive, wrong = some.label == 1, some.called != (some.label == 1)
        of_slides = np.sort(some.slide[wrong].value_counts().to_numpy())[::-1]
        half = int(np.searchsorted(np.cumsum(of_slides), of_slides.sum() / 2)) + 1 if len(of_slides) else 0
        rows.append(
            {
                "split": split,
                "patches": len(some),
                "positives": int(positive.sum()),
                "negatives": int((~positive).sum()),
                "false_positives": int((wrong & ~positive).sum()),
                "false_negatives": int((wrong & positive).sum()),
                "errors": int(wrong.sum()),
                "slides": int(some.slide.nunique()),
                "half": half,
            }
        )
    return rows


def _charts(intervals: pd.DataFrame, models: Sequence[str]) -> dict[str, Chart]:
    """One variant per metric and split of the first model, and the AUC of the others."""
    if intervals.empty:
        return {}
    variants = []
    for model in models:
        for metric, words in METRIC_WORDS.items() if model == models[0] else [("auc", METRIC_WORDS["auc"])]:
            for split, split_words in SPLIT_WORDS.items():
                part = intervals[intervals.split == split]
                if len(forest_rows(part, model, metric)):
                    title = f"{short_name(model)}, {split_words}: {words}"
                    variants.append((title, slide_forest(part, model, metric)))
    first = intervals[intervals.model == models[0]]
    split = next(split for split in SPLIT_WORDS if (first.split == split).any())
    rows = forest_rows(first[first.split == split], models[0], "auc")
    lowest = f"{rows.value.iloc[0]:.2f} on slide {rows.slide.iloc[0]}"
    alt = (
        f"Forest plot of {short_name(models[0])}, {SPLIT_WORDS[split]}, within each of {len(rows)} slides, from "
        f"{lowest} to {rows.value.iloc[-1]:.2f} on slide {rows.slide.iloc[-1]}. slides-intervals.csv has the numbers."
    )
    return {"slides": Chart(alt, variants)}


def _flag_rows(table: pd.DataFrame, model: str) -> list[dict[Any, Any]]:
    """Rows of the best model, each with the rows of the other models for the same flag and split."""
    rows = []
    for row in table[table.model == model].to_dict("records"):
        others = table[(table.flag == row["flag"]) & (table.split == row["split"]) & (table.model != model)]
        rows.append({**row, "others": others.to_dict("records")})
    return rows


def _galleries(shown: pd.DataFrame, patches: Patches, flags: pd.DataFrame | None) -> dict[str, Any]:
    """Cards with pictures: ``galleries`` of confident errors with titles, ``borderline``, and ``by_slide``."""
    rows = dict(zip(shown.patch_id, rows_of_patches(patches, shown.patch_id), strict=True))
    flags_of = _patch_flags(shown.patch_id, flags)
    cards = [
        _card(row, np.asarray(patches.pixels[rows[row["patch_id"]]]), flags_of[row["patch_id"]])
        for row in shown.to_dict("records")
    ]
    galleries = [
        {
            "title": f"{SPLIT_WORDS[name].capitalize()}: {title}",
            "cards": [card for card in cards if card["group"] == group and card["split"] == split],
        }
        for split, name in SPLITS.items()
        for group, title in TITLES.items()
    ]
    by_slide = [card for card in cards if card["group"] == "slide"]
    names = list(dict.fromkeys(card["slide"] for card in by_slide))
    return {
        "galleries": [gallery for gallery in galleries if gallery["cards"]],
        "borderline": [card for card in cards if card["group"] == "borderline"],
        "by_slide": by_slide,
        "slide_names": names,
        "each_slide": EACH_SLIDE,
    }


def _patch_flags(patch_ids: pd.Series, flags: pd.DataFrame | None) -> Mapping[str, list[str]]:
    """Flags of each shown patch, in words."""
    if flags is None:
        return {patch_id: [] for patch_id in patch_ids}
    rows = flags[flags.patch_id.isin(patch_ids)].set_index("patch_id")
    flagged = {str(name): [str(flag).replace("_", " ") for flag in row[row].index] for name, row in rows.iterrows()}
    return {patch_id: flagged.get(patch_id, []) for patch_id in patch_ids}


def _card(row: dict[Any, Any], pixels: np.ndarray, flags: list[str]) -> dict[Any, Any]:
    height, width = pixels.shape[:2]
    picture = {"image": photo_uri(pixels), "height": height, "width": width, "box": centre_box(height, width)}
    return {**row, **picture, "flags": flags}


#: Most rows of the figure. Slides with the lowest values are drawn.
MAX_ROWS = 60
#: Name of each figure in the menu.
METRIC_WORDS = {
    "auc": "AUC (one class: share correct)",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
}
_MARKS = {
    "auc": ("AUC", BLUE, "circle"),
    "sensitivity": ("sensitivity", VERMILLION, "diamond"),
    "specificity": ("specificity", ORANGE, "square"),
}


def forest_rows(intervals: pd.DataFrame, model: str, metric: str) -> pd.DataFrame:
    """Rows of one figure, lowest value first. For "auc", slides of one class have the share of correct patches."""
    part = intervals[intervals.model == model]
    one_class = (part.positives == 0) | (part.positives == part.patches)
    selected = (part.metric == metric) | (one_class if metric == "auc" else False)
    return part[selected].sort_values(["value", "high", "slide"], kind="stable", ignore_index=True)


def slide_forest(intervals: pd.DataFrame, model: str, metric: str) -> dict[str, Any]:
    """Draw one metric of one model within each slide, worst on top; at most the worst `MAX_ROWS` slides.

    Parameters
    ----------
    intervals : DataFrame
        From :func:`slide_intervals`.
    model : str
    metric : {"auc", "sensitivity", "specificity"}
    """
    rows = forest_rows(intervals, model, metric).head(MAX_ROWS)
    heights = len(rows) - 1 - np.arange(len(rows))
    data = []
    for name, (words, colour, symbol) in _MARKS.items():
        for split in SPLITS.values():
            drawn = ((rows.metric == name) & (rows.split == split)).to_numpy()
            if drawn.any():
                metric_name = words if metric != "auc" or name == "auc" else f"{words}, one class only"
                shape = f"{symbol}-open" if split == "test" else symbol
                title = f"{metric_name}, {'test' if split == 'test' else 'out-of-fold'}"
                data.append(_trace(rows[drawn], heights[drawn].tolist(), title, colour, shape))
    axis = {"tickvals": heights.tolist(), "ticktext": [shorten(slide) for slide in rows.slide], "zeroline": False}
    frame = layout(
        yaxis={**axis, "range": [-0.7, len(rows) - 0.3], "automargin": True, "ticklabelstandoff": 6},
        xaxis={
            "title": {"text": "within the slide", "standoff": 8},
            "zeroline": False,
            "range": [-0.02, 1.02],
            "automargin": True,
        },
        height=130 + 19 * len(rows),
    )
    frame["shapes"] = [rule(0.5)] if metric == "auc" else []
    return {"data": data, "layout": frame}


def _trace(rows: pd.DataFrame, heights: list[int], name: str, colour: str, symbol: str) -> dict[str, Any]:
    bars = {"type": "data", "symmetric": False, "color": colour, "thickness": 1.5, "width": 0}
    bars |= {"array": numbers(rows.high - rows.value, 4), "arrayminus": numbers(rows.value - rows.low, 4)}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": numbers(rows.value, 4),
        "y": heights,
        "text": [
            f"slide {plain(row['slide'])}<br>{name}: {row['value']:.3f} ({span(row['low'], row['high'])})<br>"
            f"{row['patches']} patches, {row['positives']} positive"
            for row in rows.to_dict("records")
        ],
        "hoverinfo": "text",
        "error_x": bars,
        "marker": {"color": colour, "symbol": symbol, "size": 8, "line": {"width": 1.5, "color": colour}},
    }
