"""Data of the feature explorer: rows, models and features match."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from histoblend.models.heads.registry import HEADS, new_head
from histoblend.models.inspection.importance import fitted_importance, sum_by_family
from histoblend.models.inspection.partial_dependence import grid
from histoblend.pipelines.analysis.attributions import (
    attribution_importances,
    attributions,
    explain_embeddings,
    explorer_view,
)
from histoblend.pipelines.results import feature_sets, patches_of
from histoblend.pipelines.run_files import COLUMNS, VALUES
from histoblend.pipelines.tables import FeatureSets
from histoblend.reports.sections.explorer import explore
from tests.pipelines.stub_run import StoredHeads, StubRun
from tests.reports.cohorts import make_patches

RAW = ["colour_mean_red_whole", "colour_mean_red_centre", "nuclei_count_grey_centre", "lbp_r1-p0_grey_whole"]
EMBEDDED = ["embedding_net-0_rgb_whole", "embedding_net-1_rgb_whole"]
SETS = ("colour", "handcrafted", "embeddings", "both", "context")


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
    tables = {}
    for name, values, columns in (("features", raw, RAW), ("embeddings", embedded, EMBEDDED)):
        (folder / name).mkdir()
        np.save(folder / name / VALUES, values)
        (folder / name / COLUMNS).write_text(json.dumps(columns), encoding="utf-8")
        tables[name] = (folder / name, {})
    heads = SimpleNamespace(heads=["logistic", "xgboost"], features=list(SETS))
    config = SimpleNamespace(seed=0, heads=heads, report=SimpleNamespace(draws=100))
    sets = FeatureSets(config, {name: path for name, (path, _) in tables.items()}, table["slide"])
    train = (table["split"] == "train").to_numpy()
    predictions = table.copy()
    for name, (values, _) in sets.items():
        for head in heads.heads:
            estimator = new_head(head, 0).set_params(
                **({"trees": 20, "fewest": 15} if head == "xgboost" else {"folds": 2})
            )
            estimator.fit(values[train], table["label"][train], slide[train])
            estimator.save(folder / f"{head}_{name}")
            predictions[f"prob_{head}_{name}"] = estimator.predict_proba(values)[:, 1]
    patches = make_patches(table)
    opened = {
        "patches": SimpleNamespace(pixels=patches.pixels, table=patches.table.assign(group=patches.table.slide)),
        "feature sets": sets,
        "models": StoredHeads(folder),
        "predictions": predictions,
    }
    return StubRun(config, {"heads": folder, **tables}, **opened)


@pytest.fixture(scope="module")
def explained_run(run):
    by_model, explained = attributions(run, run.opened["predictions"])
    gain = fitted_importance(np.arange(4) / 6, RAW, measure="gain", model="xgboost_handcrafted")
    importances = pd.concat([gain, attribution_importances(run, by_model, explained)], ignore_index=True)
    return (
        by_model,
        explained,
        importances,
        explorer_view(run, run.opened["predictions"], importances, by_model, explained),
    )


def test_heads_with_handcrafted_columns_are_explained_on_held_out_patches(run, explained_run):
    by_model, explained, importances, _ = explained_run
    assert set(by_model) == {f"{head}_{name}" for head in HEADS for name in ("handcrafted", "both", "context")}
    assert set(explained.split) == {"test"}
    for model, attribution in by_model.items():
        probability = explained[f"prob_{model}"].to_numpy()
        np.testing.assert_allclose(1 / (1 + np.exp(-attribution.log_odds)), probability, atol=1e-4)
    leading = importances[(importances.measure == "shap") & (importances.model == "xgboost_handcrafted")]
    assert leading.set_index("feature").value.idxmax() == "nuclei_count_grey_centre"


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
    assert set(nuclei.model) == {f"{head}_{name}" for head in HEADS for name in ("handcrafted", "both", "context")}
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
    sets = {"embeddings": feature_sets(run)["embeddings"]}
    steps = {name: run.steps[name] for name in ("heads", "embeddings")}
    embeddings_only = StubRun(run.config, steps, **{**run.opened, "feature sets": sets})
    by_model, explained = attributions(embeddings_only, run.opened["predictions"])
    importances = fitted_importance(np.ones(2), EMBEDDED, measure="gain", model="xgboost_embeddings")
    assert by_model == {}
    view = explorer_view(embeddings_only, run.opened["predictions"], importances, by_model, explained)
    assert view.embeddings is None
    assert len(view.examples) == len(view.bins) == len(view.cases) == 0
    explorer = explore(importances, sum_by_family(importances), {}, view)
    assert explorer.data["models"] == explorer.content["cases"] == []
    assert explorer.charts == {}
