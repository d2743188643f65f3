"""Step 6: the ensembles with slides, for heat maps and without slides; the first is judged by nested folds."""

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
from histoblend.models.ensemble import Fitted, fit_ensemble
from histoblend.models.ensemble_evaluation import error_correlations, nest, without_each
from histoblend.models.names import (
    ALONE,
    ENSEMBLES,
    FOR_HEAT_MAPS,
    PLAIN_MEMBERS,
    SLIDE_MEMBERS,
    WITH_SLIDES,
    WITHOUT_SLIDES,
    needs_slides,
    with_means,
)
from histoblend.models.resampling import auc_draws, percentile_interval, slide_groups
from histoblend.models.slide_means import slide_means
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
from histoblend.pipelines.tables import held_out_whole, known_slides

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> Outcome:
    """Combine the members of a run."""
    predictions = predictions_of(run, "heads", "cnn")
    names = member_names(predictions, ALONE)
    return combine(run.config, patches_of(run).table, predictions, names, folder, run.screen)


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
    config: Config, table: pd.DataFrame, predictions: pd.DataFrame, models: Sequence[str], folder: Path, screen: Screen
) -> Outcome:
    """Fit, judge and write the ensembles.

    Where slides are known, the first combines members that need slides, and their means over each slide, unless folds
    divide slides (``split.groups=patch``). Without the means it is the one for heat maps, whose slides are cut into
    tiles completely. The one for patches of unknown slides is a plain mean of log-odds: where slides are unknown,
    out-of-fold scores leak, and must not choose weights.

    Parameters
    ----------
    config : Config
    table : DataFrame
        ``patch_id, slide, split, fold, label`` and, where there is one, ``group``.
    predictions : DataFrame
        ``patch_id`` and ``prob_<model>``: out-of-fold in training, from a refit on all training slides in test. A
        member may be missing for patches; these are left out of fitting and get no prediction.
    models : sequence of str
        That members are chosen from.
    folder : Path
    screen : Screen

    Returns
    -------
    Outcome

    Raises
    ------
    InputError
        The training patches that every member has a prediction for are of one class, or there are none; or the
        configuration names a member that was not fitted.
    """
    from threadpoolctl import threadpool_limits

    slides = known_slides(table["slide"])
    plain = choose_members(models, config.ensemble.members, slides=False)
    aware = bool(pd.notna(slides).any())
    members = choose_members(models, config.ensemble.members, slides=True) if aware else plain
    columns = (
        predictions.set_index("patch_id")
        .loc[table["patch_id"]]
        .filter(like="prob_")
        .rename(columns=lambda name: name.removeprefix("prob_"))
    )
    whole = columns[[*members, *plain]].notna().all(axis=1).to_numpy()
    train = ((table["split"] == "train") & whole).to_numpy()
    left_out = int((table["split"] == "train").sum() - train.sum())
    if left_out:
        screen.warn(f"ensemble: {left_out} training patches lack a member's prediction and are left out of it")
    if table.loc[train, "label"].nunique() < 2:
        raise InputError(
            f"an ensemble needs patches of both classes; every member has predictions for {int(train.sum())} training "
            "patches, which are of one class. Let the network predict more of them: raise cnn.folds or cnn.patches."
        )
    values = columns[members].to_numpy(dtype=np.float64)
    means = _means(values, slides, whole) if aware and held_out_whole(table, slides) else None
    content: dict[str, Any] = dict.fromkeys(ENSEMBLES)
    with threadpool_limits(1), screen.progress("ensemble", 3 if aware else 1, "fits") as progress:
        files = _Judged(config, table[train], values[train], members, None if means is None else means[train])
        content[WITH_SLIDES] = files.fitted.ensemble.to_dict()
        progress(1)
        if aware:
            content[FOR_HEAT_MAPS] = files.fit(members, values[train]).ensemble.to_dict()
            progress(1)
            unknown = columns.loc[train, plain].to_numpy(dtype=np.float64)
            content[WITHOUT_SLIDES] = files.fit(plain, unknown, ("mean",)).ensemble.to_dict() if plain else None
            progress(1)
    (folder / ENSEMBLE).write_text(json.dumps(content, indent=2), encoding="utf-8")
    _write_predictions(folder, table, values, means, whole, train, files)
    files.write(folder)
    verdict = files.gains.iloc[0]["verdict"]
    return Outcome(
        len(table),
        {"members": list(members), "rows": int(train.sum()), "left_out": left_out, "verdict": verdict},
    )


def choose_members(models: Sequence[str], wanted: Sequence[str], *, slides: bool) -> list[str]:
    """Members of an ensemble: few, strong and different ones, or all where fewer than two of these were fitted.

    Parameters
    ----------
    models : sequence of str
        That were fitted.
    wanted : sequence of str
        Members that the configuration names; empty for :data:`models.names.SLIDE_MEMBERS` or
        :data:`models.names.PLAIN_MEMBERS`.
    slides : bool
        Whether slides are known. Otherwise models that need them are left out.

    Raises
    ------
    InputError
        A model that the configuration names was not fitted.
    """
    if unknown := [name for name in wanted if name not in models]:
        raise InputError(f"ensemble.members must be fitted models ({', '.join(models)}); got {unknown[0]!r}.")
    usable = [name for name in models if slides or not needs_slides(name)]
    preferred = [name for name in wanted or (SLIDE_MEMBERS if slides else PLAIN_MEMBERS) if name in usable]
    return preferred if len(preferred) > 1 or wanted else usable


def _means(values: np.ndarray, slides: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Means over slides of the patches that every member has a prediction for; NaN for the others."""
    means = np.full_like(values, np.nan)
    means[whole] = slide_means(values[whole], slides[whole])
    return means


def _write_predictions(
    folder: Path,
    table: pd.DataFrame,
    values: np.ndarray,
    means: np.ndarray | None,
    whole: np.ndarray,
    train: np.ndarray,
    files: _Judged,
) -> None:
    """Write each patch's probability, and the thresholds that it may be judged by: nested in training."""
    ensemble = files.fitted.ensemble
    probability = np.full(len(table), np.nan)
    rest = whole & ~train
    probability[rest] = ensemble.predict(values[rest], None if means is None else means[rest])
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
    means : ndarray of shape (n, members), float64, optional
        Over each patch's slide, where they are combined too.
    """

    def __init__(
        self,
        config: Config,
        table: pd.DataFrame,
        values: np.ndarray,
        members: Sequence[str],
        means: np.ndarray | None = None,
    ) -> None:
        self.config, self.values, self.members, self.means = config, values, tuple(members), means
        self.labels, self.groups = table["label"].to_numpy(), patch_groups(table)
        self.folds = table["fold"].to_numpy()
        self.units = slide_groups(self.groups)
        combiners = config.ensemble.combiners
        self.fitted = self.fit(self.members, values, combiners, means)
        judged = (self.labels, self.groups, self.folds)
        self.nested = nest(self.members, values, *judged, means=means, combiners=combiners, seed=config.seed)
        self.gains = self._gains()

    def fit(
        self,
        members: Sequence[str],
        values: np.ndarray,
        combiners: Sequence[str] = (),
        means: np.ndarray | None = None,
    ) -> Fitted:
        """Fit an ensemble on these patches; without ``combiners`` those of the configuration are chosen from."""
        combiners = combiners or self.config.ensemble.combiners
        judged = (self.labels, self.groups, self.folds)
        return fit_ensemble(members, values, *judged, means=means, combiners=combiners, seed=self.config.seed)

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
        of_means = np.full(len(self.members), np.nan)
        if self.fitted.ensemble.slide_means:
            of_means[with_means(self.members)] = combiner.weights[len(self.members) :]
        seed = self.config.seed
        judged = (self.labels, self.groups, self.folds)
        held_out = without_each(combiner.kind, self.members, self.values, *judged, means=self.means, seed=seed)
        own, own_drawn = self._intervals(self.values)
        low, high = percentile_interval(own_drawn)
        frame = pd.DataFrame(
            {
                "member": self.members,
                "weight": combiner.weights[: len(self.members)],
                "weight_slide_mean": of_means,
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
