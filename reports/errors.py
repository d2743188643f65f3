"""Where a model errs: slide by slide, and the patches themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports import figures
from reports.ladder import SPLITS, judged_rows
from reports.metrics import slide_table
from reports.pictures import Patches, centre_box, data_uri, find_patches
from reports.section import Chart, Section

GALLERY_SIZE = 8
GALLERY_PER_SLIDE = 2


def errors_section(
    predictions: pd.DataFrame, slides: pd.DataFrame, model: str, threshold: float, patches: Patches
) -> Section:
    """Show how models rank within each slide, and the patches that one of them judges high, low and wrongly.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, split, label, prob_<model>``.
    slides : DataFrame
        From :func:`score_slides`.
    model : str
        The one whose slides and patches are shown.
    threshold : float
        A score at or above it counts as positive.
    patches : Patches
        Those of `predictions`, in any order.

    Returns
    -------
    Section

    Raises
    ------
    ValueError
        A shown patch is not among `patches`.
    """
    shown = choose_patches(predictions, model)
    charts = {}
    if slides.auc.notna().any():
        charts["slides"] = Chart(
            "AUC within each slide that holds both classes, a row a model; the table below lists the best.",
            [("AUC within slides", figures.slide_strip(slides))],
        )
    content = {
        "model": model,
        "known": bool(predictions.slide.notna().any()),
        "threshold": threshold,
        "slides": slides[slides.model == model].sort_values("auc").to_dict("records"),
        "galleries": _galleries(shown, patches, threshold),
    }
    tables = {"slides": slides, "patches-shown": shown}
    return Section("errors", "Slides, patches and errors", content, charts=charts, tables=tables, nav="Errors")


def choose_patches(predictions: pd.DataFrame, model: str) -> pd.DataFrame:
    """Choose the patches to look at: highest and lowest scores, overall and on the wrong side.

    At most `GALLERY_PER_SLIDE` of one slide enter a group, so that one odd slide does not fill it.

    Returns
    -------
    DataFrame
        ``group, patch_id, slide, split, label, score``.
    """
    table = predictions[["patch_id", "slide", "split", "label"]].assign(score=predictions[f"prob_{model}"])
    table = table[judged_rows(predictions, model)]
    groups = {
        "highest": (table, False),
        "lowest": (table, True),
        "highest-negatives": (table[table.label == 0], False),
        "lowest-positives": (table[table.label == 1], True),
    }
    parts = []
    for name, (part, ascending) in groups.items():
        ranked = part.sort_values(["score", "patch_id"], ascending=[ascending, True], kind="stable")
        few = ranked.slide.isna() | (ranked.groupby("slide").cumcount() < GALLERY_PER_SLIDE)
        parts.append(ranked[few].head(GALLERY_SIZE).assign(group=name))
    return pd.concat(parts, ignore_index=True)[["group", "patch_id", "slide", "split", "label", "score"]]


def score_slides(predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """Metrics within each slide: ``model, split, slide, patches, rarer, prevalence, mean_score, brier, auc``."""
    parts = []
    for split, name in SPLITS.items():
        part = predictions[predictions.split == split]
        for model in models if len(part) else ():
            present = part[judged_rows(part, model)]
            table = slide_table(present.label.to_numpy(), present[f"prob_{model}"].to_numpy(), present.slide)
            table.insert(0, "split", name)
            table.insert(0, "model", model)
            parts.append(table)
    return pd.concat(parts, ignore_index=True)


def _galleries(shown: pd.DataFrame, patches: Patches, threshold: float) -> list[dict[str, Any]]:
    """Patches as pictures, in their groups."""
    titles = {
        "highest": "Highest scores",
        "lowest": "Lowest scores",
        "highest-negatives": "Highest scores among negatives",
        "lowest-positives": "Lowest scores among positives",
    }
    rows = dict(zip(shown.patch_id, find_patches(patches, shown.patch_id), strict=True))
    galleries = []
    for group, title in titles.items():
        cards = []
        for row in shown[shown.group == group].to_dict("records"):
            pixels = np.asarray(patches.pixels[rows[row["patch_id"]]])
            height, width = pixels.shape[:2]
            card = {
                **row,
                "image": data_uri(pixels),
                "height": height,
                "width": width,
                "box": centre_box(height, width),
                "wrong": (row["score"] >= threshold) != (row["label"] == 1),
            }
            cards.append(card)
        galleries.append({"title": title, "cards": cards})
    return galleries
