"""Recompute a report's numbers from its predictions, with pandas, NumPy and scikit-learn alone: nothing of ours.

    python tests/golden/recompute.py runs/<name>

prints how many numbers agree, and every one that does not; exit status 1 where any does not.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    roc_auc_score,
)

SPLITS = {"oof": "train", "test": "test"}
TOLERANCE = 1e-9


class Agreement:
    """Numbers compared so far, and those that differ."""

    def __init__(self):
        self.compared, self.largest, self.faults = 0, 0.0, []

    def check(self, where, reported, expected):
        """Compare a number of the report with what it ought to be; both may be missing."""
        self.compared += 1
        if pd.isna(reported) and pd.isna(expected):
            return
        gap = abs(float(reported) - float(expected))
        if np.isfinite(gap):
            self.largest = max(self.largest, gap)
        if not gap <= TOLERANCE:
            self.faults.append(f"{where}: report {reported}, recomputed {expected}")


def rows_of(predictions, model, split):
    """Labels, probabilities and the rows themselves that a model is judged on."""
    part = predictions[(predictions.split == SPLITS[split]) & predictions[f"prob_{model}"].notna()]
    return part.label.to_numpy(), part[f"prob_{model}"].to_numpy(), part


def slide_pairs(part, name):
    """AUC over pairs of patches of one known slide and over all other pairs, share of the former, slides that have any.

    Slides that no slide map named are not known: missing, "(unmapped)" and "(inferred …)".
    """
    p, y = part[f"prob_{name}"].to_numpy(), part.label.to_numpy()
    slides = part.slide.astype(object).where(part.slide.notna(), "(unmapped)").to_numpy()
    known = [slide for slide in pd.unique(slides) if not str(slide).startswith(("(unmapped)", "(inferred"))]
    if not known:
        return np.nan, np.nan, np.nan, 0
    every = y.sum() * (1 - y).sum()
    right = pairs = mixed = 0
    for slide in known:
        above, below = p[(slides == slide) & (y == 1)], p[(slides == slide) & (y == 0)]
        right += sum(np.sum(value > below) + np.sum(value == below) / 2 for value in above)
        pairs += len(above) * len(below)
        mixed += len(above) > 0 and len(below) > 0
    others = every - pairs
    between = (roc_auc_score(y, p) * every - right) / others if others else np.nan
    return (right / pairs if pairs else np.nan), between, pairs / every, mixed


def ladder(found, predictions, table):
    """Scores, also within slides, accuracy at the threshold, the threshold itself and gains with their parts."""
    for row in table.itertuples():
        y, p, part = rows_of(predictions, row.model, row.split)
        where = f"ladder {row.model} {row.split}"
        found.check(f"{where} patches", row.patches, len(y))
        found.check(f"{where} auc", row.auc, roc_auc_score(y, p))
        found.check(f"{where} average precision", row.average_precision, average_precision_score(y, p))
        found.check(f"{where} brier", row.brier, brier_score_loss(y, p))
        found.check(f"{where} accuracy", row.accuracy, accuracy_score(y, p >= row.threshold))
        within, _, share, mixed = slide_pairs(part, row.model)
        found.check(f"{where} auc within", row.auc_within, within)
        found.check(f"{where} share within", row.within_share, share)
        found.check(f"{where} mixed slides", row.mixed_slides, mixed)
        if isinstance(row.below, str):
            shared = part[part[f"prob_{row.below}"].notna()]
            aucs = [roc_auc_score(shared.label, shared[f"prob_{name}"]) for name in (row.model, row.below)]
            found.check(f"{where} gain", row.gain, aucs[0] - aucs[1])
            one, two = (slide_pairs(shared, name) for name in (row.model, row.below))
            found.check(f"{where} gain within", row.gain_within, one[0] - two[0])
            found.check(f"{where} gain between", row.gain_between, one[1] - two[1])
        if row.split == "oof":
            youden = [np.mean(p[y == 1] >= cut) - np.mean(p[y == 0] >= cut) for cut in np.unique(p)]
            chosen = np.mean(p[y == 1] >= row.threshold) - np.mean(p[y == 0] >= row.threshold)
            # Where no threshold does better than chance, it is one half.
            better = max(youden) > TOLERANCE
            found.check(f"{where} Youden", chosen if better else row.threshold, max(youden) if better else 0.5)


def slides(found, predictions, table):
    """AUC, Brier score and mean score within each slide."""
    for row in table.itertuples():
        _, _, part = rows_of(predictions, row.model, row.split)
        part = part[part.slide.astype(str) == str(row.slide)]
        y, p = part.label.to_numpy(), part[f"prob_{row.model}"].to_numpy()
        where = f"slide {row.slide} {row.model}"
        found.check(f"{where} patches", row.patches, len(y))
        found.check(f"{where} auc", row.auc, roc_auc_score(y, p) if 0 < y.mean() < 1 else np.nan)
        found.check(f"{where} brier", row.brier, np.mean((y - p) ** 2))
        found.check(f"{where} mean score", row.mean_score, p.mean())


def calibration(found, predictions, curve, parts):
    """Each bin's mean probability and share of positives, and what they add up to."""
    for (model, split), bins in curve.groupby(["model", "split"]):
        y, p, _ = rows_of(predictions, model, split)
        order = np.argsort(p, kind="stable")
        ends = np.cumsum(bins.patches.to_numpy())
        where = f"reliability {model} {split}"
        found.check(f"{where} patches", ends[-1], len(y))
        for end in ends[:-1]:
            found.check(f"{where} parts equal probabilities", p[order[end - 1]] < p[order[end]], 1)
        pieces = np.split(order, ends[:-1])
        for row, piece in zip(bins.itertuples(), pieces, strict=True):
            found.check(f"{where} bin {row.bin} probability", row.probability, p[piece].mean())
            found.check(f"{where} bin {row.bin} share", row.share, y[piece].mean())
        gaps = [(len(piece) / len(y), p[piece].mean(), y[piece].mean()) for piece in pieces]
        expected = {
            "brier": brier_score_loss(y, p),
            "reliability": sum(weight * (says - is_) ** 2 for weight, says, is_ in gaps),
            "resolution": sum(weight * (is_ - y.mean()) ** 2 for weight, _, is_ in gaps),
            "uncertainty": y.mean() * (1 - y.mean()),
            "ece": sum(weight * abs(says - is_) for weight, says, is_ in gaps),
        }
        reported = parts[(parts.model == model) & (parts.split == split)].set_index("measure").value
        for name, value in expected.items():
            found.check(f"calibration {model} {split} {name}", reported[name], value)


def thresholds(y, p):
    """Every operating point by trying every probability."""
    cuts = np.unique(p)
    sensitivity = np.array([np.mean(p[y == 1] >= cut) for cut in cuts])
    specificity = np.array([np.mean(p[y == 0] < cut) for cut in cuts])
    f1 = np.array([f1_score(y, p >= cut) for cut in cuts])
    fine = cuts[specificity >= 0.95 - 1e-12]
    youden = sensitivity + specificity - 1
    return {
        "sensitivity-0.95": cuts[sensitivity >= 0.95 - 1e-12].max(),
        "specificity-0.95": fine.min() if len(fine) else np.nextafter(cuts.max(), np.inf),
        "best-f1": cuts[np.flatnonzero(f1 >= f1.max() - 1e-12)[-1]],
        "youden": cuts[np.flatnonzero(youden >= youden.max() - 1e-12)[-1]] if youden.max() > 1e-12 else 0.5,
    }


def operating(found, predictions, table, model, nested):
    """Rates at each operating point; in training each fold by thresholds that it had no part in."""
    y, p, part = rows_of(predictions, model, "oof")
    if nested is None:
        whole = thresholds(y, p)
        folds = {fold: part.fold.to_numpy() == fold for fold in part.fold.unique()}
        crossed = {fold: thresholds(y[~out], p[~out]) for fold, out in folds.items()}
        for point, cut in whole.items():
            found.check(f"operating {point} threshold", table[table.point == point].threshold.iloc[0], cut)
    for row in table.itertuples():
        y, p, part = rows_of(predictions, model, row.split)
        cut = np.full(len(y), row.threshold)
        if row.split == "oof":
            cut = (
                part.patch_id.map(nested.set_index("patch_id")[row.point]).to_numpy()
                if nested is not None
                else np.array([crossed[fold][row.point] for fold in part.fold])
            )
        (left, wrong), (missed, right) = confusion_matrix(y, p >= cut, labels=[0, 1])
        with np.errstate(invalid="ignore"):
            rates = {
                "sensitivity": np.divide(right, right + missed),
                "specificity": np.divide(left, left + wrong),
                "precision": np.divide(right, right + wrong),
                "negative_value": np.divide(left, left + missed),
                "accuracy": np.divide(right + left, len(y)),
            }
        for name, value in rates.items():
            found.check(f"operating {row.point} {row.split} {name}", getattr(row, name), value)


def net_benefit(found, predictions, table):
    """Net benefit of each model, of all and of none, on the patches that all of the models predict."""
    models = [name for name in table.model.unique() if f"prob_{name}" in predictions]
    shared = predictions.dropna(subset=[f"prob_{name}" for name in models])
    for row in table.itertuples():
        part = shared[shared.split == SPLITS[row.split]]
        called = pd.Series(row.model == "treat-all", index=part.index)
        if row.model in models:
            called = part[f"prob_{row.model}"] >= row.threshold
        right, wrong = (called & (part.label == 1)).mean(), (called & (part.label == 0)).mean()
        expected = right - wrong * row.threshold / (1 - row.threshold)
        found.check(f"net benefit {row.model} {row.split} {row.threshold}", row.net_benefit, expected)


def recompute(predictions, report, nested=None):
    """Compare a report's tables with its predictions.

    Parameters
    ----------
    predictions : DataFrame
    report : Path
        Folder with the CSV files.
    nested : DataFrame, optional
        ``patch_id`` and a column an operating point: thresholds that the ensemble's fold had no part in.

    Returns
    -------
    Agreement
    """
    found = Agreement()
    read = {
        name: pd.read_csv(report / f"{name}.csv", dtype={"slide": str})
        for name in ("ladder", "slides", "reliability", "calibration", "operating-points", "decision-curve")
    }
    ladder(found, predictions, read["ladder"])
    slides(found, predictions, read["slides"])
    calibration(found, predictions, read["reliability"], read["calibration"])
    curve = read["decision-curve"]
    decided = curve.model[curve.low.notna()].iloc[0]
    operating(found, predictions, read["operating-points"], decided, nested)
    net_benefit(found, predictions, curve)
    return found


def main(run):
    """Recompute a finished run."""
    cuts = run / "6-ensemble" / "thresholds.parquet"
    predictions = pd.read_parquet(run / "predictions.parquet")
    nested = pd.read_parquet(cuts) if "prob_ensemble" in predictions else None
    found = recompute(predictions, run / "7-report", nested)
    agree = found.compared - len(found.faults)
    sys.stdout.write(f"{agree} of {found.compared} numbers agree; largest difference {found.largest:.1e}\n")
    for fault in found.faults:
        sys.stdout.write(f"{fault}\n")
    return 1 if found.faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
