"""Step 6: ensembles for known slides, for heat maps and for unknown slides; nested folds evaluate the first."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from histoblend.data.errors import InputError
from histoblend.data.splits import patch_groups
from histoblend.models.calibration import POINTS, log_losses
from histoblend.models.ensemble import Fitted, fit_ensemble
from histoblend.models.ensemble_evaluation import error_correlations, nest, without_each
from histoblend.models.names import (
    ENSEMBLES,
    FOR_HEAT_MAPS,
    PLAIN_MEMBERS,
    SINGLE_FAMILIES,
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
    ENSEMBLE_SCORES,
    ERRORS,
    GAINS,
    MEMBERS,
    PREDICTIONS,
    THRESHOLDS,
)
from histoblend.pipelines.runtime.artefacts import StepResult
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.tables import known_slides, slides_in_one_fold

if TYPE_CHECKING:
    from histoblend.pipelines.run import Run


def build(run: Run, folder: Path) -> StepResult:
    """Combine the members of a run."""
    predictions = predictions_of(run, "heads", "cnn")
    names = member_names(predictions, SINGLE_FAMILIES)
    return combine(run.config, patches_of(run).table, predictions, names, folder, run.screen)


def member_names(predictions: pd.DataFrame, alone: Sequence[str]) -> list[str]:
    """Models in a table of predictions that may be members of an ensemble.

    Parameters
    ----------
    predictions : DataFrame
        One column ``prob_<model>`` per model.
    alone : sequence of str
        Sets of columns that are excluded: single handcrafted families, which are fitted for comparison only.

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
) -> StepResult:
    """Fit, evaluate and write the ensembles.

    The ensemble for known slides may have members that need slides. It also combines the members' means over each
    slide, unless folds split slides (``split.groups=patch``). The ensemble for heat maps, where slides are cut into
    tiles completely, omits the slide means. The ensemble for patches of unknown slides is a plain mean of log-odds:
    without slides, out-of-fold scores leak, so they must not choose weights.

    Parameters
    ----------
    config : Config
    table : DataFrame
        ``patch_id, slide, split, fold, label`` and, optionally, ``group``.
    predictions : DataFrame
        ``patch_id`` and ``prob_<model>``. Predictions are out-of-fold on training slides, and from a refit on all
        training slides on test slides. Patches without a prediction of some member are not used in fitting and get
        no prediction.
    models : sequence of str
        Models from which members are chosen.
    folder : Path
    screen : Screen

    Returns
    -------
    StepResult

    Raises
    ------
    InputError
        The training patches with predictions of all members are of one class, or there are none. Or the configuration
        names a member that was not fitted.
    """
    from threadpoolctl import threadpool_limits

    started = time.process_time()
    slides = known_slides(table["slide"])
    plain = choose_members(models, config.ensemble.members, slides=False)
    slides_known = bool(pd.notna(slides).any())
    members = choose_members(models, config.ensemble.members, slides=True) if slides_known else plain
    used = {f"prob_{name}": name for name in (*members, *plain)}
    columns = predictions.set_index("patch_id")[list(used)].loc[table["patch_id"]].rename(columns=used)
    complete = columns[[*members, *plain]].notna().all(axis=1).to_numpy()
    train = ((table["split"] == "train") & complete).to_numpy()
    left_out = int((table["split"] == "train").sum() - train.sum())
    if left_out:
        screen.warn(f"ensemble: {left_out} training patches lack a member's prediction and are not used to fit it")
    if table.loc[train, "label"].nunique() < 2:
        raise InputError(
            f"an ensemble needs training patches of both classes; the {int(train.sum())} with predictions of all "
            "members are of one class. Let the network predict more of them: raise cnn.folds, or cnn.patches (0 means "
            "20,000 on a CPU)."
        )
    values = columns[members].to_numpy(dtype=np.float64)
    means = _slide_means(values, slides, complete) if slides_known and slides_in_one_fold(table, slides) else None
    fits: dict[str, Fitted] = {}
    with threadpool_limits(1), screen.progress("ensemble", 3 if slides_known else 1, "fits") as progress:
        evaluated = _EvaluatedEnsemble(
            config, table[train], values[train], members, None if means is None else means[train]
        )
        fits[WITH_SLIDES] = evaluated.fitted
        progress(1)
        if slides_known:
            fits[FOR_HEAT_MAPS] = evaluated.fit(members, values[train])
            progress(1)
            plain_values = columns.loc[train, plain].to_numpy(dtype=np.float64)
            fits |= {WITHOUT_SLIDES: evaluated.fit(plain, plain_values, ("mean",))} if plain else {}
            progress(1)
    content = {name: fits[name].ensemble.to_dict() if name in fits else None for name in ENSEMBLES}
    (folder / ENSEMBLE).write_text(json.dumps(content, indent=2), encoding="utf-8")
    _write_predictions(folder, table, values, means, complete, train, evaluated)
    evaluated.write(folder)
    evaluated.scores(fits).to_csv(folder / ENSEMBLE_SCORES, index=False)
    notes = {
        "members": list(members),
        "rows": int(train.sum()),
        "left_out": left_out,
        "verdict": evaluated.gains.iloc[0]["verdict"],
        "core_seconds": round(time.process_time() - started, 1),
    }
    return StepResult(len(table), notes)


def choose_members(models: Sequence[str], configured: Sequence[str], *, slides: bool) -> list[str]:
    """Members of an ensemble: a few strong and diverse models, or all if fewer than two of these were fitted.

    Parameters
    ----------
    models : sequence of str
        The fitted models.
    configured : sequence of str
        Members that the configuration names. If empty, the default is :data:`models.names.SLIDE_MEMBERS` or
        :data:`models.names.PLAIN_MEMBERS`.
    slides : bool
        Whether slides are known. Otherwise models that need slides are left out.

    Raises
    ------
    InputError
        A model that the configuration names was not fitted.
    """
    if unknown := [name for name in configured if name not in models]:
        raise InputError(f"ensemble.members must be fitted models ({', '.join(models)}); got {unknown[0]!r}.")
    usable = [name for name in models if slides or not needs_slides(name)]
    preferred = [name for name in configured or (SLIDE_MEMBERS if slides else PLAIN_MEMBERS) if name in usable]
    return preferred if len(preferred) > 1 or configured else usable


def _slide_means(values: np.ndarray, slides: np.ndarray, complete: np.ndarray) -> np.ndarray:
    """Means over slides of the patches with predictions of all members; NaN for other patches."""
    means = np.full_like(values, np.nan)
    means[complete] = slide_means(values[complete], slides[complete])
    return means


def _write_predictions(
    folder: Path,
    table: pd.DataFrame,
    values: np.ndarray,
    means: np.ndarray | None,
    complete: np.ndarray,
    train: np.ndarray,
    evaluated: _EvaluatedEnsemble,
) -> None:
    """Write the probability and the thresholds of each patch. For training patches, they are from nested folds."""
    ensemble = evaluated.fitted.ensemble
    probability = np.full(len(table), np.nan)
    rest = complete & ~train
    probability[rest] = ensemble.predict(values[rest], None if means is None else means[rest])
    probability[train] = evaluated.nested.probability
    pd.DataFrame({"patch_id": table["patch_id"].to_numpy(), "prob_ensemble": probability}).to_parquet(
        folder / PREDICTIONS, index=False
    )
    thresholds = pd.DataFrame({"patch_id": table["patch_id"].to_numpy()})
    for name in POINTS:
        thresholds[name] = np.where(complete, ensemble.thresholds[name], np.nan)
        thresholds.loc[train, name] = evaluated.nested.thresholds[name]
    thresholds.to_parquet(folder / THRESHOLDS, index=False)


class _EvaluatedEnsemble:
    """The default ensemble fitted on the training patches, and its evaluation.

    Parameters
    ----------
    config : Config
    table : DataFrame
        Training patches with predictions of all members.
    values : ndarray of shape (n, members), float64
    members : sequence of str
    means : ndarray of shape (n, members), float64, optional
        Means over each patch's slide, if the ensemble combines them.
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
        split = (self.labels, self.groups, self.folds)
        self.nested = nest(self.members, values, *split, means=means, combiners=combiners, seed=config.seed)
        self.gains = self._gains()

    def fit(
        self,
        members: Sequence[str],
        values: np.ndarray,
        combiners: Sequence[str] = (),
        means: np.ndarray | None = None,
    ) -> Fitted:
        """Fit an ensemble on these patches. By default, combiners are chosen from those of the configuration."""
        combiners = combiners or self.config.ensemble.combiners
        split = (self.labels, self.groups, self.folds)
        return fit_ensemble(members, values, *split, means=means, combiners=combiners, seed=self.config.seed)

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

    def scores(self, fits: Mapping[str, Fitted]) -> pd.DataFrame:
        """Out-of-fold AUC of each ensemble, and its interval: of the default one nested, as in the ladder."""
        held_out = {name: fit.scores[fit.ensemble.combiner.kind] for name, fit in fits.items()}
        held_out[WITH_SLIDES] = self.nested.probability
        auc, drawn = self._intervals(np.column_stack(list(held_out.values())))
        low, high = percentile_interval(drawn)
        return pd.DataFrame({"ensemble": list(held_out), "auc": auc, "auc_low": low, "auc_high": high})

    def _intervals(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUC of each column, and its draws over resampled slides; NaN if most draws have a single class."""
        auc = np.array([roc_auc_score(self.labels, column) for column in scores.T])
        draws = self.config.ensemble.draws
        drawn = auc_draws(self.labels, scores, self.units, draws=draws, seed=self.config.seed)
        return auc, drawn if 2 * len(drawn) >= draws else np.full((2, len(auc)), np.nan)

    def _gains(self) -> pd.DataFrame:
        """Gain of the nested ensemble over the best member, chosen on all folds or nested like the ensemble."""
        single = int(np.argmax([roc_auc_score(self.labels, column) for column in self.values.T]))
        auc, drawn = self._intervals(
            np.column_stack([self.nested.probability, self.values[:, single], self.nested.single])
        )
        low, high = percentile_interval(drawn[:, [0]] - drawn)
        interval = percentile_interval(drawn)
        rows = [
            {
                "over": over,
                "auc": auc[0],
                "auc_low": interval[0][0],
                "auc_high": interval[1][0],
                "single_auc": auc[column],
                "gain": auc[0] - auc[column],
                "gain_low": low[column],
                "gain_high": high[column],
                "verdict": verdict(low[column], high[column]),
                "patches": len(self.labels),
                "slides": int(self.units.max()) + 1,
            }
            for column, over in ((1, self.members[single]), (2, "best of the other folds"))
        ]
        return pd.DataFrame(rows)

    def _members(self) -> pd.DataFrame:
        """Weight, score and leave-one-out value of each member."""
        combiner = self.fitted.ensemble.combiner
        mean_weights = np.full(len(self.members), np.nan)
        if self.fitted.ensemble.slide_means:
            mean_weights[with_means(self.members)] = combiner.weights[len(self.members) :]
        seed = self.config.seed
        split = (self.labels, self.groups, self.folds)
        held_out = without_each(combiner.kind, self.members, self.values, *split, means=self.means, seed=seed)
        member_auc, member_draws = self._intervals(self.values)
        low, high = percentile_interval(member_draws)
        frame = pd.DataFrame(
            {
                "member": self.members,
                "weight": combiner.weights[: len(self.members)],
                "weight_slide_mean": mean_weights,
                "auc": member_auc,
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
        """Held-out score of each combiner. The last row is the whole procedure, with the choice held out too."""
        frame = pd.DataFrame(self.fitted.compared)
        scores = np.column_stack([*self.fitted.scores.values(), self.nested.probability])
        auc, drawn = self._intervals(scores)
        low, high = percentile_interval(drawn)
        nested_loss = float(log_losses(self.labels, self.nested.probability).mean())
        last = {"combiner": "chosen anew in each fold", "auc": auc[-1], "log_loss": nested_loss, "chosen": False}
        frame = pd.concat([frame, pd.DataFrame([last])], ignore_index=True)
        return frame.assign(auc_low=low, auc_high=high)

    def _errors(self) -> pd.DataFrame:
        """Correlation between the errors of each pair of members."""
        table = error_correlations(self.values, self.labels)
        pairs = [
            (first, second, table[row, column])
            for row, first in enumerate(self.members)
            for column, second in enumerate(self.members)
        ]
        return pd.DataFrame(pairs, columns=["first", "second", "correlation"])


def verdict(low: float, high: float) -> str:
    """What the interval of a gain shows, in words."""
    if low > 0:
        return "helps"
    return "hurts" if high < 0 else "no evidence that it helps"
