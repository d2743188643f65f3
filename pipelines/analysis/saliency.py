"""Saliency maps of the fine-tuned network for a sample of held-out patches, with a comparison to random networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from histoblend.data.patches import PatchSet
from histoblend.data.storage.arrays import open_array
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run_files import MODEL, PREDICTIONS
from histoblend.pipelines.runtime.artefacts import StepResult, write_json
from histoblend.pipelines.runtime.screen import Screen

if TYPE_CHECKING:
    import keras

    from histoblend.models.cnn import CnnSettings
    from histoblend.models.inspection.saliency import Maps
    from histoblend.pipelines.run import Run
    from histoblend.reports.evaluation.saliency import SaliencyView

PATCHES, SANITY, FACTS = "patches.parquet", "sanity.parquet", "saliency.json"
LAST, INNER = "last.npy", "inner.npy"

#: Most held-out patches whose maps are measured, half of each label.
SAMPLE = 100
#: Patches of each outcome (true or false, positive or negative) that the report shows.
SHOWN_EACH = 6
#: Patches used for the comparison with random networks, in one orientation.
CHECKED = 48
#: Number of random networks per randomised part.
DRAWS = {"head": 4, "top": 2, "whole": 2}


def build(run: Run, folder: Path) -> StepResult:
    """Compute saliency maps of the fine-tuned network of a run."""
    return probe_saliency(patches_of(run), run.step("cnn").folder, folder, run.config.seed, run.screen)


def probe_saliency(patches: PatchSet, cnn: Path, folder: Path, seed: int, screen: Screen) -> StepResult:
    """Write saliency maps, their shares inside the centre, and their similarity to maps of random networks.

    Parameters
    ----------
    patches : PatchSet
    cnn : Path
        Folder of step 5.
    folder : Path
        Folder to write: ``patches.parquet`` with one row per patch, the maps of the shown patches in ``last.npy`` and
        ``inner.npy``, and the comparison in ``sanity.parquet``.
    seed : int
    screen : Screen
    """
    from histoblend.models.inspection.saliency import open_network

    table, threshold = _with_outcomes(patches, cnn)
    chosen = _choose(table, seed)
    network, settings = open_network(cnn / MODEL)
    maps, checked, sanity = _compute_maps(network, settings, patches, chosen, seed, screen)
    chosen = _add_shares(chosen, maps, patches.pixels.shape[1])
    chosen.to_parquet(folder / PATCHES, index=False)
    sanity.to_parquet(folder / SANITY, index=False)
    shown = chosen["shown"].to_numpy()
    np.save(folder / LAST, maps.last[shown].astype(np.float32))
    if maps.inner is not None:
        np.save(folder / INNER, maps.inner[shown].astype(np.float32))
    facts = {
        "threshold": threshold,
        "intercept": maps.intercept,
        "held_out": len(table),
        "side": int(patches.pixels.shape[1]),
        "cells": {name: list(cells.shape[1:]) for name in ("last", "inner") if (cells := maps.named(name)) is not None},
        "checked": checked,
        "d4": settings.d4,
    }
    write_json(folder / FACTS, facts)
    return StepResult(len(chosen))


def open_saliency(folder: Path) -> SaliencyView:
    """Read the files written by :func:`probe_saliency`."""
    import json

    from histoblend.reports.evaluation.saliency import SaliencyView

    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    return SaliencyView(
        patches=pd.read_parquet(folder / PATCHES),
        sanity=pd.read_parquet(folder / SANITY),
        last=open_array(folder / LAST),
        inner=open_array(folder / INNER) if (folder / INNER).is_file() else None,
        facts=facts,
    )


def _with_outcomes(patches: PatchSet, cnn: Path) -> tuple[pd.DataFrame, float]:
    """Held-out patches with the network's probability and outcome (true or false), and the threshold used."""
    from histoblend.models.calibration import youden_threshold

    table = patches.table[["patch_id", "slide", "split", "label"]].reset_index(names="row")
    table = table.merge(pd.read_parquet(cnn / PREDICTIONS), on="patch_id", validate="one_to_one")
    table = table[table["prob_cnn"].notna()]
    train = table[table["split"] == "train"]
    # Chosen on out-of-fold predictions, as for the ladder.
    threshold = youden_threshold(train["label"].to_numpy(), train["prob_cnn"].to_numpy())
    test = table[table["split"] == "test"].reset_index(drop=True)
    predicted = (test["prob_cnn"] >= threshold).to_numpy()
    actual = (test["label"] == 1).to_numpy()
    right = np.where(predicted == actual, "true ", "false ").astype(object)
    return test.assign(outcome=right + np.where(predicted, "positive", "negative")), float(threshold)


def _choose(test: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Choose the patches to measure or show: ``row, patch_id, slide, label, prob_cnn, outcome, sampled, shown``."""
    from histoblend.models.inspection.saliency import choose_sample, spread_over_slides

    sampled = choose_sample(test, SAMPLE, seed)
    shown = [
        spread_over_slides(test, np.flatnonzero((test["outcome"] == outcome).to_numpy()), SHOWN_EACH, seed)
        for outcome in sorted(set(test["outcome"]))
    ]
    rows = np.union1d(sampled, np.concatenate([np.empty(0, int), *shown])).astype(int)
    chosen = test.iloc[rows].drop(columns="split").reset_index(drop=True)
    return chosen.assign(
        sampled=np.isin(rows, sampled), shown=np.isin(rows, np.concatenate([np.empty(0, int), *shown]))
    )


def _compute_maps(
    network: keras.Model,
    settings: CnnSettings,
    patches: PatchSet,
    chosen: pd.DataFrame,
    seed: int,
    screen: Screen,
) -> tuple[Maps, int, pd.DataFrame]:
    """Maps of the chosen patches, the number of patches in the comparison, and the comparison with random networks."""
    from histoblend.models.inspection.saliency import cut, inner_layer, saliency, spread_over_slides
    from histoblend.models.inspection.saliency_checks import randomise, sanity_table

    pieces = cut(network, inner_layer(settings))
    pixels = np.asarray(patches.pixels[chosen["row"].to_numpy()])
    with screen.progress("evidence maps", len(chosen)) as progress:
        (maps,) = saliency([pieces], pixels, settings, progress=progress)
    checked = np.sort(spread_over_slides(chosen, np.flatnonzero(chosen["sampled"].to_numpy()), CHECKED, seed))
    rng = np.random.default_rng(seed)
    keys = [(part, number) for part, count in DRAWS.items() for number in range(count)]
    networks = [pieces, *(randomise(pieces, part, rng) for part, _ in keys)]
    with screen.progress("random networks", len(checked)) as progress:
        true, *drawn = saliency(networks, pixels[checked], replace(settings, d4=False), progress=progress)
    return maps, len(checked), sanity_table(true, dict(zip(keys, drawn, strict=True)), chosen.iloc[checked])


def _add_shares(chosen: pd.DataFrame, maps: Maps, side: int) -> pd.DataFrame:
    """Add the share of evidence inside the centre for each map, with all cells and without the outermost ones."""
    from histoblend.models.inspection.centre_evidence import centre_shares
    from histoblend.models.inspection.saliency import MAPS

    shares: dict[str, Any] = {"log_odds": maps.last.mean(axis=(1, 2))}
    for name in MAPS:
        cells = maps.named(name)
        if cells is not None:
            shares[f"share_{name}"] = centre_shares(cells, side)
            shares[f"share_{name}_within"] = centre_shares(cells, side, border=False)
    return chosen.assign(**shares)
