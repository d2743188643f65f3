"""`ensemble` from patches to bundle: its outputs, predictions of the bundle, and no result from random labels."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from histoblend.pipelines.commands import ensemble, one_step
from histoblend.pipelines.config_files import load_config
from histoblend.pipelines.plan import plan_run
from histoblend.pipelines.predict.folder import predict_folder
from histoblend.pipelines.predict.shards import Options
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.runtime.screen import Screen
from tests import ROOT

SMALL = [
    "data.n=320",
    "data.slides=16",
    "split.folds=3",
    "split.test_share=0.3",
    "report.draws=200",
    "report.repeats=1",
    "ensemble.draws=200",
]
SMALL += ["heads.heads=['logistic']", "features.families=['colour']"]
SMALL += ["heads.features=['colour','context','in-slide','context-normalised']", "final.refit=train"]
SMALL += ["ensemble.members=['logistic_context-normalised','logistic_in-slide','cnn','logistic_cnn-context']"]
SMALL += ["cnn.backbone=efficientnet-lite0", "cnn.weights=random", "cnn.size=32", "cnn.epochs=1", "cnn.batch=16"]
SMALL += ["cnn.patches=190"]  # of 220 or so: the network and the ensemble are scored on a sample
SMALL += ["engine.workers=1", "name=small", "final.symmetries=8", "final.precision=float32"]  # as scored


@pytest.fixture(scope="module")
def permuted(tmp_path_factory):
    """A finished run on a phantom with permuted labels, so that there is nothing to learn."""
    run = plan_run(load_config(ROOT / "configs" / "phantom.toml", SMALL), tmp_path_factory.mktemp("runs"))
    table = patches_of(plan_run(run.config, run.root)).table.copy()
    table["label"] = np.random.default_rng(0).permutation(table["label"].to_numpy())
    shuffled = replace(patches_of(plan_run(run.config, run.root)), table=table)
    run.open("patches", lambda: shuffled)
    ensemble(run)
    return run


def test_every_model_is_on_the_ladder_and_in_the_predictions(permuted):
    predictions = pd.read_parquet(permuted.folder / "predictions.parquet")
    sampled = ["prob_cnn", "prob_logistic_cnn-context", "prob_ensemble"]
    known = predictions[sampled].notna().all(axis=1) | ~predictions[sampled].notna().any(axis=1)
    assert known.all()
    with_network = predictions["prob_cnn"].notna()
    assert with_network[predictions["split"] == "train"].sum() == 190
    assert with_network[predictions["split"] == "test"].all()
    for members, part in ((sampled, with_network), (["prob_logistic_colour", "prob_logistic_context"], slice(None))):
        assert predictions.loc[part, members].apply(lambda column: column.between(0, 1)).all(axis=None)
    steps = pd.read_csv(permuted.folder / "ladder.csv").set_index(["model", "split"])
    assert {"cnn", "ensemble"} <= set(steps.index.get_level_values("model"))
    for model, split in (("cnn", "train"), ("ensemble", "test")):
        part = predictions[(predictions["split"] == split) & with_network]
        shown = steps.loc[(model, "oof" if split == "train" else "test"), "auc"]
        assert shown == pytest.approx(roc_auc_score(part["label"], part[f"prob_{model}"]))
    assert steps.loc[("cnn", "oof"), "seconds"] > 0


@pytest.mark.parametrize("split", ["oof", "test"])
def test_permuted_labels_give_chance_level(permuted, split):
    steps = pd.read_csv(permuted.folder / "ladder.csv")
    part = steps[(steps["split"] == split) & (steps["rung"] != "prevalence")]
    assert set(part["rung"]) == {
        "colour",
        "context",
        "in-slide",
        "context-normalised",
        "cnn",
        "cnn-context",
        "ensemble",
    }
    # Resampling few slides gives an interval that is too narrow. Permuted labels do not depend on slides, so the
    # standard error of the rank sum applies. All models use the same colours, so their errors are correlated.
    labels = patches_of(permuted).table["label"][
        patches_of(permuted).table["split"] == ("train" if split == "oof" else split)
    ]
    positive, negative = int(labels.sum()), int((1 - labels).sum())
    error = np.sqrt((positive + negative + 1) / (12 * positive * negative))
    error /= np.sqrt(part["patches"] / len(labels))
    assert (np.abs(part["auc"] - 0.5) < 3 * error).all(), part[["model", "auc", "auc_low", "auc_high"]]
    gains = pd.read_csv(permuted.folder / "6-ensemble" / "gains.csv")
    assert (gains["verdict"] != "helps").all()


@pytest.mark.parametrize("model", ["cnn", "logistic_cnn-context", "ensemble"])
def test_the_bundle_predicts_files_like_the_run(permuted, tmp_path, model):
    predictions = pd.read_parquet(permuted.folder / "predictions.parquet")
    test = predictions[predictions["split"] == "test"].set_index("patch_id")
    (tmp_path / "in").mkdir()
    for row, name in zip(np.flatnonzero(predictions["split"] == "test"), test.index, strict=True):
        Image.fromarray(patches_of(permuted).pixels[row]).save(tmp_path / "in" / f"{name}.png")
    test["slide"].rename_axis("id").to_csv(tmp_path / "slides.csv")
    out = tmp_path / "out.csv"
    status = predict_folder(
        permuted.folder / "bundle",
        tmp_path / "in",
        out,
        options=Options(model=model),
        slides=tmp_path / "slides.csv",
        explain=(),
        screen=Screen(),
    )
    assert status == 0
    probability = pd.read_csv(out, dtype={"id": str}).set_index("id")["probability"]
    np.testing.assert_allclose(probability, test.loc[probability.index, f"prob_{model}"], atol=1e-6, rtol=0)


def test_the_report_shows_the_network_and_keeps_it_when_rebuilt(permuted):
    members = permuted.folder / "7-report" / "ensemble-members.csv"
    assert "cnn" in pd.read_csv(members)["member"].tolist()
    again = plan_run(permuted.config, permuted.root)
    again.__dict__["patches"] = patches_of(permuted)
    one_step(again, "report")
    assert "prob_ensemble" in pd.read_parquet(permuted.folder / "predictions.parquet")
    assert members.exists()


def test_slides_without_differences_give_no_gain_between_slides(tmp_path):
    """Slide names are permuted within each fold, so stain and tumour no longer depend on the slide name."""
    settings = [setting for setting in SMALL if not setting.startswith(("cnn.", "ensemble.members"))]
    settings += ["data.difficulty=0.2", "cnn.enabled=false", "features.families=['nuclei']"]
    settings += ["heads.features=['handcrafted','context','in-slide','context-normalised']"]
    settings += ["ensemble.members=['logistic_handcrafted','logistic_context-normalised','logistic_in-slide']"]
    config = load_config(ROOT / "configs" / "phantom.toml", settings)
    run = plan_run(config, tmp_path)
    table = patches_of(plan_run(run.config, run.root)).table.copy()
    rng = np.random.default_rng(0)
    for fold in table["fold"].unique():
        inside = np.flatnonzero(table["fold"] == fold)
        table.loc[inside, ["slide", "group"]] = table.loc[rng.permutation(inside), ["slide", "group"]].to_numpy()
    shuffled = replace(patches_of(plan_run(run.config, run.root)), table=table)
    run.open("patches", lambda: shuffled)
    steps = pd.read_csv(run.step("ladder").folder / "ladder.csv")
    row = steps[(steps["model"] == "ensemble") & (steps["split"] == "oof")].iloc[0]
    assert row["auc"] > 0.75
    assert row["gain_between_low"] <= 0.005
    context = steps[(steps["model"] == "logistic_context") & (steps["split"] == "oof")].iloc[0]
    assert abs(context["gain_between"] - context["gain_within"]) < 0.05
