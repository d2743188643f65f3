"""Data of the feature explorer: rows, models and features match."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from histoblend.models.calibration import POINTS, Calibrator
from histoblend.models.combiners import Combiner
from histoblend.models.ensemble import Ensemble
from histoblend.models.heads.registry import HEADS, heads_on, new_head
from histoblend.models.inspection.importance import fitted_importance, sum_by_family
from histoblend.models.inspection.partial_dependence import grid
from histoblend.pipelines.analysis.attributions import attribution_importances, explain_embeddings, explorer_view
from histoblend.pipelines.analysis.explained_models import explain_models
from histoblend.pipelines.results import feature_sets, patches_of
from histoblend.pipelines.run_files import ENSEMBLE, FITTED
from histoblend.pipelines.tables import FeatureSets
from histoblend.reports.sections.explorer import explore
from tests.pipelines.fits import stored_sets
from tests.pipelines.stub_run import StoredHeads, StubRun
from tests.reports.cohorts import make_patches

RAW = ["colour_mean_red_whole", "colour_mean_red_centre", "nuclei_count_grey_centre", "lbp_r1-p0_grey_whole"]
EMBEDDED = ["embedding_net-0_rgb_whole", "embedding_net-1_rgb_whole"]
SETS = ("colour", "handcrafted", "embeddings", "both", "context", "in-slide")
MODELS = {f"{head}_{name}" for head in HEADS for name in ("handcrafted", "both", "context")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 240 patches of 12 slides. Nuclei determine the label; the first embedding column is their negative."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("run")
    raw = rng.normal(size=(240, 4)).astype(np.float32)
    embedded = np.column_stack([-raw[:, 2], rng.normal(size=240)]).astype(np.float32)
    slide = np.arange(240) // 20
    table = pd.DataFrame(
        {
            "patch_id": [f"{number:04d}" for number in range(240)],
            "slide": [f"S{number}" for number in slide],
            "group": [f"S{number}" for number in slide],
            "split": np.where(slide < 9, "train", "test"),
            "fold": np.where(slide < 9, slide % 3, -1),
            "label": (raw[:, 2] + 0.3 * rng.normal(size=240) > 0).astype(int),
        }
    )
    heads = SimpleNamespace(heads=["logistic", "xgboost"], features=list(SETS))
    config = SimpleNamespace(seed=0, heads=heads, report=SimpleNamespace(draws=100))
    tables = {"features": (raw, RAW), "embeddings": (embedded, EMBEDDED)}
    sets = stored_sets(folder, config, table["slide"], **tables)
    train = (table["split"] == "train").to_numpy()
    predictions = table.copy()
    measures = []
    for name, (values, columns) in sets.items():
        for head in heads_on(name, heads.heads):
            for number in (-1, 0, 1, 2):
                rows = train & (table["fold"] != number).to_numpy()
                estimator = new_head(head, 0).set_params(
                    **({"trees": 20, "fewest": 15} if head == "xgboost" else {"folds": 2})
                )
                estimator.fit(values[rows], table["label"][rows], slide[rows])
                inside = (table["fold"] == number).to_numpy()
                predictions.loc[inside, f"prob_{head}_{name}"] = estimator.predict_proba(values[inside])[:, 1]
                for measure, value in estimator.column_measures().items():
                    names = {"model": f"{head}_{name}", "fold": number, "measure": measure}
                    measures.append(pd.DataFrame({"feature": columns, "value": value.astype(np.float32), **names}))
                if number < 0:
                    estimator.save(folder / f"{head}_{name}")
    pd.concat(measures, ignore_index=True).to_parquet(folder / FITTED)
    patches = make_patches(table)
    opened = {
        "patches": SimpleNamespace(pixels=patches.pixels, table=patches.table.assign(group=patches.table.slide)),
        "feature sets": sets,
        "models": StoredHeads(folder),
        "predictions": predictions,
    }
    return StubRun(config, {"heads": folder, **{step: folder / step for step in tables}}, **opened)


@pytest.fixture(scope="module")
def explained_run(run):
    models = explain_models(run, run.opened["predictions"])
    gain = fitted_importance(np.arange(4) / 6, RAW, measure="gain", model="xgboost_handcrafted")
    measured = attribution_importances(run, models, run.opened["predictions"])
    importances = pd.concat([gain, measured], ignore_index=True)
    return models, importances, explorer_view(run, run.opened["predictions"], importances, models)


def test_heads_with_handcrafted_columns_are_explained_on_held_out_patches(run, explained_run):
    models, importances, _ = explained_run
    assert set(models.shares) - {models.best} == MODELS - {models.best}
    explained = run.opened["predictions"].iloc[models.rows]
    assert set(explained.split) == {"test"}
    for model, attribution in models.shares.items():
        probability = explained[f"prob_{model}"].to_numpy()
        np.testing.assert_allclose(1 / (1 + np.exp(-attribution.log_odds)), probability, atol=1e-4)
    leading = importances[(importances.measure == "shap") & (importances.model == "xgboost_handcrafted")]
    assert leading.set_index("feature").value.idxmax() == "nuclei_count_grey_centre"


def test_the_best_explained_model_has_the_best_out_of_fold_auc(run, explained_run):
    models, _, view = explained_run
    train = run.opened["predictions"].query("split == 'train'")
    sets = [name for name in SETS if name not in ("colour", "embeddings")]
    names = [f"{head}_{name}" for name in sets for head in heads_on(name, HEADS)]
    aucs = {name: roc_auc_score(train.label, train[f"prob_{name}"]) for name in names}
    assert aucs[view.best] == max(aucs.values())
    assert set(view.cases.model) == {models.best}


def test_the_planted_cause_separates_and_ranks_first_in_every_fold(explained_run):
    *_, view = explained_run
    rows = view.evidence[(view.evidence.model == "logistic_handcrafted") & (view.evidence.kind == "column")]
    nuclei = rows.set_index("unit").loc["nuclei_count_grey_centre"]
    assert nuclei.separation == rows.separation.max()
    assert nuclei.low > 0.5
    assert (nuclei["first"], nuclei["last"], nuclei.ranked) == (1, 1, 4)
    assert nuclei.direction == pytest.approx(1)
    # A column and itself relative to the slide are one cluster.
    clusters = view.clusters[view.clusters.model == "xgboost_context"]
    pair = {"nuclei_count_grey_centre", "nuclei_count-in-slide_grey_centre"}
    assert pair in [set(members.split()) for members in clusters.members]


def with_ensemble(run, folder, members):
    """The run with a stored ensemble of equal weights, whose predictions follow from it."""
    predictions = run.opened["predictions"].assign(prob_cnn=lambda table: 0.2 + 0.6 * table.label)
    weights = (1 / len(members),) * len(members)
    ensemble = Ensemble(members, False, Combiner("mean", weights), Calibrator(), dict.fromkeys(POINTS, 0.5), 0.4)
    (folder / ENSEMBLE).write_text(json.dumps({"slides": ensemble.to_dict()}), encoding="utf-8")
    values = predictions[[f"prob_{member}" for member in members]].to_numpy()
    predictions["prob_ensemble"] = ensemble.predict(values)
    steps = {**run.steps, "ensemble": folder}
    return StubRun(run.config, steps, **{**run.opened, "predictions": predictions}), predictions


def test_the_ensemble_is_explained_through_its_members(run, tmp_path):
    members = ("logistic_both", "logistic_in-slide", "cnn")
    other, predictions = with_ensemble(run, tmp_path, members)
    models = explain_models(other, predictions)
    assert models.best == "ensemble"
    attribution = models.shares["ensemble"]
    np.testing.assert_allclose(
        1 / (1 + np.exp(-attribution.log_odds)), predictions.prob_ensemble.iloc[models.rows], atol=1e-6
    )
    assert "network" in attribution.features
    assert set(models.shares) == MODELS | {"logistic_in-slide", "ensemble"}
    assert models.folds
    for fold, values in models.folds.items():
        rows = models.fold_rows[fold]
        assert set(predictions.fold.iloc[rows].astype(str)) == {fold}
        np.testing.assert_allclose(1 / (1 + np.exp(-values.log_odds)), predictions.prob_ensemble.iloc[rows], atol=1e-4)
    view = explorer_view(other, predictions, attribution_importances(other, models, predictions), models)
    traced = [row for rows in models.fold_rows.values() for row in rows]
    assert set(view.traced.patch_id) == set(predictions.patch_id[traced])
    columns = view.evidence[(view.evidence.model == "ensemble") & (view.evidence.kind == "column")]
    assert columns["last"].notna().all()


def test_an_ensemble_of_networks_only_is_not_explained(run, tmp_path):
    other, predictions = with_ensemble(run, tmp_path, ("cnn",))
    models = explain_models(other, predictions)
    assert models.blend is None
    assert "ensemble" not in models.shares


def test_examples_and_cases_match_their_patch_ids(run, explained_run):
    *_, view = explained_run
    table = run.opened["predictions"].set_index("patch_id")
    raw = pd.DataFrame(
        feature_sets(run)["context"][0], run.opened["predictions"].patch_id, feature_sets(run)["context"][1]
    )
    for row in view.examples.itertuples():
        assert row.value == pytest.approx(raw[row.feature][row.patch_id])
    for row in view.cases.itertuples():
        assert view.explained.patch_id[row.place] == row.patch_id
        assert row.score == pytest.approx(table[f"prob_{row.model}"][row.patch_id])
    positions = {patch: position for position, patch in enumerate(patches_of(run).table.patch_id)}
    for patch, pixels in zip(view.patches.patch_id, view.pixels, strict=True):
        np.testing.assert_array_equal(pixels, patches_of(run).pixels[positions[patch]])


def test_curves_of_the_planted_cause_rise(run, explained_run):
    *_, view = explained_run
    nuclei = view.curves[view.curves.feature == "nuclei_count_grey_centre"]
    assert set(nuclei.model) == MODELS
    values = feature_sets(run)["handcrafted"][0][:, 2]
    for _, curve in nuclei.groupby("model"):
        np.testing.assert_allclose(curve.value, grid(values), rtol=1e-6)
        assert curve.probability.is_monotonic_increasing
    bins = view.bins[view.bins.feature == "nuclei_count_grey_centre"]
    assert bins.share.iloc[0] < 0.2
    assert bins.share.iloc[-1] > 0.8
    assert bins.patches.sum() == 240


def test_percentiles_cover_all_features_but_no_embedding(run, explained_run):
    *_, view = explained_run
    values, columns = feature_sets(run)["context"]
    assert set(view.quantiles.index) == set(columns)
    for name, column in zip(columns, values.T, strict=True):
        np.testing.assert_allclose(view.quantiles.loc[name], np.quantile(column, [0.01, 0.5, 0.99]), rtol=1e-5)


def test_an_embedding_column_is_explained_by_its_source_feature(run):
    table = explain_embeddings(run).set_index("column")
    assert table.feature_1[EMBEDDED[0]] == "nuclei_count_grey_centre"
    assert table.correlation_1[EMBEDDED[0]] == pytest.approx(-1)
    assert table.r2[EMBEDDED[0]] > 0.9
    assert {"logistic", "xgboost"} <= set(table)


def test_a_run_without_handcrafted_features_has_an_empty_explorer(run):
    steps = {name: run.steps[name] for name in ("heads", "embeddings")}
    heads = SimpleNamespace(heads=["logistic", "xgboost"], features=["embeddings"])
    config = SimpleNamespace(seed=0, heads=heads, report=SimpleNamespace(draws=100))
    sets = FeatureSets(config, {"embeddings": steps["embeddings"][0]}, patches_of(run).table["slide"])
    embeddings_only = StubRun(run.config, steps, **{**run.opened, "feature sets": sets})
    models = explain_models(embeddings_only, run.opened["predictions"])
    importances = fitted_importance(np.ones(2), EMBEDDED, measure="gain", model="xgboost_embeddings")
    assert models.shares == {}
    view = explorer_view(embeddings_only, run.opened["predictions"], importances, models)
    assert view.embeddings is None
    assert len(view.examples) == len(view.bins) == len(view.cases) == 0
    explorer = explore(importances, sum_by_family(importances), {}, view)
    assert explorer.data["models"] == explorer.content["cases"] == []
    assert explorer.charts == {}
