"""Rows of a small ladder whose gains are clear, inconclusive and negative."""

import pandas as pd

from histoblend.models.inspection.stain import StainGroups
from histoblend.reports.sections.evidence import Evidence


def row(model, split="oof", auc=0.8, below=None, gain=None, slides=30, **more):
    """A row of a ladder; intervals are ±0.05 for the AUC and ±0.02 for the gain."""
    rung = model.split("_")[-1]
    low, high = (None, None) if gain is None else (gain - 0.02, gain + 0.02)
    values = {"rung": rung, "model": model, "split": split, "patches": 900, "slides": slides, "below": below}
    values |= {"auc": auc, "auc_low": auc - 0.05, "auc_high": auc + 0.05}
    return values | {"gain": gain, "gain_low": low, "gain_high": high} | more


STEPS = [
    row("prevalence", auc=0.45),
    row("xgboost_colour", auc=0.80, below="prevalence", gain=0.35),
    row("xgboost_handcrafted", auc=0.85, below="xgboost_colour", gain=0.05),
    row("xgboost_embeddings", auc=0.86, below="xgboost_handcrafted", gain=0.01),
    row("xgboost_both", auc=0.83, below="xgboost_embeddings", gain=-0.03),
    row("xgboost_embeddings", "test", auc=0.75, below="xgboost_handcrafted", gain=0.0, slides=7),
]
#: The same, but the best model gains clearly, on many slides with and without tumour.
CLEAR_STEPS = [
    *STEPS[:3],
    row("xgboost_embeddings", auc=0.90, below="xgboost_handcrafted", gain=0.05),
    row("xgboost_embeddings", "test", auc=0.89, below="xgboost_handcrafted", gain=0.03, slides=20),
]


def evidence(steps=STEPS, **known):
    """Evidence from rows of a ladder."""
    return Evidence.from_ladder(pd.DataFrame(steps), **known)


def stain_groups(p):
    """Two groups of slides, with 90 % and 10 % positives."""
    slides = pd.DataFrame(
        {"slide": list("abcdefgh"), "group": list("AAAABBBB"), "prevalence": [0.9] * 4 + [0.1] * 4, "patches": 5}
    )
    return StainGroups(slides, 0.8, p)
