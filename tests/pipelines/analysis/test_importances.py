"""Importances of fitted heads against planted truth, and no look at the held-out slides while anything is learned."""

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
from tests.pipelines.fits import opened
from tests.pipelines.stub_run import StoredHeads, StubRun

#: Three copies of one signal, in themes and regions of their own, beside columns of noise.
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
    """Labels that follow a signal, whose noisy copies are the first three columns; slides 15 and up are held out."""
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
    """A run of which nothing but the handcrafted columns and the fitted heads is there."""
    settings = {"heads": {"features": ["handcrafted"]}, "split": {"folds": 3}, "report": {"draws": 200}}
    config = Config.model_validate(settings)
    sets = {"handcrafted": (values, NAMES)}
    patches = SimpleNamespace(table=table)
    folder.mkdir(exist_ok=True)
    fit_heads(config, patches, *opened(sets), folder, Quiet())
    return StubRun(
        config, {"heads": folder}, **{"patches": patches, "feature sets": sets, "models": StoredHeads(folder)}
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    run = run_on(tmp_path_factory.mktemp("planted") / "heads", *planted())
    return *importances(run, pd.read_parquet(run.step("heads").folder / "predictions.parquet")), run


@pytest.mark.parametrize("head", ["logistic", "xgboost"])
def test_what_three_columns_know_shows_only_when_they_go_together(found, head):
    features, view, _ = found
    model = f"{head}_handcrafted"
    single = features[(features.model == model) & (features.measure == "permutation") & features.feature.notna()]
    groups = view.groups[view.groups.model == model].set_index(["measure", "kind", "group"]).sort_index()
    alone = single.set_index("feature").value[NAMES[:3]]
    cluster = groups.loc["permutation", "cluster"]
    # Two copies stand in for the third; each bears a third of the weight, or, in trees, one of them more.
    assert alone.max() < 0.16
    assert len(cluster) == 1
    assert cluster["columns"].tolist() == [3]
    assert cluster.value.iloc[0] > 0.35
    assert cluster.value.iloc[0] > 2.5 * alone.max()
    # Fitted again without the theme, or without its region, there is nothing to go by.
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


def test_the_cluster_is_the_planted_one(found):
    _, view, _ = found
    assert len(view.clusters) == 1
    cluster = view.clusters.iloc[0]
    assert set(cluster.members.split()) == set(NAMES[:3])
    assert cluster.group in NAMES[:3]
    assert cluster["columns"] == 3
    assert cluster.closeness > view.rho
    assert view.clustered_on == 600  # the training patches, all of them


def test_tables_are_tidy_and_folds_give_the_spread(found):
    features, view, run = found
    assert list(features) == COLUMNS
    assert list(view.groups) == GROUPS
    assert not view.groups.duplicated(["model", "measure", "kind", "group"]).any()
    said = pd.read_parquet(run.step("heads").folder / FITTED)
    part = features[features.measure == "cover"].set_index("feature")
    for name in (NAMES[0], NAMES[-1]):
        rows = said[(said.measure == "cover") & (said.feature == name)].set_index("fold").value
        assert part.value[name] == pytest.approx(rows[-1])
        assert part.spread[name] == pytest.approx(rows.drop(-1).std(), rel=1e-4)
    stability = view.stability.set_index(["model", "measure", "level"])
    assert stability.raters["xgboost_handcrafted", "gain", "feature"] == 3
    assert stability["items"]["xgboost_handcrafted", "gain", "feature"] == len(NAMES)
    assert stability.over["logistic_handcrafted", "permutation", "family"] == "draws of slides"
    # One family carries everything: every draw of slides puts it first of three.
    assert stability.w["logistic_handcrafted", "permutation", "family"] > 0.6


def test_nothing_that_is_learned_or_clustered_sees_the_held_out_slides(found, tmp_path):
    """Held-out labels are turned and columns made one: clusters, fits and refits stay what they were."""
    _, before, run = found
    values, table = planted()
    test = (table["split"] == "test").to_numpy()
    spoilt = values.copy()
    spoilt[test] = spoilt[test][:, [3]]  # on the held-out slides every column is the same: one large cluster
    turned = table.assign(label=np.where(test, 1 - table["label"], table["label"]))
    other = run_on(tmp_path / "heads", spoilt, turned)
    _, after = importances(other, pd.read_parquet(other.step("heads").folder / "predictions.parquet"))
    pd.testing.assert_frame_equal(before.clusters, after.clusters, check_exact=True)
    first, second = (pd.read_parquet(each.step("heads").folder / FITTED) for each in (run, other))
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    own = before.groups.measure.isin(["gain", "cover", "coefficient"])
    pd.testing.assert_frame_equal(before.groups[own], after.groups[own], check_exact=True)
    # The check can fail: what is judged on the held-out slides did change.
    assert not before.groups[~own].value.equals(after.groups[~own].value)


def test_refits_stand_beside_the_predictions_and_never_in_them(found):
    _, _, run = found
    dropped = pd.read_parquet(run.step("heads").folder / DROPPED)
    predictions = pd.read_parquet(run.step("heads").folder / "predictions.parquet")
    assert dropped.patch_id.tolist() == predictions.patch_id[predictions.split == "test"].tolist()
    assert {name.removeprefix("prob_") for name in dropped if name != "patch_id"} == {
        f"{head}_handcrafted_without_{group}" for head in HEADS for group in left_out_groups(NAMES)
    }
    assert not any("without" in name for name in predictions)


def test_measures_come_refit_first_and_in_the_order_of_the_columns():
    rows = [(fold, "gain", name, value) for fold in (1, -1, 0) for name, value in (("b", fold), ("a", 10.0 + fold))]
    said = pd.DataFrame(rows, columns=["fold", "measure", "feature", "value"])
    found = by_measure(said, ["b", "a"])
    np.testing.assert_array_equal(found["gain"], [[-1, 9], [0, 10], [1, 11]])


def test_halves_of_joined_sets_are_shuffled_and_judged_by_the_rungs_that_lack_them(tmp_path):
    """Embeddings know half of what there is to know; the set without them is the handcrafted rung."""
    values, table = planted()
    rng = np.random.default_rng(5)
    embeddings = rng.normal(size=(len(table), 3)).astype(np.float32)
    embeddings[:, 0] += table["label"]
    others = [f"embedding_net-{i}_rgb_whole" for i in range(3)]
    sets = {
        "handcrafted": (values[:, 3:], NAMES[3:]),
        "embeddings": (embeddings, others),
        "both": (np.column_stack([values[:, 3:], embeddings]), NAMES[3:] + others),
    }
    settings = {"heads": {"heads": ["logistic"]}, "split": {"folds": 3}, "report": {"draws": 200}}
    config = Config.model_validate(settings)
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
