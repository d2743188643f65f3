"""Calibration, operating points and net benefit, computed from predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from histoblend.models.names import SINGLE_FAMILIES
from histoblend.reports.evaluation.calibration import (
    calibration_tables,
    operating_table,
    out_of_fold_thresholds,
    recalibration_table,
)
from histoblend.reports.evaluation.net_benefit import main_models, net_benefit_table
from histoblend.reports.evaluation.scores import precision_recall_table, score_histogram

#: Operating point that is shown first. Predictions use it too, unless the user chooses another one.
DEFAULT_POINT = "youden"
#: Columns of the ladder with the average precision, and their names here.
AVERAGE = {"average_precision": "value", "average_precision_low": "low", "average_precision_high": "high"}


@dataclass(frozen=True)
class DecisionsView:
    """Calibration and decision results of a run.

    Attributes
    ----------
    model : str
        The model whose thresholds and net benefit are reported: the ensemble or, without one, the best model.
    prevalence : float
        Share of positives among the patches on which the model was trained.
    reliability, decomposition : DataFrame
        For every model of the ladder, from :func:`reports.evaluation.calibration.calibration_tables`.
    operating : DataFrame
        For `model`, from :func:`reports.evaluation.calibration.operating_table`.
    curve : DataFrame
        From :func:`reports.evaluation.net_benefit.net_benefit_table`.
    recalibration : DataFrame
        For `model`, from :func:`reports.evaluation.calibration.recalibration_table`.
    precision_recall, histogram : DataFrame
        For `model`, from :mod:`reports.evaluation.scores`.
    average_precision : DataFrame
        ``split, value, low, high`` of `model`, as on the ladder.
    cuts : DataFrame
        ``patch_id, threshold``: the threshold of `model` for each patch at :data:`DEFAULT_POINT`. The threshold of a
        training patch was chosen without its fold.
    calibrators : DataFrame or None
        Calibrators that the ensemble compared: ``calibrator, log_loss, brier, gain, gain_low, gain_high, chosen``.
    """

    model: str
    prevalence: float
    reliability: pd.DataFrame
    decomposition: pd.DataFrame
    operating: pd.DataFrame
    curve: pd.DataFrame
    recalibration: pd.DataFrame
    precision_recall: pd.DataFrame
    histogram: pd.DataFrame
    average_precision: pd.DataFrame
    cuts: pd.DataFrame
    calibrators: pd.DataFrame | None = None


def decide(
    predictions: pd.DataFrame,
    ladder: pd.DataFrame,
    *,
    chosen: tuple[pd.DataFrame, Mapping[str, float]] | None = None,
    calibrators: pd.DataFrame | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> DecisionsView:
    """Evaluate the probabilities of all models and the decisions of one model.

    Parameters
    ----------
    predictions : DataFrame
        ``patch_id, slide, split, fold, label, prob_<model>``.
    ladder : DataFrame
        From :func:`reports.evaluation.ladder.ladder`.
    chosen : (DataFrame, mapping), optional
        The ensemble's thresholds, from :func:`reports.evaluation.calibration.out_of_fold_thresholds`. Without them, the
        model with the highest out-of-fold AUC is used.
    calibrators : DataFrame, optional
    draws, seed : int

    Returns
    -------
    DecisionsView
    """
    rungs = ladder[~ladder.rung.isin(SINGLE_FAMILIES)]
    oof = rungs[rungs.split == "oof"]
    candidates = oof[oof.rung != "prevalence"]
    model = "ensemble" if chosen is not None else str(candidates.sort_values("auc").model.iloc[-1])
    cuts, thresholds = chosen or out_of_fold_thresholds(predictions, model)
    options = {"draws": draws, "seed": seed}
    reliability, decomposition = calibration_tables(predictions, list(oof.model), **options)
    train = predictions[(predictions.split == "train") & predictions[f"prob_{model}"].notna()]
    return DecisionsView(
        model,
        float(train.label.mean()),
        reliability,
        decomposition,
        operating_table(predictions, cuts, model, thresholds, **options),
        net_benefit_table(predictions, main_models(rungs, model), model, **options),
        recalibration_table(predictions, model, **options),
        precision_recall_table(predictions, model),
        score_histogram(predictions, model),
        rungs[rungs.model == model][["split", *AVERAGE]].rename(columns=AVERAGE).reset_index(drop=True),
        pd.DataFrame({"patch_id": predictions.patch_id.to_numpy(), "threshold": cuts[DEFAULT_POINT].to_numpy()}),
        calibrators,
    )
