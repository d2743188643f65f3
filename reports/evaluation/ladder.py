"""The ladder: what each rung, from no model at all to everything at once, adds over the rung below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from histoblend.data.splits import is_known
from histoblend.models.calibration import youden_threshold
from histoblend.models.metrics import METRICS, Bootstrap, bootstrap, measure
from histoblend.models.names import ALONE, BESIDE, HEADLESS, RUNGS, split_model_name
from histoblend.models.resampling import percentile_interval, slide_groups
from histoblend.models.slide_pairs import SlidePairs

SPLITS = {"train": "oof", "test": "test"}
#: Each with an interval: scores, and gains over the rung below by the pairs of patches that they count.
SCORES, GAINS = ("auc_within", *METRICS), ("gain", "gain_within", "gain_between")
COLUMNS = (
    ["rung", "head", "model", "split", "patches", "slides", "mixed_slides", "within_share"]
    + [metric + end for metric in SCORES for end in ("", "_low", "_high")]
    + ["threshold", "below"]
    + [gain + end for gain in GAINS for end in ("", "_low", "_high")]
    + ["skipped_draws", "seconds", "seconds_per_1000", "peak_mb"]
)


def rungs_below(models: Sequence[str], aucs: Mapping[str, float] | None = None) -> dict[str, str | None]:
    """Order models from the lowest rung up and name, for each, the model that it is compared with.

    Parameters
    ----------
    models : sequence of str
    aucs : mapping from model to float, optional
        Out-of-fold AUC; without it ``cnn`` and ``ensemble`` are compared with nothing.

    Returns
    -------
    dict from model to model or None
        In ladder order. Below is the next lower rung present with the same head; below a head's first rung is
        ``prevalence``; a rung of :data:`BESIDE` is compared with what it adds to, where that is present. Families
        alone (:data:`ALONE`) come last and are compared with nothing. A fine-tuned network is compared with the best
        head on the embeddings, a frozen network's, or on what else there is without slide context; the ensemble with
        its best member.
    """
    names = {model: split_model_name(model) for model in models}
    order = RUNGS + ALONE
    ordered = sorted(models, key=lambda model: (order.index(names[model][0]), names[model][1] or ""))
    below: dict[str, str | None] = {}
    last: dict[str | None, str] = {}
    ground = RUNGS[0] if RUNGS[0] in names else None
    for model in ordered:
        rung, head = names[model]
        if rung in ALONE:
            below[model] = None
            continue
        if rung in HEADLESS[1:]:
            below[model] = _best_below(rung, names, aucs)
            continue
        below[model] = last.get(head, ground if model != ground else None)
        for base in (f"{head}_{BESIDE.get(rung)}", BESIDE.get(rung)):
            if base in names:
                below[model] = base
        last[head] = model
    return below


def _best_below(rung: str, names: Mapping[str, tuple[str, str | None]], aucs: Mapping[str, float] | None) -> str | None:
    """The best single model that the fine-tuned network, or the ensemble, has to beat."""
    single = {model: name for model, (name, _) in names.items() if name not in (*ALONE, RUNGS[0], "ensemble", rung)}
    if rung == "cnn":
        frozen = [model for model, name in single.items() if name == "embeddings"]
        rivals = frozen or [model for model, name in single.items() if name not in BESIDE]
    else:
        rivals = list(single)
    return max(rivals, key=lambda model: aucs[model]) if rivals and aucs else None


def ladder(
    predictions: pd.DataFrame,
    models: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
    costs: Mapping[str, tuple[float, float]] | None = None,
) -> pd.DataFrame:
    """Judge every model on out-of-fold and on test predictions, with 95 % intervals from resampling slides.

    The threshold for the accuracy is chosen on out-of-fold predictions (Youden) and used on both; the out-of-fold
    accuracy is therefore slightly flattered, the test accuracy is not. All models share the draws of slides, so that
    the gain over the rung below is a paired difference.

    The ``prevalence`` model predicts one constant a fold, the mean label of the other folds. A fold with many positives
    leaves few for the others and gets a low constant: pooled over folds its AUC falls below 0.5. That is an artefact of
    pooling, not information; it is reported as it comes out, and so the gain over it is flattered out-of-fold.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, split (train|test), fold, label, prob_<model>``.
    models : sequence of str
        ``prevalence``, ``<head>_<rung>``, ``<head>_<family>``, ``cnn`` and ``ensemble``; see :data:`RUNGS` and
        :data:`ALONE`. The last two may lack predictions; they, and what they are compared with, are then judged on the
        patches that have one.
    draws, seed : int
        For the bootstrap.
    costs : mapping from model to (seconds, peak_mb), optional
        Time and peak memory that the model took, features included; the time is also given for a thousand patches.

    Returns
    -------
    DataFrame
        A row a model and split (``oof`` and, when there are test patches, ``test``), lowest rung first and families
        alone last, with `COLUMNS`. ``slides`` is 0 where no slide is known; ``brier`` is better when lower; ``gain`` is
        the difference in AUC to the model named in ``below``, missing where there is none. ``auc_within`` is the AUC
        over pairs of patches from the same slide, pooled over slides; ``mixed_slides`` have such pairs, as they hold
        both classes, and ``within_share`` is the share of these pairs among all. ``gain_within`` and ``gain_between``
        are the differences in AUC over pairs within slides and over all other pairs: ``gain`` = ``within_share`` ×
        ``gain_within`` + (1 − ``within_share``) × ``gain_between``. All but ``mixed_slides`` are missing where no slide
        is known, as inferred ones are not.

    Raises
    ------
    ValueError
        A column is missing or a prediction is not finite.
    InputError
        Too few slides for an interval.
    """
    needed = ["slide", "split", "label", *(f"prob_{model}" for model in models)]
    missing = [name for name in needed if name not in predictions]
    if missing:
        raise ValueError(f"predictions must have the columns {needed}; {missing} are missing.")
    train = predictions[predictions.split == "train"]
    has = {model: judged_rows(train, model) for model in models}
    shared = np.logical_and.reduce(list(has.values()))
    below = rungs_below(models, {model: _auc(train[shared], model) for model in models} if shared.any() else None)
    cuts = {
        model: youden_threshold(train.label[has[model]].to_numpy(), train.loc[has[model], f"prob_{model}"].to_numpy())
        for model in below
    }
    rows: list[dict[str, object]] = []
    for split, name in SPLITS.items():
        part = predictions[predictions.split == split]
        if len(part):
            rows += _judge_where_present(part, name, below, cuts, draws, seed)
    for row in rows:
        seconds, row["peak_mb"] = (costs or {}).get(str(row["model"]), (np.nan, np.nan))
        row |= {"seconds": seconds, "seconds_per_1000": 1000 * seconds / len(predictions)}
    table = pd.DataFrame(rows, columns=COLUMNS)
    rank = {model: place for place, model in enumerate(below)}
    return table.sort_values("model", key=lambda column: column.map(rank), kind="stable", ignore_index=True)


def judged_rows(predictions: pd.DataFrame, model: str) -> np.ndarray:
    """Rows that a model can be judged on, ndarray of bool: all, but where network or ensemble have no prediction."""
    if model not in HEADLESS[1:]:
        return np.ones(len(predictions), dtype=bool)
    return predictions[f"prob_{model}"].notna().to_numpy()


def _auc(part: pd.DataFrame, model: str) -> float:
    return float(measure(part.label.to_numpy(), part[f"prob_{model}"].to_numpy(), 0.5)[0, 0])


def _judge_where_present(
    part: pd.DataFrame, split: str, below: Mapping[str, str | None], cuts: Mapping[str, float], draws: int, seed: int
) -> list[dict[str, object]]:
    """Rows of all models, those with equal gaps at a time."""
    alike: dict[bytes, list[str]] = {}
    for model in below:
        alike.setdefault(judged_rows(part, model).tobytes(), []).append(model)
    rows = []
    for gaps, models in alike.items():
        present = np.frombuffer(gaps, dtype=bool)
        if present.any():
            rivals = {other: None for model in models if (other := below[model]) is not None and other not in models}
            judged = _judge(part[present], split, rivals | {model: below[model] for model in models}, cuts, draws, seed)
            rows += [row for row in judged if row["model"] in models]
    return rows


def _judge(
    part: pd.DataFrame, split: str, below: Mapping[str, str | None], cuts: Mapping[str, float], draws: int, seed: int
) -> list[dict[str, object]]:
    """Rows of all models on one split."""
    names = list(below)
    labels = part.label.to_numpy()
    scores = part[[f"prob_{model}" for model in names]].to_numpy()
    thresholds = np.array([cuts[model] for model in names])
    groups = slide_groups(part.slide)
    pairs = SlidePairs(labels, scores, groups, is_known(part.slide).to_numpy())
    point = measure(labels, scores, thresholds)
    drawn = bootstrap(labels, scores, thresholds, groups, pairs=pairs, draws=draws, seed=seed)
    low, high = percentile_interval(drawn.values)
    inside = _PairScores(pairs, point[:, 0], drawn)
    rows = []
    for i, model in enumerate(names):
        rung, head = split_model_name(model)
        row: dict[str, object] = {"rung": rung, "head": head, "model": model, "split": split, "patches": len(part)}
        row |= {"slides": part.slide.nunique(), "mixed_slides": len(pairs.mixed), "within_share": pairs.share}
        for j, metric in enumerate(METRICS):
            row |= {metric: point[i, j], f"{metric}_low": low[i, j], f"{metric}_high": high[i, j]}
        row |= inside.score(i) | {"threshold": cuts[model], "below": below[model], "skipped_draws": drawn.skipped}
        if (other := below[model]) is not None:
            k = names.index(other)
            row["gain"] = point[i, 0] - point[k, 0]
            row["gain_low"], row["gain_high"] = percentile_interval(drawn.values[:, i, 0] - drawn.values[:, k, 0])
            row |= inside.gains(i, k)
        rows.append(row)
    return rows


class _PairScores:
    """AUC within and between slides of all models, and differences, with intervals from the draws of all metrics."""

    def __init__(self, pairs: SlidePairs, aucs: np.ndarray, drawn: Bootstrap) -> None:
        once = np.ones((1, drawn.groups), np.int32)
        self.point = pairs(once, aucs[None])[0]
        self.drawn = np.full((0, *self.point.shape), np.nan) if drawn.pairs is None else drawn.pairs
        # A single slide's AUC is the same in every draw that holds it: an interval of no width would mislead.
        self.spread = len(pairs.mixed) > 1

    def score(self, model: int) -> dict[str, object]:
        """AUC within slides and its interval."""
        return self._row("auc_within", self.point[model, 0], self.drawn[:, model, 0], self.spread)

    def gains(self, model: int, other: int) -> dict[str, object]:
        """Differences in AUC within and between slides to another model, with intervals."""
        gain, drawn = self.point[model] - self.point[other], self.drawn[:, model] - self.drawn[:, other]
        return self._row("gain_within", gain[0], drawn[:, 0], self.spread) | self._row(
            "gain_between", gain[1], drawn[:, 1], True
        )

    @staticmethod
    def _row(name: str, value: float, drawn: np.ndarray, spread: bool) -> dict[str, object]:
        # A draw may hold no pair within a slide, or only one slide and so no pair between slides.
        kept = drawn[~np.isnan(drawn)]
        low, high = percentile_interval(kept) if spread and len(kept) else (np.nan, np.nan)
        return {name: value, f"{name}_low": low, f"{name}_high": high}


#: Points that one ROC curve is drawn with at most: more than a screen has pixels to show.
CURVE_POINTS = 300


def roc_table(predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """ROC curves, thinned to what a screen can show.

    Returns
    -------
    DataFrame
        ``model, split (oof|test), false_positive_rate, true_positive_rate, threshold``.
    """
    parts = []
    for split, name in [("train", "oof"), ("test", "test")]:
        part = predictions[predictions.split == split]
        for model in models if len(part) else ():
            present = part[judged_rows(part, model)]
            fpr, tpr, cuts = roc_curve(present.label, present[f"prob_{model}"])
            kept = np.arange(len(fpr))
            if len(kept) > CURVE_POINTS:
                # Evenly along the curve's length, corners first and last.
                along = fpr + tpr
                kept = np.unique(np.searchsorted(along, np.linspace(0, 2, CURVE_POINTS)).clip(max=len(fpr) - 1))
            curve = {"false_positive_rate": fpr[kept], "true_positive_rate": tpr[kept], "threshold": cuts[kept]}
            parts.append(pd.DataFrame({"model": model, "split": name, **curve}))
    return pd.concat(parts, ignore_index=True)
