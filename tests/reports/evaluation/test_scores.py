"""Precision–recall curves against scikit-learn, and histograms by hand; splits stay apart."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, precision_score, recall_score

from histoblend.reports.evaluation.ladder import CURVE_POINTS
from histoblend.reports.evaluation.scores import precision_recall_table, score_histogram

HAND = pd.DataFrame(
    {
        "split": ["train"] * 5 + ["test"] * 3,
        "label": [1, 0, 1, 0, 1, 0, 1, 1],
        "prob_cnn": [0.9, 0.9, 0.6, 0.02, np.nan, 1.0, 0.0, 0.05],
    }
)


def test_curve_by_hand_for_each_split():
    table = precision_recall_table(HAND, "cnn")
    oof = table[table.split == "oof"]
    assert oof.threshold.tolist()[:3] == [0.02, 0.6, 0.9]
    assert oof.recall.tolist() == [1, 1, 0.5, 0]
    assert oof.precision.tolist() == pytest.approx([2 / 4, 2 / 3, 1 / 2, 1])
    test = table[table.split == "test"]
    assert test.recall.tolist() == [1, 0.5, 0, 0]
    assert test.precision.tolist() == pytest.approx([2 / 3, 1 / 2, 0, 1])


def test_thinned_curve_keeps_its_ends_and_area():
    rng = np.random.default_rng(1)
    labels = (rng.random(5000) < 0.2).astype(int)
    scores = 1 / (1 + np.exp(-(2 * labels - 1 + rng.normal(size=5000))))
    table = precision_recall_table(pd.DataFrame({"split": "train", "label": labels, "prob_cnn": scores}), "cnn")
    assert len(table) <= CURVE_POINTS + 2
    assert table.recall.iloc[[0, -1]].tolist() == [1, 0]
    area = -np.sum(np.diff(table.recall) * table.precision.iloc[:-1])
    assert area == pytest.approx(average_precision_score(labels, scores), abs=0.01)
    for row in table.iloc[5:-5:40].to_dict("records"):
        assert row["recall"] == pytest.approx(recall_score(labels, scores >= row["threshold"]))
        assert row["precision"] == pytest.approx(precision_score(labels, scores >= row["threshold"]))


def test_histogram_counts_each_class_once():
    table = score_histogram(HAND, "cnn")
    assert len(table) == 40
    oof = table[table.split == "oof"].set_index("low")
    assert oof.negatives[oof.negatives > 0].to_dict() == {0.0: 1, 0.9: 1}
    assert oof.positives[oof.positives > 0].to_dict() == {0.6: 1, 0.9: 1}
    test = table[table.split == "test"]
    assert test.negatives.iloc[-1] == 1  # a score of 1 is in the last bin
    assert test.positives.iloc[:2].tolist() == [1, 1]
    assert test[["negatives", "positives"]].sum().tolist() == [1, 2]


def test_a_split_without_positives_has_no_curve():
    negatives = HAND.assign(label=HAND.label.where(HAND.split == "train", 0))
    assert set(precision_recall_table(negatives, "cnn").split) == {"oof"}
    assert set(score_histogram(negatives, "cnn").split) == {"oof", "test"}
