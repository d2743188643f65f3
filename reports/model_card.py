"""The model card of a bundle: its data, scores, intended use and limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from histoblend.data.splits import is_known
from histoblend.models.costs import CLOSE, FAST
from histoblend.models.names import ENSEMBLES, SINGLE_FAMILIES
from histoblend.reports.within_slides import between_words, has_within, score_within_words, within_words

CARD = "MODEL_CARD.md"

_SPLITS = {"oof": "out of fold, by slide", "test": "held-out slides"}


def model_card(content: Mapping[str, Any], steps: pd.DataFrame, patches: pd.DataFrame, *, phantom: bool) -> str:
    """Return the card in Markdown.

    Parameters
    ----------
    content : mapping
        Content of ``bundle.json``: run, made, commit, patch, prevalence, networks, models, ensembles, costs, libraries,
        learned.
    steps : DataFrame
        The ladder (:func:`reports.evaluation.ladder.ladder`).
    patches : DataFrame
        ``label, slide, split``, one row per patch.
    phantom : bool
        Whether the patches are synthetic.
    """
    known = bool(is_known(patches["slide"]).all())
    lines = [
        f"# Model card: {content['run']}",
        "",
        f"Made {content['made']} from commit {content['commit']}. Not for diagnosis.",
        "",
        "## Data",
        "",
        *_data(content, patches, known, phantom),
        "",
        "## Scores",
        "",
        "AUC and Brier score with 95 % intervals from resampling slides. Out-of-fold scores come from models that had "
        f"not seen the slide, held-out scores from models fitted to the training slides. {_learned(content)}"
        if known
        else "AUC and Brier score with 95 % intervals. **Slides are unknown: patches of one slide may be on both "
        f"sides of the split, so these scores are optimistic.** {_learned(content)}",
        "",
        *_scores(steps),
        "",
        "## Cost",
        "",
        *_costs(content),
        "",
        "## Use",
        "",
        "For research: a baseline for other models, on patches of the same size and magnification. "
        f"Patches must be {content['patch']['size']} × {content['patch']['size']} px, {content['patch']['pixels']}.",
        "",
        "    make predict BUNDLE=folder/of/this/file IN=folder/of/images OUT=predictions.csv",
        "",
        "With `SLIDES=file.csv` (`id,slide`), models compare a patch with the rest of its slide. All patches of a "
        "slide must be predicted together. `PREVALENCE=0.5` rescales probabilities to another share of positives.",
        "",
        "## Limits",
        "",
        *_limits(content, patches, phantom),
        "",
        "## Made with",
        "",
        ", ".join(f"{name} {version}" for name, version in content["libraries"].items()) + ".",
        "",
    ]
    return "\n".join(lines)


def _learned(content: Mapping[str, Any]) -> str:
    """Training data of the bundle's models, and what the scores say about these models."""
    learned = content["learned"]
    if learned["patches"] == "train":
        return "The models in this bundle are those fitted to the training patches only."
    slides = "" if learned["slides"] is None else f" of {learned['slides']} slides"
    return (
        f"**The models in this bundle were refitted to all {learned['count']} labelled patches{slides}, including the "
        "held-out ones.** They have no scores of their own. The scores here are from the same procedure with fewer "
        "patches. Patches of this data set can no longer test the bundle."
    )


def _data(content: Mapping[str, Any], patches: pd.DataFrame, known: bool, phantom: bool) -> list[str]:
    lines = ["| part | patches | slides | positive |", "|---|---|---|---|"]
    for split, words in (("train", "training"), ("test", "held out")):
        part = patches[patches["split"] == split]
        slides = str(part["slide"].nunique()) if known else "unknown"
        lines.append(f"| {words} | {len(part)} | {slides} | {part['label'].mean():.1%} |")
    source = "a synthetic phantom: scores say nothing about medicine" if phantom else content["patch"]["source"]
    networks = [
        f"{entry['recipe']['backbone']} at {' and '.join(str(size or 'native') for size in entry['sizes'])} px"
        for entry in content["networks"]
    ]
    return [*lines, "", f"Source: {source}. Embeddings: {'; '.join(networks) or 'none'}."]


def _scores(steps: pd.DataFrame) -> list[str]:
    selected = steps[~steps["rung"].isin(SINGLE_FAMILIES) & (steps["model"] != "prevalence")]
    lines = ["| model | split | AUC | AUC within slides | Brier score | threshold |", "|---|---|---|---|---|---|"]
    for row in selected.to_dict("records"):
        scores = [_with_interval(row, "auc"), score_within_words(row) or "–", _with_interval(row, "brier")]
        lines.append(f"| {row['model']} | {_SPLITS[row['split']]} | {' | '.join(scores)} | {row['threshold']:.3f} |")
    return [*lines, "", within_words(steps) + (f" {between_words(selected)}" if has_within(steps) else "")]


def _costs(content: Mapping[str, Any]) -> list[str]:
    """Cost and AUC of each choice of MODEL, the cheapest first."""
    ensembles = {name: content["ensembles"][name] for name in ENSEMBLES if name in content["ensembles"]}
    scores = content["models"] | ensembles
    words = dict(zip(ENSEMBLES, ("ensemble", "ensemble, heat maps", "ensemble, slides unknown"), strict=True))
    lines = ["| `MODEL` | core-ms per patch | AUC out of fold |", "|---|---|---|"]
    for name, cost in sorted(content["costs"].items(), key=lambda item: item[1]):
        score = scores[name]
        interval = "" if score["auc_low"] is None else f" ({score['auc_low']:.3f} to {score['auc_high']:.3f})"
        lines.append(f"| {words.get(name, name)} | {cost:.1f} | {score['auc']:.3f}{interval} |")
    return [
        *lines,
        "",
        f"Costs are of one core where the bundle was made, without reading files. `MODEL={FAST}` takes the cheapest "
        f"model whose AUC is within {CLOSE} of the best; without slides, among those that need none.",
    ]


def _with_interval(row: Mapping[Any, Any], name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"


def _limits(content: Mapping[str, Any], patches: pd.DataFrame, phantom: bool) -> list[str]:
    training = patches if content["learned"]["patches"] == "all" else patches[patches["split"] == "train"]
    known = is_known(training["slide"])
    sample = f"{training['slide'].nunique()} slides" if known.all() else "slides that are not all known"
    lines = [
        f"- It was trained on {sample}. It was not tested on other scanners, stains, organs, magnifications or "
        "hospitals, nor on whole slides. Expect worse results there, and measure them.",
        f"- Probabilities are valid for the training patches' share of positives, {content['prevalence']:.1%}.",
        "- A label describes only the centre of a patch, 32 × 32 px.",
        "- `out-of-distribution` marks patches unlike all training patches. A patch without this flag may still be "
        "wrong, and swapped colours are hardly ever detected.",
    ]
    return [*lines, "- It was trained on synthetic images and is of no use on tissue."] if phantom else lines
