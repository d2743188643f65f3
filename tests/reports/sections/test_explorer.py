"""The explorer: features with details, patches at percentiles, and numbers that match the tables."""

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from histoblend.models.inspection.importance import COLUMNS, sum_by_family
from histoblend.models.inspection.importance_evidence import family_members
from histoblend.models.inspection.shapley import ShapleyValues
from histoblend.reports.evaluation.explorer import LEVELS, NEAR, leading_features, share_examples
from histoblend.reports.page.page import write_page
from histoblend.reports.sections.explorer import explore
from histoblend.reports.sections.importances import importances_section
from histoblend.reports.sections.shapley_charts import beeswarm, share_table, spread_out, waterfall
from tests.reports.cohorts import make_importances, make_patches, make_predictions, make_view

NASTY = "<b>x</b><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def made():
    predictions = make_predictions(0, slides=10, test_slides=3, per_slide=20)
    importances = make_importances(predictions)
    return predictions, importances, make_view(predictions, importances, make_patches(predictions))


def _tidy(values, model="xgboost_handcrafted", measure="gain"):
    rows = [[model, measure, name, *name.split("_"), value, np.nan, np.nan, np.nan] for name, value in values.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_features_that_lead_any_measure_have_details():
    a, b, c, d = (f"colour_{letter}_red_whole" for letter in "abcd")
    table = pd.concat(
        [
            _tidy({a: 0.5, b: 0.3, c: 0.2, d: 0.0}),
            # A negative drop in AUC is not important; a negative coefficient is.
            _tidy({a: -0.9, b: 0.1, c: 0.2, d: -0.8}, measure="permutation"),
            _tidy({a: 0.1, b: -0.2, c: 0.3, d: -0.9}, "logistic_handcrafted", "coefficient"),
            _tidy({"embedding_net-0_rgb_whole": 99.0}),
        ]
    )
    assert set(leading_features(table, [], 3)) == {a, c, d}
    assert leading_features(table, ["logistic_handcrafted"], 2) == [d, c]


def test_examples_are_at_their_percentiles_and_are_shared():
    rng = np.random.default_rng(0)
    first = rng.normal(size=1000)
    values = np.column_stack([first, 2 * first + 1, rng.normal(size=1000)])
    chosen = share_examples(values)
    assert chosen[0] == chosen[1]
    for column, rows in zip(values.T, chosen, strict=True):
        ranks = np.argsort(np.argsort(column))[rows] / 999
        assert np.abs(ranks - list(LEVELS)).max() <= NEAR + 1e-3
    assert share_examples(values) == chosen


def test_tables_hold_the_importances(made):
    _, importances, view = made
    explorer = explore(importances, sum_by_family(importances), {"a": "b"}, view)
    assert json.loads(json.dumps(explorer.data, allow_nan=False)) == explorer.data
    model = next(model for model in explorer.data["models"] if model["model"] == "xgboost_handcrafted")
    assert model["measures"] == ["permutation", "gain"]
    part = importances[(importances.model == model["model"]) & importances.feature.notna()]
    for name, permutation, gain in model["rows"]:
        rows = part[part.feature == name].set_index("measure")
        assert gain[0] == pytest.approx(rows.value["gain"], rel=1e-3)
        expected = rows.loc["permutation", ["value", "low", "high"]].tolist()
        assert permutation == pytest.approx(expected, rel=1e-3)


def test_embeddings_are_one_row_with_the_summed_gain(made):
    _, importances, view = made
    explorer = explore(importances, sum_by_family(importances), {}, view)
    both = next(model for model in explorer.data["models"] if model["model"] == "logistic_both")
    (name, *cells), *others = both["rows"]
    assert name == "embedding"
    assert not any(row[0].startswith("embedding") for row in others)
    rows = importances.query("model == 'logistic_both' and measure == 'coefficient' and family == 'embedding'")
    assert cells[both["measures"].index("coefficient")][0] == pytest.approx(rows.value.abs().sum(), rel=1e-3)
    assert explorer.data["features"]["embedding"] == ["embeddings", "", 0]
    assert explorer.data["words"]["embedding"] == ["20 columns of pretrained networks, taken together.", ""]


def test_detailed_features_have_three_pictures_and_percentiles(made):
    _, importances, view = made
    data = explore(importances, sum_by_family(importances), {}, view).data
    assert len(data["opened"]) == 6
    for feature, details in data["opened"].items():
        rows = view.examples[view.examples.feature == feature]
        assert [data["patches"][index]["id"] for index, _ in details["shown"]] == rows.patch_id.tolist()
        assert [value for _, value in details["shown"]] == pytest.approx(rows.value.tolist(), rel=1e-3)
        assert len(details["grid"]) == len(details["curves"]["xgboost_handcrafted"]) == 5
        assert data["features"][feature][3:] == pytest.approx(view.quantiles.loc[feature].tolist(), rel=1e-3)
    assert len({patch["id"] for patch in data["patches"]}) == len(data["patches"])


def test_without_a_view_features_are_listed_without_details(made):
    _, importances, _ = made
    explorer = explore(importances, sum_by_family(importances), {}, None)
    assert explorer.data["models"]
    assert explorer.data["opened"] == {}
    assert not explorer.charts
    assert not explorer.tables


def test_figures_are_valid_and_a_waterfall_ends_at_the_log_odds(made):
    _, importances, view = made
    charts = explore(importances, sum_by_family(importances), {}, view).charts
    assert len(charts["beeswarm"].variants) == 2
    for chart in charts.values():
        for _, figure in chart.variants:
            go.Figure(figure)
    case = view.cases.iloc[0]
    attribution = view.attributions[case.model]
    printed = charts["waterfall"].variants[0][1]["data"][0]
    assert len(printed["x"]) == len(family_members(attribution.features))
    (bars,) = waterfall(attribution, case.place, attribution.percentiles())["data"]
    assert bars["base"][0] == pytest.approx(attribution.base, abs=1e-3)
    assert bars["base"][-1] + bars["x"][-1] == pytest.approx(attribution.log_odds[case.place], abs=1e-3)
    assert share_table(attribution, case.place).log_odds.sum() == pytest.approx(attribution.log_odds[case.place])


def test_a_waterfall_keeps_the_largest_and_sums_the_rest():
    shares = np.array([[0.5, -2.0, *([0.1] * 12)]])
    attribution = ShapleyValues(
        [f"colour_s{i}_red_whole" for i in range(14)], shares, np.zeros((1, 14), np.float32), 1.0
    )
    figure = waterfall(attribution, 0, attribution.percentiles())
    assert figure["data"][0]["x"] == pytest.approx([0.4, *([0.1] * 8), 0.5, -2.0])
    labels = [note["text"] for note in figure["layout"]["annotations"]]
    assert labels[0] == "4 other features"
    assert labels[10] == "colour s1 red, whole patch = 0"
    assert labels[-2:] == ["base value +1.000", "this patch +0.700"]


def test_figures_escape_names():
    attribution = ShapleyValues([NASTY], np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]], np.float32), 0.0)
    for figure in (beeswarm(attribution), waterfall(attribution, 0, attribution.percentiles())):
        assert NASTY not in json.dumps(figure)
        assert "&lt;img" in json.dumps(figure)


def test_points_spread_out_where_they_are_dense():
    values = np.concatenate([np.linspace(-0.05, 0.05, 200), [1.0, 2.0, 3.0]])
    shift = spread_out(values, 0.4)
    assert np.abs(shift).max() <= 0.4
    assert np.ptp(shift[:200]) > 0.6
    assert np.abs(shift[200:]).max() < 0.05
    np.testing.assert_array_equal(spread_out(values, 0.4), shift)
    assert np.abs(spread_out(np.zeros(5), 0.4)).max() <= 0.4


def test_page_states_the_sample_and_names_the_most_correlated_features(made, tmp_path):
    predictions, importances, view = made
    section = importances_section(importances, {}, view)
    text = write_page(tmp_path, "title", [section]).read_text(encoding="utf-8")
    assert f"On {len(view.explained):,} patches of {view.explained.slide.nunique()} held-out slides" in text
    assert view.embeddings.feature_1[0] in text
    beeswarm = pd.read_csv(tmp_path / "beeswarm.csv")
    assert set(beeswarm.patch_id) <= set(predictions[predictions.split == "test"].patch_id)
    assert len(pd.read_csv(tmp_path / "waterfalls.csv").groupby("case")) == len(view.cases)
