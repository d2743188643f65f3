"""The report: one HTML file that opens from disk and asks nothing of any network, and its numbers as CSV beside it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from data.splits import is_known
from reports import figures
from reports.audit import AuditView, consequence, example_groups, leakage_words
from reports.ensemble import CALIBRATOR_WORDS, COMBINER_WORDS, MEASURE_WORDS, EnsembleView, gain_words
from reports.importance import sum_by_family
from reports.ladder import ALONE, RUNGS, SPLITS, judged_rows, rungs_below
from reports.metrics import METRICS, slide_table
from reports.stain import FEWEST_SLIDES, StainGroups, group_scores
from reports.verdict import Verdict, judge, model_words, signed, span

TEMPLATES = Path(__file__).parent / "templates"

#: The label speaks of this many pixels in the centre, height and width.
CENTRE = 32

#: Families whose columns mean nothing one by one; they are shown as a family only.
OPAQUE_FAMILIES = ("embedding",)

GALLERY_SIZE = 8
GALLERY_PER_SLIDE = 2
FEATURE_ROWS = 200


class Patches(Protocol):
    """Pixels and their table, row by row; a PatchSet is one."""

    @property
    def pixels(self) -> np.ndarray:
        """RGB, shape (n, height, width, 3), dtype uint8."""
        ...

    @property
    def table(self) -> pd.DataFrame:
        """A row a patch, with ``patch_id``."""
        ...


@dataclass(frozen=True)
class ReportInputs:
    """Everything that the report shows.

    Attributes
    ----------
    title : str
    predictions : DataFrame
        ``patch_id, slide, split, fold, label, prob_<model>``.
    ladder : DataFrame
        From :func:`reports.ladder.ladder`.
    importances : DataFrame
        From :mod:`reports.importance`, of any models and measures; may be empty.
    patches : Patches
        Those of `predictions`, in any order.
    warnings : tuple of str
        Shown on top.
    facts : mapping
        How the report was made: nested mappings of anything that has a ``str``.
    sentences : mapping from feature name to str
        What each feature is.
    families : mapping from name to (columns, milliseconds)
        Of each family of handcrafted features: its columns, and what it costs of one core a patch.
    stain : StainGroups, optional
        From :func:`reports.stain.stain_groups`.
    phantom : bool
        Whether the patches are synthetic.
    audit : AuditView or None
        What the audit found.
    leakage : DataFrame or None
        What folds that ignore slides would score; see :func:`reports.audit.leakage_words`.
    ensemble : EnsembleView or None
        What step 6 found, where it ran.
    """

    title: str
    predictions: pd.DataFrame
    ladder: pd.DataFrame
    importances: pd.DataFrame
    patches: Patches
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    sentences: Mapping[str, str] = field(default_factory=dict)
    families: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    stain: StainGroups | None = None
    phantom: bool = False
    audit: AuditView | None = None
    leakage: pd.DataFrame | None = None
    ensemble: EnsembleView | None = None


def write_report(folder: Path, inputs: ReportInputs) -> Path:
    """Write ``report.html`` and the same numbers as CSV and JSON into `folder`.

    The page carries a content security policy that admits its own two scripts by their hashes and no connection at all,
    so that nothing out of the data can run or call home even if escaping failed.

    Parameters
    ----------
    folder : Path
        Made when missing.
    inputs : ReportInputs

    Returns
    -------
    Path
        Of ``report.html``.

    Raises
    ------
    ValueError
        A shown patch is not among `inputs.patches`.
    """
    # Families alone are a table of their own: among the rungs they would hide the ladder.
    rungs = inputs.ladder[~inputs.ladder.rung.isin(ALONE)]
    models = list(rungs_below(list(dict.fromkeys(rungs.model))))
    curves = figures.roc_table(inputs.predictions, models)
    slides = _slides(inputs.predictions, models)
    known = bool(inputs.predictions.slide.notna().any())
    inferred = known and not is_known(inputs.predictions.slide).any()
    best = judge(rungs, slide_map=known).best
    aucs = slides[(slides.model == best) & (slides.rarer >= figures.FEW_PATCHES)].auc.tolist()
    verdict = judge(
        rungs,
        slide_map=known,
        inferred=inferred,
        phantom=inputs.phantom,
        slide_aucs=aucs,
        stain=inputs.stain,
        doubts_on_ensemble=inputs.ensemble.doubts() if inputs.ensemble is not None else (),
    )
    sums = sum_by_family(inputs.importances) if len(inputs.importances) else pd.DataFrame()
    shown = choose_patches(inputs.predictions, best)
    tables = {
        "ladder": inputs.ladder,
        "roc": curves,
        "slides": slides,
        "importances": inputs.importances,
        "families": sums,
        "patches-shown": shown,
    }
    if inputs.stain is not None:
        tables["stain-groups"] = group_scores(inputs.stain, inputs.predictions, best)
    if inputs.audit is not None:
        tables |= {"audit": inputs.audit.summary, "slides-audited": inputs.audit.slides}
    if inputs.leakage is not None:
        tables["leakage"] = inputs.leakage
    if inputs.ensemble is not None:
        tables |= inputs.ensemble.tables()
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    facts = json.dumps(_as_json(inputs.facts), indent=2, ensure_ascii=False)
    (folder / "facts.json").write_text(facts + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_render(inputs, verdict, tables), encoding="utf-8")
    return page


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


def _slides(predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
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


def _render(inputs: ReportInputs, verdict: Verdict, tables: Mapping[str, pd.DataFrame]) -> str:
    """Fill the template."""
    import jinja2
    import markupsafe
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters |= {"signed": signed, "short": figures.short_name}
    environment.globals |= {"span": span, "isna": pd.isna}
    # Our own files and plotly.js: the only content that is not escaped.
    plotly = markupsafe.Markup(get_plotlyjs())  # noqa: S704
    script = markupsafe.Markup((TEMPLATES / "script.js").read_text(encoding="utf-8"))  # noqa: S704
    style = markupsafe.Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))  # noqa: S704
    return environment.get_template("report.html").render(
        title=inputs.title,
        warnings=inputs.warnings,
        known=bool(inputs.predictions.slide.notna().any()),
        verdict=verdict,
        best=model_words(verdict.best),
        ladder=_ladder_rows(inputs.ladder[~inputs.ladder.rung.isin(ALONE)]),
        alone=_alone_rows(inputs.ladder, inputs.families),
        stain=inputs.stain,
        fewest=FEWEST_SLIDES,
        stain_groups=tables["stain-groups"].to_dict("records") if "stain-groups" in tables else [],
        data=_data_rows(inputs.predictions),
        figures=_figures(tables),
        ensemble=_ensemble(inputs.ensemble),
        slides=tables["slides"][tables["slides"].model == verdict.best].sort_values("auc").to_dict("records"),
        features=_feature_tables(tables["importances"], tables["families"], inputs.sentences),
        threshold=_threshold(inputs.ladder, verdict.best),
        galleries=_galleries(tables["patches-shown"], inputs.patches, _threshold(inputs.ladder, verdict.best)),
        audit=_audit(inputs.audit),
        leakage=leakage_words(inputs.leakage),
        files=[f"{name}.csv" for name in tables],
        facts=_fact_tables(inputs.facts),
        style=style,
        plotly=plotly,
        script=script,
        hashes=[_hash(str(plotly)), _hash(str(script))],
    )


def _hash(script: str) -> str:
    """Name a script as a content security policy does."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"


def _threshold(ladder: pd.DataFrame, model: str) -> float:
    return float(ladder[ladder.model == model].threshold.iloc[0])


def _ladder_rows(ladder: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of the ladder with what the table marks."""
    rows = [{str(key): value for key, value in row.items()} for row in ladder.to_dict("records")]
    for row in rows:
        row["ground"] = row["rung"] == RUNGS[0]
        row["metrics"] = [(row[name], row[f"{name}_low"], row[f"{name}_high"]) for name in METRICS]
        row["mark"] = ""
        if not pd.isna(row["gain"]):
            row["mark"] = "up" if row["gain_low"] > 0 else "down" if row["gain_high"] < 0 else "open"
    return rows


def _alone_rows(ladder: pd.DataFrame, families: Mapping[str, tuple[int, float]]) -> list[dict[str, Any]]:
    """A row a family of handcrafted features and split, best first, with a score for each head."""
    rows = []
    if not ladder.rung.isin(ALONE).any():
        return []
    for family, (columns, cost) in families.items():
        part = ladder[ladder.rung == family]
        for split in dict.fromkeys(part.split):
            heads = part[part.split == split].set_index("head")
            scores = {str(head): (row.auc, row.auc_low, row.auc_high) for head, row in heads.iterrows()}
            rows.append({"family": family, "columns": columns, "cost": cost, "split": split, "scores": scores})
    return sorted(rows, key=lambda row: (row["split"] == "test", -max(score[0] for score in row["scores"].values())))


def _data_rows(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """Patches, slides and prevalence of each fold and of the test set."""
    rows = []
    for fold, part in predictions.groupby("fold", sort=True):
        name = "test" if (part.split == "test").all() else f"fold {fold}"
        rows.append(
            {"name": name, "patches": len(part), "slides": part.slide.nunique(), "prevalence": part.label.mean()}
        )
    rows.sort(key=lambda row: row["name"] == "test")
    total = {"patches": len(predictions), "slides": predictions.slide.nunique(), "prevalence": predictions.label.mean()}
    return [*rows, {"name": "all", **total}]


def _figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """Every figure's variants, with the words that stand in for it where it cannot be seen."""
    ladder, curves, slides, sums = (tables[name] for name in ("ladder", "roc", "slides", "families"))
    ladder = ladder[~ladder.rung.isin(ALONE)]
    found = {
        "forest": {
            "alt": _forest_words(ladder),
            "variants": [(figures.METRIC_WORDS[name][0], figures.forest(ladder, name)) for name in METRICS],
        },
        "roc": {
            "alt": "ROC curves of all models; the areas under them stand in the ladder's AUC column.",
            "variants": [
                ({"oof": "out-of-fold", "test": "test"}[split], figures.roc(curves, split))
                for split in dict.fromkeys(curves.split)
            ],
        },
    }
    if slides.auc.notna().any():
        found["slides"] = {
            "alt": "AUC within each slide that holds both classes, a row a model; the table below lists the best.",
            "variants": [("AUC within slides", figures.slide_strip(slides))],
        }
    if "ensemble-errors" in tables:
        found["errors"] = {
            "alt": "Map of how members' errors correlate; ensemble-errors.csv holds the numbers.",
            "variants": [("correlation of errors", figures.error_map(tables["ensemble-errors"]))],
        }
        found["reliability"] = {
            "alt": "Share of positives against probability, out-of-fold and on test slides; see reliability.csv.",
            "variants": [("reliability", figures.reliability(tables["reliability"]))],
        }
    if len(sums):
        measures = [name for name in figures.MEASURE_WORDS if (sums.measure == name).any()]
        found["families"] = {
            "alt": "Importance by family of features for each model; the sentences above name the leading families.",
            "variants": [(figures.MEASURE_WORDS[name][0], figures.families(sums, name)) for name in measures],
        }
    return found


def _forest_words(ladder: pd.DataFrame) -> str:
    oof = ladder[ladder.split == "oof"].to_dict("records")
    parts = [f"{figures.short_name(row['model'])} {row['auc']:.3f}" for row in oof]
    return "Forest plot of each model's score with its 95 % interval. Out-of-fold AUC: " + ", ".join(parts) + "."


def _feature_tables(
    importances: pd.DataFrame, sums: pd.DataFrame, sentences: Mapping[str, str]
) -> list[dict[str, Any]]:
    """One table a model, the highest rung first."""
    if importances.empty:
        return []
    single = importances[importances.feature.notna() & ~importances.family.isin(OPAQUE_FAMILIES)]
    tables = []
    for model in reversed(list(rungs_below(list(dict.fromkeys(importances.model))))):
        part = single[single.model == model]
        present = [name for name in figures.MEASURE_WORDS if (part.measure == name).any()]
        wide = {name: part[part.measure == name].set_index("feature") for name in present}
        found = {
            "model": model,
            "words": model_words(model),
            "measures": present,
            "rows": _feature_rows(wide, sentences),
            "total": part.feature.nunique(),
            "family_words": _family_words(sums[sums.model == model]),
            "agreement": _agreement(wide),
        }
        tables.append(found)
    # What can be read two ways comes first.
    return sorted(tables, key=lambda table: -len(table["measures"]))


def _feature_rows(wide: Mapping[str, pd.DataFrame], sentences: Mapping[str, str]) -> list[dict[str, Any]]:
    """Features by falling importance in the first measure, with a cell for every measure."""
    if not wide:
        return []
    leading, first = next(iter(wide.items()))
    # A drop below zero is no importance; a coefficient below zero is.
    size = first.value if leading == "permutation" else first.value.abs()
    tops = {name: float(table.value.abs().max()) or 1.0 for name, table in wide.items()}
    order = size.sort_values(ascending=False, kind="stable").index[:FEATURE_ROWS]
    return [
        {
            "feature": feature,
            "sentence": sentences.get(feature, ""),
            "family": first.family[feature],
            "region": first.region[feature],
            "cells": [
                _cell(table.loc[feature], tops[name]) if feature in table.index else None
                for name, table in wide.items()
            ],
        }
        for feature in order
    ]


def _cell(row: pd.Series, top: float) -> dict[str, Any]:
    """One bar: the number, its length in per cent of the longest and its uncertainty."""
    value = float(row.value)
    words = signed(value) if row.measure != "gain" else f"{value:.4f}"
    if not pd.isna(row.low):
        spread = f"{signed(row.low)} to {signed(row.high)}"
    else:
        spread = "" if pd.isna(row.spread) else f"± {row.spread:.3f}"
    return {"value": value, "words": words, "width": round(100 * abs(value) / top, 1), "spread": spread}


def _family_words(sums: pd.DataFrame) -> str:
    """Say which families a model leans on, from the family that is shuffled together."""
    part = sums[sums.measure == "permutation"].sort_values("value", ascending=False).to_dict("records")
    if not part:
        return ""
    listed = [
        f"{row['family']} {signed(-row['value'])} ({signed(-row['high'])} to {signed(-row['low'])})"
        for row in part
        if row["low"] > 0
    ]
    rest = [row["family"] for row in part if not row["low"] > 0]
    text = "Its AUC changes when a family is shuffled together: " + ", ".join(listed) + "." if listed else ""
    if rest:
        text += f" Not shown to matter on these slides (interval includes zero): {', '.join(rest)}."
    return text.strip()


def _agreement(wide: Mapping[str, pd.DataFrame]) -> str:
    """Say whether two measures put features in the same order."""
    names = list(wide)[:2]
    if len(names) < 2:
        return ""
    sizes = [wide[name].value if name == "permutation" else wide[name].value.abs() for name in names]
    pair = pd.concat([size.rename(name) for name, size in zip(names, sizes, strict=True)], axis=1, join="inner")
    # Features that a model does not use at all agree on nothing but that.
    pair = pair[(pair != 0).any(axis=1)]
    rank = pair.rank()
    correlation = float(rank[names[0]].corr(rank[names[1]])) if len(pair) > 2 else np.nan
    if np.isnan(correlation):
        return ""
    top = min(10, len(pair))
    shared = len(set(pair[names[0]].nlargest(top).index) & set(pair[names[1]].nlargest(top).index))
    judgement = "agree well" if correlation > 0.7 else "agree in part" if correlation > 0.3 else "disagree"
    text = (
        f"{names[0].capitalize()} and {names[1]} {judgement}: rank correlation {correlation:.2f}".replace("-", "−")
        + f", and {shared} of the {top} leading features are the same."
    )
    if correlation <= 0.7:
        text += (
            " Correlated features stand in for each other when one is shuffled, while gain and coefficients are shared "
            "out among them: read families before single features."
        )
    return text


def _galleries(shown: pd.DataFrame, patches: Patches, threshold: float) -> list[dict[str, Any]]:
    """Patches as pictures, in their groups."""
    titles = {
        "highest": "Highest scores",
        "lowest": "Lowest scores",
        "highest-negatives": "Highest scores among negatives",
        "lowest-positives": "Lowest scores among positives",
    }
    places = pd.Series(np.arange(len(patches.table)), index=patches.table.patch_id.to_numpy())
    missing = shown.patch_id[~shown.patch_id.isin(places.index)]
    if len(missing):
        raise ValueError(f"every predicted patch must be among the patches; {missing.iloc[0]!r} is not.")
    galleries = []
    for group, title in titles.items():
        cards = []
        for row in shown[shown.group == group].to_dict("records"):
            pixels = np.asarray(patches.pixels[int(places[row["patch_id"]])])
            height, width = pixels.shape[:2]
            card = {
                **row,
                "image": _data_uri(pixels),
                "height": height,
                "width": width,
                "box": [100 * (height - CENTRE) / 2 / height, 100 * (width - CENTRE) / 2 / width],
                "wrong": (row["score"] >= threshold) != (row["label"] == 1),
            }
            cards.append(card)
        galleries.append({"title": title, "cards": cards})
    return galleries


def _audit(view: AuditView | None) -> dict[str, Any] | None:
    """Flags, pictures and slides of the audit, ready to be shown."""
    if view is None:
        return None
    flags = [{**row, "done": consequence(row)} for row in view.summary.to_dict("records")]
    groups = example_groups(view)
    for group in groups:
        for card in group["cards"]:
            pixels = view.pictures[card["place"]]
            card |= {"image": _data_uri(pixels), "height": pixels.shape[0], "width": pixels.shape[1]}
    return {"flags": flags, "groups": groups, "slides": view.slides.to_dict("records")}


def _ensemble(view: EnsembleView | None) -> dict[str, Any] | None:
    """Tables and sentences of the ensemble, ready to be shown."""
    if view is None:
        return None
    choices = [
        f"{row['fold']}: {COMBINER_WORDS[row['combiner']]}, calibration {CALIBRATOR_WORDS[row['calibrator']]}"
        for row in view.choices.to_dict("records")
    ]
    combiners = view.combiners.assign(words=view.combiners.combiner.replace(COMBINER_WORDS))
    calibrators = view.calibrators.assign(words=view.calibrators.calibrator.map(CALIBRATOR_WORDS))
    return {
        "words": gain_words(view.gains),
        "doubts": view.doubts(),
        "combiner": COMBINER_WORDS[view.combiner],
        "calibrator": CALIBRATOR_WORDS[view.calibrator],
        "without_slides": view.without_slides,
        "members": view.members.to_dict("records"),
        "combiners": combiners.to_dict("records"),
        "calibrators": calibrators.to_dict("records"),
        "choices": choices,
        "parts": view.decomposition.assign(words=view.decomposition.measure.map(MEASURE_WORDS)).to_dict("records"),
        "operating": view.operating.to_dict("records"),
    }


def _data_uri(pixels: np.ndarray) -> str:
    """Encode an RGB patch as a PNG inside a URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _fact_tables(facts: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Facts as (heading, rows of name and value); what has no heading of its own comes first."""
    loose = [(str(key), _words(value)) for key, value in facts.items() if not isinstance(value, Mapping)]
    tables = [("run", loose)] if loose else []
    for title, group in facts.items():
        if isinstance(group, Mapping):
            tables += _step_tables(group) if title == "steps" else [(str(title), list(_flat(group)))]
    return tables


def _step_tables(steps: Mapping[str, Mapping[str, object]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """A table a step, after one of what all steps share, such as versions."""
    flat = {name: dict(_flat(step)) for name, step in steps.items()}
    if not flat:
        return []
    shared = set.intersection(*(set(rows.items()) for rows in flat.values()))
    first = next(iter(flat.values()))
    tables = [("all steps", [row for row in first.items() if row in shared])]
    return tables + [(name, [row for row in rows.items() if row not in shared]) for name, rows in flat.items()]


def _flat(facts: Mapping[Any, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested facts with dotted names."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _words(value)


def _words(value: object) -> str:
    """Write a value, lists and what they hold in a line each."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "\n".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _as_json(value: object) -> object:
    """Leave what JSON knows, and turn the rest into text."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    return value if isinstance(value, (str, int)) or value is None else str(value)
