"""Words and figures on groups of features, checked by hand on a few numbers."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from histoblend.features.handcrafted.plain_names import plain_name
from histoblend.models.inspection.importance import GROUPS, STABILITY, GroupView, fitted_importance
from histoblend.reports.sections.importances import group_charts, group_content, group_figure

NAMES = ["nuclei_area_grey_centre", "nuclei_count_grey_centre", "colour_mean_red_whole"]
MODEL = "xgboost_handcrafted"


def rows(measure, kind, groups):
    """One row per group, from its value, low and high; the spread is 0.01."""
    return [(MODEL, measure, kind, group, 2, value, 0.01, low, high) for group, (value, low, high) in groups.items()]


@pytest.fixture
def view():
    none = np.nan
    groups = [
        *rows("permutation", "theme", {"nuclei": (0.2, 0.1, 0.3), "colour": (0.01, -0.02, 0.04)}),
        *rows("dropped", "theme", {"nuclei": (-0.001, -0.01, 0.02), "colour": (0.03, 0.0101, 0.05)}),
        *rows("gain", "theme", {"nuclei": (0.8, none, none), "colour": (0.2, none, none)}),
        *rows("permutation", "region", {"centre": (0.0, -0.1, 0.1), "whole": (-0.001, -0.1, 0.1)}),
        *rows("permutation", "cluster", {NAMES[0]: (0.25, 0.2, 0.3)}),
        *rows("permutation", "family", {"nuclei": (0.2, 0.1, 0.3), "colour": (0.01, -0.02, 0.04)}),
    ]
    stability = [(MODEL, "gain", "feature", "folds", 5, 3, 0.83), (MODEL, "gain", "family", "folds", 5, 1, none)]
    return GroupView(
        groups=pd.DataFrame(groups, columns=GROUPS),
        clusters=pd.DataFrame(
            [(NAMES[0], 2, " ".join(NAMES[:2]), 0.9)], columns=["group", "columns", "members", "closeness"]
        ),
        stability=pd.DataFrame(stability, columns=STABILITY),
        rho=0.8,
        clustered_on=600,
    )


@pytest.fixture
def features():
    gain = fitted_importance(np.array([0.5, 0.3, 0.2]), NAMES, measure="gain", model=MODEL)
    drop = gain.assign(measure="permutation", value=[0.01, 0.02, 0.03], low=0.0, high=0.1)
    return pd.concat([gain, drop], ignore_index=True)


def test_reading_separates_permutation_from_refitting(features, view):
    (reading,) = group_content(features, view)["readings"]
    assert reading["words"] == "XGBoost on all handcrafted features"
    assert reading["text"] == (
        "Drop in AUC when a theme is shuffled: nuclei 0.200 (0.100 to 0.300); inconclusive (95 % CI includes 0): "
        "colour. Drop in AUC when a region is shuffled: inconclusive (95 % CI includes 0): centre 32 × 32 0.000 "
        "(−0.100 to 0.100), whole patch. Drop in AUC after refitting without a group: colour 0.030 (0.010 to 0.050); "
        "inconclusive (95 % CI includes 0): nuclei."
    )


def test_an_interval_with_an_end_printed_as_zero_is_inconclusive(features, view):
    table = view.groups.copy()
    table.loc[(table.measure == "dropped") & (table.group == "colour"), "low"] = 0.0004
    text = group_content(features, GroupView(table, view.clusters, view.stability, 0.8, 600))["readings"][0]["text"]
    assert "refitting without a group: inconclusive (95 % CI includes 0): colour 0.030 (0.000 to 0.050), nuc" in text


def test_a_group_that_lowers_the_auc_is_named(features, view):
    table = view.groups.copy()
    table.loc[(table.measure == "dropped") & (table.group == "nuclei"), ["value", "low", "high"]] = -0.02, -0.03, -0.01
    text = group_content(features, GroupView(table, view.clusters, view.stability, 0.8, 600))["readings"][0]["text"]
    assert text.endswith("; AUC rises: nuclei −0.020 (−0.030 to −0.010).")


def test_measures_that_disagree_are_named(features, view):
    content = group_content(features, view)
    (row,) = content["trust"]
    folds, families, slides, pairs, _ = row["cells"]
    assert folds == [{"words": "gain", "value": 0.83, "says": "agree"}]
    assert families == slides == []
    # Gain falls as permutation importance rises: the rank correlation is −1.
    assert [(cell["words"], round(cell["value"], 9), cell["says"]) for cell in pairs] == [
        ("gain and permutation", -1, "disagree")
    ]
    assert content["doubts"] == [
        "XGBoost on all handcrafted features: measures disagree on the ranking of single features (gain and "
        "permutation −1.00) and on the leading theme (nuclei by permutation and gain, colour by refitting)."
    ]


def test_clusters_are_listed_with_the_drop_of_a_single_member(features, view):
    content = group_content(features, view)
    (row,) = content["clusters"]
    assert row["words"] == plain_name(NAMES[0])
    assert row["members"] == NAMES[:2]
    (cell,) = row["cells"]
    assert (cell["value"], cell["low"], cell["high"]) == (0.25, 0.2, 0.3)
    assert cell["alone"] == 0.02
    assert content["cluster_models"] == ["XGBoost on all handcrafted features"]


def test_figure_draws_every_measure_in_the_row_of_its_group(view):
    part = view.groups[view.groups.kind.isin(["theme", "region"])]
    figure = group_figure(part, ("half", "theme", "region"))
    go.Figure(figure)  # raises if the figure is not valid
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert {name: trace["yaxis"] for name, trace in traces.items()} == {
        "permutation (group shuffled)": "y1",
        "refitting (group left out)": "y1",
        "share of gain": "y2",
    }
    assert traces["permutation (group shuffled)"]["x"] == [0.2, 0.01, 0.0, -0.001]
    assert traces["permutation (group shuffled)"]["error_x"]["array"][0] == pytest.approx(0.1)
    assert traces["share of gain"]["error_x"]["array"] == pytest.approx([0.01, 0.01])
    labels = dict(zip(figure["layout"]["yaxis"]["tickvals"], figure["layout"]["yaxis"]["ticktext"], strict=True))
    assert labels == {4: "nuclei", 3: "colour", 1: "centre 32 × 32", 0: "whole patch"}
    for name, groups in {"permutation (group shuffled)": (4, 3, 1, 0), "share of gain": (4, 3)}.items():
        assert np.abs(np.array(traces[name]["y"]) - groups).max() < 0.3
    low, high = figure["layout"]["yaxis2"]["domain"]
    assert low == pytest.approx(0)
    assert high < figure["layout"]["yaxis"]["domain"][0]


def test_a_model_without_permutation_gets_one_panel_and_its_names_are_escaped(view):
    part = view.groups[view.groups.measure == "gain"].assign(group=["<b>a", "b"])
    figure = group_figure(part, ("theme",))
    assert "yaxis2" not in figure["layout"]
    assert figure["layout"]["yaxis"]["ticktext"] == ["b", "&lt;b&gt;a"]
    assert "<b>" not in figure["data"][0]["text"][0].replace("<br>", "")


def test_charts_have_one_variant_per_model(view):
    other = view.groups.assign(model="logistic_handcrafted", measure=view.groups.measure.replace("gain", "coefficient"))
    both = GroupView(pd.concat([view.groups, other]), view.clusters, view.stability, 0.8, 600)
    charts = group_charts(both)
    assert list(charts) == ["groups", "families"]
    assert [words for words, _ in charts["groups"].variants] == [
        "XGBoost on all handcrafted features",
        "logistic regression on all handcrafted features",
    ]
    assert group_charts(GroupView(view.groups.iloc[:0], view.clusters, view.stability, 0.8, 0)) == {}
