"""Importances of fitted heads agree with planted truth, and no fit or clustering uses the held-out slides."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from histoblend.models.heads.registry import HEADS
from histoblend.models.inspection.importance import COLUMNS, GROUPS
from histoblend.pipelines.analysis.importances import by_measure, importances
from histoblend.pipelines.config import Config
from histoblend.pipelines.results import patches_of
from histoblend.pipelines.run_files import DROPPED, FITTED, SETS
from histoblend.pipelines.steps.heads import fit_heads, left_out_groups
from tests.pipelines.fits import opened, stored_sets
from tests.pipelines.stub_run import StoredHeads, StubRun

#: Three copies of one signal, in a separate theme and region, and columns of noise.
NAMES = [
    "nuclei_area_grey_centre",
    "nuclei_count_grey_centre",
    "nuclei_spread_grey_centre",
    *(f"colour_q{i}_red_whole" for i in range(5)),
    *(f"lbp_p{i}_grey_ring" for i in range(4)),
]


class Quiet:
    """A screen that shows nothing."""

    def progress(self, *_):
        return self

    def __enter__(self):
        return lambda _: None

    def __exit__(self, *_):
        return None


def planted(seed=0, slides=20, each=40):
    """Labels that depend on a signal. The first three columns are noisy copies. Slides from 15 on are held out."""
    rng = np.random.default_rng(seed)
    n = slides * each
    signal = rng.normal(size=n)
    values = rng.normal(size=(n, len(NAMES)))
    values[:, :3] = signal[:, None] + 0.05 * rng.normal(size=(n, 3))
    slide = np.repeat(np.arange(slides), each)
    test = slide >= 15
    table = pd.DataFrame(
        {
            "patch_id": [f"p{row}" for row in range(n)],
            "label": (signal + 0.4 * rng.normal(size=n) > 0).astype(int),
            "slide": pd.array([f"s{number:02d}" for number in slide], dtype="string"),
            "split": np.where(test, "test", "train"),
            "fold": np.where(test, -1, slide % 3),
        }
    )
    return values.astype(np.float32), table


def run_on(folder, values, table):
    """A run with only the handcrafted columns and the fitted heads."""
    settings = {"heads": {"features": ["handcrafted"]}, "split": {"folds": 3}, "report": {"draws": 200}}
    config = Config.model_validate(settings)
    patches = SimpleNamespace(table=table)
    folder.mkdir(exist_ok=True)
    sets = stored_sets(folder.with_name(f"{folder.name} tables"), config, table["slide"], features=(values, NAMES))
    fit_heads(config, patches, *opened(sets), folder, Quiet())
    return StubRun(
        config, {"heads": folder}, **{"patches": patches, "feature sets": sets, "models": StoredHeads(folder)}
    )


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    run = run_on(tmp_path_factory.mktemp("planted") / "heads", *planted())
    return *importances(run, pd.read_parquet(run.step("heads").folder / "predictions.parquet")), run


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_correlated_columns_are_important_only_as_a_group(analysed, head):
    features, view, _ = analysed
    model = f"{head}_handcrafted"
    single = features[(features.model == model) & (features.measure == "permutation") & features.feature.notna()]
    groups = view.groups[view.groups.model == model].set_index(["measure", "kind", "group"]).sort_index()
    alone = single.set_index("feature").value[NAMES[:3]]
    cluster = groups.loc["permutation", "cluster"]
    # The other two copies replace the shuffled one. Each has a third of the weight; in trees one may have more.
    assert alone.max() < 0.16
    assert len(cluster) == 1
    assert cluster["columns"].tolist() == [3]
    assert cluster.value.iloc[0] > 0.35
    assert cluster.value.iloc[0] > 2.5 * alone.max()
    # Refits without the theme or its region lose the signal.
    assert groups.value["dropped", "theme", "nuclei"] > 0.3
    assert groups.low["dropped", "theme", "nuclei"] > 0.2
    assert groups.value["dropped", "region", "centre"] > 0.3
    for kind, others in (("theme", ["colour", "texture"]), ("region", ["whole", "ring"])):
        for group in others:
            assert abs(groups.value["dropped", kind, group]) < 0.03
            assert abs(groups.value["permutation", kind, group]) < 0.03
    assert groups.value["permutation", "theme", "nuclei"] == pytest.approx(cluster.value.iloc[0])
    for measure in {"logistic": ["coefficient"], "xgboost": ["gain", "cover"]}[head]:
        assert groups.value[measure, "theme", "nuclei"] > 0.4
        assert groups.value.loc[measure, "theme"].sum() == pytest.approx(1)


def test_the_cluster_is_the_planted_one(analysed):
    _, view, _ = analysed
    assert len(view.clusters) == 1
    cluster = view.clusters.iloc[0]
    assert set(cluster.members.split()) == set(NAMES[:3])
    assert cluster.group in NAMES[:3]
    assert cluster["columns"] == 3
    assert cluster.closeness > view.rho
    assert view.clustered_on == 600  # the training patches, all of them


def test_tables_are_tidy_and_folds_give_the_spread(analysed):
    features, view, run = analysed
    assert list(features) == COLUMNS
    assert list(view.groups) == GROUPS
    assert not view.groups.duplicated(["model", "measure", "kind", "group"]).any()
    stored = pd.read_parquet(run.step("heads").folder / FITTED)
    part = features[features.measure == "cover"].set_index("feature")
    for name in (NAMES[0], NAMES[-1]):
        rows = stored[(stored.measure == "cover") & (stored.feature == name)].set_index("fold").value
        assert part.value[name] == pytest.approx(rows[-1])
        assert part.spread[name] == pytest.approx(rows.drop(-1).std(), rel=1e-4)
    stability = view.stability.set_index(["model", "measure", "level"])
    assert stability.raters["xgboost_handcrafted", "gain", "feature"] == 3
    assert stability["items"]["xgboost_handcrafted", "gain", "feature"] == len(NAMES)
    assert stability.over["logistic_handcrafted", "permutation", "family"] == "draws of slides"
    # Only one family is informative: it ranks first of three in every draw of slides.
    assert stability.w["logistic_handcrafted", "permutation", "family"] > 0.6


def test_fits_and_clusters_do_not_use_the_held_out_slides(analysed, tmp_path):
    """Changed labels and columns of held-out patches do not change clusters, fits or refits."""
    _, before, run = analysed
    values, table = planted()
    test = (table["split"] == "test").to_numpy()
    changed = values.copy()
    changed[test] = changed[test][:, [3]]  # on the held-out slides every column is the same: one large cluster
    flipped = table.assign(label=np.where(test, 1 - table["label"], table["label"]))
    other = run_on(tmp_path / "heads", changed, flipped)
    _, after = importances(other, pd.read_parquet(other.step("heads").folder / "predictions.parquet"))
    pd.testing.assert_frame_equal(before.clusters, after.clusters, check_exact=True)
    first, second = (pd.read_parquet(each.step("heads").folder / FITTED) for each in (run, other))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    built_in = before.groups.measure.isin(["gain", "cover", "coefficient"])
    pd.testing.assert_frame_equal(before.groups[built_in], after.groups[built_in], check_exact=True)
    # The change did take effect: importances on the held-out slides differ.
    assert not before.groups[~built_in].value.equals(after.groups[~built_in].value)


def test_refit_scores_are_stored_apart_from_the_predictions(analysed):
    _, _, run = analysed
    dropped = pd.read_parquet(run.step("heads").folder / DROPPED)
    predictions = pd.read_parquet(run.step("heads").folder / "predictions.parquet")
    assert dropped.patch_id.tolist() == predictions.patch_id[predictions.split == "test"].tolist()
    assert {name.removeprefix("prob_") for name in dropped if name != "patch_id"} == {
        f"{head}_handcrafted_without_{group}" for head in HEADS for group in left_out_groups(NAMES)
    }
    assert not any("without" in name for name in predictions)


def test_measures_have_the_refit_first_and_keep_the_order_of_columns():
    rows = [(fold, "gain", name, value) for fold in (1, -1, 0) for name, value in (("b", fold), ("a", 10.0 + fold))]
    stored = pd.DataFrame(rows, columns=["fold", "measure", "feature", "value"])
    values = by_measure(stored, ["b", "a"])
    np.testing.assert_array_equal(values["gain"], [[-1, 9], [0, 10], [1, 11]])


def test_halves_of_combined_sets_are_shuffled_and_compared_with_rungs_without_them(tmp_path):
    """Only the embeddings are informative. The set without them is the handcrafted rung."""
    values, table = planted()
    rng = np.random.default_rng(5)
    embeddings = rng.normal(size=(len(table), 3)).astype(np.float32)
    embeddings[:, 0] += table["label"]
    others = [f"embedding_net-{i}_rgb_whole" for i in range(3)]
    heads = {"heads": ["logistic"], "features": ["handcrafted", "embeddings", "both"]}
    config = Config.model_validate({"heads": heads, "split": {"folds": 3}, "report": {"draws": 200}})
    tables = {"features": (values[:, 3:], NAMES[3:]), "embeddings": (embeddings, others)}
    sets = stored_sets(tmp_path / "tables", config, table["slide"], **tables)
    read = {"patches": SimpleNamespace(table=table), "feature sets": sets, "models": StoredHeads(tmp_path)}
    run = StubRun(config, {"heads": tmp_path}, **read)
    fit_heads(config, patches_of(run), *opened(sets), tmp_path, Quiet())
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    _, view = importances(run, predictions)
    halves = view.groups[view.groups.kind == "half"].set_index(["model", "measure", "group"])
    assert halves["columns"]["logistic_both", "dropped", "embeddings"] == 3
    assert halves.value["logistic_both", "dropped", "embeddings"] > 0.15
    assert abs(halves.value["logistic_both", "dropped", "handcrafted"]) < 0.05
    assert halves.value["logistic_both", "permutation", "embeddings"] > 0.15
    assert json.loads((tmp_path / SETS).read_text())["both"] == NAMES[3:] + others
