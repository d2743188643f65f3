"""The ladder: models from a constant prediction to all features, and the gain of each rung over the one below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import roc_curve

from histoblend.data.splits import is_known
from histoblend.models.calibration import youden_threshold
from histoblend.models.metrics import METRICS, Bootstrap, bootstrap, measure
from histoblend.models.names import (
    CNN_CONTEXT,
    CONTEXT_RUNGS,
    RUNGS,
    RUNGS_WITHOUT_HEAD,
    SINGLE_FAMILIES,
    split_model_name,
)
from histoblend.models.resampling import percentile_interval, slide_groups
from histoblend.models.slide_pairs import SlidePairs

SPLITS = {"train": "oof", "test": "test"}
#: Models that may lack predictions: the network learns from a sample of the patches.
WITH_GAPS = ("cnn", CNN_CONTEXT, "ensemble")
#: Columns with intervals: scores, and gains over the rung below over all pairs, within slides and between slides.
SCORES, GAINS = ("auc_within", *METRICS), ("gain", "gain_within", "gain_between")
COLUMNS = (
    ["rung", "head", "model", "split", "patches", "slides", "mixed_slides", "within_share"]
    + [metric + end for metric in SCORES for end in ("", "_low", "_high")]
    + ["threshold", "below"]
    + [gain + end for gain in GAINS for end in ("", "_low", "_high")]
    + ["skipped_draws", "seconds", "seconds_per_1000", "peak_mb"]
)


def rungs_below(models: Sequence[str], aucs: Mapping[str, float] | None = None) -> dict[str, str | None]:
    """Order models from the lowest rung up, and choose the model that each is compared with.

    Parameters
    ----------
    models : sequence of str
    aucs : mapping from model to float, optional
        Out-of-fold AUC. Without it, ``cnn`` and ``ensemble`` are not compared.

    Returns
    -------
    dict from model to model or None
        In ladder order. A model is compared with the next lower rung present with the same head, and a head's first
        rung with ``prevalence``. A rung of :data:`CONTEXT_RUNGS` is compared with the rung it extends, if present.
        Single families (:data:`SINGLE_FAMILIES`) come last and are not compared. The fine-tuned network is compared
        with the best head on frozen embeddings, or else with the best model without slide context. The ensemble is
        compared with its best member.
    """
    names = {model: split_model_name(model) for model in models}
    order = RUNGS + SINGLE_FAMILIES
    ordered = sorted(models, key=lambda model: (order.index(names[model][0]), names[model][1] or ""))
    below: dict[str, str | None] = {}
    previous: dict[str | None, str] = {}
    prevalence = RUNGS[0] if RUNGS[0] in names else None
    for model in ordered:
        rung, head = names[model]
        if rung in SINGLE_FAMILIES:
            below[model] = None
            continue
        if rung in RUNGS_WITHOUT_HEAD[1:]:
            below[model] = _best_below(rung, names, aucs)
            continue
        below[model] = previous.get(head, prevalence if model != prevalence else None)
        for base in (f"{head}_{CONTEXT_RUNGS.get(rung)}", CONTEXT_RUNGS.get(rung)):
            if base in names:
                below[model] = base
        previous[head] = model
    return below


def _best_below(rung: str, names: Mapping[str, tuple[str, str | None]], aucs: Mapping[str, float] | None) -> str | None:
    """Best single model that the fine-tuned network or the ensemble is compared with."""
    single = {
        model: name for model, (name, _) in names.items() if name not in (*SINGLE_FAMILIES, RUNGS[0], "ensemble", rung)
    }
    if rung == "cnn":
        frozen = [model for model, name in single.items() if name == "embeddings"]
        rivals = frozen or [model for model, name in single.items() if name not in CONTEXT_RUNGS]
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
    """Evaluate all models on out-of-fold and test predictions, with 95 % intervals from resampling slides.

    The threshold for accuracy is chosen on out-of-fold predictions (Youden) and used for both splits. Out-of-fold
    accuracy is therefore slightly optimistic, and test accuracy is not. All models share the draws of slides, so the
    gain over the rung below is a paired difference.

    The ``prevalence`` model predicts one constant per fold, the mean label of the other folds. A fold with many
    positives leaves few for the other folds and gets a low constant, so the AUC pooled over folds is below 0.5. This is
    an artefact of pooling. It is reported unchanged, so the out-of-fold gain over ``prevalence`` is optimistic.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, split (train|test), fold, label, prob_<model>``.
    models : sequence of str
        ``prevalence``, ``<head>_<rung>``, ``<head>_<family>``, ``cnn`` and ``ensemble``; see :data:`RUNGS` and
        :data:`SINGLE_FAMILIES`. Those of :data:`WITH_GAPS` may lack predictions for some patches. They are then
        compared on the patches that have one.
    draws, seed : int
        For the bootstrap.
    costs : mapping from model to (seconds, peak_mb), optional
        Time and peak memory of the model, including features. The time is also given per 1,000 patches.

    Returns
    -------
    DataFrame
        `COLUMNS`, one row per model and split (``oof`` and, if there are test patches, ``test``). The lowest rung is
        first, and single families are last. ``slides`` is 0 if no slide is known. A lower ``brier`` is better. ``gain``
        is the difference in AUC to the model in ``below``, or NaN if there is none.

        ``auc_within`` is the AUC over pairs of patches from the same slide, pooled over slides. ``mixed_slides`` counts
        the slides with both classes, which have such pairs. ``within_share`` is their share among all pairs.
        ``gain_within`` and ``gain_between`` are the differences in AUC over pairs within slides and over all other
        pairs, with ``gain`` = ``within_share`` × ``gain_within`` + (1 − ``within_share``) × ``gain_between``. All of
        these except ``mixed_slides`` are NaN if no slide is known. Inferred slides do not count as known.

    Raises
    ------
    ValueError
        If a column is missing or a prediction is not finite.
    InputError
        If there are too few slides for an interval.
    """
    needed = ["slide", "split", "label", *(f"prob_{model}" for model in models)]
    missing = [name for name in needed if name not in predictions]
    if missing:
        raise ValueError(f"predictions must have the columns {needed}; {missing} are missing.")
    train = predictions[predictions.split == "train"]
    has_prediction = {model: rows_with_predictions(train, model) for model in models}
    shared = np.logical_and.reduce(list(has_prediction.values()))
    below = rungs_below(models, {model: _auc(train[shared], model) for model in models} if shared.any() else None)
    thresholds = {
        model: youden_threshold(
            train.label[has_prediction[model]].to_numpy(), train.loc[has_prediction[model], f"prob_{model}"].to_numpy()
        )
        for model in below
    }
    rows: list[dict[str, object]] = []
    for split, name in SPLITS.items():
        part = predictions[predictions.split == split]
        if len(part):
            rows += _evaluate_by_gaps(part, name, below, thresholds, draws, seed)
    for row in rows:
        seconds, row["peak_mb"] = (costs or {}).get(str(row["model"]), (np.nan, np.nan))
        row |= {"seconds": seconds, "seconds_per_1000": 1000 * seconds / len(predictions)}
    table = pd.DataFrame(rows, columns=COLUMNS)
    rank = {model: position for position, model in enumerate(below)}
    return table.sort_values("model", key=lambda column: column.map(rank), kind="stable", ignore_index=True)


def rows_with_predictions(predictions: pd.DataFrame, model: str) -> np.ndarray:
    """Rows to evaluate a model on, ndarray of bool: all, or for :data:`WITH_GAPS` those with a prediction."""
    if model not in WITH_GAPS:
        return np.ones(len(predictions), dtype=bool)
    return predictions[f"prob_{model}"].notna().to_numpy()


def _auc(part: pd.DataFrame, model: str) -> float:
    return float(measure(part.label.to_numpy(), part[f"prob_{model}"].to_numpy(), 0.5)[0, 0])


def _evaluate_by_gaps(
    part: pd.DataFrame,
    split: str,
    below: Mapping[str, str | None],
    threshold_by_model: Mapping[str, float],
    draws: int,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of all models. Models with predictions for the same patches are evaluated together."""
    models_by_gaps: dict[bytes, list[str]] = {}
    for model in below:
        models_by_gaps.setdefault(rows_with_predictions(part, model).tobytes(), []).append(model)
    rows = []
    for gaps, models in models_by_gaps.items():
        present = np.frombuffer(gaps, dtype=bool)
        if present.any():
            rivals = {other: None for model in models if (other := below[model]) is not None and other not in models}
            evaluated = _evaluate(
                part[present],
                split,
                rivals | {model: below[model] for model in models},
                threshold_by_model,
                draws,
                seed,
            )
            rows += [row for row in evaluated if row["model"] in models]
    return rows


def _evaluate(
    part: pd.DataFrame,
    split: str,
    below: Mapping[str, str | None],
    threshold_by_model: Mapping[str, float],
    draws: int,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of all models on one split, for the same patches."""
    names = list(below)
    labels = part.label.to_numpy()
    scores = part[[f"prob_{model}" for model in names]].to_numpy()
    thresholds = np.array([threshold_by_model[model] for model in names])
    groups = slide_groups(part.slide)
    pairs = SlidePairs(labels, scores, groups, is_known(part.slide).to_numpy())
    point = measure(labels, scores, thresholds)
    drawn = bootstrap(labels, scores, thresholds, groups, pairs=pairs, draws=draws, seed=seed)
    low, high = percentile_interval(drawn.values)
    pair_scores = _PairScores(pairs, point[:, 0], drawn)
    rows = []
    for i, model in enumerate(names):
        rung, head = split_model_name(model)
        row: dict[str, object] = {"rung": rung, "head": head, "model": model, "split": split, "patches": len(part)}
        row |= {"slides": part.slide.nunique(), "mixed_slides": len(pairs.mixed), "within_share": pairs.share}
        for j, metric in enumerate(METRICS):
            row |= {metric: point[i, j], f"{metric}_low": low[i, j], f"{metric}_high": high[i, j]}
        row |= pair_scores.score(i) | {
            "threshold": threshold_by_model[model],
            "below": below[model],
            "skipped_draws": drawn.skipped,
        }
        if (other := below[model]) is not None:
            k = names.index(other)
            row["gain"] = point[i, 0] - point[k, 0]
            row["gain_low"], row["gain_high"] = percentile_interval(drawn.values[:, i, 0] - drawn.values[:, k, 0])
            row |= pair_scores.gains(i, k)
        rows.append(row)
    return rows


class _PairScores:
    """AUC within and between slides of all models, and their differences, with intervals from the bootstrap draws."""

    def __init__(self, pairs: SlidePairs, aucs: np.ndarray, drawn: Bootstrap) -> None:
        all_groups = np.ones((1, drawn.groups), np.int32)
        self.point = pairs(all_groups, aucs[None])[0]
        self.drawn = np.full((0, *self.point.shape), np.nan) if drawn.pairs is None else drawn.pairs
        # The AUC of a single slide is the same in every draw, and an interval of zero width would mislead.
        self.has_interval = len(pairs.mixed) > 1

    def score(self, model: int) -> dict[str, object]:
        """AUC within slides and its interval."""
        return self._row("auc_within", self.point[model, 0], self.drawn[:, model, 0], self.has_interval)

    def gains(self, model: int, other: int) -> dict[str, object]:
        """Differences to another model in AUC within and between slides, with intervals."""
        gain, drawn = self.point[model] - self.point[other], self.drawn[:, model] - self.drawn[:, other]
        return self._row("gain_within", gain[0], drawn[:, 0], self.has_interval) | self._row(
            "gain_between", gain[1], drawn[:, 1], True
        )

    @staticmethod
    def _row(name: str, value: float, drawn: np.ndarray, has_interval: bool) -> dict[str, object]:
        # A draw may have no pair within a slide, or only one slide and therefore no pair between slides.
        kept = drawn[~np.isnan(drawn)]
        low, high = percentile_interval(kept) if has_interval and len(kept) else (np.nan, np.nan)
        return {name: value, f"{name}_low": low, f"{name}_high": high}


#: Maximum number of points of a ROC curve, more than a screen can show.
CURVE_POINTS = 300


def roc_table(predictions: pd.DataFrame, models: Sequence[str]) -> pd.DataFrame:
    """ROC curves, thinned to at most `CURVE_POINTS` points.

    Returns
    -------
    DataFrame
        ``model, split (oof|test), false_positive_rate, true_positive_rate, threshold``.
    """
    parts = []
    for split, name in [("train", "oof"), ("test", "test")]:
        part = predictions[predictions.split == split]
        for model in models if len(part) else ():
            present = part[rows_with_predictions(part, model)]
            fpr, tpr, thresholds = roc_curve(present.label, present[f"prob_{model}"])
            kept = np.arange(len(fpr))
            if len(kept) > CURVE_POINTS:
                # Evenly spaced along the curve, including both ends.
                position = fpr + tpr
                kept = np.unique(np.searchsorted(position, np.linspace(0, 2, CURVE_POINTS)).clip(max=len(fpr) - 1))
            curve = {"false_positive_rate": fpr[kept], "true_positive_rate": tpr[kept], "threshold": thresholds[kept]}
            parts.append(pd.DataFrame({"model": model, "split": name, **curve}))
    return pd.concat(parts, ignore_index=True)
