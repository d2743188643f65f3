"""Step 5: out-of-fold predictions of the fine-tuned network, label leaks, and resumed runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import requests

from histoblend.data.errors import InputError
from histoblend.models.cnn import open_cnn
from histoblend.models.finetune import FineTuned
from histoblend.pipelines.analysis.saliency import open_saliency, probe_saliency
from histoblend.pipelines.config import Config
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run import Run
from histoblend.pipelines.runtime.screen import Screen
from histoblend.pipelines.steps.cnn import check_cnn, inputs, train_cnn
from histoblend.pipelines.steps.cnn_training import NetworkTraining, cnn_settings
from tests import ROOT

TINY = [
    "data.n=64",
    "data.slides=12",
    "split.folds=3",
    "cnn.folds=2",
    "cnn.backbone=efficientnet-lite0",
    "cnn.weights=random",
    "cnn.size=32",
    "cnn.epochs=1",
    "cnn.batch=8",
]


def config(*settings: str) -> Config:
    return load_config(ROOT / "configs" / "phantom.toml", [*TINY, *settings])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return plan_run(config(), tmp_path_factory.mktemp("runs"))


def read(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions.parquet")


@pytest.fixture(scope="module")
def finished(run: Run) -> Path:
    return run.step("cnn").folder


def test_folds_beyond_cnn_folds_have_no_prediction(run: Run, finished: Path) -> None:
    table, probability = patches_of(run).table, read(finished)["prob_cnn"].to_numpy()
    fold = table["fold"].to_numpy()
    assert np.isnan(probability[fold == 2]).all()
    rest = probability[fold != 2]
    assert ((rest > 0) & (rest < 1)).all()
    assert run.step("cnn").manifest["notes"]["folds"] == 2


def test_the_stored_network_gives_the_test_predictions(run: Run, finished: Path) -> None:
    test = (patches_of(run).table["split"] == "test").to_numpy()
    compute = open_cnn(finished / "model")
    log_odds = compute(patches_of(run).pixels[test])[:, 0]
    np.testing.assert_allclose(read(finished)["prob_cnn"][test], 1 / (1 + np.exp(-log_odds.astype(float))), atol=1e-12)


def test_the_history_contains_every_training(finished: Path) -> None:
    history = pd.read_csv(finished / "history.csv")
    epochs = history.groupby("run", sort=False)["epoch"].agg(list)
    assert list(epochs.index) == ["0", "1", "final"]
    assert epochs["0"] == epochs["1"] == [0, 1]
    folds = history[history["run"] != "final"]
    assert folds["auc"].between(0, 1).all()
    # The refit has no validation slides, so the folds choose its number of epochs.
    best = folds[folds["kept"]].groupby("run")["epoch"].max()
    assert epochs["final"][-1] == np.ceil(best.median())
    assert history.loc[history["run"] == "final", "auc"].isna().all()
    assert not (finished / "work").exists()


class _Killed(Screen):
    """A screen that kills the run halfway through training."""

    @contextmanager
    def progress(self, label: str, total: int, unit: str = "patches") -> Iterator[Any]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if label == "fine-tuning" and done > total / 2:
                raise KeyboardInterrupt

        yield advance


def test_a_killed_run_is_resumed_and_test_labels_change_nothing(run: Run, finished: Path, tmp_path: Path) -> None:
    patches = patches_of(run)
    table = patches.table.copy()
    test = table["split"] == "test"
    table.loc[test, "label"] = 1 - table.loc[test, "label"]
    other = replace(patches, table=table)
    with pytest.raises(KeyboardInterrupt):
        train_cnn(run.config, other, tmp_path, workers=1, screen=_Killed())
    assert (tmp_path / "work" / "fold-0.npz").exists()
    train_cnn(run.config, other, tmp_path, workers=2, screen=Screen())
    pd.testing.assert_frame_equal(read(tmp_path), read(finished))
    some = patches.pixels[:8]
    np.testing.assert_array_equal(open_cnn(tmp_path / "model")(some), open_cnn(finished / "model")(some))
    # Only the network for the bundle is trained on test labels.
    refitted = [open_cnn(folder / "refitted")(some) for folder in (tmp_path, finished)]
    assert (refitted[0] != refitted[1]).any()
    assert (refitted[1] != open_cnn(finished / "model")(some)).any()


def test_all_layers_can_be_trained_without_disk_space_for_feature_maps(run: Run, tmp_path: Path) -> None:
    options = ["cnn.trained=all", "cnn.batch_norm=trained", "cnn.cache_gb=0", "cnn.folds=1", "cnn.d4=false"]
    options += ["final.refit=train"]
    outcome = train_cnn(config(*options), patches_of(run), tmp_path, workers=1, screen=Screen())
    assert outcome.notes["settings"]["trained"] == "all"
    known = read(tmp_path)["prob_cnn"].dropna()
    assert known.between(0, 1).all()
    assert len(known) == patches_of(run).table["fold"].isin([0, -1]).sum()


def test_the_step_depends_on_its_options_but_not_on_the_cache_size() -> None:
    step = plan_run(config(), Path()).plan["cnn"]
    plain = step.settings(config())
    assert step.settings(config("cnn.cache_gb=0")) == plain
    assert step.settings(config("cnn.jitter=0.2")) != plain


def test_the_step_depends_on_the_backend_that_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    for backend in ("tensorflow", "torch"):
        monkeypatch.setattr("histoblend.features.networks.engines.choose_backend", lambda backend=backend: backend)
        given.append(inputs(Mock(config=config())))
    assert [values.pop("backend") for values in given] == ["tensorflow", "torch"]
    assert given[0] == given[1]


def test_auto_is_resolved_for_this_machine() -> None:
    settings = cnn_settings(config())
    assert settings.trained in ("top", "all")
    assert settings.precision in ("float32", "bfloat16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["cnn.folds=4"], r"cnn\.folds must be at most split\.folds, 3; got 4"),
        (["cnn.backbone=resnet"], "resnet50"),
        (["cnn.backbone=mobilenet-v2", "cnn.size=16"], "at least 32 × 32 pixels; got 16 × 16"),
    ],
)
def test_wrong_options_are_refused_before_the_run(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_cnn(config(*settings))


def test_unavailable_weights_are_refused_before_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("requests.get", Mock(side_effect=requests.ConnectionError("no network")))
    with pytest.raises(InputError, match=r"^vgg16_\S*: expected to download it from \S*; got: no network"):
        check_cnn(config("cnn.backbone=vgg16", "cnn.weights=imagenet"))


@pytest.mark.parametrize("diverged", [True, False])
@pytest.mark.parametrize("reason", ["the loss became nan", "weights became infinite"])
def test_a_training_that_diverged_is_a_warning(reason: str, diverged: bool) -> None:
    screen = Mock()
    stopped = FineTuned([], np.empty(0), np.empty(0), pd.DataFrame(), reason, diverged)
    NetworkTraining._say_stop(Mock(screen=screen), "fold 1", stopped)
    if diverged:
        screen.warn.assert_called_once_with(f"fold 1: {reason}")
    else:
        screen.say.assert_called_once_with(f"  fold 1: stopped: {reason}")


@pytest.fixture(scope="module")
def probed(run: Run, finished: Path) -> Path:
    return run.step("saliency").folder


def test_maps_are_of_test_patches_and_average_to_the_prediction(run: Run, probed: Path) -> None:
    view = open_saliency(probed)
    table = patches_of(run).table.set_index("patch_id").loc[view.patches["patch_id"]]
    assert set(table["split"]) == {"test"}
    assert view.facts["held_out"] == (patches_of(run).table["split"] == "test").sum()
    probability = view.patches["prob_cnn"]
    np.testing.assert_allclose(view.patches["log_odds"], np.log(probability / (1 - probability)), rtol=1e-3, atol=1e-3)
    right = (probability >= view.facts["threshold"]).to_numpy() == (table["label"] == 1).to_numpy()
    assert (view.patches["outcome"].str.startswith("true").to_numpy() == right).all()
    assert (view.patches["outcome"].str.endswith("positive") == (probability >= view.facts["threshold"])).all()
    shown = view.patches[view.patches["shown"]]
    assert len(view.last) == len(shown) > 0
    assert shown["outcome"].value_counts().max() <= 6
    np.testing.assert_allclose(view.last.mean(axis=(1, 2)), shown["log_odds"], rtol=1e-4, atol=1e-5)
    assert set(view.sanity["patch_id"]) <= set(view.patches["patch_id"])


def test_maps_are_computed_once_and_are_reproducible(run: Run, probed: Path, tmp_path: Path) -> None:
    assert probed == run.folder / "analysis" / "saliency"
    assert set(run.step("saliency").manifest["inputs"]) == {"1-patches", "5-cnn"}
    again = plan_run(run.config, run.root)
    assert again.step("saliency").manifest["made"] == run.step("saliency").manifest["made"]
    probe_saliency(patches_of(run), run.step("cnn").folder, tmp_path, run.config.seed, Screen())
    first, second = open_saliency(probed), open_saliency(tmp_path)
    pd.testing.assert_frame_equal(first.patches, second.patches)
    pd.testing.assert_frame_equal(first.sanity, second.sanity)
    np.testing.assert_array_equal(first.last, second.last)
