"""What models rely on, as a section: families first, then the features to explore."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reports import figures
from reports.explorer import ExplorerView, explore
from reports.importance import sum_by_family
from reports.ladder import rungs_below
from reports.section import Chart, Section
from reports.verdict import model_words, signed

#: Families whose columns mean nothing one by one; they are shown as a family only.
OPAQUE_FAMILIES = ("embedding",)


def importances_section(
    importances: pd.DataFrame, sentences: Mapping[str, str], view: ExplorerView | None = None
) -> Section:
    """Show what models rely on.

    Parameters
    ----------
    importances : DataFrame
        From :mod:`reports.importance`, of any models and measures; may be empty.
    sentences : mapping from feature name to str
        What each feature is.
    view : ExplorerView, optional
        What features open with, and single patches.

    Returns
    -------
    Section
    """
    sums = sum_by_family(importances) if len(importances) else pd.DataFrame()
    charts = {}
    if len(sums):
        measures = [name for name in figures.MEASURE_WORDS if (sums.measure == name).any()]
        charts["families"] = Chart(
            "Importance by family of features for each model; the sentences below name the leading families.",
            [(figures.MEASURE_WORDS[name][0], figures.families(sums, name)) for name in measures],
        )
    explorer = explore(importances, sums, sentences, view)
    return Section(
        "importances",
        "Importances",
        {"models": _model_words(importances, sums), "explorer": explorer.content} if len(importances) else None,
        absent="No importances were computed. The step that trains heads fills this section.",
        charts=charts | explorer.charts,
        tables={"importances": importances, "families": sums} | explorer.tables,
        data={"explorer": explorer.data},
    )


def _model_words(importances: pd.DataFrame, sums: pd.DataFrame) -> list[dict[str, str]]:
    """What is to be said of each model, the highest rung first."""
    single = importances[importances.feature.notna() & ~importances.family.isin(OPAQUE_FAMILIES)]
    models = []
    for model in reversed(list(rungs_below(list(dict.fromkeys(importances.model))))):
        part = single[single.model == model]
        present = [name for name in figures.MEASURE_WORDS if (part.measure == name).any()]
        wide = {name: part[part.measure == name].set_index("feature") for name in present}
        family_words, agreement = _family_words(sums[sums.model == model]), _agreement(wide)
        if family_words or agreement:
            words = model_words(model)
            models.append({"model": model, "words": words, "family_words": family_words, "agreement": agreement})
    return models


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
