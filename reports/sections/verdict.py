"""The first screen: which model is best, whether the gain is real, whether to trust it, and what to do next."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from histoblend.models.names import RUNGS, split_model_name
from histoblend.reports.page import figures
from histoblend.reports.page.section import Chart, Section
from histoblend.reports.sections.cautions import Caution, cautions
from histoblend.reports.sections.evidence import BORDERLINE, CLEAR, NONE, Evidence, Row, known
from histoblend.reports.sections.next_steps import NextStep, next_steps
from histoblend.reports.words import RUNG_WORDS, direction, head_words, model_words, signed, signed_span, span

#: Short names of rungs, for the axis of the forest plot.
RUNG_LABELS = {
    "colour": "colour features",
    "handcrafted": "all handcrafted",
    "embeddings": "embeddings",
    "both": "handcrafted + embeddings",
    "context": "handcrafted, slide context",
    "in-slide": "handcrafted, slide-relative",
    "embeddings-context": "embeddings, slide context",
    "both-context": "both, slide context",
    "context-normalised": "handcrafted, normalised",
    "embeddings-normalised": "embeddings, normalised",
    "both-normalised": "both, normalised",
    "cnn": "fine-tuned network",
    "cnn-context": "network, slide context",
    "ensemble": "ensemble",
}
#: Reasons for caution that are shown at once.
SHOWN_CAUTIONS = 5
#: Screen pixels per row of the forest plot, and around the rows.
ROW_PX, FRAME_PX = 21, 88

_TRUST_WORDS = {
    "no": ("Not yet", "its scores cannot be trusted yet"),
    "caution": ("With caution", "its scores need caution"),
    "yes": ("On slides like these", "its scores hold for slides like these"),
}


@dataclass(frozen=True)
class Verdict:
    """Content of the first screen.

    Attributes
    ----------
    best : str
        Model with the highest out-of-fold AUC.
    finding : str
        The answer in one sentence.
    scores : list of dict
        AUC with interval, AUC within slides, slides, and slides with tumour: out of fold and on the test set.
    gain : dict or None
        Gain over a simpler model: ``title, word, interval, over, test``.
    trust : str
        Whether the scores can be trusted, in a few words.
    trusted : bool
        Whether they can be trusted without a reservation.
    cost : dict or None
        Time and memory of the best model, and time of the simpler one.
    cautions : list of Caution
    next_steps : list of NextStep
    steps : tuple of str
        Steps of the ladder, grouped by whether they improved the AUC.
    """

    best: str
    finding: str
    scores: list[dict[str, Any]]
    gain: dict[str, str] | None
    trust: str
    trusted: bool
    cost: dict[str, str] | None
    cautions: list[Caution]
    next_steps: list[NextStep]
    steps: tuple[str, ...]


def judge(evidence: Evidence) -> Verdict:
    """Turn evidence into the words and numbers of the first screen."""
    reasons = cautions(evidence)
    trust = _trust(evidence, reasons)
    return Verdict(
        best=evidence.best["model"],
        finding=_finding(evidence, trust),
        scores=_scores(evidence),
        gain=_gain(evidence),
        trust=_TRUST_WORDS[trust][0],
        trusted=trust == "yes",
        cost=_cost(evidence),
        cautions=reasons,
        next_steps=next_steps(evidence),
        steps=_improvements(evidence.steps),
    )


def verdict_section(verdict: Verdict, ladder: pd.DataFrame, data: str) -> Section:
    """Show the verdict beside a forest plot of the best model of each rung.

    Parameters
    ----------
    verdict : Verdict
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`, without single families.
    data : str
        The data card in one line.
    """
    content = {"verdict": asdict(verdict), "data": data, "shown": _shown(len(verdict.cautions))}
    best = best_of_each_rung(ladder)
    chart = Chart(_forest_alt(best), [("AUC", compact_forest(best))])
    return Section("verdict", "Verdict", content, charts={"answer": chart}, finding=verdict.finding)


def _shown(reasons: int) -> int:
    """Number of reasons for caution that are shown at once: all of them if only one would be hidden."""
    return reasons if reasons <= SHOWN_CAUTIONS + 1 else SHOWN_CAUTIONS


def _trust(evidence: Evidence, reasons: list[Caution]) -> str:
    if any(reason.serious for reason in reasons):
        return "no"
    return "caution" if evidence.few() or evidence.test is None or evidence.test_side else "yes"


def _finding(evidence: Evidence, trust: str) -> str:
    gains = {CLEAR: "its gain is clear", BORDERLINE: "its gain is borderline", NONE: "it shows no gain"}
    gain = gains.get(evidence.gain)
    joint = "but" if trust != "yes" and evidence.gain in (CLEAR, "") else "and"
    start = f"{_capitalised(model_words(evidence.best['model']))} is the best model"
    return (
        f"{start}; {gain}, {joint} {_TRUST_WORDS[trust][1]}." if gain else f"{start}, {joint} {_TRUST_WORDS[trust][1]}."
    )


def _scores(evidence: Evidence) -> list[dict[str, Any]]:
    test = "Test slides" if evidence.slide_map else "Test patches"
    names = {"oof": ("Out of fold", "unseen in training"), "test": (test, "not used in this run")}
    rows = []
    for split, row in (("oof", evidence.best), ("test", evidence.test)):
        if row is None:
            continue
        rows.append(
            {
                "name": names[split][0],
                "note": names[split][1],
                "auc": _with_interval(row, "auc"),
                "within": _with_interval(row, "auc_within"),
                "slides": int(row["slides"]) if evidence.slide_map else None,
                "tumour": evidence.tumour_slides.get(split) if evidence.slide_map else None,
                "patches": int(row["patches"]),
            }
        )
    return rows


def _with_interval(row: Row, name: str) -> dict[str, str] | None:
    """Return a score and its interval as text; None if unknown."""
    value, low, high = (known(row, f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return None
    return {"value": f"{value:.3f}", "interval": "" if low is None or high is None else span(low, high)}


def _gain(evidence: Evidence) -> dict[str, str] | None:
    """Gain of the best model over the model below it, in words."""
    if not evidence.gain or evidence.below is None:
        return None
    ensemble = evidence.best["rung"] == "ensemble"
    test = evidence.test
    return {
        "title": f"Gain over the {'best single' if ensemble else 'next simpler'} model",
        "word": _capitalised(evidence.gain),
        "interval": _signed_interval(evidence.best),
        "over": _short_words(evidence.below["model"]),
        "test": "" if test is None or pd.isna(test["gain"]) else _signed_interval(test),
    }


def _short_words(model: str) -> str:
    """Return a model's name with the label of its rung in the forest plot."""
    rung, head = split_model_name(model)
    return RUNG_LABELS[rung] + (f" ({head_words(head)})" if head else "")


def _signed_interval(row: Row) -> str:
    low, high = row["gain_low"], row["gain_high"]
    text = f"{signed(row['gain'])} (95 % CI {signed_span(low, high)})"
    return f"{text}, inconclusive" if direction(low, high) == 0 else text


def _cost(evidence: Evidence) -> dict[str, str] | None:
    """Core time per 1,000 patches, and peak memory, which is that of the model's largest step."""
    seconds = known(evidence.best, "seconds_per_1000")
    if seconds is None:
        return None
    memory, simpler = known(evidence.best, "peak_mb"), known(evidence.below, "seconds_per_1000")
    return {
        "seconds": _seconds(seconds),
        "memory": "" if memory is None else f"{memory:,.0f} MB",
        "simpler": "" if simpler is None else _seconds(simpler),
    }


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def best_of_each_rung(ladder: pd.DataFrame) -> pd.DataFrame:
    """Rows of each rung's best model by out-of-fold AUC, best first, without ``prevalence``."""
    oof = ladder[(ladder.split == "oof") & (ladder.rung != RUNGS[0])].sort_values("auc", ascending=False, kind="stable")
    models = oof.drop_duplicates("rung").model.tolist()
    rows = ladder[ladder.model.isin(models)]
    return rows.sort_values("model", key=lambda names: names.map(models.index), kind="stable", ignore_index=True)


def compact_forest(best: pd.DataFrame) -> figures.Figure:
    """Draw the AUC of models in narrow rows, with a line at the first model's out-of-fold AUC."""
    figure = figures.forest(best, "auc")
    for trace in figure["data"]:
        trace["marker"] |= {"size": 6, "line": trace["marker"]["line"] | {"width": 1.5}}
    labels = [RUNG_LABELS[split_model_name(model)[0]] for model in dict.fromkeys(best.model)]
    frame = figure["layout"]
    frame["yaxis"]["ticktext"] = labels
    frame["font"] = frame["font"] | {"size": 12}
    frame["height"] = FRAME_PX + ROW_PX * len(labels)
    frame["shapes"] = [figures.rule(round(float(best.auc.iloc[0]), 5))]
    return figure


def _forest_alt(best: pd.DataFrame) -> str:
    oof = best[best.split == "oof"]
    parts = [f"{figures.short_name(model)} {auc:.3f}" for model, auc in zip(oof.model, oof.auc, strict=True)]
    return "AUC of the best model of each rung with 95 % intervals. Out of fold, best first: " + ", ".join(parts) + "."


def _improvements(steps: tuple[Row, ...]) -> tuple[str, ...]:
    # The gain over prevalence is left out: pooling inflates it, and nobody doubts it.
    compared = [row for row in steps if isinstance(row["below"], str) and row["below"] != RUNGS[0]]
    if not compared:
        return ("Each head has only one rung, so there are no steps to compare.",)
    titles = {
        1: "Improved the AUC (95 % CI of the gain above 0)",
        0: "Inconclusive (95 % CI includes 0)",
        -1: "Lowered the AUC (95 % CI below 0)",
    }
    groups = {side: [s for s in compared if direction(s["gain_low"], s["gain_high"]) == side] for side in titles}
    return tuple(f"{titles[side]}: {_step_words(part)}." for side, part in groups.items() if part)


def _step_words(rows: list[Row]) -> str:
    """Name steps, with the gain for each head."""
    gains: dict[str, list[str]] = {}
    for row in rows:
        rung, head = split_model_name(row["model"])
        other = RUNG_WORDS[split_model_name(row["below"])[0]] if head else model_words(row["below"])
        interval = signed_span(row["gain_low"], row["gain_high"])
        by = f"{head_words(head)} " if head else ""
        gains.setdefault(f"{RUNG_WORDS[rung]} over {other}", []).append(f"{by}{signed(row['gain'])}, {interval}")
    return "; ".join(f"{step} ({'; '.join(heads)})" for step, heads in gains.items())


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
