"""Step 6: the ensemble of all members, chosen and judged by nested folds, and one that needs no slides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from histoblend.data.errors import InputError
from histoblend.data.splits import patch_groups
from histoblend.models.calibration import POINTS, log_losses
from histoblend.models.ensemble import Ensemble, Fitted, fit_ensemble
from histoblend.models.ensemble_evaluation import error_correlations, nest, without_each
from histoblend.models.names import ALONE, needs_slides
from histoblend.models.resampling import auc_draws, percentile_interval, slide_groups
from histoblend.pipelines.config import Config
from histoblend.pipelines.results import patches_of, predictions_of
from histoblend.pipelines.run_files import (
    CALIBRATORS,
    CHOICES,
    COMBINED,
    ENSEMBLE,
    ERRORS,
    GAINS,
    MEMBERS,
    PREDICTIONS,
    THRESHOLDS,
)
from histoblend.pipelines.runtime.artefacts import Outcome
from histoblend.pipelines.runtime.screen import Screen

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> Outcome:
    """Combine the members of a run."""
    predictions = predictions_of(run, "heads", "cnn")
    members = member_names(predictions, ALONE)
    return combine(run.config, patches_of(run).table, predictions, members, folder, run.screen)


def member_names(predictions: pd.DataFrame, alone: Sequence[str]) -> list[str]:
    """Models of a table of predictions that an ensemble is made of.

    Parameters
    ----------
    predictions : DataFrame
        With a column ``prob_<model>`` a model.
    alone : sequence of str
        Sets of columns whose models are fitted to be compared only: handcrafted families without the others.

    Returns
    -------
    list of str
        Every ``<head>_<set>`` and ``cnn``, in the order of the columns.
    """
    models = [str(name).removeprefix("prob_") for name in predictions if str(name).startswith("prob_")]
    sets = {model: model.partition("_")[2] for model in models}
    return [model for model in models if model == "cnn" or (sets[model] and sets[model] not in alone)]


def combine(
    config: Config, table: pd.DataFrame, predictions: pd.DataFrame, members: Sequence[str], folder: Path, screen: Screen
) -> Outcome:
    """Fit, judge and write both ensembles.

    Parameters
    ----------
    config : Config
    table : DataFrame
        ``patch_id, slide, split, fold, label`` and, where there is one, ``group``.
    predictions : DataFrame
        ``patch_id`` and ``prob_<member>``: out-of-fold in training, from a refit on all training slides in test. A
        member may be missing for patches; these are left out of fitting and get no prediction.
    members : sequence of str
    folder : Path
    screen : Screen

    Returns
    -------
    Outcome

    Raises
    ------
    InputError
        The training patches that every member has a prediction for are of one class, or there are none.
    """
    from threadpoolctl import threadpool_limits

    columns = predictions.set_index("patch_id")[[f"prob_{member}" for member in members]]
    values = columns.loc[table["patch_id"]].to_numpy(dtype=np.float64)
    whole = ~np.isnan(values).any(axis=1)
    train = ((table["split"] == "train") & whole).to_numpy()
    left_out = int((table["split"] == "train").sum() - train.sum())
    if left_out:
        screen.warn(f"ensemble: {left_out} training patches lack a member's prediction and are left out of it")
    if table.loc[train, "label"].nunique() < 2:
        raise InputError(
            f"an ensemble needs patches of both classes; every member has predictions for {int(train.sum())} training "
            "patches, which are of one class. Let the network predict more of them: raise cnn.folds or cnn.patches."
        )
    free = [place for place, member in enumerate(members) if not needs_slides(member)]
    with threadpool_limits(1), screen.progress("ensemble", 2 if len(free) < len(members) else 1, "fits") as progress:
        files = _Judged(config, table[train], values[train], members)
        progress(1)
        content: dict[str, Any] = {"default": files.fitted.ensemble.to_dict(), "without_slides": None}
        if 0 < len(free) < len(members):
            content["without_slides"] = files.without(free).to_dict()
            progress(1)
    (folder / ENSEMBLE).write_text(json.dumps(content, indent=2), encoding="utf-8")
    _write_predictions(folder, table, values, whole, train, files)
    files.write(folder)
    verdict = files.gains.iloc[0]["verdict"]
    return Outcome(
        len(table),
        {"members": list(members), "rows": int(train.sum()), "left_out": left_out, "verdict": verdict},
    )


def _write_predictions(
    folder: Path, table: pd.DataFrame, values: np.ndarray, whole: np.ndarray, train: np.ndarray, files: _Judged
) -> None:
    """Write each patch's probability, and the thresholds that it may be judged by: nested in training."""
    ensemble = files.fitted.ensemble
    probability = np.full(len(table), np.nan)
    rest = whole & ~train
    probability[rest] = ensemble.predict(values[rest])
    probability[train] = files.nested.probability
    pd.DataFrame({"patch_id": table["patch_id"].to_numpy(), "prob_ensemble": probability}).to_parquet(
        folder / PREDICTIONS, index=False
    )
    cuts = pd.DataFrame({"patch_id": table["patch_id"].to_numpy()})
    for name in POINTS:
        cuts[name] = np.where(whole, ensemble.thresholds[name], np.nan)
        cuts.loc[train, name] = files.nested.thresholds[name]
    cuts.to_parquet(folder / THRESHOLDS, index=False)


class _Judged:
    """The default ensemble on the training patches, and everything that is said of it.

    Parameters
    ----------
    config : Config
    table : DataFrame
        Training patches that every member has a prediction for.
    values : ndarray of shape (n, members), float64
    members : sequence of str
    """

    def __init__(self, config: Config, table: pd.DataFrame, values: np.ndarray, members: Sequence[str]) -> None:
        self.config, self.values, self.members = config, values, tuple(members)
        self.labels, self.groups = table["label"].to_numpy(), patch_groups(table)
        self.folds = table["fold"].to_numpy()
        self.units = slide_groups(self.groups)
        self.fitted = self._fit(self.members, values)
        options = config.ensemble
        self.nested = nest(
            self.members, values, self.labels, self.groups, self.folds, combiners=options.combiners, seed=config.seed
        )
        self.gains = self._gains()

    def _fit(self, members: Sequence[str], values: np.ndarray) -> Fitted:
        combiners = self.config.ensemble.combiners
        return fit_ensemble(
            members, values, self.labels, self.groups, self.folds, combiners=combiners, seed=self.config.seed
        )

    def without(self, kept: Sequence[int]) -> Ensemble:
        """The ensemble of these members only, chosen and fitted anew."""
        return self._fit([self.members[place] for place in kept], self.values[:, list(kept)]).ensemble

    def write(self, folder: Path) -> None:
        """Write every table."""
        tables = {
            MEMBERS: self._members(),
            COMBINED: self._combiners(),
            CALIBRATORS: pd.DataFrame(self.fitted.calibration.compared),
            ERRORS: self._errors(),
            CHOICES: pd.DataFrame(self.nested.choices, columns=["fold", "combiner", "calibrator", "single"]),
            GAINS: self.gains,
        }
        for name, content in tables.items():
            content.to_csv(folder / name, index=False)

    def _intervals(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUC of each column, and in resampled slides, where there is more than one class in most of them."""
        auc = np.array([roc_auc_score(self.labels, column) for column in scores.T])
        draws = self.config.ensemble.draws
        drawn = auc_draws(self.labels, scores, self.units, draws=draws, seed=self.config.seed)
        return auc, drawn if 2 * len(drawn) >= draws else np.full((2, len(auc)), np.nan)

    def _gains(self) -> pd.DataFrame:
        """Gain of the nested ensemble over the best member, picked here or, as the ensemble is, on the other folds."""
        single = int(np.argmax([roc_auc_score(self.labels, column) for column in self.values.T]))
        auc, drawn = self._intervals(
            np.column_stack([self.nested.probability, self.values[:, single], self.nested.single])
        )
        low, high = percentile_interval(drawn[:, [0]] - drawn)
        one = percentile_interval(drawn)
        rows = [
            {
                "over": over,
                "auc": auc[0],
                "auc_low": one[0][0],
                "auc_high": one[1][0],
                "single_auc": auc[place],
                "gain": auc[0] - auc[place],
                "gain_low": low[place],
                "gain_high": high[place],
                "verdict": verdict(low[place], high[place]),
                "patches": len(self.labels),
                "slides": int(self.units.max()) + 1,
            }
            for place, over in ((1, self.members[single]), (2, "best of the other folds"))
        ]
        return pd.DataFrame(rows)

    def _members(self) -> pd.DataFrame:
        """Weight, own score and leave-one-out value of each member."""
        combiner = self.fitted.ensemble.combiner
        seed = self.config.seed
        held_out = without_each(combiner.kind, self.values, self.labels, self.groups, self.folds, seed=seed)
        own, own_drawn = self._intervals(self.values)
        low, high = percentile_interval(own_drawn)
        frame = pd.DataFrame(
            {
                "member": self.members,
                "weight": combiner.weights,
                "auc": own,
                "auc_low": low,
                "auc_high": high,
                "log_loss": log_losses(self.labels, self.values).mean(axis=0),
            }
        )
        if len(self.members) > 1:
            auc, drawn = self._intervals(held_out)
            low, high = percentile_interval(drawn[:, [0]] - drawn[:, 1:])
            frame = frame.assign(without=auc[1:], value=auc[0] - auc[1:], value_low=low, value_high=high)
        else:
            frame = frame.assign(without=np.nan, value=np.nan, value_low=np.nan, value_high=np.nan)
        return frame

    def _combiners(self) -> pd.DataFrame:
        """Held-out score of each way to combine, and last of the whole procedure with the choice held out as well."""
        frame = pd.DataFrame(self.fitted.compared)
        scores = np.column_stack([*self.fitted.scores.values(), self.nested.probability])
        auc, drawn = self._intervals(scores)
        low, high = percentile_interval(drawn)
        nested_loss = float(log_losses(self.labels, self.nested.probability).mean())
        last = {"combiner": "chosen anew in each fold", "auc": auc[-1], "log_loss": nested_loss, "chosen": False}
        frame = pd.concat([frame, pd.DataFrame([last])], ignore_index=True)
        return frame.assign(auc_low=low, auc_high=high)

    def _errors(self) -> pd.DataFrame:
        """Correlation of errors of each pair of members."""
        table = error_correlations(self.values, self.labels)
        pairs = [
            (first, second, table[row, column])
            for row, first in enumerate(self.members)
            for column, second in enumerate(self.members)
        ]
        return pd.DataFrame(pairs, columns=["first", "second", "correlation"])


def verdict(low: float, high: float) -> str:
    """Say plainly what the interval of a gain says."""
    if low > 0:
        return "helps"
    return "hurts" if high < 0 else "no evidence that it helps"
