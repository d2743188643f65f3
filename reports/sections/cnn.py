"""The section on the fine-tuned network: learning curves, saliency maps, and their sanity check."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from histoblend.data.patches import CENTRE, Patches, rows_of_patches
from histoblend.models.resampling import mean_draws, percentile_interval, slide_groups
from histoblend.reports.evaluation.saliency import SaliencyView
from histoblend.reports.page import figures
from histoblend.reports.page.images import centre_box, photo_uri
from histoblend.reports.page.section import Chart, Section, records
from histoblend.reports.words import FEW_SLIDES, direction, percent, percent_span, signed

ABSENT = "This run has no fine-tuned network (step 5). Add it with make ensemble, unless cnn.enabled is false."
ABSENT_MAPS = "This report has no maps of where the network looks."

OUTCOMES = {
    "true positive": "True positives",
    "false negative": "False negatives",
    "false positive": "False positives",
    "true negative": "True negatives",
}
MAP_WORDS = {
    "last": "last map, log-odds",
    "grad-cam": "last map, Grad-CAM without intercept",
    "inner": "inner map, activation × gradient",
}
PART_WORDS = {
    "head": "random head",
    "top": "random weights after the inner map",
    "whole": "random network",
    "other": "same network, another patch",
}

#: With fewer slides than this, no interval is given.
FEWEST_SLIDES = 3
#: From this absolute rank correlation on, maps of random networks are called similar.
SIMILAR = 0.5
#: Columns of a share, its interval and the share of evenly spread evidence: of all cells, and without the outermost.
WHOLE, WITHIN = ("share", "low", "high", "area"), ("within", "within_low", "within_high", "within_area")
MEASURES = ("rank", "structure", "excess")
#: Highest opacity of a map, and the quantile of positive cells that gets it.
OPACITY, TOP_QUANTILE = 0.75, 0.98

#: Anchors of the colour map cividis, which looks the same to colour-blind readers (Nuñez et al. 2018).
CIVIDIS = np.array([(0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56)])
_COLOURS = (figures.BLUE, figures.VERMILLION, figures.GREEN, figures.ORANGE, figures.PURPLE, figures.SKY, figures.BROWN)
_DASHES = ("solid", "dash", "dot")


@dataclass(frozen=True)
class CnnView:
    """Results of step 5.

    Attributes
    ----------
    history : DataFrame
        ``run`` (number of a fold, or "final"), ``epoch, loss, auc, kept``. Epoch 0 is the head alone.
    saliency : SaliencyView or None
    """

    history: pd.DataFrame
    saliency: SaliencyView | None = None


def cnn_section(view: CnnView | None, patches: Patches, *, draws: int = 1000, seed: int = 0) -> Section:
    """Show learning curves, saliency maps, their share inside the centre, and the check against random networks.

    Parameters
    ----------
    view : CnnView or None
        None if the run has no step 5.
    patches : Patches
        Patches of the maps, in any order.
    draws, seed : int
        For intervals that resample slides.

    Returns
    -------
    Section
    """
    title = "Fine-tuned network"
    if view is None:
        return Section("cnn", title, None, absent=ABSENT, nav="Network")
    runs = learned(view.history)
    content: dict[str, Any] = {"runs": runs.to_dict("records"), "words": learning_words(runs)}
    tables = {"cnn-history": view.history, "cnn-epochs": runs}
    maps = view.saliency
    content |= {"maps": None, "absent_maps": ABSENT_MAPS}
    if maps is not None and len(maps.patches):
        shares, checks = share_table(maps, draws=draws, seed=seed), sanity_summary(maps.sanity, draws=draws, seed=seed)
        tables |= {"cnn-shares": shares, "cnn-sanity": checks, "cnn-patches": maps.patches}
        content["maps"] = {
            "facts": maps.facts,
            "slides": int(maps.patches.slide.nunique()),
            "measured": int(maps.patches.sampled.sum()),
            "share_words": share_words(shares),
            "shares": _share_rows(shares),
            "areas": shares.drop_duplicates("map").to_dict("records"),
            "checks": checks.to_dict("records"),
            "check_words": sanity_words(checks),
            **_galleries(maps, patches),
        }
    finding = cnn_finding(tables["cnn-shares"]) if content["maps"] else str(content["words"]).partition(". ")[0] + "."
    charts = _charts(view.history, runs)
    return Section("cnn", title, content, charts=charts, tables=tables, nav="Network", finding=finding)


def cnn_finding(shares: pd.DataFrame) -> str:
    """Say how the evidence for tumour in the centre, which determines the label, compares with chance."""
    (row,) = records(shares[(shares["map"] == "last") & (shares.outcome == "positive")])
    # Without its outermost cells, a map of 3 × 3 cells has only the centre left.
    inner = not pd.isna(row["within"]) and row["within"] < 1
    value, low, high, area = (row[name] for name in (WITHIN if inner else WHOLE))
    if pd.isna(value):
        return "On positive patches of test slides, the network's maps show no evidence for tumour."
    level = {None: "", 0: "not shown to differ from chance", 1: "above chance", -1: "below chance"}[
        direction(low, high, null=round(area, 2), digits=2)
    ]
    interval = f" (95 % CI {percent_span(low, high)})" if level else ""
    cells = ", without the outermost map cells," if inner else ""
    return (
        f"The network's evidence for tumour in the labelled centre is {level or 'not compared with chance'}: on "
        f"positive patches of test slides{cells} {percent(value)}{interval} of it is inside the centre, against "
        f"{percent(area)} if it were spread evenly."
    )


def learned(history: pd.DataFrame) -> pd.DataFrame:
    """Result of each training: ``run, epochs, kept, head_auc, auc, gain``; AUC on its validation slides."""
    rows = []
    for run, part in history.groupby("run", sort=False):
        kept = int(part.loc[part.kept.astype(bool), "epoch"].max())
        auc = part.set_index("epoch").auc
        row = {"run": str(run), "epochs": int(part.epoch.max()), "kept": kept, "head_auc": float(auc[0])}
        rows.append({**row, "auc": float(auc[kept]), "gain": float(auc[kept] - auc[0])})
    return pd.DataFrame(rows)


def learning_words(runs: pd.DataFrame) -> str:
    """Say whether fine-tuning improved on the head alone."""
    folds = runs[runs.auc.notna()]
    if folds.empty:
        return "No fold was trained."
    better = int((folds.kept > 0).sum())
    others = "" if better == len(folds) else " In the others, the head alone was best."
    text = (
        f"In {better} of {len(folds)} folds, an epoch of fine-tuning was kept.{others} On the validation slides, the "
        f"AUC of the kept epoch differs from that of the head alone by {signed(folds.gain.mean())} on average. This is "
        "optimistic, because the epoch was chosen on these slides."
    )
    late = folds[(folds.kept == folds.epochs) & (folds.kept > 0)]
    if len(late) > len(folds) / 2:
        text += " In most folds the last epoch was the best, so more epochs may help (cnn.epochs)."
    return text


def _charts(history: pd.DataFrame, runs: pd.DataFrame) -> dict[str, Chart]:
    folds = runs[runs.auc.notna()]
    head = f"from {folds.head_auc.min():.3f} to {folds.head_auc.max():.3f} for the head alone, " if len(folds) else ""
    kept = f"{folds.auc.min():.3f} to {folds.auc.max():.3f} at the kept epoch" if len(folds) else ""
    alt = f"Learning curves, one line per fold. AUC on the validation slides: {head}{kept}; see cnn-history.csv."
    variants = [
        (f"the network: {words}", learning_curves(history, column, words))
        for column, words in {"auc": "AUC on validation slides", "loss": "loss on training patches"}.items()
    ]
    return {"learning": Chart(alt, variants)}


def learning_curves(history: pd.DataFrame, column: str, words: str) -> dict[str, Any]:
    """Draw ``auc`` or ``loss`` by epoch, one line per run, with a ring around the kept epoch."""
    data = []
    for number, (run, rows) in enumerate(history.groupby("run", sort=False)):
        part = rows[rows[column].notna()]
        if part.empty:
            continue
        kept = part.epoch == part.epoch[part.kept.astype(bool)].max()
        name = "all training slides" if run == "final" else f"fold {int(str(run)) + 1}"
        colour = figures.INK if run == "final" else _COLOURS[number % len(_COLOURS)]
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": part.epoch.astype(int).tolist(),
                "y": figures.numbers(part[column], 4),
                "line": {"color": colour, "width": 2, "dash": _DASHES[number // len(_COLOURS) % len(_DASHES)]},
                "marker": {
                    "color": colour,
                    "size": [13 if one else 6 for one in kept],
                    "symbol": ["circle-open" if one else "circle" for one in kept],
                    "line": {"width": 2},
                },
                "hovertemplate": f"{name}, epoch %{{x}}<br>{words} %{{y:.3f}}<extra></extra>",
            }
        )
    frame = figures.layout(
        xaxis={
            "title": {"text": "epoch (0: the head alone)", "standoff": 8},
            "dtick": 1,
            "zeroline": False,
            "automargin": True,
        },
        yaxis={"title": {"text": words, "standoff": 8}, "zeroline": False, "automargin": True},
        height=420,
    )
    return {"data": data, "layout": frame}


def share_table(view: SaliencyView, *, draws: int, seed: int) -> pd.DataFrame:
    """Mean share of the evidence for tumour that is inside the centre, by outcome and map.

    Returns
    -------
    DataFrame
        ``map, outcome, patches, none, slides, share, low, high, area, within, within_low, within_high, within_area``.
        Rows are the outcomes, then the labels "positive" and "negative". ``none`` counts patches without any evidence
        for tumour, which have no share. ``within`` excludes the outermost cells. The areas are the shares that evenly
        spread evidence would have.
    """
    from histoblend.models.inspection.centre_evidence import area_share

    sample = view.patches[view.patches.sampled]
    groups = {name: sample[sample.outcome == name] for name in OUTCOMES}
    groups |= {"positive": sample[sample.label == 1], "negative": sample[sample.label == 0]}
    rows = []
    for name in MAP_WORDS:
        cells = view.facts["cells"].get("last" if name == "grad-cam" else name)
        if cells is None:
            continue
        tall, wide, side = *map(int, cells), int(view.facts["side"])
        areas = {"area": area_share(tall, wide, side), "within_area": area_share(tall, wide, side, border=False)}
        for outcome, part in groups.items():
            row: dict[str, Any] = {"map": name, "outcome": outcome, "patches": len(part)}
            row |= {"none": int(part[f"share_{name}"].isna().sum()), "slides": int(part.slide.nunique())}
            for column, label in ((f"share_{name}", "share"), (f"share_{name}_within", "within")):
                value, low, high = slide_mean(part[column], part.slide, draws=draws, seed=seed)
                limits = ("low", "high") if label == "share" else ("within_low", "within_high")
                row |= {label: value, limits[0]: low, limits[1]: high}
            rows.append({**row, **areas})
    return pd.DataFrame(rows)


def slide_mean(values: pd.Series, slides: pd.Series, *, draws: int, seed: int) -> tuple[float, float, float]:
    """Mean over patches that have a value, with an interval from resampling slides (NaN if there are too few)."""
    known = values.notna().to_numpy()
    if not known.any():
        return np.nan, np.nan, np.nan
    sample, groups = values[known].to_numpy(dtype=np.float64), slide_groups(slides[known])
    if groups.max() + 1 < FEWEST_SLIDES:
        return float(sample.mean()), np.nan, np.nan
    low, high = percentile_interval(mean_draws(sample[:, None], groups, draws=draws, seed=seed)[:, 0])
    return float(sample.mean()), float(low), float(high)


def share_words(shares: pd.DataFrame) -> list[str]:
    """Say whether the evidence for tumour is in the centre of the patch, which determines the label."""
    last = shares[shares["map"] == "last"]
    rows = {str(row["outcome"]): row for row in last.to_dict("records")}
    sentences = []
    for label, words in (("positive", "patches with tumour in the centre"), ("negative", "patches without")):
        row = rows[label]
        if pd.isna(row["share"]):
            continue
        sentences.append(
            f"In {words}, {percent(row['share'])} of the evidence for tumour is inside the centre"
            f"{_interval(row['low'], row['high'])}. {_compared(row['low'], row['high'], row['area'])}"
        )
        # Without its outermost cells, a map of 3 × 3 cells has only the centre left.
        if row["within"] < 1:
            sentences.append(
                "Without the outermost map cells, which have less evidence because they see padding, the share is "
                f"{percent(row['within'])}{_interval(row['within_low'], row['within_high'])}. "
                f"{_compared(row['within_low'], row['within_high'], row['within_area'])}"
            )
    few = [int(row["slides"]) for row in (rows["positive"], rows["negative"]) if not pd.isna(row["low"])]
    if few and 0 < min(few) < FEW_SLIDES:
        sentences.append(
            f"The patches with one of these labels come from only {min(few)} slides, so their intervals are rough."
        )
    return sentences


def _interval(low: float, high: float) -> str:
    return "" if pd.isna(low) else f" ({percent_span(low, high)})"


def _compared(low: float, high: float, area: float) -> str:
    """Compare a share's interval with the share of evenly spread evidence, both as printed."""
    even = f"the {percent(area)} of evenly spread evidence."
    side = direction(low, high, null=round(area, 2), digits=2)
    if side is None:
        return f"There are too few slides to compare this with {even}"
    if side == 0:
        return f"This is inconclusive: the 95 % CI includes {even}"
    return f"This is {'more' if side > 0 else 'less'} than {even}"


def sanity_summary(table: pd.DataFrame, *, draws: int, seed: int) -> pd.DataFrame:
    """Mean similarity of maps to those of random networks: ``map, part, patches, networks, rank, …, structure, …``.

    ``excess`` is the rank correlation minus that between the same maps and those of another patch. Each patch counts
    once, with its mean over networks. Intervals come from resampling slides.
    """
    rows = []
    for name in MAP_WORDS:
        means = (
            table[table["map"] == name]
            .groupby(["part", "patch_id"])
            .agg(
                slide=("slide", "first"),
                rank=("rank", "mean"),
                structure=("structure", "mean"),
                networks=("draw", "nunique"),
            )
            .reset_index()
        )
        parts = [part for part in PART_WORDS if (means.part == part).any()]
        other_patch = means[means.part == "other"].set_index("patch_id")["rank"]
        for part in parts:
            of_part = means[means.part == part]
            of_part = of_part.assign(excess=of_part["rank"] - of_part.patch_id.map(other_patch).astype(float))
            row: dict[str, Any] = {"map": name, "part": part, "patches": len(of_part)}
            row["networks"] = of_part.networks.max()
            for measure in MEASURES:
                mean = slide_mean(of_part[measure], of_part.slide, draws=draws, seed=seed)
                row |= dict(zip((measure, f"{measure}_low", f"{measure}_high"), mean, strict=True))
            rows.append({**row, "map_words": MAP_WORDS[name], "part_words": PART_WORDS[part]})
    columns = ["map", "part", "patches", "networks"]
    columns += [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*columns, "map_words", "part_words"])


def sanity_words(checks: pd.DataFrame) -> str:
    """Say whether the maps depend on what the network learned."""
    last = checks[(checks["map"] == "last") & checks["rank"].notna()]
    rows = records(last)
    random = [row for row in rows if row["part"] != "other"]
    if not random:
        return "The maps are too coarse or too flat to be compared with those of random networks."
    most_similar = max(random, key=_upper_rank)
    highest = f"absolute rank correlation {_rank_words(most_similar)} with {most_similar['part_words']}"
    if _upper_rank(most_similar) >= SIMILAR:
        return (
            "The maps may show the image rather than what the network learned: maps of random networks, or their "
            f"negatives, are similar ({highest}). Do not read the maps as evidence."
        )
    patches = [f"; {_rank_words(row)} between two patches" for row in rows if row["part"] == "other"]
    correlations = "".join([highest, *patches])
    if any(direction(row["excess_low"], row["excess_high"], digits=2) == 1 for row in random):
        return (
            "The maps depend on what the network learned, but not entirely: maps of random networks, or their "
            f"negatives, are slightly more similar to them than maps of two patches are to each other ({correlations})."
        )
    similarity = "not shown to be more similar to them than maps of two patches are to each other"
    return (
        "The maps depend on what the network learned: maps of random networks, or their negatives, are "
        f"{similarity if patches else 'not similar to them'} ({correlations}). Only an average and one weight per "
        "channel follow the last map, so it depends on the head as much as on the body. A random head is enough to "
        "destroy it."
    )


def _upper_rank(row: Mapping[str, Any]) -> float:
    """Upper end of the rank correlation's interval, or its value if there is no interval."""
    return float(row["rank"] if pd.isna(row["rank_high"]) else row["rank_high"])


def _rank_words(row: Mapping[str, Any]) -> str:
    interval = "" if pd.isna(row["rank_low"]) else f" ({row['rank_low']:.2f} to {row['rank_high']:.2f})"
    return f"{row['rank']:.2f}{interval}"


def _share_rows(shares: pd.DataFrame) -> list[dict[str, Any]]:
    words = {**OUTCOMES, "positive": "All positives", "negative": "All negatives"}
    named = shares.assign(words=shares.outcome.map(words), map_words=shares["map"].map(MAP_WORDS))
    return records(named)


def _galleries(view: SaliencyView, patches: Patches) -> dict[str, Any]:
    """Patches with their maps, by outcome, and the legends of both maps."""
    shown = view.patches[view.patches.shown].reset_index(drop=True)
    rows = rows_of_patches(patches, shown.patch_id)
    maps = {"last": view.last} | ({} if view.inner is None else {"inner": view.inner})
    scales = {name: _scale(values) for name, values in maps.items()}
    galleries = []
    for outcome, title in OUTCOMES.items():
        cards = []
        for index in np.flatnonzero((shown.outcome == outcome).to_numpy()):
            pixels = np.asarray(patches.pixels[rows[index]])
            height, width = pixels.shape[:2]
            card: dict[str, Any] = {str(name): value for name, value in shown.iloc[index].items()}
            card |= {"image": photo_uri(pixels), "height": height, "width": width, "box": centre_box(height, width)}
            card["heat"] = {name: heat_uri(values[index], scales[name]) for name, values in maps.items()}
            cards.append(card)
        if cards:
            galleries.append({"title": f"{title}, test slides", "cards": cards})
    colours = ", ".join(f"rgb({red},{green},{blue})" for red, green, blue in CIVIDIS)
    return {"galleries": galleries, "scales": scales, "gradient": colours, "centre": CENTRE}


def _scale(maps: np.ndarray) -> float:
    """Evidence that gets the strongest colour, the same for all patches of the page."""
    positive = maps[maps > 0]
    return float(np.quantile(positive, TOP_QUANTILE)) if len(positive) else 1.0


def heat_uri(values: np.ndarray, scale: float) -> str:
    """Encode a map as a small PNG to overlay on its patch, transparent where there is no evidence for tumour.

    Parameters
    ----------
    values : ndarray of shape (rows, columns), float
    scale : float
        Value that gets the strongest colour; above 0.
    """
    from PIL import Image

    share = np.clip(np.asarray(values, np.float64) / scale, 0, 1)
    anchors = np.linspace(0, 1, len(CIVIDIS))
    colour = np.stack([np.interp(share, anchors, CIVIDIS[:, channel]) for channel in range(3)], axis=2)
    opacity = 255 * OPACITY * np.sqrt(share)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([colour, opacity]).round().astype(np.uint8), "RGBA").save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
