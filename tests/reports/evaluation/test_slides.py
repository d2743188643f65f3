"""Scores within a slide: intervals against independent computations, and a readable figure."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from histoblend.reports.evaluation.slides import auc_interval, score_slides, share_interval, slide_intervals
from histoblend.reports.sections.errors import MAX_ROWS, forest_rows, slide_forest
from tests.reports.cohorts import make_predictions


def _one(auc, positives, negatives):
    low, high = auc_interval(np.array([auc]), np.array([positives]), np.array([negatives]))
    return float(low[0]), float(high[0])


@pytest.mark.parametrize(
    ("auc", "positives", "negatives"), [(0.893, 51, 58), (0.774, 1, 106), (0.5, 7, 7), (1.0, 5, 9)]
)
def test_interval_contains_exactly_the_areas_compatible_with_the_observed_one(auc, positives, negatives):
    # Hanley and McNeil's original variance formula, with Q1 and Q2, for every area of a fine grid.
    grid = np.linspace(0, 1, 200_001)[1:-1]
    q1, q2 = grid / (2 - grid), 2 * grid**2 / (1 + grid)
    mean_size_minus_1 = (positives + negatives) / 2 - 1
    variance = (grid * (1 - grid) + mean_size_minus_1 * (q1 - grid**2) + mean_size_minus_1 * (q2 - grid**2)) / (
        positives * negatives
    )
    inside = grid[np.abs(auc - grid) <= 1.959964 * np.sqrt(variance)]
    low, high = _one(auc, positives, negatives)
    assert low == pytest.approx(inside.min(), abs=2e-5)
    assert high == pytest.approx(1.0 if auc == 1 else inside.max(), abs=2e-5)


def test_interval_is_close_to_the_published_one_of_109_tomograms():
    # Hanley & McNeil (1982): area 0.893, standard error 0.032, of 58 normal and 51 abnormal pictures.
    # A score interval is shifted towards one half and has about the same length.
    low, high = _one(0.893, 51, 58)
    assert high - low == pytest.approx(2 * 1.96 * 0.032, rel=0.05)
    assert low < 0.893 - 1.96 * 0.032 < high < 0.893 + 1.96 * 0.032


def test_interval_of_small_samples_covers_the_true_area():
    rng = np.random.default_rng(0)
    coverage = []
    for positives, negatives in [(4, 20), (10, 10)]:
        scores = rng.normal(size=(1000, positives + negatives)) + np.where(
            np.arange(positives + negatives) < positives, 1.5, 0
        )
        pairs = scores[:, :positives, None] > scores[:, None, positives:]
        aucs = pairs.mean(axis=(1, 2))
        low, high = auc_interval(aucs, np.full(1000, positives), np.full(1000, negatives))
        truth = 0.8555  # Phi(1.5 / sqrt 2)
        coverage.append(((low <= truth) & (truth <= high)).mean())
    assert min(coverage) > 0.93
    assert max(coverage) < 0.995


def test_interval_is_symmetric_and_an_area_of_one_has_a_lower_bound_below_one():
    low, high = _one(0.8, 12, 30)
    mirrored = _one(0.2, 12, 30)
    assert mirrored == pytest.approx((1 - high, 1 - low))
    assert 0.3 < _one(1.0, 3, 20)[0] < 0.9
    assert _one(1.0, 3, 20)[1] == 1.0


@pytest.mark.parametrize(("right", "total"), [(0, 5), (5, 5), (7, 31), (300, 301)])
def test_share_interval_equals_scipy(right, total):
    expected = binomtest(right, total).proportion_ci(method="wilson")
    low, high = share_interval(np.array([right]), np.array([total]))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.fixture(scope="module")
def hand():
    """Slide a: 3 of 4 pairs in order. b: one of two positives detected. c: one true negative."""
    rows = [
        ("a", 1, 0.9),
        ("a", 1, 0.4),
        ("a", 0, 0.5),
        ("a", 0, 0.1),
        ("b", 1, 0.8),
        ("b", 1, 0.2),
        ("c", 0, 0.3),
    ]
    table = pd.DataFrame(rows, columns=["slide", "label", "prob_cnn"])
    return table.assign(split=["train"] * 4 + ["test"] * 3, patch_id=[f"p{i}" for i in range(7)])


def test_metrics_depend_on_the_classes_of_a_slide(hand):
    table = slide_intervals(hand, score_slides(hand, ["cnn"]), {"cnn": 0.45})
    values = table.set_index(["slide", "metric"]).value
    assert values.to_dict() == {
        ("a", "auc"): 0.75,
        ("a", "sensitivity"): 0.5,
        ("a", "specificity"): 0.5,
        ("b", "sensitivity"): 0.5,
        ("c", "specificity"): 1.0,
    }
    assert set(table.split[table.slide == "b"]) == {"test"}
    assert table.set_index(["slide", "metric"]).positives["a", "auc"] == 2
    rows = forest_rows(table, "cnn", "auc")
    assert rows.slide.tolist() == ["b", "a", "c"]
    assert rows.metric.tolist() == ["sensitivity", "auc", "specificity"]
    assert forest_rows(table, "cnn", "specificity").slide.tolist() == ["a", "c"]


def test_patches_without_a_slide_or_a_prediction_are_left_out(hand):
    some = hand.assign(slide=hand.slide.where(hand.slide != "a", None), prob_cnn=hand.prob_cnn.where(hand.slide != "c"))
    table = slide_intervals(some, score_slides(some, ["cnn"]), {"cnn": 0.45})
    assert table.slide.tolist() == ["b"]


def test_figure_of_many_slides_shows_the_worst():
    predictions = make_predictions(3, slides=110, test_slides=20, per_slide=10, rungs=("prevalence", "both"))
    model = "xgboost_both"
    intervals = slide_intervals(predictions, score_slides(predictions, [model]), {model: 0.5})
    figure = slide_forest(intervals, model, "auc")
    drawn = [value for trace in figure["data"] for value in trace["x"]]
    assert len(drawn) == MAX_ROWS
    assert figure["layout"]["height"] < 1400
    rest = forest_rows(intervals, model, "auc").value.iloc[MAX_ROWS:]
    assert max(drawn) <= rest.min() + 1e-4
    # Every row shows the value of the slide that it names.
    names = dict(zip(figure["layout"]["yaxis"]["tickvals"], figure["layout"]["yaxis"]["ticktext"], strict=True))
    aucs = next(trace for trace in figure["data"] if trace["name"] == "AUC, out-of-fold")
    for row, value in zip(aucs["y"], aucs["x"], strict=True):
        part = predictions[predictions.slide == names[row]]
        assert value == pytest.approx(roc_auc_score(part.label, part.prob_xgboost_both), abs=1e-4)


def test_slide_names_are_escaped():
    table = pd.DataFrame({"slide": ["<b>x</b>"] * 4, "label": [0, 1, 0, 1], "prob_cnn": [0.1, 0.9, 0.2, 0.8]})
    table = table.assign(split="train")
    figure = slide_forest(slide_intervals(table, score_slides(table, ["cnn"]), {"cnn": 0.5}), "cnn", "auc")
    assert figure["layout"]["yaxis"]["ticktext"] == ["&lt;b&gt;x&lt;/b&gt;"]
    assert "<b>" not in figure["data"][0]["text"][0]


def test_long_slide_names_are_shortened():
    name = "TCGA-" + 80 * "x" + "-$1$"
    table = pd.DataFrame(
        {"slide": [name] * 4, "label": [0, 1, 0, 1], "prob_cnn": [0.1, 0.9, 0.2, 0.8], "split": "train"}
    )
    figure = slide_forest(slide_intervals(table, score_slides(table, ["cnn"]), {"cnn": 0.5}), "cnn", "auc")
    assert figure["layout"]["yaxis"]["ticktext"] == ["TCGA-xxx…xxxx-&#36;1&#36;"]
    assert 80 * "x" in figure["data"][0]["text"][0]
