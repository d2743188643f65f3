"""Tables printed in the terminal: the audit, the ladder and the ensemble."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from histoblend.models.names import SINGLE_FAMILIES
from histoblend.pipelines.results import family_costs, patches_of, read_centres, read_ladder, read_leakage
from histoblend.pipelines.run_files import (
    AUDIT,
    EXAMPLES,
    MEMBERS,
    PICTURES,
    SET_ASIDE,
    SLIDES,
    SUMMARY,
)
from histoblend.pipelines.steps.page_content import read_content
from histoblend.pipelines.steps.patches import balance
from histoblend.reports.evaluation.centres import MEAN
from histoblend.reports.evaluation.pairing import best_model
from histoblend.reports.page.section import records
from histoblend.reports.sections.centres import centre_words
from histoblend.reports.sections.data import consequence, leakage_words
from histoblend.reports.within_slides import between_words, has_within, within_words
from histoblend.reports.words import model_words

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def show_ensemble(run: Run) -> None:
    """Show the weight of each member, and the gain of the ensemble over the best member."""
    folder = run.step("ensemble").folder
    members = pd.read_csv(folder / MEMBERS)
    shown = pd.DataFrame(
        {
            "member": members["member"],
            "weight": members["weight"].map("{:+.2f}".format),
            "slide mean": members["weight_slide_mean"].map("{:+.2f}".format, na_action="ignore").fillna("–"),
            "AUC (95 % interval)": _with_interval(members, "auc"),
            "loss without it": _with_interval(members, "value", sign="+"),
        }
    )
    run.screen.table(shown, "members of the ensemble, out-of-fold")
    (section,) = (section for section in read_content(run).sections if section.name == "ensemble")
    run.screen.say(f"ensemble: {(section.content or {})['words']}")


def show_ladder(run: Run) -> None:
    """Show the ladder: out-of-fold, on held-out slides, within slides, and for each family alone."""
    steps = read_ladder(run)
    alone, steps = steps[steps["rung"].isin(SINGLE_FAMILIES)], steps[~steps["rung"].isin(SINGLE_FAMILIES)]
    for split, words in (("oof", "out-of-fold, by slide"), ("test", "held-out slides")):
        part = steps[steps["split"] == split]
        shown = pd.DataFrame(
            {
                "rung": part["rung"],
                "head": part["head"].fillna("–"),
                "AUC (95 % interval)": _with_interval(part, "auc"),
                "within": part["auc_within"].map(lambda auc: "" if np.isnan(auc) else f"{auc:.3f}"),
                "gain over rung below": _with_interval(part, "gain", sign="+"),
                "Brier": part["brier"].map("{:.3f}".format),
                "acc.": part["accuracy"].map("{:.3f}".format),
                "s": part["seconds"].map("{:.0f}".format),
                "MB": part["peak_mb"].map("{:.0f}".format),
            }
        )
        if not has_within(steps):
            shown = shown.drop(columns="within")
        slides = int(part["slides"].iloc[0])
        run.screen.table(shown, f"{words}: {part['patches'].iloc[0]} patches, {slides or 'unknown'} slides")
    run.screen.say(
        "intervals: from resampling slides; acc.: accuracy at the threshold chosen out-of-fold; "
        "s, MB: core-seconds and peak memory, including features"
    )
    if has_within(steps):
        _show_within(run, steps)
    run.screen.say(within_words(steps))
    if len(alone):
        _show_families(run, pd.concat([steps[steps["rung"] == "colour"], alone]))
    _show_centres(run)
    run.screen.say("leakage: " + leakage_words(read_leakage(run)))


def best_words(ladder: pd.DataFrame) -> str:
    """The best model by out-of-fold AUC, with its AUC on both splits, in a few words."""
    if ladder["rung"].isin((*SINGLE_FAMILIES, "prevalence")).all():
        return "Finished"  # single families are not compared
    rows = {row["split"]: row for row in records(ladder[ladder["model"] == best_model(ladder)])}
    oof, test = rows["oof"], rows.get("test")
    interval = "" if np.isnan(oof["auc_low"]) else f" ({oof['auc_low']:.3f}–{oof['auc_high']:.3f})"
    text = f"Best: {model_words(oof['model']).removeprefix('the ')}, AUC {oof['auc']:.3f}{interval} out of fold"
    if test is None:
        return text
    sample = f"{test['slides']} test slides" if test["slides"] else f"{test['patches']:,} test patches"
    return f"{text}, {test['auc']:.3f} on {sample}"


def _show_within(run: Run, steps: pd.DataFrame) -> None:
    """Show AUC within slides on both splits, and the out-of-fold gains within and between slides."""
    held_out = steps[steps["split"] == "test"].set_index("model")
    part = steps[steps["split"] == "oof"].set_index("model")
    shown = pd.DataFrame(
        {
            "rung": part["rung"],
            "head": part["head"].fillna("–"),
            "AUC, out-of-fold": _with_interval(part, "auc_within"),
            "AUC, held-out slides": _with_interval(held_out, "auc_within"),
            "gain within slides": _with_interval(part, "gain_within", sign="+"),
            "gain between slides": _with_interval(part, "gain_between", sign="+"),
        },
        part.index,
    )
    title = "within slides (95 % intervals); gains over the rung below are out-of-fold"
    run.screen.table(shown.fillna(""), title)
    run.screen.say(between_words(steps, briefly=True))


def _show_centres(run: Run) -> None:
    """Show each model's AUC on left-out centres: the mean, its change against mixed centres, and the worst centre."""
    centres = read_centres(run)
    if centres is None:
        return
    if (scored := centres[centres["auc"].notna()]).empty:
        run.screen.say(f"centres: {centre_words(centres)}")
        return
    mean = scored[scored["centre"] == MEAN].set_index("model")
    each = scored[scored["centre"] != MEAN]
    worst = each.loc[each.groupby("model")["auc"].idxmin()].set_index("model").loc[mean.index]
    shown = pd.DataFrame(
        {
            "model": mean.index,
            "mean AUC": _with_interval(mean, "auc"),
            "change from mixed centres": _with_interval(mean, "change", sign="+"),
            "worst centre": worst["centre"],
            "its AUC": _with_interval(worst, "auc"),
        }
    )
    run.screen.table(shown, "one centre left out (95 % intervals from resampling its slides)")
    run.screen.say(f"centres: {centre_words(centres)}")


def _show_families(run: Run, alone: pd.DataFrame) -> None:
    """Show the out-of-fold AUC of each family of handcrafted features alone."""
    part = alone[alone["split"] == "oof"]
    part = part.assign(shown=_with_interval(part, "auc"))
    shown = part.pivot(index="rung", columns="head", values="shown")
    shown = shown.loc[part.groupby("rung")["auc"].max().sort_values(ascending=False).index]
    costs = family_costs(run)
    shown.insert(0, "columns", [str(costs[family][0]) for family in shown.index])
    shown.insert(1, "ms per patch", [f"{costs[family][1]:.2f}" for family in shown.index])
    run.screen.table(shown.reset_index(names="family"), "each family alone: AUC (95 % interval), out-of-fold")


def _with_interval(part: pd.DataFrame, name: str, sign: str = "") -> pd.Series:
    texts = [
        "" if np.isnan(value) else f"{value:{sign}.3f}" + _interval(low, high, sign)
        for value, low, high in zip(part[name], part[f"{name}_low"], part[f"{name}_high"], strict=True)
    ]
    return pd.Series(texts, part.index)


def _interval(low: float, high: float, sign: str) -> str:
    return "" if np.isnan(low) else f" ({low:{sign}.2f} to {high:{sign}.2f})"


def show_audit(run: Run) -> None:
    """Show the summary of the audit, the balance of the split, and the paths of the detailed files."""
    folder, manifest = run.step("prepare")
    summary = pd.read_csv(folder / SUMMARY)
    shown = pd.DataFrame(
        {
            "flag": summary["flag"],
            "a flagged patch …": summary["meaning"],
            "patches": summary["patches"].map("{:,}".format),
            "share": summary["share"].map("{:.2%}".format),
            "positive": summary["positive"].map(lambda share: "" if pd.isna(share) else f"{share:.0%}"),
            "policy": summary["policy"],
            "action": [consequence(row) for row in summary.to_dict("records")],
        }
    )
    rows = manifest["rows"]
    run.screen.table(shown, f"audit: {rows:,} patches kept, {manifest['notes']['set_aside']:,} set aside")
    parts = balance(patches_of(run).table)
    total = patches_of(run).table
    parts["share of patches"] = (parts["patches"] / len(total)).map("{:.1%}".format)
    parts["prevalence"] = parts["prevalence"].map("{:.1%}".format)
    run.screen.table(parts, f"split: prevalence {total['label'].mean():.1%} over all")
    counts = pd.read_csv(folder / SLIDES)
    run.screen.say(
        f"slides: {len(counts)}, {counts['patches'].min():,} to {counts['patches'].max():,} patches each, "
        f"prevalence {counts['positive'].min():.0%} to {counts['positive'].max():.0%}"
    )
    if "centre" in total:
        sizes = [
            f"{name} ({part['slide'].nunique()} slides, {len(part):,} patches, {part['label'].mean():.0%} positive)"
            for name, part in total.groupby("centre")
        ]
        run.screen.say(f"centres: {', '.join(sizes)}")
    run.screen.say(f"measures and flags of every patch: {folder / AUDIT}; one row per slide: {folder / SLIDES}")
    run.screen.say(f"examples: {folder / PICTURES} and {folder / EXAMPLES}; images set aside: {folder / SET_ASIDE}")
    run.screen.say("policies are settings, such as --set audit.blurred=drop; `settings` lists them")
